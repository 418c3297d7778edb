//! One request's share of the world: its rooms on both sides, what was said, what is under way, and
//! the blocks that it holds.
//!
//! The rooms are the real tables. What surrounds them is a ledger of a few bytes:
//!
//! - The wire is the set of all messages that were ever sent. Each may arrive at any time, any number
//!   of times, or never: loss, repetition and reordering, without a bound on any of them.
//! - A posted ticket is bytes that may land at any time. It ends well only after they have; after an
//!   error, or the death of the writer, they may land still.
//! - Blocks have no names here, only owners: a request's blocks live and die together.

use dsv4_core::transfer::action::Action;
use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use dsv4_core::transfer::message::{Message, Offer, Prompt, Target};
use dsv4_core::transfer::rooms::{Rooms, Side};
use dsv4_core::transfer::sending::Lengths;
use dsv4_core::transfer::timing::Timing;

use crate::intern::Interner;
use crate::scope::{Arm, Scope};

pub const MOST_RANKS: usize = 2;
pub const MOST_ATTEMPTS: usize = 2;

/// Where a request's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    Untaken,
    /// The request holds them, and they were disclosed.
    Incoming,
    /// Nobody but writers.
    Quarantined,
    /// The request's own.
    Owned,
    /// Back in the pool.
    Freed,
    /// Of a decode worker that is dead.
    Lost,
}

/// How one side's part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    Not,
    Committed,
    Failed,
    /// With its process.
    Died,
}

/// Bytes of one ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bytes {
    /// Under way.
    Posted,
    /// There; the ticket is about to end well.
    Landed,
    /// Under way, and nobody waits for them.
    Orphaned,
    /// They will never land; the ticket is about to end in an error.
    Cut,
}

/// One ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flight {
    pub epoch: u8,
    pub rank: u8,
    pub chunk: u8,
    pub bytes: Bytes,
}

/// One epoch of the request's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Incarnations of prefill and decode that it is between; 0: it has not begun.
    pub between: (u8, u8),
    pub memory: Memory,
    /// Another request got the blocks since, while something could still land in them.
    pub reissued: bool,
    /// Ranks without a proof.
    pub owes: u8,
    pub decode_started: bool,
    pub decode: End,
    pub prefill_started: u8,
    pub prefill: [End; MOST_RANKS],
    pub posted: [u8; MOST_RANKS],
}

const NO_ATTEMPT: Attempt = Attempt {
    between: (0, 0),
    memory: Memory::Untaken,
    reissued: false,
    owes: 0,
    decode_started: false,
    decode: End::Not,
    prefill_started: 0,
    prefill: [End::Not; MOST_RANKS],
    posted: [0; MOST_RANKS],
};

/// A message, and which worker it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// None: decode. Otherwise a rank of prefill.
    pub to: Option<u16>,
    pub from: PeerRank,
    pub message: Message,
}

/// One request, and what it knows of the processes around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    pub decode: u32,
    pub prefill: [u32; MOST_RANKS],
    pub wire: u128,
    pub flights: Vec<Flight>,
    pub attempts: [Attempt; MOST_ATTEMPTS],
    pub prefill_life: u8,
    pub prefill_alive: bool,
    pub decode_life: u8,
    /// Of the dead prefill worker: what the decode worker was told of it.
    pub told: Told,
    /// The way in is cut.
    pub cut: bool,
    /// It was cut before.
    pub was_cut: bool,
}

/// What a decode worker knows of a dead peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Nothing,
    /// The process is gone. Over TCP that proves nothing.
    Exit,
    /// And what received from it was destroyed.
    ExitAndDestroyed,
}

/// What no rule may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    LandedInReissued,
    CommittedTooEarly,
    SecondTerminalEvent,
    ReleasedUnderRead,
}

/// The tables behind the numbers.
pub struct Parts {
    pub rooms: Interner<Rooms>,
    pub envelopes: Interner<Envelope>,
}

/// Incarnations as the machines see them.
pub fn prefill_of(life: u8) -> Incarnation {
    Incarnation(100 + u128::from(life))
}

