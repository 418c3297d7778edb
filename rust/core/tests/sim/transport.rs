//! The way between two memories: flows that leave, land late, fail, outlive their writer.

use std::collections::{BTreeMap, BTreeSet};

use dsv4_core::transfer::ids::{RoomKey, Ticket};
use dsv4_core::{Event, Posting};

use crate::cargo::Spot;
use crate::desk::{digest, items_of};
use crate::faults::Fault;
use crate::flow::{Flow, Process, Stage};
use crate::happening::Happening;
use crate::plant::Bug;
use crate::world::World;

/// All flows that may still do something.
#[derive(Debug, Default)]
pub struct Flows {
    last: u64,
    on: BTreeMap<u64, Flow>,
}

impl Flows {
    /// Flows are forgotten when nothing of them can happen any more.
    fn forget_over(&mut self) {
        self.on.retain(|_, flow| !flow.is_over());
    }
}

impl World {
    /// A ticket is posted: its parts leave one after the other.
    pub(crate) fn post(&mut self, from: Process, to: Process, posting: &Posting) {
        self.flows.last += 1;
        let number = self.flows.last;
        let items = items_of(&posting.copies);
        let device = &self.process(from).expect("who posts is up").device;
        let share = self.share_of(from.worker);
        let digests = items.iter().map(|&(source, target)| digest(device, source, target, share));
        let digest = digests.fold(0, u64::wrapping_add);
        let sent =
            self.rooms.sent.entry((posting.key.room, posting.key.epoch, share.rank)).or_default();
        *sent = sent.wrapping_add(digest);
        let mut flow = Flow::new(from, to, posting, &items, share, digest);
        flow.is_cut = self.fences.contains(&(to, self.leader(from)));
        let is_cut = flow.is_cut;
        let num_parts = flow.parts.len();
        let slow = if self.strikes(Fault::SlowPeer) { 200 } else { 1 };
        if slow > 1 {
            self.fired(Fault::SlowPeer, to.worker);
        }
        let mut leaves_us = 0;
        for part in 0..num_parts {
            leaves_us += self.rng.micros(1, 400) * slow;
            self.agenda.after(leaves_us, Happening::PartLeaves { flow: number, part });
        }
        // Without a fence nobody could ever tell when what failed is over.
        let may_fail = self.setup.way.proof_of_fence().is_some();
        if may_fail && self.strikes(Fault::TransferError) {
            let at = self.rng.micros(1, leaves_us.max(1));
            self.agenda.after(at, Happening::FlowFails { flow: number });
        }
        self.flows.on.insert(number, flow);
        if self.strikes(Fault::DiesAtWork) {
            let process = if self.rng.once_in(3) { to } else { from };
            let at = self.rng.micros(1, 2 * leaves_us.max(1));
            self.agenda.after(at, Happening::Die { process });
        }
        if is_cut {
            self.fail_flow(number);
        } else if self.plant.strikes(Bug::EarlyEnd) {
            self.agenda.after(1, Happening::TicketEnds { flow: number, landed: true });
        }
    }

    pub(crate) fn part_leaves(&mut self, number: u64, part: usize) {
        let Some(flow) = self.flows.on.get(&number) else { return };
        if flow.has_failed || flow.is_cut {
            return;
        }
        let (from, source, half) = (flow.from, flow.parts[part].source, flow.parts[part].half);
        let Some(writer) = self.process(from) else { return };
        let mut cargo = writer.device.load(source, half);
        if self.strikes(Fault::BitFlip) {
            if cargo.flip(self.rng.below(1 << 20)) {
                let key = self.flows.on[&number].key;
                self.rooms.tampered.insert((key.room, key.epoch));
            }
            self.fired(Fault::BitFlip, from.worker);
        }
        let mut delay = self.rng.micros(20, 800);
        if self.strikes(Fault::LateLanding) {
            self.fired(Fault::LateLanding, from.worker);
            delay += self.rng.micros(1_000, 45_000_000);
        }
        self.heals_us = self.heals_us.max(self.agenda.now_us() + delay);
        let flow = self.flows.on.get_mut(&number).expect("just seen");
        flow.parts[part].stage = Stage::OnItsWay(cargo);
        self.agenda.after(delay, Happening::PartLands { flow: number, part });
    }

