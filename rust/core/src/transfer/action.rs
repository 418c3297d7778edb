//! What a room wants done, and how it ended.

use crate::transfer::ids::{PeerRank, RoomKey, Ticket, WriterKey};
use crate::transfer::message::{Message, Reason, Word};
use crate::transfer::proof::Proof;
use crate::transfer::runs::Copies;

/// One thing to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a message.
    Send(PeerRank, Message),
    /// P: start this transfer; the source is read until the ticket ends.
    Post {
        /// For which room.
        key: RoomKey,
        /// The number that was given.
        ticket: Ticket,
        /// What to copy.
        copies: Copies,
    },
    /// P: the transport no longer reads what this ticket read.
    ReleaseSource(Ticket),
    /// D: this writer can write no more.
    Discharge(WriterKey, Proof),
    /// D: a rank of P would use an Offer soon.
    Wanted(RoomKey),
    /// P: addresses are here; chunks may be posted.
    Ready(RoomKey),
    /// D: all has landed; look at it and say what was found.
    Inspect(RoomKey),
    /// D: the blocks are the request's. P: D has them. The room is over; nothing else follows.
    Commit(RoomKey),
    /// The request's part in the room is over without success. Said once, at once: blocks may stay
    /// in quarantine long after.
    Fail(RoomKey, Reason),
    /// Something to count.
    Count(Oddity),
}

/// Messages that change nothing, by why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oddity {
    /// About a room that is over (`late_messages`).
    Late,
    /// About a room that this worker may yet be told of.
    Early,
    /// From a rank that has no part in the room, or of the wrong side.
    Stranger,
    /// Said before.
    Repeated,
    /// There is no place to remember a room by; the sender will ask again.
    Full,
}

/// How a room ended: what is remembered of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both sides did what they had to.
    Committed,
    /// It was given up.
    Aborted {
        /// Why.
        reason: Reason,
        /// P: all that was posted landed. Otherwise something may still be landing, and nobody may
        /// be told that the room is closed.
        drained: bool,
    },
    /// It never began here, and will not.
    Unknown,
}

/// Where one machine writes what it wants, in the name of its room.
#[derive(Debug)]
pub struct Out<'a> {
    key: RoomKey,
    actions: &'a mut Vec<Action>,
}

impl<'a> Out<'a> {
    /// For one room.
    pub fn new(key: RoomKey, actions: &'a mut Vec<Action>) -> Self {
        Self { key, actions }
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn count(&mut self, oddity: Oddity) {
        self.push(Action::Count(oddity));
    }

    pub(super) fn tell(&mut self, to: PeerRank, word: Word) {
        let RoomKey { room, epoch, .. } = self.key;
        self.push(Action::Send(to, Message::About { room, epoch, word }));
    }
}