pub fn decode_of(life: u8) -> Incarnation {
    Incarnation(200 + u128::from(life))
}

pub const PROMPT: Prompt = Prompt { num_tokens: 1, hash: 1 };

pub fn new_rooms(scope: &Scope, side: Side) -> Rooms {
    Rooms::new(side, scope.arm.transport(), Timing::default(), 1_000)
}

pub fn ticket(epoch: usize, rank: usize, chunk: u8) -> Ticket {
    Ticket((epoch * 64 + rank * 16) as u64 + u64::from(chunk))
}

impl Cell {
    /// Before anything.
    pub fn start(scope: &Scope, parts: &mut Parts) -> Self {
        let decode = parts.rooms.number(new_rooms(scope, Side::Decode));
        let prefill = parts.rooms.number(new_rooms(scope, Side::Prefill));
        Self {
            decode,
            prefill: [prefill; MOST_RANKS],
            wire: 0,
            flights: vec![],
            attempts: [NO_ATTEMPT; MOST_ATTEMPTS],
            prefill_life: 1,
            prefill_alive: true,
            decode_life: 1,
            told: Told::Nothing,
            cut: false,
            was_cut: false,
        }
    }

    /// Blocks that are not in the pool.
    pub fn held(&self, scope: &Scope) -> usize {
        let holds = |attempt: &&Attempt| {
            matches!(attempt.memory, Memory::Incoming | Memory::Quarantined | Memory::Owned)
        };
        self.attempts.iter().filter(holds).count() * scope.chunks
    }

    /// An attempt under the name that the decode worker has for it.
    pub fn decode_key(&self, epoch: usize) -> RoomKey {
        key(epoch, prefill_of(self.attempts[epoch].between.0))
    }

    /// An attempt under the name that the prefill worker has for it.
    pub fn prefill_key(&self, epoch: usize) -> RoomKey {
        key(epoch, decode_of(self.attempts[epoch].between.1))
    }

    pub fn flights_of(&self, epoch: usize) -> impl Iterator<Item = &Flight> {
        self.flights.iter().filter(move |flight| flight.epoch as usize == epoch)
    }

    /// Whether something may still land in what was given back.
    fn in_danger(&self, epoch: usize, scope: &Scope, parts: &Parts) -> bool {
        let attempt = &self.attempts[epoch];
        if attempt.memory != Memory::Freed || attempt.reissued {
            return false;
        }
        let lands = |flight: &Flight| matches!(flight.bytes, Bytes::Posted | Bytes::Orphaned);
        if self.flights_of(epoch).any(lands) {
            return true;
        }
        let same_life = self.prefill_alive && self.prefill_life == attempt.between.0;
        let key = self.prefill_key(epoch);
        same_life
            && (0..scope.ranks)
                .any(|rank| parts.rooms.get(self.prefill[rank]).ending(key).is_none())
    }

    /// Somebody else got blocks: perhaps these.
    pub fn reissue(&mut self, scope: &Scope, parts: &Parts) {
        for epoch in 0..scope.attempts {
            self.attempts[epoch].reissued |= self.in_danger(epoch, scope, parts);
        }
    }

