//! Requests whose tokens are generated elsewhere: what they compute leaves as soon as it is done.
//!
//! ```text
//!   parked ──aux row──▶ wanted ──Offer──▶ queue ─▶ prefilling ── step done ──▶ a ticket per chunk
//!                                                      └── last chunk done, sample finite ──▶ a ticket
//!                                          for the rest: partial block, window tail, slot, aux row
//! ```
//! 1. Nothing is computed before there is a place for it on the other side.
//! 2. A ticket reads its blocks until it has ended, whatever becomes of the request.
//! 3. The last chunk leaves only behind a sample that was finite. A request that was preempted
//!    computes again what it needs and sends only what was not sent.

use super::{Place, Row, Scheduler};
use crate::block::{Block, Open};
use crate::error::Violation;
use crate::geometry::Geometry;
use crate::ids::{BlockId, RequestId};
use crate::planted::{self, Bug};
use crate::request::{Active, Finish, Phase, Request, Waiting};
use crate::transfer::ids::{RoomKey, Ticket};
use crate::transfer::message::Reason;

/// A request whose tokens are generated elsewhere.
#[derive(Debug)]
pub(crate) struct Departing {
    pub(super) key: RoomKey,
    pub(super) submitted_us: u64,
    pub(crate) stage: Stage,
    /// Full blocks before this index are in tickets, or were on the other side before.
    pub(super) num_sent: usize,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Waits for its turn to ask for a place on the other side; not in the queue yet.
    Parked(Box<Request>),
    /// Has asked for it.
    Wanted(Box<Request>, Block<Open>),
    /// In the queue or running. The row is filled in for the last chunk.
    Computing(Block<Open>),
    /// All is computed and in tickets; ends so when the other side has it.
    Computed(Finish),
    /// Between two of them.
    Moving,
}

/// What one ticket reads: full blocks, and with the last chunk window blocks, slot and aux row.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) full: Vec<u32>,
    pub(super) tail: Option<(Vec<u32>, u32, u32)>,
}

impl Departing {
    pub(super) fn explain(&self) -> &'static str {
        match self.stage {
            Stage::Parked(_) => "waits for its turn to ask for a place",
            Stage::Wanted(..) => "has asked for a place",
            Stage::Computing(_) | Stage::Moving => "is computed and sent chunk by chunk",
            Stage::Computed(_) => "is computed; its last chunks are on their way",
        }
    }

    pub(super) fn holds_aux(&self) -> bool {
        matches!(self.stage, Stage::Wanted(..) | Stage::Computing(_))
    }

    /// Its tokens, while it waits for the other side.
    pub(super) fn waits_with(&self) -> Option<usize> {
        match &self.stage {
            Stage::Parked(request) | Stage::Wanted(request, _) => Some(request.tokens.len()),
            _ => None,
        }
    }
}

impl Scheduler {
    /// There is a place for the prompt on the other side: it is computed, in its turn.
    pub(super) fn place_found(&mut self, id: RequestId) {
        let key = self.rooms.departing.get(&id).map(|departing| departing.key);
        let Some(num_cached) = key.and_then(|key| self.offered(key)) else { return };
        let Some(departing) = self.rooms.departing.get_mut(&id) else { return };
        let stage = std::mem::replace(&mut departing.stage, Stage::Moving);
        let Stage::Wanted(request, aux) = stage else {
            departing.stage = stage;
            return;
        };
        departing.stage = Stage::Computing(aux);
        departing.num_sent = if planted::is(Bug::HitSent) { 0 } else { num_cached };
        let (rank, num_tokens) = (request.asked.rank, request.tokens.len());
        self.rooms.turns.answered(departing.key.peer, num_tokens);
        let place = self.requests.insert(Phase::Waiting(Waiting::new(*request)));
        self.queue.insert(rank, place, num_tokens);
    }

    /// A request starts: what the cache had of its prompt leaves at once.
    pub(super) fn send_cached(&mut self, place: Place) {
        let Some(active) = self.requests.at(place).active() else { return };
        let (id, written) = (active.request.id, active.planned());
        if self.rooms.departs(id) && self.send_blocks(place, id, written).is_err() {
            self.fail(place);
        }
    }

    /// A chunk that is not the last is computed: its full blocks leave.
    pub(super) fn send_chunk(&mut self, row: &Row) -> Result<(), Violation> {
        if self.rooms.departs(row.id) {
            self.send_blocks(row.place, row.id, row.end())?;
        }
        Ok(())
    }

