//! Jobs: where they come from, where they go, how they leave.

use dsv4_core::error::Error;
use dsv4_core::transfer::ids::RoomKey;
use dsv4_core::{Event, NewRequest, OnFailure, Transfer};

use crate::device;
use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::job::{End, Job, Reading};
use crate::model::mix;
use crate::oracle::Oracle;
use crate::phases;
use crate::plant::Bug;
use crate::trace::Note;
use crate::worker::{Held, Part, Worker};
use crate::world::World;

impl World {
    pub(crate) fn arrive(&mut self) {
        self.arrived_us = self.agenda.now_us();
        for _ in 0..self.setup.burst {
            if self.is_arriving() {
                let job = self.new_job();
                self.route(job);
            }
        }
        if self.is_arriving() {
            let gap = self.rng.micros(1, 2 * self.setup.gap_us);
            self.agenda.after(gap, Happening::Arrive);
        }
    }

    pub(crate) fn new_job(&mut self) -> usize {
        let job = self.jobs.len();
        let mut wish = self.clients.wish(&self.setup);
        let tag = if wish.no_cache {
            mix(job as u64, 0xa10e)
        } else {
            wish.salt.bytes().fold(1, |tag, byte| mix(tag, u64::from(byte)))
        };
        let shape = device::shape(&self.setup.geometry, self.setup.limits.vocab_size);
        let oracle = Oracle::new(shape, tag, &wish.prompt);
        if self.clients.fits(&wish) && self.rng.once_in(4) {
            wish.stops = vec![oracle.token_after(self.rng.below(wish.max_tokens.min(12)))];
        }
        if self.plant.strikes(Bug::SharedSalt) {
            wish.salt = "";
            wish.no_cache = false;
        }
        self.jobs.push(Job::new(wish, tag, oracle));
        self.tally.num_jobs += 1;
        job
    }

