//! Between the machines of the rooms and what requests hold: events go in, actions come out.
//!
//! A machine decides when; here it is done. No machine is called while another acts: what an action
//! leads to is done after it.

use super::Scheduler;
use super::outbox::{Posting, num_bytes};
use super::receive::Arriving;
use super::rooms::{Check, Reset, Transfer};
use super::send::{Departing, Sources, Stage};
use super::settle::Event;
use crate::error::{Code, Error, Invalid};
use crate::ids::{Group, RequestId};
use crate::planted::{self, Bug};
use crate::prefix::hash::Key;
use crate::request::{Rank, Request};
use crate::transfer::action::Action;
use crate::transfer::ids::{RoomKey, Ticket};
use crate::transfer::message::{Offer, Prompt, Reason};
use crate::transfer::receiving::Inspection;
use crate::transfer::rooms::{Denied, Side};
use crate::transfer::runs::{Chunk, Tail};
use crate::transfer::sending::Lengths;

/// Microseconds of the milliseconds that machines count.
const MILLISECOND_US: u64 = 1000;

impl Scheduler {
    /// Takes a request that has another side, or says why its room cannot begin.
    pub(crate) fn submit_transfer(
        &mut self,
        priority: i32,
        transfer: &Transfer,
        make: impl FnOnce(RequestId, Rank) -> Request,
    ) -> Result<RequestId, Error> {
        let id = RequestId(self.last_id.0 + 1);
        let rank = Rank::new(self.newest, priority, self.limits.aging_steps, id);
        let mut request = make(id, rank);
        let key = RoomKey { room: transfer.room, epoch: transfer.epoch, peer: transfer.peer };
        let prompt = prompt(request.tokens.all());
        let lengths = self.lengths(request.tokens.len());
        let machines = self.rooms.machines.as_mut().ok_or(Error::NoRooms)?;
        match machines.side() {
            Side::Prefill => {
                machines.send(key, prompt, lengths).map_err(|denied| refused(key, denied))?;
                self.rooms.turns.park(key.peer, &request);
                let submitted_us = request.asked.submitted_us;
                let stage = Stage::Parked(Box::new(request));
                let departing = Departing { key, submitted_us, stage, num_sent: 0 };
                self.rooms.departing.insert(id, departing);
            }
            Side::Decode => {
                let ranks = &transfer.peer_ranks;
                let started = machines.receive(key, prompt, ranks);
                let actions = started.map_err(|denied| refused(key, denied))?;
                let writers = ranks.iter().map(|&rank| key.writer(rank)).collect();
                let arriving = Arriving::new(request, key, writers, transfer.on_failure);
                self.rooms.arriving.insert(id, arriving);
                self.act(actions);
            }
        }
        self.rooms.by_key.insert(key, id);
        self.last_id = id;
        Ok(id)
    }

    fn lengths(&self, num_tokens: usize) -> Lengths {
        Lengths {
            full: self.geometry.full_blocks(num_tokens),
            swa: self.geometry.tail_swa_blocks(num_tokens),
            block_tokens: self.geometry.block_tokens,
        }
    }

    /// What happened outside that concerns rooms.
    #[cold] // beside the steps of a core without rooms
    pub(super) fn room_event(&mut self, event: &Event<'_>) {
        let Some(machines) = &mut self.rooms.machines else { return };
        let actions = match *event {
            Event::Peer { from, message } => machines.hear(from, message),
            Event::TicketEnded { ticket, landed, digest } => {
                self.rooms.outbox.ended(ticket);
                machines.digested(ticket, digest);
                machines.ended(ticket, landed)
            }
            Event::Inspected { key, first_token, found } => {
                return self.inspected(key, first_token, found);
            }
            Event::PeerGone { incarnation, evidence } => machines.peer_gone(incarnation, evidence),
            Event::Fenced { incarnation, evidence } => machines.fenced(incarnation, evidence),
            Event::Reconnected { incarnation, num_fences } => {
                machines.reconnected(incarnation, num_fences)
            }
            Event::Tick(_) => {
                let now_us = self.now_us;
                self.rooms.first_us.get_or_insert(now_us);
                while let Some((id, key)) = self.rooms.expired(now_us) {
                    self.abort_key(key, Reason::Deadline);
                    self.fail_request(id); // did so already, if the room was live
                }
                let Some(machines) = &mut self.rooms.machines else { return };
                let before_us = self.rooms.counted_us.unwrap_or(now_us);
                let elapsed = now_us.saturating_sub(before_us) / MILLISECOND_US;
                self.rooms.counted_us = Some(before_us + elapsed * MILLISECOND_US);
                machines.elapse(elapsed)
            }
            _ => return,
        };
        self.act(actions);
    }

