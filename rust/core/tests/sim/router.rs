//! Which two workers a job goes to, under which room, and what becomes of it when that fails.

use dsv4_core::error::Error;
use dsv4_core::transfer::ids::{Epoch, Room, RoomKey};
use dsv4_core::transfer::placement::Placement;
use dsv4_core::{NewRequest, OnFailure, Transfer};

use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::setup::Role;
use crate::trace::Note;
use crate::worker::{Held, Part};
use crate::world::World;

/// Attempts with a prefill worker before a decode worker computes the prompt itself.
const MOST_PAIRED: u32 = 3;

impl World {
    /// The worker of this role with the least to do, other than `not` if there is one.
    fn least_loaded(&self, role: Role, not: Option<usize>) -> Option<usize> {
        let up = self.workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.as_ref()?)));
        let fits = up.filter(|(_, worker)| worker.role == role);
        fits.min_by_key(|(i, worker)| (Some(*i) == not, worker.held.len())).map(|(i, _)| i)
    }

    /// Sends a job to a pair; to a decode worker alone if there is no other, or after enough tries.
    pub(crate) fn route_pair(&mut self, job: usize) {
        let Some(decode) = self.least_loaded(Role::Decode, None) else { return self.later(job) };
        let not = self.jobs[job].prefill.map(|(process, _)| process.worker);
        let prefill = self.least_loaded(Role::Prefill, not);
        let epoch = self.jobs[job].epoch;
        self.jobs[job].epoch = epoch.wrapping_add(1);
        let is_tired = self.jobs[job].num_paired >= MOST_PAIRED;
        let Some(prefill) = prefill.filter(|_| !is_tired) else {
            self.fired(Fault::LocalPrefill, decode);
            return self.submit(job, decode, None);
        };
        self.jobs[job].num_paired += 1;
        let prefill = self.here(prefill);
        let place = Placement::new(0, 1 + u32::try_from(self.rng.below(48)).expect("few"));
        let room = place.and_then(|place| place.room(self.rng.next() >> 1)).expect("rank 0");
        let key = RoomKey { room, epoch: Epoch(epoch), peer: Self::incarnation_of(prefill) };
        let on_failure = if self.rng.once_in(2) { OnFailure::Recompute } else { OnFailure::Fail };
        let transfer =
            Transfer { room, epoch: key.epoch, peer: key.peer, peer_ranks: vec![0], on_failure };
        self.jobs[job].prefill = Some((prefill, None));
        self.submit(job, decode, Some(transfer));
        let Some((worker, _)) = self.jobs[job].place else { return };
        let decode = self.here(worker);
        self.jobs[job].emitted_before = self.jobs[job].emitted.len();
        let patience = self.rng.micros(20_000_000, 90_000_000);
        let epoch_now = self.jobs[job].epoch;
        self.agenda.after(patience, Happening::Deadline { job, epoch: epoch_now });
        if self.strikes(Fault::LostSubmit) {
            return self.fired(Fault::LostSubmit, prefill.worker);
        }
        let mut delay = self.rng.micros(1, 2_000);
        if self.strikes(Fault::LateSubmit) {
            self.fired(Fault::LateSubmit, prefill.worker);
            delay += self.rng.micros(1_000, 10_000_000);
        }
        let happening = Happening::SubmitPrefill { job, prefill, decode, room, epoch };
        self.agenda.after(delay, happening);
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

    /// The prefill half of an attempt reaches its worker, perhaps long after the other gave up.
    pub(crate) fn submit_prefill(
        &mut self,
        job: usize,
        (prefill, decode): (Process, Process),
        (room, epoch): (Room, u32),
    ) {
        let is_current = self.jobs[job].is_open() && self.jobs[job].epoch == epoch.wrapping_add(1);
        if self.process(prefill).is_none() || self.jobs[job].prompt.is_empty() {
            return;
        }
        let peer = Self::incarnation_of(decode);
        let transfer = Transfer {
            room,
            epoch: Epoch(epoch),
            peer,
            peer_ranks: vec![0],
            on_failure: OnFailure::Fail,
        };
        let key = RoomKey { room, epoch: Epoch(epoch), peer };
        let (asked, worker) = (&self.jobs[job], prefill.worker);
        let (tag, tokens) = (asked.tag, asked.prompt.len() + asked.emitted.len());
        let has = self.workers[worker].as_mut().expect("up");
        let new =
            |new: NewRequest<'_>| has.core.submit(NewRequest { transfer: Some(transfer), ..new });
        match asked.ask(new) {
            Ok(id) => {
                let held = Held { part: Part::Prefill, key: Some(key), ..Held::whole(job, tag) };
                has.held.insert(id, held);
                self.note(Note::Submitted { job, worker, id, tokens, most: 1 });
                if is_current {
                    self.jobs[job].prefill = Some((prefill, Some(id)));
                }
                self.nudge(worker);
            }
            Err(Error::RoomTaken { .. }) => {} // given up before it came
            Err(Error::QueueFull { .. } | Error::RoomsFull { .. }) => {
                self.fired(Fault::QueueOverflow, worker);
                if is_current && self.jobs[job].place.is_some() {
                    self.withdraw(job);
                    self.later(job);
                }
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// The router takes the prefill half back, if it cares to.
    pub(crate) fn withdraw_prefill(&mut self, job: usize) {
        let Some((process, Some(id))) = self.jobs[job].prefill.take() else { return };
        if self.process(process).is_none() || self.rng.once_in(2) {
            return; // the decode worker's word has to do
        }
        let has = self.workers[process.worker].as_mut().expect("up");
        let was_held = has.held.remove(&id).is_some();
        assert_eq!(has.core.abort(id), was_held, "request {id} of the prefill side");
        self.nudge(process.worker);
    }
}