    /// Sends a job to the worker with the least to do; later again if none takes it.
    pub(crate) fn route(&mut self, job: usize) {
        if self.jobs[job].end.is_some() {
            return;
        }
        if self.setup.is_paired() {
            return self.route_pair(job);
        }
        let load = |worker: &Worker| worker.held.len();
        let up = self.workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.as_ref()?)));
        let Some((worker, _)) = up.min_by_key(|(_, worker)| load(worker)) else {
            return self.later(job);
        };
        self.submit(job, worker, None);
    }

    /// Hands a job, or the decode half of one, to a worker.
    pub(crate) fn submit(&mut self, job: usize, worker: usize, transfer: Option<Transfer>) {
        let asked = &self.jobs[job];
        let (tokens, most) = (asked.prompt.len() + asked.emitted.len(), asked.max_tokens);
        let tag = asked.tag;
        let has = self.workers[worker].as_mut().expect("up");
        let key = transfer.as_ref().map(|t| RoomKey { room: t.room, epoch: t.epoch, peer: t.peer });
        let part = if key.is_some() { Part::Decode } else { Part::Whole };
        let fails = transfer.as_ref().is_some_and(|t| t.on_failure == OnFailure::Fail);
        match asked.ask(|new| has.core.submit(NewRequest { transfer, ..new })) {
            Ok(id) => {
                let since_us = has.told_us;
                has.held.insert(id, Held { part, key, fails, since_us, ..Held::whole(job, tag) });
                self.note(Note::Submitted { job, worker, id, tokens, most });
                self.jobs[job].place = Some((worker, id));
                self.accepted(job);
                self.called(worker);
                self.pump(worker);
                self.nudge(worker);
            }
            Err(Error::QueueFull { .. } | Error::RoomsFull { .. }) => {
                self.note(Note::Refused { job, worker });
                self.fired(Fault::QueueOverflow, worker);
                if self.jobs[job].accepted {
                    self.later(job);
                }
            }
            Err(Error::Invalid(refusal)) => {
                let asked = &self.jobs[job];
                let most = has.core.capacity().max_request_tokens;
                let most = most.min(self.setup.limits.max_model_len);
                let fits =
                    !asked.prompt.is_empty() && asked.prompt.len() + asked.max_tokens <= most;
                assert!(!fits && !asked.accepted, "{refusal}");
                self.fired(Fault::TooLong, job);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A job that has no place is sent again, with growing patience.
    pub(crate) fn later(&mut self, job: usize) {
        self.jobs[job].place = None;
        let tries = self.jobs[job].num_tries.min(6);
        self.jobs[job].num_tries += 1;
        let delay = (50_000 << tries) + self.rng.micros(0, 5_000);
        if self.jobs[job].accepted || self.jobs[job].num_tries < 3 {
            self.num_coming += 1;
            self.agenda.after(delay, Happening::Again { job });
        }
    }

    /// The client knows from now on that it will be served, and begins to behave.
    pub(crate) fn accepted(&mut self, job: usize) {
        if self.jobs[job].accepted {
            return;
        }
        self.jobs[job].accepted = true;
        self.num_open += 1;
        let within = self.setup.step_us * 60;
        for fault in [Fault::CancelDecoding, Fault::Disconnect] {
            if self.strikes(fault) {
                let delay = self.rng.micros(0, within);
                self.agenda.after(delay, Happening::Cancel { job, fault });
            }
        }
        if self.strikes(Fault::StopString) {
            let delay = self.rng.micros(0, within);
            self.agenda.after(delay, Happening::StopString { job });
        }
        if let Reading::Every(gap) = self.jobs[job].reading {
            self.agenda.after(gap, Happening::Read { job });
        }
    }

    pub(crate) fn end(&mut self, job: usize, end: End) {
        self.note(Note::Ended { job, end });
        let ended = &mut self.jobs[job];
        assert!(ended.end.replace(end).is_none(), "job {job} ends twice");
        ended.place = None;
        self.num_open -= 1;
        self.heals_us = self.heals_us.max(self.agenda.now_us());
        *self.tally.ends.entry(end.name()).or_default() += 1;
        if matches!(end, End::Stop | End::Length) {
            self.tally.num_useful_tokens += ended.emitted.len() as u64;
        }
        let (salt, tokens) = (ended.salt, [&ended.prompt[..], &ended.emitted].concat());
        self.clients.remember(tokens, salt);
        self.jobs[job].forget();
    }

    /// Takes a job off its worker; it is the caller who says what becomes of it.
    pub(crate) fn withdraw(&mut self, job: usize) {
        let Some((worker, id)) = self.jobs[job].place.take() else { return };
        let Some(has) = self.workers[worker].as_mut() else { return };
        if self.plant.strikes(Bug::ForgottenAbort) {
            has.held.remove(&id);
            return;
        }
        assert!(has.core.abort(id), "request {id} of an open job is not known");
        assert!(!has.core.abort(id), "an abort is idempotent");
        has.held.remove(&id);
        self.called(worker);
        self.nudge(worker);
        self.withdraw_prefill(job);
    }

    /// What an abort or a submit leaves to be told to peers is told soon.
    pub(crate) fn nudge(&mut self, worker: usize) {
        if self.setup.is_paired() {
            let Process { worker, incarnation } = self.here(worker);
            self.agenda.after(0, Happening::Nudge { worker, incarnation });
        }
    }

    pub(crate) fn cancel(&mut self, job: usize, fault: Fault) {
        if !self.jobs[job].is_open() {
            return self.fired(Fault::CancelUnknown, job);
        }
        let place = self.jobs[job].place;
        let says = place.map(|(worker, id)| {
            let has = self.workers[worker].as_mut().expect("jobs leave a worker that goes down");
            has.core.explain(id)
        });
        let phase = says.and_then(|says| phases::cancel_of(&says));
        if fault != Fault::CancelDecoding || phase.is_none() {
            self.fired(fault, job);
        }
        if let Some(phase) = phase {
            self.fired(phase, job);
        }
        self.withdraw(job);
        self.end(job, End::Cancelled);
        if let Some((worker, _)) = place {
            self.pump(worker);
        }
    }

    pub(crate) fn stop_string(&mut self, job: usize) {
        let Some((worker, id)) = self.jobs[job].place else { return };
        let says = self.workers[worker].as_mut().expect("up").core.explain(id);
        if says.contains("room") {
            return; // its prompt is elsewhere: there is no text yet
        }
        self.fired(Fault::StopString, job);
        self.jobs[job].wants_stop = true;
        let has = self.workers[worker].as_mut().expect("up");
        let outcome = has.core.advance(&[Event::Stopped(id), Event::Stopped(id)]);
        self.deliver(worker, &outcome.expect("a known request"));
        assert!(self.jobs[job].end.is_some(), "it ends where its text does");
        self.called(worker);
        self.pump(worker);
    }

    pub(crate) fn read(&mut self, job: usize) {
        let is_idle = std::mem::take(&mut self.jobs[job].unread) == 0;
        if let (true, Reading::Every(gap)) = (self.jobs[job].is_open(), self.jobs[job].reading) {
            self.agenda.after(if is_idle { 20 * gap } else { gap }, Happening::Read { job });
        }
    }
}
