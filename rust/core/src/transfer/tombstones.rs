//! Rooms that are over, remembered for longer than any message about them can be under way.
//!
//! Without this, a late message brings a room back to life (tokenspeed #1427). Bounded: a room takes
//! the place of its tombstone when it starts, so that closing it never needs one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::planted::{self, Bug};
use crate::transfer::action::Ending;
use crate::transfer::ids::{Incarnation, RoomKey};
use crate::transfer::message::Reason;

/// The memory of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tombstones {
    endings: BTreeMap<RoomKey, Ending>,
    /// In order of time.
    expiries: VecDeque<(u64, RoomKey)>,
    /// Peers for which a room is forgotten that may still be landing: they are never told that a
    /// room is unknown here, which would be a proof.
    in_doubt: BTreeSet<Incarnation>,
    now: u64,
}

impl Tombstones {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.endings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.endings.is_empty()
    }

    /// How a room ended.
    pub fn get(&self, key: RoomKey) -> Option<Ending> {
        self.endings.get(&key).copied()
    }

    /// What may be said about a room that nobody remembers.
    pub fn unheard_of(&self, key: RoomKey) -> Ending {
        if self.in_doubt.contains(&key.peer) {
            Ending::Aborted { reason: Reason::TransferFailed, drained: false }
        } else {
            Ending::Unknown
        }
    }

    /// Remembers an ending for so long.
    pub fn bury(&mut self, key: RoomKey, ending: Ending, milliseconds: u64) {
        self.endings.insert(key, ending);
        self.expiries.push_back((self.now.saturating_add(milliseconds), key));
    }

    /// Time passed.
    pub fn elapse(&mut self, milliseconds: u64) {
        self.now = self.now.saturating_add(milliseconds);
        while let Some(&(until, key)) = self.expiries.front() {
            if until > self.now {
                break;
            }
            self.expiries.pop_front();
            if let Some(Ending::Aborted { drained: false, .. }) = self.endings.remove(&key) {
                if !planted::is(Bug::DoubtForgotten) {
                    self.in_doubt.insert(key.peer);
                }
            }
        }
    }

    /// A peer's process is gone: nobody is left to be told anything.
    pub fn peer_gone(&mut self, incarnation: Incarnation) {
        self.in_doubt.remove(&incarnation);
    }
}
