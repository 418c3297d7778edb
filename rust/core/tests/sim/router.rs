//! Which two workers a job goes to, under which room, and what becomes of it when that fails.

use dsv4_core::error::{Error, Invalid};
use dsv4_core::transfer::ids::{Epoch, Room, RoomKey};
use dsv4_core::transfer::placement::{self, Placement};
use dsv4_core::{NewRequest, OnFailure, Transfer};

use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::plant::Bug;
use crate::setup::Role;
use crate::trace::Note;
use crate::worker::{Held, Part};
use crate::world::World;

/// Attempts with a prefill worker before a decode worker computes the prompt itself.
const MOST_PAIRED: u32 = 3;

/// Where a job's prompt is to be computed, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Pairing {
    /// The first rank of the prefill instance.
    pub prefill: Process,
    pub decode: Process,
    pub room: Room,
    pub epoch: u32,
}

impl World {
    /// The instance of this role with the least to do, other than `not` if there is one.
    fn least_loaded(&self, role: Role, not: Option<usize>) -> Option<usize> {
        let up = self.workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.as_ref()?)));
        let leads = |i: usize| self.setup.leader_of(i) == i;
        let fits = up.filter(|&(i, worker)| worker.role == role && leads(i));
        fits.min_by_key(|(i, worker)| (Some(*i) == not, worker.held.len())).map(|(i, _)| i)
    }

    /// Sends a job to a pair; to a decode worker alone if there is no other, or after enough tries.
    pub(crate) fn route_pair(&mut self, job: usize) {
        let Some(decode) = self.least_loaded(Role::Decode, None) else { return self.later(job) };
        let prefill = self.least_loaded(Role::Prefill, self.jobs[job].prefill);
        let epoch = self.jobs[job].epoch;
        self.jobs[job].epoch = epoch.wrapping_add(1);
        let is_tired = self.jobs[job].num_paired >= MOST_PAIRED;
        let Some(prefill) = prefill.filter(|_| !is_tired) else {
            self.fired(Fault::LocalPrefill, decode);
            return self.submit(job, decode, None);
        };
        self.jobs[job].num_paired += 1;
        let found = self.room_of_attempt(job, prefill);
        let Some((prefill, room)) = found else { return self.later(job) };
        self.jobs[job].room = Some((prefill, room));
        let (prefill, decode) = (self.here(prefill), self.here(decode));
        let on_failure = if self.rng.once_in(2) { OnFailure::Recompute } else { OnFailure::Fail };
        let num_ranks = u16::try_from(self.setup.num_ranks).expect("few");
        let peer = Self::incarnation_of(prefill);
        let peer_ranks = (0..num_ranks).collect();
        let transfer = Transfer { room, epoch: Epoch(epoch), peer, peer_ranks, on_failure };
        self.jobs[job].prefill = Some(prefill.worker);
        self.jobs[job].halves.clear();
        self.submit(job, decode.worker, Some(transfer.clone()));
        if self.jobs[job].place.is_none() {
            return;
        }
        if self.strikes(Fault::TakenRoom) {
            self.fired(Fault::TakenRoom, decode.worker);
            let has = self.workers[decode.worker].as_mut().expect("up");
            let again = self.jobs[job]
                .ask(|new| has.core.submit(NewRequest { transfer: Some(transfer), ..new }));
            assert!(again.is_err(), "two requests of one room: {again:?}");
        }
        self.jobs[job].emitted_before = self.jobs[job].emitted.len();
        let patience = self.rng.micros(20_000_000, 90_000_000);
        let epoch_now = self.jobs[job].epoch;
        self.agenda.after(patience, Happening::Deadline { job, epoch: epoch_now });
        self.send_halves(job, Pairing { prefill, decode, room, epoch });
    }

    /// The room of an attempt: the one before, if a router that counts attempts keeps it.
    fn room_of_attempt(&mut self, job: usize, leader: usize) -> Option<(usize, Room)> {
        if let Some((before, room)) = self.jobs[job].room
            && before == leader
            && !self.rooms.misplaced.contains(&room)
            && self.strikes(Fault::SameRoom)
        {
            self.fired(Fault::SameRoom, leader);
            return Some((leader, room));
        }
        self.room_for(leader)
    }

    /// The room that stands for this instance, whose place among all is its data-parallel rank; or
    /// a room that stands for another, which then has to compute the prompt, or to refuse it.
    fn room_for(&mut self, leader: usize) -> Option<(usize, Room)> {
        let any = self.rng.next() >> 1;
        let near = self.rng.next() % 8;
        let draw = match self.rng.below(16) {
            0 => Room::MAX - near, // where a sum would overflow
            1 => 1 + near,
            _ => any,
        };
        if self.strikes(Fault::ForeignRoom) {
            self.fired(Fault::ForeignRoom, leader);
            let room = placement::unplaced(draw).expect("small enough");
            if !self.rooms.drawn.insert(room) {
                return self.room_for(leader);
            }
            let size = u32::try_from(self.setup.dp_size()).expect("few");
            let rank = placement::rank_of(room, size).expect("there are ranks");
            let leader = rank as usize * self.setup.num_ranks;
            return self.workers[leader].is_some().then_some((leader, room));
        }
        let mut place = self.place_of(leader);
        if place.size > 1 && self.strikes(Fault::MisplacedRoom) {
            place.rank = (place.rank + 1) % place.size;
        }
        let is_lost = self.plant.strikes(Bug::RankLost);
        let room = if is_lost { placement::unplaced(draw) } else { place.room(draw) };
        let room = room.expect("small enough");
        if !self.rooms.drawn.insert(room) {
            return self.room_for(leader);
        }
        if place != self.place_of(leader) {
            self.rooms.misplaced.insert(room);
        }
        Some((leader, room))
    }

    /// An instance's place among those that prefill.
    pub(crate) fn place_of(&self, leader: usize) -> Placement {
        let [rank, size] = [leader / self.setup.num_ranks, self.setup.dp_size()]
            .map(|number| u32::try_from(number).expect("few"));
        Placement::new(rank, size).expect("one of them")
    }

    /// The prefill half of an attempt goes to each rank, perhaps late, perhaps never.
    fn send_halves(&mut self, job: usize, pairing: Pairing) {
        for worker in self.setup.instance(pairing.prefill.worker) {
            if self.strikes(Fault::LostSubmit) {
                self.fired(Fault::LostSubmit, worker);
                continue;
            }
            let mut delay = self.rng.micros(1, 2_000);
            if self.strikes(Fault::LateSubmit) {
                self.fired(Fault::LateSubmit, worker);
                delay += self.rng.micros(1_000, 10_000_000);
            }
            if self.strikes(Fault::RepeatedSubmit) {
                self.fired(Fault::RepeatedSubmit, worker);
                let again = delay + self.rng.micros(1, 30_000_000);
                self.heals_us = self.heals_us.max(self.agenda.now_us() + again);
                self.agenda.after(again, Happening::SubmitPrefill { job, worker, pairing });
            }
            self.heals_us = self.heals_us.max(self.agenda.now_us() + delay);
            self.agenda.after(delay, Happening::SubmitPrefill { job, worker, pairing });
        }
    }

    /// An attempt that has not brought a token for long is given up.
    pub(crate) fn deadline(&mut self, job: usize, epoch: u32) {
        let asked = &self.jobs[job];
        if !asked.is_open() || asked.epoch != epoch || asked.place.is_none() {
            return;
        }
        if asked.emitted.len() > asked.emitted_before {
            return;
        }
        self.fired(Fault::Deadline, job);
        self.withdraw(job);
        self.later(job);
    }

    /// The prefill half of an attempt reaches a rank, perhaps long after the other gave up.
    pub(crate) fn submit_prefill(&mut self, job: usize, worker: usize, pairing: Pairing) {
        let Pairing { prefill, decode, room, epoch } = pairing;
        let process = Process { worker, ..prefill };
        if self.process(process).is_none() || self.jobs[job].prompt.is_empty() {
            return;
        }
        let is_current = self.jobs[job].is_open() && self.jobs[job].epoch == epoch.wrapping_add(1);
        let is_misplaced = self.rooms.misplaced.contains(&room);
        let (peer, epoch) = (Self::incarnation_of(decode), Epoch(epoch));
        let on_failure = OnFailure::Fail;
        let transfer = Transfer { room, epoch, peer, peer_ranks: vec![0], on_failure };
        let key = RoomKey { room, epoch, peer };
        let asked = &self.jobs[job];
        let (tag, tokens) = (asked.tag, asked.prompt.len() + asked.emitted.len());
        let is_other = self.strikes(Fault::OtherPrompt);
        let has = self.workers[worker].as_mut().expect("up");
        let submitted = self.jobs[job].ask(|mut new: NewRequest<'_>| {
            new.prompt[0] ^= i32::from(is_other);
            has.core.submit(NewRequest { transfer: Some(transfer), ..new })
        });
        match submitted {
            Ok(id) => {
                assert!(!is_misplaced, "{room:?} is taken by the wrong rank");
                let (part, since_us) = (Part::Prefill, has.told_us);
                let held = Held { part, key: Some(key), since_us, ..Held::whole(job, tag) };
                has.held.insert(id, held);
                let is_new = self.rooms.begun.insert((process, key));
                let jumps = self.tally.exposure.of(Fault::ClockJump) > 0;
                assert!(is_new || jumps, "{key:?} was over, is remembered, and begins again");
                if is_other {
                    self.fired(Fault::OtherPrompt, worker);
                }
                self.note(Note::Submitted { job, worker, id, tokens, most: 1 });
                if is_current {
                    self.jobs[job].halves.push((process, id));
                }
                self.nudge(worker);
            }
            Err(Error::Invalid(Invalid { param: "room", .. })) => {
                assert!(is_misplaced, "{room:?} is refused by its own rank");
                self.fired(Fault::MisplacedRoom, worker);
                self.try_again(job, is_current);
            }
            Err(Error::RoomTaken { .. }) => {} // given up before it came
            Err(Error::QueueFull { .. } | Error::RoomsFull { .. }) => {
                self.fired(Fault::QueueOverflow, worker);
                self.try_again(job, is_current);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A prefill worker refused its half: the attempt is over, unless it was before.
    fn try_again(&mut self, job: usize, is_current: bool) {
        if is_current && self.jobs[job].place.is_some() {
            self.withdraw(job);
            self.later(job);
        }
    }

    /// The router takes the prefill half back, if it cares to.
    pub(crate) fn withdraw_prefill(&mut self, job: usize) {
        for (process, id) in std::mem::take(&mut self.jobs[job].halves) {
            if self.process(process).is_none() || self.rng.once_in(2) {
                continue; // the decode worker's word has to do
            }
            let has = self.workers[process.worker].as_mut().expect("up");
            let was_held = has.held.remove(&id).is_some();
            assert_eq!(has.core.abort(id), was_held, "request {id} of the prefill side");
            if was_held {
                self.fired(Fault::WithdrawnHalf, process.worker);
            }
            self.nudge(process.worker);
        }
    }
}