    /// What was found where a prompt landed. A token that is none is as bad as a wrong tag.
    fn inspected(&mut self, key: RoomKey, first_token: i32, found: &Inspection) {
        let is_token =
            usize::try_from(first_token).is_ok_and(|token| token < self.limits.vocab_size);
        let arriving = self.rooms.by_key.get(&key).and_then(|id| self.rooms.arriving.get_mut(id));
        if let Some(arriving) = arriving {
            arriving.first_token = Some(first_token);
        }
        let Some(machines) = &mut self.rooms.machines else { return };
        let actions = if is_token || found.non_finite || planted::is(Bug::FirstTokenUnchecked) {
            machines.inspected(key, found)
        } else {
            machines.abort(key, Reason::TagMismatch)
        };
        self.act(actions);
    }

    /// After all events: what can land lands, what is next in turn asks for a place, and tickets
    /// that waited go.
    #[inline]
    pub(super) fn move_rooms(&mut self) {
        if self.rooms.machines.is_some() {
            self.move_them();
        }
    }

    #[inline(never)]
    fn move_them(&mut self) {
        self.land_waiting();
        self.want_next();
        self.post_waiting();
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let request = |key: &RoomKey| self.rooms.by_key.get(key).copied();
            match action {
                Action::Send(to, message) => self.untold.errands.messages.push((to, message)),
                Action::Post { key, ticket, copies } => {
                    let bytes = num_bytes(&copies, &self.geometry);
                    self.rooms.outbox.put(Posting { key, ticket, copies }, bytes);
                }
                Action::ReleaseSource(ticket) => self.end_ticket(ticket),
                Action::Discharge(writer, _) => {
                    let pools = self.pools.each();
                    let num_owed: usize =
                        pools.iter().map(|(_, pool)| pool.discharge(&writer)).sum();
                    self.rooms.num_stale_proofs += usize::from(num_owed == 0);
                }
                Action::Wanted(key) => self.rooms.wanted(key),
                Action::Ready(key) => {
                    if let Some(id) = request(&key) {
                        self.place_found(id);
                    }
                }
                Action::Inspect(key) => self.inspect(key),
                Action::Commit(key) => {
                    if let Some(id) = request(&key) {
                        self.commit(id);
                        self.departed(id);
                    }
                }
                Action::Fail(key, _) => {
                    let request = request(&key);
                    self.unpost(key);
                    if let Some(id) = request {
                        self.fail_request(id);
                    }
                }
                Action::Count(oddity) => self.rooms.count(oddity),
            }
        }
    }

    /// Its room is over without success, on whichever side.
    fn fail_request(&mut self, id: RequestId) {
        self.fall_back(id);
        self.turn_back(id);
    }

    /// Room was made for a prompt: tells where to write.
    pub(super) fn offer(&mut self, id: RequestId) {
        let Some(arriving) = self.rooms.arriving.get_mut(&id) else { return };
        let Some(landing) = &arriving.landing else { return };
        let (full, swa) = landing.targets();
        let offer = Offer {
            prompt: prompt(arriving.request.tokens.all()),
            num_fences: 0, // the machines know
            num_cached_tokens: landing.num_cached_tokens(self.geometry.block_tokens),
            full,
            swa,
            state: landing.slot.target(),
            aux: landing.aux.target(),
        };
        let (key, slot, aux) = (arriving.key, landing.slot.id(), landing.aux.id());
        let resets = &mut self.untold.errands.resets;
        if !planted::is(Bug::StateNotReset) {
            resets.push(Reset { group: Group::State, block: slot });
        }
        if !planted::is(Bug::TagNotZeroed) {
            resets.push(Reset { group: Group::Aux, block: aux });
        }
        if let Some(machines) = &mut self.rooms.machines {
            let (is_told, actions) = machines.offer(key, offer);
            debug_assert!(is_told, "only a room that waits for it lands");
            self.act(actions);
        }
    }

    /// The prompt of a room is about to be computed.
    pub(super) fn want(&mut self, key: RoomKey) {
        if let Some(machines) = &mut self.rooms.machines {
            let actions = machines.want(key);
            self.act(actions);
        }
    }

    /// Has the other side told where to write, and from which full block on?
    pub(super) fn offered(&self, key: RoomKey) -> Option<usize> {
        let offer = self.rooms.machines.as_ref()?.sending(key)?.offered()?;
        Some(offer.num_cached_tokens as usize / self.geometry.block_tokens)
    }

    /// A chunk is computed, and `ticket` reads it. If the room is over, it reads nothing.
    pub(super) fn send(&mut self, key: RoomKey, ticket: Ticket, sources: Sources) {
        let Sources { full, tail } = sources;
        let tail = tail.map(|(swa, state, aux)| Tail { swa, state, aux });
        let Some(machines) = &mut self.rooms.machines else { return };
        let actions = machines.post(key, ticket, &Chunk { full, tail, digest: 0 });
        let is_posted = actions.iter().any(|action| matches!(action, Action::Post { .. }));
        if !is_posted {
            self.end_ticket(ticket);
        }
        self.act(actions);
    }

    /// A ticket that was never posted is over for its room.
    pub(super) fn end_on_machine(&mut self, ticket: Ticket, landed: bool) {
        if let Some(machines) = &mut self.rooms.machines {
            let actions = machines.ended(ticket, landed);
            self.act(actions);
        }
    }

    /// All has landed: somebody has to look at it.
    fn inspect(&mut self, key: RoomKey) {
        let Some(&request) = self.rooms.by_key.get(&key) else { return };
        let landing = self.rooms.arriving.get(&request).and_then(|a| a.landing.as_ref());
        if let Some(landing) = landing {
            let aux = landing.aux.id();
            if planted::is(Bug::ResetLate) {
                let slot = landing.slot.id();
                self.untold.errands.resets.push(Reset { group: Group::State, block: slot });
            }
            self.untold.errands.checks.push(Check { request, key, aux });
        }
    }

    /// A request that leaves its computation behind gives its room up; one that has computed
    /// everything does not.
    pub(super) fn give_up_room(&mut self, id: RequestId, reason: Reason) {
        let is_sent = |departing: &Departing| matches!(departing.stage, Stage::Computed(_));
        if self.rooms.departing.get(&id).is_none_or(is_sent) {
            return;
        }
        if let Some(departing) = self.rooms.take_departing(id) {
            self.abort_key(departing.key, reason);
        }
    }

    fn abort_key(&mut self, key: RoomKey, reason: Reason) {
        if let Some(machines) = &mut self.rooms.machines {
            let actions = machines.abort(key, reason);
            self.act(actions);
        }
    }

    /// Ends a request that is neither queued nor running, on its owner's wish; false if it has
    /// ended.
    pub(super) fn abort_elsewhere(&mut self, id: RequestId) -> bool {
        if let Some(arriving) = self.rooms.take_arriving(id) {
            if let Some(landing) = arriving.landing {
                self.drop_landing(landing);
            }
            self.abort_key(arriving.key, Reason::Cancelled);
            return true;
        }
        if let Some(departing) = self.rooms.take_departing(id) {
            self.abort_key(departing.key, Reason::Cancelled);
            drop(departing);
            self.pools.reclaim(self.done);
            return true;
        }
        self.leave_seat(id)
    }

    /// Ends all that have another side. Nobody is told; what may be written stays quarantined.
    pub(super) fn clear_rooms(&mut self) {
        self.rooms.machines = None;
        let ids = self.rooms.ids();
        for id in ids {
            self.abort_elsewhere(id);
        }
    }
}

/// What both sides must agree on.
fn prompt(tokens: &[i32]) -> Prompt {
    let num_tokens = u32::try_from(tokens.len()).expect("limits are checked to fit int32");
    Prompt { num_tokens, hash: Key::root("").then(tokens).bits() }
}

fn refused(key: RoomKey, denied: Denied) -> Error {
    let room = key.room.0;
    match denied {
        Denied::Duplicate => Error::RoomTaken { room, what: "is in use" },
        Denied::Over(_) => Error::RoomTaken { room, what: "is over" },
        Denied::PeerGone => Error::RoomTaken { room, what: "names a peer that is gone" },
        Denied::Full => Error::RoomsFull { room },
        Denied::Misplaced(misplaced) => {
            let (code, message) = (Code::InvalidValue, misplaced.to_string());
            Error::Invalid(Invalid { param: "room", code, message })
        }
    }
}
