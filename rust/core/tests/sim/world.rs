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

use std::collections::{BTreeMap, BTreeSet};

use dsv4_core::Event;

use crate::agenda::Agenda;
use crate::clients::Clients;
use crate::faults::{Exposure, Fault};
use crate::flow::Process;
use crate::happening::Happening;
use crate::job::Job;
use crate::model::mix;
use crate::peers::TICK_US;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::room_log::RoomLog;
use crate::setup::{PARTS, Role, Setup};
use crate::trace::{Note, Trace};
use crate::transport::Flows;
use crate::worker::Worker;

/// More than any run needs: a run that goes on goes round in circles. A client that looks whether
/// there is something to read counts for an eighth; slow worlds have millions of those.
const MOST_HAPPENINGS: u64 = 1_000_000 * 8;

/// How long after the last arrival things go wrong.
const CALM_AFTER_US: u64 = 600_000_000;

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
    /// How often nothing could move and the core made room by itself.
    pub num_stalls: u64,
    pub num_hit_tokens: u64,
    pub num_audits: u64,
    /// Rooms for which anything was written, and prompts that were found whole.
    pub num_rooms: u64,
    pub num_arrived: u64,
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
    /// Jobs that were refused and will come again.
    pub(crate) num_coming: usize,
    num_calls: u64,
    /// The first worker of each incarnation, in order from 1.
    pub(crate) started: Vec<usize>,
    /// Incarnations that will be used again, which no worker may do.
    pub(crate) kept: BTreeMap<usize, u32>,
    pub(crate) flows: Flows,
    /// Until when messages between two workers are lost.
    pub(crate) links_down: BTreeMap<(usize, usize), u64>,
    /// Peers that are cut off: who cut, and whom.
    pub(crate) fences: BTreeSet<(Process, Process)>,
    pub(crate) num_fences: BTreeMap<(Process, Process), u32>,
    /// Until when a worker does nothing.
    pub(crate) stopped: BTreeMap<usize, u64>,
    pub(crate) rooms: RoomLog,
    /// When the last job arrived.
    pub(crate) arrived_us: u64,
    /// From when on nothing new goes wrong.
    pub(crate) heals_us: u64,
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
            num_coming: 0,
            num_calls: 0,
            started: vec![],
            kept: BTreeMap::new(),
            flows: Flows::default(),
            links_down: BTreeMap::new(),
            fences: BTreeSet::new(),
            num_fences: BTreeMap::new(),
            stopped: BTreeMap::new(),
            rooms: RoomLog::default(),
            arrived_us: 0,
            heals_us: 0,
            clock_skew_us: 0,
            rng,
            setup,
        };
        for index in 0..world.setup.roles.len() {
            if world.setup.leader_of(index) == index {
                world.started.push(index);
            }
            let last = u32::try_from(world.started.len()).expect("few starts");
            let worker = world.fresh_worker(index, last);
            world.workers.push(Some(worker));
        }
        world
    }

    /// Everything from the first arrival to rest.
    pub fn run(mut self) -> Tally {
        self.agenda.after(0, Happening::Arrive);
        self.agenda.after(self.setup.step_us, Happening::Mischief);
        if self.setup.is_paired() {
            self.agenda.after(1, Happening::CutLink);
        }
        if self.setup.chance(Fault::Crash) > 0 {
            self.agenda.after(self.setup.step_us * 50, Happening::Crash);
        }
        let mut num_happenings = 0;
        while let Some(happening) = self.agenda.next() {
            num_happenings += if matches!(happening, Happening::Read { .. }) { 1 } else { 8 };
            if num_happenings > MOST_HAPPENINGS {
                let says = self.explain_open();
                panic!("{} jobs never end: {says}", self.num_open);
            }
            self.happen(happening);
        }
        self.check_rest();
        self.tally.num_rooms =
            self.rooms.sent.keys().filter(|(.., rank)| *rank == 0).count() as u64;
        self.tally.virtual_us = self.agenda.now_us();
        self.tally.num_struck = self.plant.num_struck;
        self.tally
    }

    /// What the core says of jobs that are open.
    fn explain_open(&mut self) -> String {
        let mut says = vec![];
        for (number, job) in self.jobs.iter().enumerate().filter(|(_, job)| job.is_open()) {
            let said = job.place.map(|(worker, id)| {
                let has = self.workers[worker].as_mut().expect("up");
                format!("worker {worker}: {}", has.core.explain(id))
            });
            says.push(format!("job {number}: {}", said.unwrap_or("nowhere".into())));
        }
        says.truncate(10);
        says.join("\n")
    }

    pub(crate) fn fresh_worker(&mut self, index: usize, incarnation: u32) -> Worker {
        let seed = self.rng.next();
        let mut worker = Worker::new(&self.setup, self.setup.roles[index], incarnation, seed);
        let tick = Event::Tick(self.setup.origin_us);
        worker.core.advance(&[tick]).expect("a tick");
        if worker.role != Role::Whole {
            if self.strikes(Fault::Skew) {
                self.fired(Fault::Skew, index);
                worker.clock_rate = self.rng.micros(900, 1_100);
            }
            let mut settings = self.setup.room_settings(worker.role, &mut self.rng);
            if worker.role == Role::Prefill {
                settings.placement = Some(self.place_of(self.setup.leader_of(index)));
            }
            worker.core.open_rooms(&settings).expect("once");
            worker.deadline_us = settings.deadline_ms * 1_000;
            self.agenda.after(TICK_US, Happening::Tick { worker: index, incarnation });
        }
        worker
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.trace.note(self.agenda.now_us(), note);
    }

    pub(crate) fn fired(&mut self, fault: Fault, whom: usize) {
        self.tally.exposure.add(fault);
        self.note(Note::Struck { fault, whom });
    }

    /// Does this fault strike here? None does long after the last arrival: what is left has to end
    /// in a world that is well. Whoever asks says so with [`Self::fired`] when it has.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let chance = self.setup.chance(fault);
        let is_calm = self.agenda.now_us() > self.arrived_us + CALM_AFTER_US;
        chance > 0 && !is_calm && self.rng.below(PARTS) < chance
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
        if self.setup.is_paired() {
            self.trace.say(format!("{:?}, healed at {} us", self.setup.way, self.heals_us));
        }
        if self.setup.is_calm && self.setup.num_ranks == 1 {
            self.check_calm();
        }
        for worker in self.workers.iter_mut().flatten() {
            worker.check_at_rest();
            self.tally.num_stalls += worker.stat("num_stalls");
            self.tally.num_preemptions += worker.stat("num_preemptions");
            self.tally.num_hit_tokens += worker.stat("prefix_hit_tokens");
        }
    }
}
