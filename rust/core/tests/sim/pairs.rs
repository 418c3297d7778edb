//! Prefill and decode workers: how many, who belongs together, and what goes wrong between them.

use std::ops::Range;

use dsv4_core::transfer::timing::Timing;
use dsv4_core::{RoomSettings, Side};

use crate::desk::Way;
use crate::faults::Fault;
use crate::rng::Rng;
use crate::setup::{PARTS, Role, Setup};

impl Setup {
    /// The same with prefill and decode workers, and time for leases to run out.
    pub fn paired(mut self, rng: &mut Rng) -> Self {
        let (prefill, decode) = match rng.below(4) {
            0 => (1, 1),
            1 => (rng.between(1, 8), rng.between(1, 8)),
            _ => (rng.between(1, 3), rng.between(1, 3)),
        };
        self.num_ranks = rng.pick(&[1, 1, 2]);
        let prefill = std::iter::repeat_n(Role::Prefill, prefill * self.num_ranks);
        self.roles = prefill.chain(std::iter::repeat_n(Role::Decode, decode)).collect();
        self.way = Way::random(rng);
        self.num_jobs = self.num_jobs.min(100);
        self.sizes.state_slots += 2;
        if rng.once_in(4) {
            self.limits.max_num_requests = 1; // those whose prompt is here wait for the row
        }
        match rng.below(8) {
            0 | 1 => self.with_late_writes(),
            2 => self.calm(),
            _ => self,
        }
    }

    /// What a worker's rooms are told.
    pub fn room_settings(&self, role: Role, rng: &mut Rng) -> RoomSettings {
        RoomSettings {
            side: if role == Role::Prefill { Side::Prefill } else { Side::Decode },
            placement: None,
            transport: self.way.0,
            timing: Timing::default(),
            max_rooms: rng.pick(&[16, 4096, 4096]),
            max_bytes_in_flight: rng.pick(&[1, 1 << 16, 1 << 40]),
            deadline_ms: rng.pick(&[5_000, 30_000, 60_000]),
        }
    }

    /// The first worker of the instance that a worker belongs to.
    pub fn leader_of(&self, worker: usize) -> usize {
        if self.roles[worker] == Role::Prefill { worker - worker % self.num_ranks } else { worker }
    }

    /// All workers of an instance.
    pub fn instance(&self, leader: usize) -> Range<usize> {
        let is_prefill = self.roles[leader] == Role::Prefill;
        leader..leader + if is_prefill { self.num_ranks } else { 1 }
    }

    /// Prefill instances, which are the data-parallel ranks of one service.
    pub fn dp_size(&self) -> usize {
        self.roles.iter().filter(|&&role| role == Role::Prefill).count() / self.num_ranks
    }

    pub fn is_paired(&self) -> bool {
        self.roles[0] != Role::Whole
    }

    /// Nothing goes wrong: prompts arrive.
    fn calm(mut self) -> Self {
        self.is_calm = true;
        self.chances = [0; Fault::ALL.len()];
        self
    }

    /// Much goes wrong between workers at once: faults that need each other meet.
    pub fn with_late_writes(mut self) -> Self {
        let often = [
            Fault::TransferError,
            Fault::BitFlip,
            Fault::Fence,
            Fault::SlowPeer,
            Fault::Disconnect,
            Fault::DiesAtWork,
            Fault::LateLetter,
            Fault::RepeatedLetter,
            Fault::Partition,
            Fault::CancelStorm,
        ];
        for fault in often {
            self.chances[fault as usize] = 1_000;
        }
        for fault in [Fault::LateLanding, Fault::WeakEvidence, Fault::SameRoom, Fault::LateCheck] {
            self.chances[fault as usize] = PARTS / 2;
        }
        self.chances[Fault::Crash as usize] = 2_000;
        self.is_calm = false;
        self
    }
}
