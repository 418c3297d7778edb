//! Time, death and the way between workers: ticks, farewells, partitions, fences.

use dsv4_core::Event;
use dsv4_core::transfer::ids::{Epoch, Incarnation, Room, RoomKey, Ticket};
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::transfer::receiving::{Inspection, Tag};

use crate::desk::PATIENCE;
use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::peers::TICK_US;
use crate::phases::NO_PLACE;
use crate::plant::Bug;
use crate::setup::Role;
use crate::worker::{Held, Worker};
use crate::world::World;

/// After everything is well again, so much later nothing may be held any more: two leases, and what
/// clocks that run apart add to them.
const TWO_LEASES_US: u64 = 90_000_000;

/// How long rooms that are over are remembered, and the same for clocks.
const FORGETS_US: u64 = 150_000_000;

impl World {
    pub(crate) fn tick(&mut self, worker: usize, incarnation: u32) {
        let Some(has) = self.process(Process { worker, incarnation }) else { return };
        let slowed_us = self.agenda.now_us() * has.clock_rate / 1_000;
        let told_us = self.clock_of().saturating_sub(self.agenda.now_us());
        let now_us = told_us.max(self.setup.origin_us) + slowed_us;
        if self.is_arriving() || !self.plant.has(Bug::TimeWithWork) {
            self.tell(worker, &[Event::Tick(now_us)]);
            self.workers[worker].as_mut().expect("up").check_deadlines();
        }
        self.count_waiting(worker);
        if self.strikes(Fault::StrayEvent) {
            self.stray(worker);
        }
        if !self.is_over() {
            let delay = self.rng.micros(TICK_US / 2, TICK_US * 3 / 2);
            self.agenda.after(delay, Happening::Tick { worker, incarnation });
        }
    }

    /// Prompts that find no place here, each counted once.
    fn count_waiting(&mut self, worker: usize) {
        let Some(has) = self.workers[worker].as_mut() else { return };
        let held: Vec<_> =
            has.held.iter().filter_map(|(&id, held)| Some((id, held.key?))).collect();
        let waits = |&(id, _): &(_, _)| has.core.explain(id).contains(NO_PLACE);
        let waiting: Vec<_> = held.into_iter().filter(waits).collect();
        for (_, key) in waiting {
            self.fired_once(Fault::NoPlace, worker, key);
        }
    }

    /// Events about rooms, tickets and peers that nobody has: they change nothing.
    fn stray(&mut self, worker: usize) {
        self.fired(Fault::StrayEvent, worker);
        let nobody = Incarnation(u128::MAX);
        let key = RoomKey { room: Room(Room::MAX), epoch: Epoch(u32::MAX), peer: nobody };
        let tag = Tag { room: key.room, epoch: key.epoch, writer: nobody };
        let found = Inspection { tag, digests: vec![0], non_finite: false };
        let evidence = self.setup.way.proof_of_death();
        self.tell(
            worker,
            &[
                Event::TicketEnded { ticket: Ticket(u64::MAX), landed: true, digest: 0 },
                Event::Inspected { key, first_token: 1, found: &found },
                Event::PeerGone { incarnation: nobody, evidence: Some(evidence) },
            ],
        );
    }

    /// Nothing is left to do: no job is open, and every block of every worker is back.
    fn is_over(&self) -> bool {
        if self.is_arriving() || self.num_open > 0 || self.num_coming > 0 {
            return false;
        }
        let mut workers = self.workers.iter().flatten();
        // A worker whose list of rooms is full says nothing of others until it forgets some.
        let was_full = workers.clone().any(|worker| worker.stat("num_unremembered_rooms") > 0);
        let more_us = if was_full { FORGETS_US } else { 0 };
        let is_late = self.agenda.now_us() > self.heals_us + TWO_LEASES_US + more_us;
        is_late || workers.all(Worker::is_at_rest)
    }

    /// Does a request still wait for what is written for this room?
    pub(crate) fn is_room_open(&mut self, worker: usize, key: RoomKey) -> bool {
        let Some(has) = self.workers[worker].as_mut() else { return false };
        let of_room = |held: &Held| held.key == Some(key);
        let Some((&id, _)) = has.held.iter().find(|(_, held)| of_room(held)) else { return false };
        has.core.explain(id).contains("has a place")
    }

