//! Which tokens run in the next step.
//!
//! Order of a step:
//! 1. every decoding request, one token each, growing where it must: a token that is known, with
//!    the drafts that may come after it, or the one that the step in flight samples (`decode`);
//! 2. a chunk of every prefilling request, while the token budget lasts (`prefill`);
//! 3. waiting requests that fit start with a chunk, while the budget lasts (`prefill`);
//! 4. what was chosen is checked, written into the arrays, and is in flight (`launch`).
//!
//! Events come in afterwards and settle what was in flight, oldest first (`settle`).
//!
//! Requests with another side are outside of this as long as that side has to act: `rooms` and `seam`
//! say how, `receive` and `arrive` are one side of it, `turns`, `send` and `outbox` the other.

mod arrive;
mod decode;
mod launch;
mod outbox;
mod prefill;
mod receive;
mod requests;
mod reuse;
mod rooms;
mod seam;
mod send;
mod settle;
mod turns;

use std::collections::VecDeque;
use std::ops::Range;

pub use launch::Plan;
pub use outbox::Posting;
pub(crate) use requests::{Place, Queue, Requests};
pub(crate) use rooms::Rooms;
pub use rooms::{Check, Errands, OnFailure, Reset, RoomSettings, Transfer};
pub use settle::{Answer, Event, Outcome};

use crate::admit::Pools;
use crate::budget::PoolSizes;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::{RequestId, StepId, narrow};
use crate::limits::Limits;
use crate::metadata::RowInput;
use crate::planted::{self, Bug};
use crate::pool::Pool;
use crate::prefix::Prefix;
use crate::recipe::{Dispatch, Recipe};
use crate::request::{Finish, Phase, Rank, Request, Waiting};
use crate::table::Tables;
use crate::transfer::message::Reason;

/// Requests, pools and steps in flight.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) dispatch: Dispatch,
    pub(crate) geometry: Geometry,
    ratios: Vec<usize>,
    pub(crate) pools: Pools,
    pub(crate) prefix: Prefix,
    pub(crate) requests: Requests,
    pub(crate) queue: Queue,
    /// In order of rank: the last is the first to be preempted.
    pub(crate) running: Vec<(Rank, Place)>,
    /// Oldest first.
    pub(crate) flights: VecDeque<Flight>,
    /// Rows of the step being chosen; then of a flight; then empty and here again.
    chosen: Vec<Row>,
    /// Requests whose next chunk is to be chosen.
    prefilling: Vec<Place>,
    spare_rows: Vec<Vec<Row>>,
    /// Requests of the step being settled whose newest tokens go to their lists, one after the
    /// other, so that they wait for all those pages together.
    to_gather: Vec<(Place, RequestId)>,
    /// The newest step that was planned, and the newest that is done.
    newest: StepId,
    done: StepId,
    last_id: RequestId,
    pub(crate) now_us: u64,
    /// Requests whose other side is elsewhere.
    pub(crate) rooms: Rooms,
    /// What `plan` ended, to be told by the next `advance`.
    untold: Outcome,
    pub(crate) num_preemptions: usize,
    /// Times that nothing could move and the last request was preempted to make room.
    pub(crate) num_stalls: usize,
}

/// One request's part of a step, in half a cache line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    place: Place,
    start: u32,
    id: RequestId,
    len: u32,
    num_samples: u32,
    source: Option<u32>,
}

const _: () = assert!(size_of::<Row>() == 32);

impl Row {
    /// `source`: its token is this sample of the step before.
    fn new(
        place: Place,
        id: RequestId,
        positions: Range<usize>,
        num_samples: usize,
        source: Option<usize>,
    ) -> Self {
        let (start, len) = (narrow(positions.start), narrow(positions.len()));
        let (num_samples, source) = (narrow(num_samples), source.map(narrow));
        Self { place, start, id, len, num_samples, source }
    }

    fn start(&self) -> usize {
        self.start as usize
    }

    fn len(&self) -> usize {
        self.len as usize
    }

    fn end(&self) -> usize {
        self.start() + self.len()
    }

    /// Samples of its last positions: none in the middle of a prompt, then one, or one per draft
    /// and one more.
    fn num_samples(&self) -> usize {
        self.num_samples as usize
    }

    /// What the arrays hold of it, but for its tokens.
    fn input<'a>(&self, tables: &'a Tables) -> RowInput<'a> {
        RowInput {
            tokens: &[],
            source: self.source.map(|sample| sample as usize),
            drafts: &[],
            next: None,
            start: self.start(),
            tables,
            num_samples: self.num_samples(),
            bank: 0,
        }
    }

    /// Drafts among its tokens, the last of them: every one is sampled behind, and so is the token
    /// before the first.
    fn num_drafts(&self) -> usize {
        self.num_samples().saturating_sub(1)
    }

    /// Positions that are sure to count before the first of its samples.
    fn num_sure(&self) -> usize {
        self.end() - self.num_samples()
    }
}

/// A step that is planned and not done.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) step: StepId,
    rows: Vec<Row>,
    num_samples: usize,
    /// Rows that have samples.
    num_answers: usize,
}

