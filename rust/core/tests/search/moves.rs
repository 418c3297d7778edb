//! All that can happen next: to one request alone, or to a process and so to all requests at once.

use dsv4_core::transfer::action::Action;
use dsv4_core::transfer::message::{Reason, fold};
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::transfer::receiving::{Inspection, Phase, Receiving, Tag};
use dsv4_core::transfer::rooms::{Rooms, Side};
use dsv4_core::transfer::runs::{Chunk, Tail};
use dsv4_core::transfer::sending::Phase as Sends;

use crate::cell::{
    Attempt, Bytes, Cell, End, Flight, Memory, PROMPT, Parts, Told, Violation, decode_of, lengths,
    new_rooms, offer, prefill_of, ticket,
};
use crate::scope::{Arm, Scope};

/// One thing that happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    StartDecode(u8),
    StartPrefill(u8, u8),
    Offer(u8),
    Want(u8, u8),
    Post(u8, u8),
    Land(u8),
    EndTicket(u8, bool),
    Deliver(u8),
    AbortDecode(u8),
    AbortPrefill(u8, u8),
    Inspect(u8, bool),
    Finish(u8),
    /// Only where time is taken for a proof.
    TimeOut(u8),
}

/// One thing that happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    PrefillDies,
    PrefillComesBack,
    ExitIsTold,
    ReceiverIsDestroyed,
    DecodeDiesAndComesBack,
    Fence,
    Reconnect,
}

pub const FAULTS: [Fault; 7] = [
    Fault::PrefillDies,
    Fault::PrefillComesBack,
    Fault::ExitIsTold,
    Fault::ReceiverIsDestroyed,
    Fault::DecodeDiesAndComesBack,
    Fault::Fence,
    Fault::Reconnect,
];

impl Cell {
    /// Everything that may happen to this request next.
    pub fn moves(&self, scope: &Scope, parts: &Parts) -> Vec<Move> {
        let mut moves = vec![];
        for epoch in 0..scope.attempts {
            self.moves_of_attempt(epoch, scope, parts, &mut moves);
        }
        for (at, flight) in self.flights.iter().enumerate() {
            let at = at as u8;
            match flight.bytes {
                Bytes::Posted => {
                    moves.push(Move::Land(at));
                    if scope.errors {
                        moves.push(Move::EndTicket(at, false));
                    }
                }
                Bytes::Landed => moves.push(Move::EndTicket(at, true)),
                Bytes::Orphaned => moves.push(Move::Land(at)),
                Bytes::Cut => moves.push(Move::EndTicket(at, false)),
            }
        }
        for number in 0..parts.envelopes.len() as u8 {
            if self.wire >> number & 1 == 1 {
                moves.push(Move::Deliver(number));
            }
        }
        moves
    }

    fn moves_of_attempt(&self, at: usize, scope: &Scope, parts: &Parts, moves: &mut Vec<Move>) {
        let attempt = &self.attempts[at];
        let epoch = at as u8;
        if attempt.between == (0, 0) {
            // A later attempt begins after the one before it has ended, with its blocks or without.
            let over = at == 0 || matches!(self.attempts[at - 1].decode, End::Failed | End::Died);
            if !over || !self.prefill_alive {
                return;
            }
        }
        let here = attempt.between == (0, 0) || attempt.between.1 == self.decode_life;
        let there = self.prefill_alive
            && (attempt.between == (0, 0) || attempt.between.0 == self.prefill_life);
        if here && !attempt.decode_started {
            moves.push(Move::StartDecode(epoch));
        }
        if here && attempt.decode_started {
            let rooms = parts.rooms.get(self.decode);
            let room = rooms.receiving(self.decode_key(at));
            match room.map(Receiving::phase) {
                Some(Phase::Bootstrapping) => moves.push(Move::Offer(epoch)),
                Some(Phase::Inspecting) => {
                    moves.push(Move::Inspect(epoch, true));
                    if scope.corrupt {
                        moves.push(Move::Inspect(epoch, false));
                    }
                }
                _ => {}
            }
            if attempt.decode == End::Not {
                moves.push(Move::AbortDecode(epoch));
            }
            if attempt.memory == Memory::Owned {
                moves.push(Move::Finish(epoch));
            }
            if scope.arm == Arm::TimeProves && attempt.memory == Memory::Quarantined {
                moves.push(Move::TimeOut(epoch));
            }
        }
        for rank in (0..scope.ranks).filter(|_| there) {
            let started = attempt.prefill_started >> rank & 1 == 1;
            let rank_name = rank as u8;
            if !started {
                moves.push(Move::StartPrefill(epoch, rank_name));
                continue;
            }
            let Some(room) = parts.rooms.get(self.prefill[rank]).sending(self.prefill_key(at))
            else {
                continue;
            };
            match room.phase() {
                Sends::Bootstrapping => moves.push(Move::Want(epoch, rank_name)),
                Sends::Ready | Sends::Transferring
                    if usize::from(attempt.posted[rank]) < scope.chunks =>
                {
                    moves.push(Move::Post(epoch, rank_name));
                }
                _ => {}
            }
            if scope.prefill_aborts && attempt.prefill[rank] == End::Not {
                moves.push(Move::AbortPrefill(epoch, rank_name));
            }
        }
    }