    pub(crate) fn part_lands(&mut self, number: u64, part: usize) {
        let Some(flow) = self.flows.on.get(&number) else { return };
        let (from, to, key) = (flow.from, flow.to, flow.key);
        if let Some(up_us) = self.link_up_at(from.worker, to.worker) {
            let delay = up_us - self.agenda.now_us() + 1;
            self.agenda.after(delay, Happening::PartLands { flow: number, part });
            return;
        }
        let writer_lives = self.process(from).is_some();
        let flow = self.flows.on.get_mut(&number).expect("just seen");
        let stage = std::mem::replace(&mut flow.parts[part].stage, Stage::Over);
        let Stage::OnItsWay(cargo) = stage else { return };
        if flow.is_cut {
            return;
        }
        let (has_failed, target, half) =
            (flow.has_failed, flow.parts[part].target, flow.parts[part].half);
        let Some(receiver) = self.workers[to.worker].as_mut() else {
            return self.fail_flow(number);
        };
        if receiver.incarnation != to.incarnation {
            return self.fail_flow(number);
        }
        receiver.ledger.lands(target, key);
        flow.num_left -= 1;
        let is_last = flow.num_left == 0 && !has_failed;
        receiver.device.land(target, half, &cargo);
        if !self.is_room_open(to.worker, key) {
            self.fired(Fault::LandsAfterEnd, to.worker);
        }
        if !writer_lives {
            self.fired(Fault::LandsAfterDeath, to.worker);
        } else if has_failed {
            self.fired(Fault::LandsAfterError, to.worker);
        }
        if is_last {
            let delay = self.rng.micros(1, 300);
            self.agenda.after(delay, Happening::TicketEnds { flow: number, landed: true });
        }
        self.flows.forget_over();
    }

    /// The transport gives up: its writer is told soon, and what left lands all the same.
    pub(crate) fn fail_flow(&mut self, number: u64) {
        let Some(flow) = self.flows.on.get_mut(&number) else { return };
        if flow.has_failed || flow.num_left == 0 {
            return;
        }
        flow.has_failed = true;
        let is_torn = flow.num_left < flow.parts.len();
        let (from, at) = (flow.from, flow.to);
        let worker = at.worker;
        // Whoever is written to cuts the way in, sooner or later: what failed proves nothing.
        let cut_us = self.rng.micros(1_000_000, 15_000_000);
        self.agenda.after(cut_us, Happening::CutOff { at, from });
        self.heals_us = self.heals_us.max(self.agenda.now_us() + cut_us);
        self.fired(Fault::TransferError, worker);
        if is_torn {
            self.fired(Fault::TornWrite, worker);
        }
        let delay = self.rng.micros(1, 170_000);
        self.agenda.after(delay, Happening::TicketEnds { flow: number, landed: false });
    }

    pub(crate) fn ticket_ends(&mut self, number: u64, landed: bool) {
        let Some(flow) = self.flows.on.get_mut(&number) else { return };
        if std::mem::replace(&mut flow.is_told, true) {
            return;
        }
        let (from, ticket, digest) = (flow.from, Ticket(flow.ticket), flow.digest);
        if self.process(from).is_some() && !self.plant.strikes(Bug::ForgottenTicket) {
            self.tell(from.worker, &[Event::TicketEnded { ticket, landed, digest }]);
            if self.strikes(Fault::RepeatedTicket) && self.process(from).is_some() {
                self.fired(Fault::RepeatedTicket, from.worker);
                self.tell(from.worker, &[Event::TicketEnded { ticket, landed, digest }]);
            }
        }
        self.flows.forget_over();
    }

    /// A process is gone: nothing leaves it any more, and nothing lands in its memory.
    pub(crate) fn flows_of_gone(&mut self, gone: Process) {
        let mut failed = vec![];
        let outlives = self.setup.way.outlives_writer();
        for (&number, flow) in &mut self.flows.on {
            if flow.from == gone {
                (flow.has_failed, flow.is_told) = (true, true);
                flow.is_cut |= !outlives;
                let is_torn = flow.num_left > 0 && flow.num_left < flow.parts.len();
                if is_torn {
                    self.tally.exposure.add(Fault::TornWrite);
                }
            } else if flow.to == gone {
                failed.push(number);
            }
        }
        for number in failed {
            self.fail_flow(number);
        }
        self.flows.forget_over();
    }

    /// What transfers of this process have yet to read.
    pub(crate) fn still_reads(&self, from: Process) -> BTreeSet<Spot> {
        let of_process = |flow: &&Flow| flow.from == from && !flow.is_cut && !flow.has_failed;
        let flows = self.flows.on.values().filter(of_process);
        let parts = flows.flat_map(|flow| &flow.parts);
        parts.filter(|part| part.stage == Stage::Waits).map(|part| part.source).collect()
    }

    /// Can something still land for this room?
    pub(crate) fn may_still_land(&self, to: Process, key: RoomKey) -> bool {
        let of_room = |flow: &&Flow| flow.to == to && flow.key == key && !flow.is_cut;
        self.flows.on.values().filter(of_room).any(Flow::may_land)
    }

    /// `at` cuts the way in from the instance of `from`: from now on nothing of it lands.
    pub(crate) fn fence(&mut self, at: Process, from: Process) {
        let between = |flow: &Flow| self.leader(flow.from) == from && flow.to == at && !flow.is_cut;
        let flows = self.flows.on.iter().filter(|(_, flow)| between(flow));
        let failed: Vec<u64> = flows.map(|(&number, _)| number).collect();
        for &number in &failed {
            self.fail_flow(number);
            self.flows.on.get_mut(&number).expect("listed").is_cut = true;
        }
        if !failed.is_empty() {
            self.fired(Fault::FencedWrite, at.worker);
        }
    }
}
