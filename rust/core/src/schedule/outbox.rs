//! Tickets on their way to the transport: bounded bytes per peer, in order.

use std::collections::{BTreeMap, VecDeque};

use super::Scheduler;
use crate::geometry::Geometry;
use crate::planted::{self, Bug};
use crate::transfer::ids::{Incarnation, RoomKey, Ticket};
use crate::transfer::runs::{Copies, InFlight, Run};

/// To be posted: copies from this worker's memory into the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Posting {
    pub key: RoomKey,
    pub ticket: Ticket,
    pub copies: Copies,
}

/// One peer's tickets.
#[derive(Debug)]
struct Lane {
    in_flight: InFlight,
    waiting: VecDeque<(Posting, u64)>,
}

/// All tickets that have not ended.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    most_bytes: u64,
    lanes: BTreeMap<Incarnation, Lane>,
    posted: BTreeMap<Ticket, (Incarnation, u64)>,
}

impl Outbox {
    pub(super) fn new(most_bytes: u64) -> Self {
        Self { most_bytes, ..Self::default() }
    }

    pub(super) fn put(&mut self, posting: Posting, bytes: u64) {
        let in_flight = InFlight::new(self.most_bytes);
        let lane = self.lanes.entry(posting.key.peer);
        let lane = lane.or_insert_with(|| Lane { in_flight, waiting: VecDeque::new() });
        lane.waiting.push_back((posting, bytes));
    }

    /// The next one that may go.
    fn next(&mut self) -> Option<Posting> {
        for (&peer, lane) in &mut self.lanes {
            let Some(&(_, bytes)) = lane.waiting.front() else { continue };
            if lane.in_flight.admit(bytes) {
                let (posting, bytes) = lane.waiting.pop_front()?;
                self.posted.insert(posting.ticket, (peer, bytes));
                return Some(posting);
            }
        }
        None
    }

    pub(super) fn ended(&mut self, ticket: Ticket) {
        let Some((peer, bytes)) = self.posted.remove(&ticket) else { return };
        let Some(lane) = self.lanes.get_mut(&peer) else { return };
        lane.in_flight.ended(bytes);
        if lane.waiting.is_empty() && !self.posted.values().any(|&(other, _)| other == peer) {
            self.lanes.remove(&peer);
        }
    }

    /// Tickets of a room that were not posted, and never will be.
    fn take_back(&mut self, key: RoomKey) -> Vec<Ticket> {
        let Some(lane) = self.lanes.get_mut(&key.peer) else { return vec![] };
        let (mine, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut lane.waiting).into_iter().partition(|(p, _)| p.key == key);
        lane.waiting = others;
        mine.into_iter().map(|(posting, _)| posting.ticket).collect()
    }

    /// Tickets that wait, and those that are under way.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.lanes.values().map(|lane| lane.waiting.len()).sum(), self.posted.len())
    }
}

impl Scheduler {
    /// Posts what may go.
    pub(super) fn post_waiting(&mut self) {
        while let Some(posting) = self.rooms.outbox.next() {
            self.untold.errands.postings.push(posting);
        }
    }

    /// A room is given up: what was not posted counts as drained, for nothing of it is under way.
    pub(super) fn unpost(&mut self, key: RoomKey) {
        for ticket in self.rooms.outbox.take_back(key) {
            if !planted::is(Bug::UnpostedForgotten) {
                self.end_on_machine(ticket, true);
            }
        }
    }
}

/// Bytes that a ticket moves.
pub(super) fn num_bytes(copies: &Copies, geometry: &Geometry) -> u64 {
    let items = |runs: &[Run]| runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
    let state = u64::from(copies.state.is_some()) * geometry.state_slot_bytes() as u64;
    items(&copies.full) * geometry.full_block_bytes() as u64
        + items(&copies.swa) * geometry.swa_block_bytes() as u64
        + state
}