    /// The same request after a move.
    pub fn after(&self, one: Move, scope: &Scope, parts: &mut Parts) -> Result<Self, Violation> {
        let mut cell = self.clone();
        match one {
            Move::StartDecode(epoch) => {
                let at = epoch as usize;
                cell.begin(at);
                cell.attempts[at].decode_started = true;
                let key = cell.decode_key(at);
                let ranks: Vec<u16> = (0..scope.ranks as u16).collect();
                cell.on_decode(scope, parts, |rooms| {
                    rooms.receive(key, PROMPT, &ranks).unwrap_or_default()
                })?;
                let denied = parts.rooms.get(cell.decode).receiving(key).is_none();
                if denied {
                    cell.attempts[at].decode = End::Failed; // given up before it was heard of
                }
            }
            Move::StartPrefill(epoch, rank) => {
                let (at, rank) = (epoch as usize, rank as usize);
                cell.begin(at);
                cell.attempts[at].prefill_started |= 1 << rank;
                let key = cell.prefill_key(at);
                let mut denied = false;
                cell.on_prefill(rank, scope, parts, |rooms| {
                    denied = rooms.send(key, PROMPT, lengths(scope)).is_err();
                    vec![]
                })?;
                if denied {
                    cell.attempts[at].prefill[rank] = End::Failed;
                }
            }
            Move::Offer(epoch) => {
                let at = epoch as usize;
                let key = cell.decode_key(at);
                cell.attempts[at].memory = Memory::Incoming;
                cell.attempts[at].owes = (1 << scope.ranks) - 1;
                for other in (0..scope.attempts).filter(|&other| other != at) {
                    let mut before = cell.clone();
                    before.reissue(scope, parts);
                    cell.attempts[other].reissued = before.attempts[other].reissued;
                }
                cell.on_decode(scope, parts, |rooms| {
                    let (told, actions) = rooms.offer(key, offer(scope));
                    assert!(told, "it is bootstrapping");
                    actions
                })?;
            }
            Move::Want(epoch, rank) => {
                let key = cell.prefill_key(epoch as usize);
                cell.on_prefill(rank as usize, scope, parts, |rooms| rooms.want(key))?;
            }
            Move::Post(epoch, rank) => {
                let (at, rank) = (epoch as usize, rank as usize);
                let key = cell.prefill_key(at);
                let number = cell.attempts[at].posted[rank] + 1;
                let last = usize::from(number) == scope.chunks;
                let tail = last.then(|| Tail { swa: vec![], state: 1, aux: 1 });
                let chunk = Chunk { full: vec![u32::from(number)], tail, digest: number.into() };
                let ticket = ticket(at, rank, number);
                cell.on_prefill(rank, scope, parts, |rooms| rooms.post(key, ticket, &chunk))?;
            }
            Move::Land(at) => cell.land(at as usize)?,
            Move::EndTicket(at, landed) => cell.end_ticket(at as usize, landed, scope, parts)?,
            Move::Deliver(number) => cell.deliver(number.into(), scope, parts)?,
            Move::AbortDecode(epoch) => {
                let key = cell.decode_key(epoch as usize);
                cell.on_decode(scope, parts, |rooms| rooms.abort(key, Reason::Cancelled))?;
            }
            Move::AbortPrefill(epoch, rank) => {
                let key = cell.prefill_key(epoch as usize);
                cell.on_prefill(rank as usize, scope, parts, |rooms| {
                    rooms.abort(key, Reason::Cancelled)
                })?;
            }
            Move::Inspect(epoch, good) => {
                let key = cell.decode_key(epoch as usize);
                let digest = if good { fold(1..=scope.chunks as u64) } else { 0 };
                let tag = Tag { room: key.room, epoch: key.epoch, writer: key.peer };
                let digests = vec![digest; scope.ranks];
                let found = Inspection { tag, digests, non_finite: false };
                cell.on_decode(scope, parts, |rooms| rooms.inspected(key, &found))?;
            }
            Move::Finish(epoch) => cell.attempts[epoch as usize].memory = Memory::Freed,
            Move::TimeOut(epoch) => {
                cell.attempts[epoch as usize].owes = 0;
                cell.attempts[epoch as usize].settle();
            }
        }
        Ok(cell)
    }

