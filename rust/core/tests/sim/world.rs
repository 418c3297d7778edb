//! Workers, jobs and everything that happens to them, in virtual time.
//!
//! ```text
//!   Arrive ──▶ route ──▶ core.submit      cancels, readers, stop strings, mischief, crashes
//!                           │ plan                      │
//!                           ▼                           ▼
//!   tokens ◀── advance ◀── device ◀── arrays      lost or failed ──▶ again elsewhere
//!      └──▶ job: the oracle says whether each token is the one
//! ```
//! Panics as soon as a promise is broken; the trace tells what led to it.

use std::collections::BTreeMap;

use dsv4_core::Event;
use dsv4_core::ids::StepId;

use crate::agenda::Agenda;
use crate::clients::Clients;
use crate::faults::{Exposure, Fault};
use crate::job::Job;
use crate::model::mix;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::setup::{PARTS, Setup};
use crate::trace::{Note, Trace};
use crate::worker::Worker;

/// More than any run needs; a run that goes on goes round in circles.
const MOST_HAPPENINGS: u64 = 3_000_000;

/// What happens at a time.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    Arrive,
    Again { job: usize },
    Done { worker: usize, incarnation: u32, step: StepId },
    Cancel { job: usize, fault: Fault },
    StopString { job: usize },
    Read { job: usize },
    Mischief,
    Crash,
    Up { worker: usize },
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub exposure: Exposure,
    pub ends: BTreeMap<&'static str, u64>,
    pub num_jobs: u64,
    pub num_steps: u64,
    pub num_tokens: u64,
    /// Tokens of jobs that came to their proper end.
    pub num_useful_tokens: u64,
    pub num_preemptions: u64,
    pub num_hit_tokens: u64,
    pub num_audits: u64,
    /// How often the planted bug struck.
    pub num_struck: usize,
    pub virtual_us: u64,
}

pub struct World {
    pub setup: Setup,
    pub(crate) rng: Rng,
    pub(crate) agenda: Agenda<Happening>,
    /// None while it is down.
    pub(crate) workers: Vec<Option<Worker>>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) clients: Clients,
    pub plant: Plant,
    pub tally: Tally,
    pub(crate) trace: Trace,
    pub(crate) num_open: usize,
    num_calls: u64,
    next_incarnation: u32,
    pub(crate) clock_skew_us: u64,
}

impl World {
    pub fn new(setup: Setup, seed: u64, plant: Plant) -> Self {
        let mut rng = Rng::new(mix(seed, 1));
        let clients = Clients::new(&setup, rng.fork());
        let mut world = Self {
            workers: vec![],
            jobs: vec![],
            clients,
            agenda: Agenda::new(),
            plant,
            tally: Tally::default(),
            trace: Trace::new(seed),
            num_open: 0,
            num_calls: 0,
            next_incarnation: 0,
            clock_skew_us: 0,
            rng,
            setup,
        };
        for _ in 0..world.setup.num_workers {
            let worker = world.fresh_worker();
            world.workers.push(Some(worker));
        }
        world
    }

    /// Everything from the first arrival to rest.
    pub fn run(mut self) -> Tally {
        self.agenda.after(0, Happening::Arrive);
        self.agenda.after(self.setup.step_us, Happening::Mischief);
        if self.setup.chance(Fault::Crash) > 0 {
            self.agenda.after(self.setup.step_us * 50, Happening::Crash);
        }
        let mut num_happenings = 0;
        while let Some(happening) = self.agenda.next() {
            num_happenings += 1;
            assert!(num_happenings < MOST_HAPPENINGS, "{} jobs never end", self.num_open);
            self.happen(happening);
        }
        self.check_rest();
        self.tally.virtual_us = self.agenda.now_us();
        self.tally.num_struck = self.plant.num_struck;
        self.tally
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive => self.arrive(),
            Happening::Again { job } => self.route(job),
            Happening::Done { worker, incarnation, step } => self.done(worker, incarnation, step),
            Happening::Cancel { job, fault } => self.cancel(job, fault),
            Happening::StopString { job } => self.stop_string(job),
            Happening::Read { job } => self.read(job),
            Happening::Mischief => self.mischief(),
            Happening::Crash => self.crash(),
            Happening::Up { worker } => {
                self.fired(Fault::Restart, worker);
                self.workers[worker] = Some(self.fresh_worker());
            }
        }
    }

    fn fresh_worker(&mut self) -> Worker {
        self.next_incarnation += 1;
        let seed = self.rng.next();
        let mut worker = Worker::new(&self.setup, self.next_incarnation, seed);
        let tick = Event::Tick(self.setup.origin_us);
        worker.core.advance(&[tick]).expect("a tick");
        worker
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.trace.note(self.agenda.now_us(), note);
    }

    pub(crate) fn fired(&mut self, fault: Fault, whom: usize) {
        self.tally.exposure.add(fault);
        self.note(Note::Struck { fault, whom });
    }

    /// Does this fault strike here? Whoever asks says so with [`Self::fired`] when it has.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let chance = self.setup.chance(fault);
        chance > 0 && self.rng.below(PARTS) < chance
    }

    pub(crate) fn is_arriving(&self) -> bool {
        self.jobs.len() < self.setup.num_jobs
    }

    /// A worker that is up, found from a random start.
    pub(crate) fn any_worker(&mut self) -> Option<usize> {
        let (count, start) = (self.workers.len(), self.rng.below(self.workers.len()));
        (0..count).map(|i| (start + i) % count).find(|&worker| self.workers[worker].is_some())
    }

    /// A call was made: every so many of them, the books are checked.
    pub(crate) fn called(&mut self, worker: usize) {
        self.num_calls += 1;
        if self.num_calls % self.setup.audit_every == 0
            && let Some(has) = &self.workers[worker]
        {
            has.check_books();
            self.tally.num_audits += 1;
        }
    }

    fn check_rest(&mut self) {
        let open = self.jobs.iter().filter(|job| job.is_open()).count();
        assert_eq!((open, self.num_open), (0, 0), "jobs are lost: nothing more will happen");
        for worker in self.workers.iter_mut().flatten() {
            worker.check_at_rest();
            self.tally.num_preemptions += worker.stat("num_preemptions");
            self.tally.num_hit_tokens += worker.stat("prefix_hit_tokens");
        }
    }
}