impl Scheduler {
    pub(crate) fn new(
        geometry: Geometry,
        sizes: &PoolSizes,
        limits: Limits,
    ) -> Result<Self, Error> {
        let most_rows = limits.max_num_requests.min(sizes.state_slots);
        Ok(Self {
            pools: Pools::new(&geometry, sizes, &limits)?,
            prefix: Prefix::new(&geometry, &limits, sizes.full_blocks),
            ratios: geometry.ratios_in_use(),
            chosen: Vec::with_capacity(most_rows),
            prefilling: Vec::new(),
            to_gather: Vec::new(),
            running: Vec::with_capacity(most_rows),
            dispatch: Dispatch::new(Recipe::fixed(&limits)),
            limits,
            geometry,
            requests: Requests::default(),
            queue: Queue::default(),
            flights: VecDeque::new(),
            spare_rows: Vec::new(),
            newest: StepId(0),
            done: StepId(0),
            last_id: RequestId(0),
            now_us: 0,
            rooms: Rooms::default(),
            untold: Outcome::default(),
            num_preemptions: 0,
            num_stalls: 0,
        })
    }

    /// Enqueues a request whose fields were checked.
    pub(crate) fn submit(
        &mut self,
        priority: i32,
        make: impl FnOnce(RequestId, Rank) -> Request,
    ) -> RequestId {
        let id = RequestId(self.last_id.0 + 1);
        let rank = Rank::new(self.newest, priority, self.limits.aging_steps, id);
        let request = make(id, rank);
        self.last_id = id;
        let num_tokens = request.tokens.len();
        let place = self.requests.insert(Phase::Waiting(Waiting::new(request)));
        self.queue.insert(rank, place, num_tokens);
        id
    }

    /// Was this id ever given out?
    pub(crate) fn knows(&self, id: RequestId) -> bool {
        (1..=self.last_id.0).contains(&id.0)
    }

    /// Chooses the rows of the next step.
    ///
    /// With nothing in flight and a request at hand there is always something to choose: the
    /// first in rank can grow at the cost of all others, and alone it fits (checked at submit).
    /// Should a broken pool make that untrue, the last request gives way until it holds again.
    fn choose(&mut self) {
        self.choose_once();
        while self.chosen.is_empty() && self.flights.is_empty() && !self.running.is_empty() {
            if !self.forfeit_saves() {
                self.num_stalls += 1;
                self.preempt_last();
            }
            self.choose_once();
        }
    }

    fn choose_once(&mut self) {
        debug_assert!(self.chosen.is_empty());
        if self.running.is_empty() && self.flights.is_empty() {
            if self.pools.each().iter().any(|(_, pool)| pool.counts().doubted > 0) {
                self.prefix.clear(); // so that no handle is left that could be in doubt
                self.pools.for_each(Pool::repair);
            }
            self.pools.reclaim(self.done);
        }
        self.seat();
        let budget = self.choose_decodes();
        let budget = self.choose_chunks(budget);
        self.choose_starts(budget);
    }

    /// The request that comes last in rank goes back to the queue.
    fn preempt_last(&mut self) {
        if planted::is(Bug::PreemptsFirst) {
            self.running.rotate_left(1);
        }
        let Some((rank, place)) = self.running.pop() else { return };
        let mut phase = self.requests.take(place);
        if let Some(active) = phase.active_mut() {
            self.leave_cache(active);
        }
        let waiting = match phase {
            Phase::Prefilling(prefilling) => prefilling.0.preempt(),
            Phase::Decoding(decoding) => decoding.active.preempt(),
            Phase::Waiting(waiting) => waiting,
        };
        self.queue.insert(rank, place, waiting.request.tokens.len());
        self.requests.put(place, Phase::Waiting(waiting));
        self.num_preemptions += 1;
        self.pools.reclaim(self.done);
    }

    /// Takes a request out of every list; its blocks retire, and its room is given up.
    pub(crate) fn end(&mut self, place: Place) -> RequestId {
        let mut phase = self.requests.remove(place);
        if let Some(active) = phase.active_mut() {
            self.leave_cache(active);
        }
        let request = phase.request();
        match phase {
            Phase::Waiting(_) => self.queue.remove(request.asked.rank, request.tokens.len()),
            Phase::Prefilling(_) | Phase::Decoding(_) => {
                if let Ok(index) = self.running.binary_search(&(request.asked.rank, place)) {
                    self.running.remove(index);
                }
            }
        }
        let id = request.id;
        self.give_up_room(id, Reason::Cancelled);
        if planted::is(Bug::EndLeaks) {
            std::mem::forget(phase);
        }
        id
    }

    /// Ends a request whose blocks are in doubt, to be told by the next `advance`.
    fn fail(&mut self, place: Place) {
        let id = self.end(place);
        self.untold.push(id, None, Some(Finish::Violation));
        self.pools.reclaim(self.done);
    }

    /// Ends a request on its owner's wish; false if it has ended.
    pub(crate) fn abort(&mut self, id: RequestId) -> bool {
        let Some(place) = self.requests.place_of(id) else { return self.abort_elsewhere(id) };
        if planted::is(Bug::AbortIgnored) && self.requests.at(place).active().is_none() {
            return true;
        }
        self.end(place);
        if !planted::is(Bug::AbortWaits) {
            self.pools.reclaim(self.done);
        }
        true
    }

    /// Ends everything.
    pub(crate) fn clear(&mut self) {
        let places: Vec<Place> = self.requests.iter().map(|(place, _)| place).collect();
        for place in places {
            self.end(place);
        }
        self.clear_rooms();
        self.prefix.clear();
        self.flights.clear();
    }
}
