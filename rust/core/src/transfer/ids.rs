//! Names of what crosses between workers: rooms, attempts, processes, ranks, transfers.

use std::fmt;

/// One rendezvous of a prefill and a decode worker. At most [`Room::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Room(pub u64);

impl Room {
    /// 2^63 - 1: a room fits a signed integer of 64 bits, which is what others keep it in.
    pub const MAX: u64 = i64::MAX as u64;
}

/// The attempts of one request, counted; 0 where a foreign router sends none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// One start of one process, a fresh UUID each: what it forgot, it was told before its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One rank of one worker: who sends a message, and who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerRank {
    /// The worker.
    pub incarnation: Incarnation,
    /// Its rank.
    pub rank: u16,
}

/// One attempt with one peer: what a worker keeps a room under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct RoomKey {
    pub room: Room,
    pub epoch: Epoch,
    pub peer: Incarnation,
}

impl RoomKey {
    /// The obligation of one rank of the peer.
    pub fn writer(self, rank: u16) -> WriterKey {
        let peer = PeerRank { incarnation: self.peer, rank };
        WriterKey { room: self.room, epoch: self.epoch, peer }
    }
}

/// One remote rank that was told addresses, and may write there until a proof says that it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct WriterKey {
    pub room: Room,
    pub epoch: Epoch,
    pub peer: PeerRank,
}

impl WriterKey {
    /// The room that it writes for.
    pub fn room_key(self) -> RoomKey {
        RoomKey { room: self.room, epoch: self.epoch, peer: self.peer.incarnation }
    }
}

/// One posted transfer, numbered by the worker that posts it; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);