    /// Everybody learns that a process is gone, each in its own time: first that it is silent, which
    /// proves nothing, and in the end, behind a fence, that nothing of it can land any more.
    pub(crate) fn spread_death(&mut self, gone: Process) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].is_none() {
                continue;
            }
            let to = self.here(worker);
            let most = self.rng.pick(&[10_000, 1_000_000, 40_000_000]);
            let soon = self.rng.micros(1_000, most.min(3_000_000));
            let late = soon + self.rng.micros(1_000, most);
            if self.strikes(Fault::WeakEvidence) {
                let evidence = self.setup.way.hint_of_death();
                self.agenda.after(soon, Happening::Gone { to, gone, evidence });
            }
            if self.plant.strikes(Bug::UntoldDeath) {
                continue;
            }
            let evidence = Some(self.setup.way.proof_of_death());
            self.agenda.after(late, Happening::Gone { to, gone, evidence });
            self.heals_us = self.heals_us.max(self.agenda.now_us() + late);
        }
    }

    pub(crate) fn learn_death(&mut self, to: Process, gone: Process, evidence: Option<Evidence>) {
        if self.process(to).is_none() {
            return;
        }
        if evidence == Some(self.setup.way.proof_of_death()) {
            if !self.plant.strikes(Bug::FalseDeath) {
                self.fence(to, gone);
            }
            self.fired(Fault::PeerGone, to.worker);
        } else {
            self.fired(Fault::WeakEvidence, to.worker);
        }
        let incarnation = Self::incarnation_of(gone);
        self.tell(to.worker, &[Event::PeerGone { incarnation, evidence }]);
    }

    /// A decode worker and a prefill worker that are up.
    fn any_pair(&self) -> Option<(Process, Process)> {
        let find = |role| {
            let mut up =
                self.workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.as_ref()?)));
            let (worker, found) = up.find(|(_, worker)| worker.role == role)?;
            Some(Process { worker, incarnation: found.incarnation })
        };
        Some((find(Role::Decode)?, find(Role::Prefill)?))
    }

    /// A peer cannot prove that it is done, again: in the end it is cut off.
    pub(crate) fn may_cut_off(&mut self, at: Process, from: Process) {
        let desk = &mut self.workers[at.worker].as_mut().expect("up").desk;
        let count = desk.num_undrained.entry(Self::incarnation_of(from)).or_default();
        *count += 1;
        if *count > PATIENCE {
            *count = 0;
            self.cut_off(at, from);
        }
    }

    /// A decode worker cuts off a prefill worker that lives, which connects anew some time later.
    pub(crate) fn cut_off(&mut self, at: Process, from: Process) {
        let from = self.leader(from);
        let Some(evidence) = self.setup.way.proof_of_fence() else { return };
        if self.process(at).is_none() || self.process(from).is_none() {
            return;
        }
        if self.fences.insert((at, from)) {
            *self.num_fences.entry((at, from)).or_default() += 1;
            if !self.plant.strikes(Bug::FalseFence) {
                self.fence(at, from);
            }
            self.fired(Fault::Fence, at.worker);
            let incarnation = Self::incarnation_of(from);
            self.tell(at.worker, &[Event::Fenced { incarnation, evidence }]);
            let delay = self.rng.micros(1_000, 5_000_000);
            self.agenda.after(delay, Happening::Reconnect { at, from });
            self.heals_us = self.heals_us.max(self.agenda.now_us() + delay);
        }
    }

    pub(crate) fn reconnect(&mut self, at: Process, from: Process) {
        if self.process(at).is_some() && self.process(from).is_some() {
            let incarnation = Self::incarnation_of(at);
            let num_fences = self.num_fences[&(at, from)];
            for rank in self.setup.instance(from.worker) {
                self.tell(rank, &[Event::Reconnected { incarnation, num_fences }]);
            }
        }
        self.fences.remove(&(at, from));
    }

    /// When the link between two workers is up again; None while it is.
    pub(crate) fn link_up_at(&self, one: usize, other: usize) -> Option<u64> {
        let key = (one.min(other), one.max(other));
        self.links_down.get(&key).copied().filter(|&until| until > self.agenda.now_us())
    }

    /// Links go down, workers stop or are cut off, now and then.
    pub(crate) fn cut_link(&mut self) {
        let now_us = self.agenda.now_us();
        let count = self.workers.len();
        let lasts = self.rng.pick(&[100_000, 1_000_000, 10_000_000, 60_000_000, 120_000_000]);
        let until = now_us + self.rng.micros(1, lasts);
        if self.strikes(Fault::Partition) {
            let (one, other) = (self.rng.below(count), self.rng.below(count));
            self.links_down.insert((one.min(other), one.max(other)), until);
            self.heals_us = self.heals_us.max(until);
        }
        if self.strikes(Fault::Stopped) {
            let worker = self.rng.below(count);
            self.stopped.insert(worker, until);
            self.heals_us = self.heals_us.max(until);
            self.fired(Fault::Stopped, worker);
        }
        if self.strikes(Fault::Fence) {
            if let Some((at, from)) = self.any_pair() {
                self.cut_off(at, from);
            }
        }
        if self.is_arriving() {
            let gap = self.rng.micros(1, 2_000_000);
            self.agenda.after(gap, Happening::CutLink);
        }
    }
}