    /// Writes down what a worker wants done. `rank`: a rank of prefill, or None for decode.
    pub fn note(
        &mut self,
        actions: Vec<Action>,
        rank: Option<usize>,
        scope: &Scope,
        parts: &mut Parts,
    ) -> Result<(), Violation> {
        let from = match rank {
            None => PeerRank { incarnation: decode_of(self.decode_life), rank: 0 },
            Some(rank) => {
                PeerRank { incarnation: prefill_of(self.prefill_life), rank: rank as u16 }
            }
        };
        for action in actions {
            match action {
                Action::Send(to, message) => {
                    let to = rank.is_none().then_some(to.rank);
                    let number = parts.envelopes.number(Envelope { to, from, message });
                    assert!(number < 128, "more than 128 different messages");
                    self.wire |= 1 << number;
                }
                Action::Post { key, ticket, .. } => {
                    let (epoch, rank) = (key.epoch.0 as usize, rank.expect("prefill posts"));
                    let chunk = (ticket.0 % 16) as u8;
                    self.attempts[epoch].posted[rank] = chunk;
                    let lost = self.cut || self.attempts[epoch].between.1 != self.decode_life;
                    let bytes = if lost { Bytes::Cut } else { Bytes::Posted };
                    let (epoch, rank) = (epoch as u8, rank as u8);
                    self.flights.push(Flight { epoch, rank, chunk, bytes });
                    self.flights.sort_unstable();
                }
                Action::ReleaseSource(of) => {
                    let reads = |flight: &Flight| {
                        ticket(flight.epoch.into(), flight.rank.into(), flight.chunk) == of
                            && flight.bytes != Bytes::Orphaned
                    };
                    if self.flights.iter().any(reads) {
                        return Err(Violation::ReleasedUnderRead);
                    }
                }
                Action::Discharge(writer, _) => {
                    let attempt = &mut self.attempts[writer.epoch.0 as usize];
                    assert_eq!(writer.peer.incarnation, prefill_of(attempt.between.0));
                    attempt.owes &= !(1 << writer.peer.rank);
                    attempt.settle();
                }
                Action::Commit(key) => self.end(key, rank, End::Committed, scope)?,
                Action::Fail(key, _) => self.end(key, rank, End::Failed, scope)?,
                Action::Wanted(_) | Action::Ready(_) | Action::Inspect(_) | Action::Count(_) => {}
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        key: RoomKey,
        rank: Option<usize>,
        end: End,
        scope: &Scope,
    ) -> Result<(), Violation> {
        let epoch = key.epoch.0 as usize;
        let missing = self.flights_of(epoch).next().is_some()
            || (0..scope.ranks)
                .any(|rank| usize::from(self.attempts[epoch].posted[rank]) < scope.chunks);
        let attempt = &mut self.attempts[epoch];
        let slot = match rank {
            None => &mut attempt.decode,
            Some(rank) => &mut attempt.prefill[rank],
        };
        if *slot != End::Not {
            return Err(Violation::SecondTerminalEvent);
        }
        *slot = end;
        if rank.is_some() {
            return Ok(());
        }
        if end == End::Committed {
            if missing || attempt.owes != 0 || attempt.memory != Memory::Incoming {
                return Err(Violation::CommittedTooEarly);
            }
            attempt.memory = Memory::Owned;
        } else if attempt.memory == Memory::Incoming {
            attempt.memory = Memory::Quarantined;
            if scope.arm == Arm::FreedAtOnce {
                attempt.memory = Memory::Freed;
            }
            attempt.settle();
        }
        Ok(())
    }

    /// Bytes land.
    pub fn land(&mut self, at: usize) -> Result<(), Violation> {
        let flight = self.flights[at];
        if self.attempts[flight.epoch as usize].reissued {
            return Err(Violation::LandedInReissued);
        }
        if flight.bytes == Bytes::Orphaned {
            self.flights.remove(at);
        } else {
            self.flights[at].bytes = Bytes::Landed;
            self.flights.sort_unstable();
        }
        Ok(())
    }
}

impl Attempt {
    /// What nobody may write any more, and nobody holds, is free.
    pub fn settle(&mut self) {
        if self.memory == Memory::Quarantined && self.owes == 0 {
            self.memory = Memory::Freed;
        }
    }
}

fn key(epoch: usize, peer: Incarnation) -> RoomKey {
    RoomKey { room: Room(1), epoch: Epoch(epoch as u32), peer }
}

/// The offer of any request: blocks have no names here.
pub fn offer(scope: &Scope) -> Offer {
    let target = |block| Target { block, generation: 1 };
    Offer {
        prompt: PROMPT,
        num_fences: 0,
        num_cached_tokens: 0,
        full: (0..scope.chunks as u32).map(target).collect(),
        swa: vec![],
        state: target(0),
        aux: target(0),
    }
}

pub fn lengths(scope: &Scope) -> Lengths {
    Lengths { full: scope.chunks, swa: 0, block_tokens: 1 }
}