    fn begin(&mut self, at: usize) {
        if self.attempts[at].between == (0, 0) {
            self.attempts[at].between = (self.prefill_life, self.decode_life);
        }
    }

    fn end_ticket(
        &mut self,
        at: usize,
        landed: bool,
        scope: &Scope,
        parts: &mut Parts,
    ) -> Result<(), Violation> {
        let flight = self.flights[at];
        if flight.bytes == Bytes::Posted {
            self.flights[at].bytes = Bytes::Orphaned; // an error stops nothing
            self.flights.sort_unstable();
        } else {
            self.flights.remove(at);
        }
        let ticket = ticket(flight.epoch.into(), flight.rank.into(), flight.chunk);
        self.on_prefill(flight.rank.into(), scope, parts, |rooms| rooms.ended(ticket, landed))
    }

    pub fn deliver(
        &mut self,
        number: u32,
        scope: &Scope,
        parts: &mut Parts,
    ) -> Result<(), Violation> {
        let envelope = parts.envelopes.get(number).clone();
        match envelope.to {
            None => {
                self.on_decode(scope, parts, |rooms| rooms.hear(envelope.from, &envelope.message))
            }
            Some(_) if !self.prefill_alive => Ok(()),
            Some(rank) => self.on_prefill(rank.into(), scope, parts, |rooms| {
                rooms.hear(envelope.from, &envelope.message)
            }),
        }
    }

    pub fn on_decode(
        &mut self,
        scope: &Scope,
        parts: &mut Parts,
        act: impl FnOnce(&mut Rooms) -> Vec<Action>,
    ) -> Result<(), Violation> {
        let mut rooms = parts.rooms.get(self.decode).clone();
        let actions = act(&mut rooms);
        self.decode = parts.rooms.number(rooms);
        self.note(actions, None, scope, parts)
    }

    pub fn on_prefill(
        &mut self,
        rank: usize,
        scope: &Scope,
        parts: &mut Parts,
        act: impl FnOnce(&mut Rooms) -> Vec<Action>,
    ) -> Result<(), Violation> {
        let mut rooms = parts.rooms.get(self.prefill[rank]).clone();
        let actions = act(&mut rooms);
        self.prefill[rank] = parts.rooms.number(rooms);
        self.note(actions, Some(rank), scope, parts)
    }

    /// The same request after something happened to a process; None where it cannot happen now.
    pub fn after_fault(
        &self,
        fault: Fault,
        scope: &Scope,
        parts: &mut Parts,
    ) -> Option<Result<Self, Violation>> {
        let dead = self.dead_life();
        let possible = match fault {
            Fault::PrefillDies => {
                scope.prefill_crash && self.prefill_alive && self.prefill_life == 1
            }
            Fault::PrefillComesBack => !self.prefill_alive,
            Fault::ExitIsTold => dead.is_some() && self.told == Told::Nothing,
            Fault::ReceiverIsDestroyed => dead.is_some() && self.told == Told::Exit,
            Fault::DecodeDiesAndComesBack => scope.decode_crash && self.decode_life == 1,
            Fault::Fence => scope.fence && self.prefill_alive && !self.was_cut,
            Fault::Reconnect => self.prefill_alive && self.cut,
        };
        possible.then(|| {
            let mut cell = self.clone();
            cell.suffer(fault, scope, parts).map(|()| cell)
        })
    }

