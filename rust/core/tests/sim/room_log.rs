//! What is remembered of rooms from outside: what each was sent, what was done to it on the way, and
//! what therefore must not happen to it.

use std::collections::{BTreeMap, BTreeSet};

use dsv4_core::transfer::ids::{Epoch, Room, RoomKey};

use crate::faults::Fault;
use crate::flow::Process;
use crate::world::World;

#[derive(Debug, Default)]
pub struct RoomLog {
    /// Rooms that were drawn: no two attempts are told apart by luck.
    pub drawn: BTreeSet<Room>,
    /// Those whose number is not that of the rank they were sent to.
    pub misplaced: BTreeSet<Room>,
    /// Those that began on the prefill side.
    pub begun: BTreeSet<(Process, RoomKey)>,
    /// Digests of all that each rank posted.
    pub sent: BTreeMap<(Room, Epoch, usize), u64>,
    /// Those of which a bit was flipped on the way.
    pub tampered: BTreeSet<(Room, Epoch)>,
    /// Those whose aux row says that something was not finite.
    pub flagged: BTreeSet<(Room, Epoch)>,
    /// What was counted for a worker and a room.
    counted: BTreeSet<(Fault, usize, RoomKey)>,
}

impl World {
    /// As [`Self::fired`], once for a worker and a room.
    pub(crate) fn fired_once(&mut self, fault: Fault, whom: usize, key: RoomKey) {
        if self.rooms.counted.insert((fault, whom, key)) {
            self.fired(fault, whom);
        }
    }

    /// Nothing went wrong: each room that began brought its prompt, or time was up in a queue, or
    /// the client was too slow. Not so with several ranks: one that is told where to write before
    /// its half has come refuses the room.
    pub(crate) fn check_calm(&self) {
        let begun = self.rooms.begun.len() as u64;
        let given_up = [Fault::RoomDeadline, Fault::Deadline, Fault::SlowClient];
        let given_up: u64 = given_up.iter().map(|&f| self.tally.exposure.of(f)).sum();
        let arrived = self.tally.num_arrived;
        assert!(begun <= arrived + given_up, "{arrived} of {begun} prompts arrived");
    }
}
