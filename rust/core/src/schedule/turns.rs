//! Who asks each peer for a place next: no more than the next steps could compute.
//!
//! A place is memory of the peer that nobody else can use meanwhile, so it is not asked for before its
//! turn. Peers have turns of their own: one that has no place holds up nobody's prompts but its own.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Scheduler;
use super::send::{Departing, Stage};
use crate::ids::RequestId;
use crate::planted::{self, Bug};
use crate::request::{Rank, Request};
use crate::transfer::ids::Incarnation;

/// Prompts for which a place is asked for ahead of their turn: so many steps full of tokens.
const WANTED_STEPS: usize = 2;

/// Whose turn it is to ask each peer for a place.
#[derive(Debug, Default)]
pub(super) struct Turns(BTreeMap<Incarnation, Turn>);

#[derive(Debug, Default)]
struct Turn {
    /// Those that have not asked, in the order in which they will, with their tokens.
    parked: BTreeMap<Rank, (RequestId, usize)>,
    /// Of those that have asked and were not answered.
    num_wanted_tokens: usize,
}

impl Turn {
    fn next(&self, most: usize) -> Option<RequestId> {
        let (_, &(id, num_tokens)) = self.parked.first_key_value()?;
        let fits = self.num_wanted_tokens == 0 || self.num_wanted_tokens + num_tokens <= most;
        fits.then_some(id)
    }
}

impl Turns {
    pub(super) fn park(&mut self, peer: Incarnation, request: &Request) {
        let turn = self.0.entry(peer).or_default();
        turn.parked.insert(request.asked.rank, (request.id, request.tokens.len()));
    }

    /// The next that may ask, of a peer after this one.
    fn next_after(
        &self,
        peer: Option<Incarnation>,
        most: usize,
    ) -> Option<(Incarnation, RequestId)> {
        let from = peer.map_or(Bound::Unbounded, Bound::Excluded);
        let mut turns = self.0.range((from, Bound::Unbounded));
        turns.find_map(|(&peer, turn)| turn.next(most).map(|id| (peer, id)))
    }

    fn has_next(&self, peer: Incarnation, most: usize) -> bool {
        self.0.get(&peer).is_some_and(|turn| turn.next(most).is_some())
    }

    fn ask(&mut self, peer: Incarnation, rank: Rank, num_tokens: usize) {
        let turn = self.0.entry(peer).or_default();
        turn.parked.remove(&rank);
        turn.num_wanted_tokens += num_tokens;
    }

    pub(super) fn answered(&mut self, peer: Incarnation, num_tokens: usize) {
        if let Some(turn) = self.0.get_mut(&peer) {
            turn.num_wanted_tokens -= if planted::is(Bug::TurnLeaks) { 0 } else { num_tokens };
        }
        self.forget(peer);
    }

    /// A request will not ask, or need an answer, any more.
    pub(super) fn leave(&mut self, departing: &Departing) {
        let peer = departing.key.peer;
        match &departing.stage {
            Stage::Parked(request) => {
                if let Some(turn) = self.0.get_mut(&peer) {
                    turn.parked.remove(&request.asked.rank);
                }
                self.forget(peer);
            }
            Stage::Wanted(request, _) => self.answered(peer, request.tokens.len()),
            _ => {}
        }
    }

    fn forget(&mut self, peer: Incarnation) {
        let is_idle = |turn: &Turn| turn.parked.is_empty() && turn.num_wanted_tokens == 0;
        if self.0.get(&peer).is_some_and(is_idle) {
            self.0.remove(&peer);
        }
    }
}

impl Scheduler {
    /// Asks every peer for places for the next prompts, as many as the next steps could compute; at
    /// least one.
    pub(super) fn want_next(&mut self) {
        let most = WANTED_STEPS * self.limits.max_num_tokens;
        let mut after = None;
        while let Some((peer, id)) = self.rooms.turns.next_after(after, most) {
            after = Some(peer);
            let Some(departing) = self.rooms.departing.get_mut(&id) else { return };
            let Some(aux) = self.pools.aux.take(id) else { return };
            let stage = std::mem::replace(&mut departing.stage, Stage::Moving);
            let Stage::Parked(request) = stage else { return };
            let (key, rank, num_tokens) = (departing.key, request.asked.rank, request.tokens.len());
            departing.stage = Stage::Wanted(request, aux);
            self.rooms.turns.ask(peer, rank, num_tokens);
            if self.offered(key).is_some() {
                self.place_found(id);
            } else {
                self.want(key);
            }
            after = after.filter(|_| !self.rooms.turns.has_next(peer, most));
        }
    }
}