    /// The incarnation of prefill that is dead.
    fn dead_life(&self) -> Option<u8> {
        (self.prefill_life == 2 || !self.prefill_alive).then_some(1)
    }

    pub fn suffer(
        &mut self,
        fault: Fault,
        scope: &Scope,
        parts: &mut Parts,
    ) -> Result<(), Violation> {
        match fault {
            Fault::PrefillDies => {
                self.prefill_alive = false;
                let nothing = parts.rooms.number(new_rooms(scope, Side::Prefill));
                self.prefill = [nothing; crate::cell::MOST_RANKS];
                self.flights
                    .retain(|flight| matches!(flight.bytes, Bytes::Posted | Bytes::Orphaned));
                for flight in &mut self.flights {
                    flight.bytes = Bytes::Orphaned;
                }
                self.flights.sort_unstable();
                for attempt in &mut self.attempts {
                    for rank in 0..scope.ranks {
                        if attempt.between.0 == 1 && attempt.prefill[rank] == End::Not {
                            attempt.prefill[rank] = End::Died;
                        }
                    }
                }
                Ok(())
            }
            Fault::PrefillComesBack => {
                self.prefill_life += 1;
                self.prefill_alive = true;
                Ok(())
            }
            Fault::ExitIsTold => {
                self.told = Told::Exit;
                self.on_decode(scope, parts, |rooms| {
                    rooms.peer_gone(prefill_of(1), Some(Evidence::ProcessExit))
                })
            }
            Fault::ReceiverIsDestroyed => {
                self.told = Told::ExitAndDestroyed;
                let dead_only = |epoch: u8| self.attempts[epoch as usize].between.0 == 1;
                let kept = self.flights.iter().copied().filter(|flight| !dead_only(flight.epoch));
                self.flights = kept.collect();
                self.on_decode(scope, parts, |rooms| {
                    rooms.peer_gone(prefill_of(1), Some(Evidence::ExitAndAgentDestroyed))
                })
            }
            Fault::DecodeDiesAndComesBack => self.decode_dies(scope, parts),
            Fault::Fence => {
                (self.cut, self.was_cut) = (true, true);
                let life = self.prefill_life;
                self.cut_off(|attempt| attempt.between.0 == life);
                self.on_decode(scope, parts, |rooms| {
                    rooms.fenced(prefill_of(life), Evidence::AgentDestroyed)
                })
            }
            Fault::Reconnect => {
                self.cut = false;
                if scope.arm == Arm::FenceForgotten {
                    return Ok(());
                }
                let decode = decode_of(self.decode_life);
                for rank in 0..scope.ranks {
                    self.on_prefill(rank, scope, parts, |rooms| rooms.reconnected(decode, 1))?;
                }
                Ok(())
            }
        }
    }

    /// Nothing of what is under way for these attempts will land.
    fn cut_off(&mut self, of: impl Fn(&Attempt) -> bool) {
        let attempts = self.attempts;
        let concerns = |flight: &Flight| of(&attempts[flight.epoch as usize]);
        self.flights.retain(|flight| flight.bytes != Bytes::Orphaned || !concerns(flight));
        for flight in &mut self.flights {
            if flight.bytes == Bytes::Posted && concerns(flight) {
                flight.bytes = Bytes::Cut;
            }
        }
        self.flights.sort_unstable();
    }

    fn decode_dies(&mut self, scope: &Scope, parts: &mut Parts) -> Result<(), Violation> {
        self.cut_off(|_| true);
        self.decode_life += 1;
        self.decode = parts.rooms.number(new_rooms(scope, Side::Decode));
        for attempt in &mut self.attempts {
            if attempt.between.1 == 1 {
                attempt.memory = Memory::Lost;
                attempt.owes = 0;
                if attempt.decode == End::Not {
                    attempt.decode = End::Died;
                }
            }
        }
        let ranks = if self.prefill_alive { 0..scope.ranks } else { 0..0 };
        for rank in ranks {
            self.on_prefill(rank, scope, parts, |rooms| rooms.peer_gone(decode_of(1), None))?;
        }
        Ok(())
    }
}