    fn send_blocks(
        &mut self,
        place: Place,
        id: RequestId,
        written: usize,
    ) -> Result<(), Violation> {
        let ticket = self.rooms.next_ticket();
        let Some(departing) = self.rooms.departing.get_mut(&id) else { return Ok(()) };
        let Some(active) = self.requests.at(place).active() else { return Ok(()) };
        let num_full = written / self.geometry.block_tokens;
        // The last chunk takes the last block along, full or not.
        let num_full = num_full.min((active.request.tokens.len() - 1) / self.geometry.block_tokens);
        if num_full <= departing.num_sent {
            return Ok(());
        }
        let full = read_full(active, ticket, departing.num_sent..num_full)?;
        if !planted::is(Bug::SentTwice) {
            departing.num_sent = num_full;
        }
        let key = departing.key;
        self.send(key, ticket, Sources { full, tail: None });
        Ok(())
    }

    /// The last chunk is computed, and its sample was finite: the rest leaves, if the tokens of this
    /// request are generated elsewhere. Returns how the request ends now; None if it ends when the
    /// other side has everything.
    pub(super) fn send_last(
        &mut self,
        place: Place,
        id: RequestId,
        finish: Finish,
    ) -> Option<Finish> {
        if self.rooms.departs(id) { self.send_rest(place, id, finish) } else { Some(finish) }
    }

    #[cold]
    fn send_rest(&mut self, place: Place, id: RequestId, finish: Finish) -> Option<Finish> {
        if finish == Finish::NonFinite && !planted::is(Bug::NonFiniteSent) {
            self.give_up_room(id, Reason::NonFinite);
            return Some(finish);
        }
        let ticket = self.rooms.next_ticket();
        let Some(departing) = self.rooms.departing.get_mut(&id) else { return Some(finish) };
        let Some(active) = self.requests.at(place).active() else { return Some(finish) };
        let Stage::Computing(aux) = &departing.stage else { return Some(finish) };
        let read = read_last(active, ticket, departing.num_sent, aux, &self.geometry);
        let Ok(sources) = read else { return Some(Finish::Violation) };
        departing.stage = Stage::Computed(finish);
        let key = departing.key;
        self.send(key, ticket, sources);
        None
    }

    /// A transfer reads no more.
    pub(super) fn end_ticket(&mut self, ticket: Ticket) {
        let num_read: usize = self.pools.each().iter().map(|(_, pool)| pool.end_read(ticket)).sum();
        self.rooms.num_stale_proofs += usize::from(num_read == 0);
    }

    /// The other side has everything.
    pub(super) fn departed(&mut self, id: RequestId) {
        let departing = self.rooms.take_departing(id);
        if let Some(Departing { stage: Stage::Computed(finish), .. }) = departing {
            self.untold.push(id, None, Some(finish));
        }
    }

    /// The room failed: nothing is computed for it any more.
    pub(super) fn turn_back(&mut self, id: RequestId) {
        if self.rooms.take_departing(id).is_none() {
            return;
        }
        if let Some(place) = self.requests.place_of(id) {
            self.end(place);
            self.pools.reclaim(self.done);
        }
        self.untold.push(id, None, Some(Finish::Transfer));
    }
}

/// Holds of `ticket` on full blocks of these indices.
fn read_full(
    active: &Active,
    ticket: Ticket,
    indices: std::ops::Range<usize>,
) -> Result<Vec<u32>, Violation> {
    let ids = active.tables.full.read_by(ticket, indices)?;
    Ok(ids.into_iter().map(BlockId::get).collect())
}

/// Holds of `ticket` on everything that goes with the last chunk.
fn read_last(
    active: &Active,
    ticket: Ticket,
    num_sent: usize,
    aux: &Block<Open>,
    geometry: &Geometry,
) -> Result<Sources, Violation> {
    let num_tokens = active.request.num_prompt_tokens as usize;
    let tables = &active.tables;
    let full = read_full(active, ticket, num_sent..geometry.full_blocks(num_tokens))?;
    let window = geometry.swa_block_tokens;
    let tail = (num_tokens - geometry.tail_tokens(num_tokens)) / window;
    let tail = tail..tail + geometry.tail_swa_blocks(num_tokens);
    let swa = tables.swa.read_by(ticket, tail)?.into_iter().map(BlockId::get).collect();
    tables.slot.read_by(ticket)?;
    aux.read_by(ticket)?;
    Ok(Sources { full, tail: Some((swa, tables.slot.id().get(), aux.id().get())) })
}
