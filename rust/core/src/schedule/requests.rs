//! All requests that have not ended, at fixed places: hot paths go by place, never by id.

use std::collections::BTreeMap;

use crate::ids::{RequestId, narrow};
use crate::planted::{self, Bug};
use crate::request::{Phase, Rank};

/// Where a request is stored. Another may come to be there later, so compare the id as well.
pub(crate) type Place = u32;

/// Requests by place, and their places by id for the calls that name one.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    places: Vec<Seat>,
    vacant: Vec<Place>,
    by_id: BTreeMap<RequestId, Place>,
}

/// Begins with a cache line; a step looks at all of its five.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Seat(Option<Phase>);

const _: () = assert!(size_of::<Seat>() == 5 * 64);

impl Requests {
    pub(crate) fn insert(&mut self, phase: Phase) -> Place {
        let id = phase.request().id;
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(Seat::default());
            narrow(self.places.len() - 1)
        });
        self.places[place as usize].0 = Some(phase);
        self.by_id.insert(id, place);
        place
    }

    /// For good.
    pub(crate) fn remove(&mut self, place: Place) -> Phase {
        let phase = self.take(place);
        self.by_id.remove(&phase.request().id);
        self.vacant.push(place);
        phase
    }

    /// To be put back in another phase.
    pub(crate) fn take(&mut self, place: Place) -> Phase {
        self.places[place as usize].0.take().expect("lists name places that are occupied")
    }

    pub(crate) fn put(&mut self, place: Place, phase: Phase) {
        self.places[place as usize].0 = Some(phase);
    }

    pub(crate) fn at(&self, place: Place) -> &Phase {
        self.places[place as usize].0.as_ref().expect("lists name places that are occupied")
    }

    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Phase {
        self.places[place as usize].0.as_mut().expect("lists name places that are occupied")
    }

    /// What is at a place that was noted earlier, if it is still that request.
    pub(crate) fn still_at(&mut self, place: Place, id: RequestId) -> Option<&mut Phase> {
        let any = planted::is(Bug::EndedSettled);
        self.places[place as usize].0.as_mut().filter(|phase| any || phase.request().id == id)
    }

    /// The same, to look at.
    pub(crate) fn seen_at(&self, place: Place, id: RequestId) -> Option<&Phase> {
        self.places[place as usize].0.as_ref().filter(|phase| phase.request().id == id)
    }

    pub(crate) fn place_of(&self, id: RequestId) -> Option<Place> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Place, &Phase)> {
        self.by_id.values().map(|&place| (place, self.at(place)))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

/// Requests that wait, in the order in which they will start, and how many tokens they have.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    by_rank: BTreeMap<Rank, Place>,
    num_tokens: usize,
}

impl Queue {
    pub(crate) fn insert(&mut self, rank: Rank, place: Place, num_tokens: usize) {
        self.by_rank.insert(rank, place);
        self.num_tokens += num_tokens;
    }

    pub(crate) fn remove(&mut self, rank: Rank, num_tokens: usize) {
        if self.by_rank.remove(&rank).is_some() && !planted::is(Bug::QueueTokensLeak) {
            self.num_tokens -= num_tokens;
        }
    }

    /// A request in the queue got more tokens, from a step that it was part of before.
    pub(crate) fn more_tokens(&mut self, count: usize) {
        self.num_tokens += count;
    }

    pub(crate) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The first after `rank`, or the first of all.
    pub(crate) fn next_after(&self, rank: Option<Rank>) -> Option<(Rank, Place)> {
        let from = rank.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (&rank, &place) = self.by_rank.range((from, std::ops::Bound::Unbounded)).next()?;
        Some((rank, place))
    }

    pub(crate) fn num_before(&self, rank: Rank) -> usize {
        self.by_rank.range(..rank).count()
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.by_rank.values().copied()
    }
}
