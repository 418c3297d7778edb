//! One engine process: a core, its device, and the steps in flight between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsv4_core::error::Error;
use dsv4_core::geometry::Geometry;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::transfer::ids::RoomKey;
use dsv4_core::{Core, Event, Outcome};

use crate::arrays::Offsets;
use crate::cargo::Spot;
use crate::desk::Desk;
use crate::device::{Device, Upset};
use crate::flight::Flight;
use crate::ledger::Ledger;
use crate::plant::Plant;
use crate::setup::{Role, Setup};

const GROUPS: [&str; 4] = ["full", "swa", "state", "aux"];

/// States of blocks; they add up to the capacity.
const STATES: [&str; 7] = ["free", "open", "sealed", "shared", "cached", "retired", "quarantined"];

/// A request as its worker knows it.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub job: usize,
    pub tag: u64,
    pub part: Part,
    /// Its room here, if it is one half of a job.
    pub key: Option<RoomKey>,
    /// Does it end if its room does?
    pub fails: bool,
    /// What its worker had been told of the time when it came.
    pub since_us: u64,
}

impl Held {
    pub fn whole(job: usize, tag: u64) -> Self {
        Self { job, tag, part: Part::Whole, key: None, fails: false, since_us: 0 }
    }
}

/// Which part of a job a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Prefill,
    Decode,
}

pub struct Worker {
    pub role: Role,
    pub incarnation: u32,
    pub core: Core,
    pub device: Device,
    offsets: Offsets,
    /// Memory to lend; a step keeps what it was lent until it is reported.
    buffers: Vec<Vec<i32>>,
    pub flights: VecDeque<Flight>,
    pub held: BTreeMap<RequestId, Held>,
    most_in_flight: usize,
    max_draft_tokens: usize,
    /// When the device is through with all it has.
    pub busy_until_us: u64,
    /// Rooms as this side's transport knows them.
    pub desk: Desk,
    pub ledger: Ledger,
    /// How long a request may wait for its other side, and the time that it was told last.
    pub deadline_us: u64,
    pub told_us: u64,
    /// The time that it was told first: before, it cannot know how long anybody waits.
    pub first_us: Option<u64>,
    /// Thousandths of a second that its clock counts per second.
    pub clock_rate: u64,
}

impl Worker {
    pub fn new(setup: &Setup, role: Role, incarnation: u32, seed: u64) -> Self {
        let core = Core::new(setup.geometry.clone(), &setup.sizes, setup.limits.clone());
        let core = core.expect("a legal setup");
        core.panic_on_violation();
        let (most_in_flight, words) = (setup.limits.max_steps_in_flight, core.layout().num_words());
        let num_aux = setup.sizes.aux_rows(&setup.limits);
        Self {
            role,
            incarnation,
            device: Device::new(
                &setup.geometry,
                &setup.sizes,
                num_aux,
                setup.limits.vocab_size,
                seed,
            ),
            offsets: Offsets::new(core.layout()),
            buffers: vec![vec![-1; words]; most_in_flight],
            core,
            flights: VecDeque::new(),
            held: BTreeMap::new(),
            most_in_flight,
            max_draft_tokens: setup.limits.max_draft_tokens,
            busy_until_us: 0,
            desk: Desk::default(),
            ledger: Ledger::default(),
            deadline_us: u64::MAX,
            told_us: setup.origin_us,
            first_us: None,
            clock_rate: 1_000,
        }
    }

    pub fn is_full(&self) -> bool {
        self.flights.len() == self.most_in_flight
    }

    /// Plans a step and hands it to the device; None if there is nothing to do.
    pub fn plan(&mut self, upset: Upset, plant: &mut Plant) -> Option<&mut Flight> {
        let mut memory = self.buffers.pop().expect("a step's memory comes back with its report");
        let Some(mut plan) = self.core.plan(&mut memory).expect("a step may be planned") else {
            self.buffers.push(memory);
            return None;
        };
        plant.tamper(&mut plan, &mut memory, &self.offsets);
        let tag = |id| self.held.get(id).unwrap_or_else(|| panic!("{id} has ended and runs")).tag;
        let tags = plan.request_ids.iter().map(tag).collect();
        let arrays = self.offsets.read(&memory);
        self.device.scribble(&plan, &arrays);
        if self.role != Role::Whole {
            self.ledger.planned(&plan, &arrays);
        }
        let mut flight = Flight::new(plan, tags, &arrays, upset);
        if let Some(before) = self.flights.front().filter(|flight| !flight.is_executed) {
            let arrays = self.offsets.read(&before.memory);
            plant.reuse_early(&before.plan, &arrays, &mut self.device);
        }
        flight.memory = memory;
        self.flights.push_back(flight);
        self.flights.back_mut()
    }

    /// What the step planned last writes.
    pub fn written_last(&self, geometry: &Geometry) -> BTreeSet<Spot> {
        let flight = self.flights.back().expect("just planned");
        Ledger::written(&flight.plan, &self.offsets.read(&flight.memory), geometry)
    }

    /// The device runs everything up to `step`, in order.
    pub fn execute(&mut self, step: StepId) {
        for flight in &mut self.flights {
            if flight.is_executed || flight.plan.step_id > step {
                continue;
            }
            let arrays = self.offsets.read(&flight.memory);
            let Flight { plan, tags, upset, .. } = flight;
            flight.samples = self.device.execute(plan, &arrays, tags, upset);
            flight.is_executed = true;
        }
    }

    /// The requests that a step was for which died on the device, as far as they are still here.
    pub fn failed_requests(&self, step: StepId) -> BTreeSet<RequestId> {
        let due = self.flights.iter().filter(|flight| flight.plan.step_id <= step);
        let failed = due.filter(|flight| flight.samples.is_none());
        let ids = failed.flat_map(|flight| &flight.plan.request_ids);
        ids.filter(|id| self.held.contains_key(id)).copied().collect()
    }

    /// Reports everything up to `step` in one call.
    ///
    /// `propose` drafts what may follow some tokens of a request.
    pub fn report(
        &mut self,
        step: StepId,
        now_us: Option<u64>,
        mut propose: impl FnMut(RequestId, &[i32], usize) -> Vec<i32>,
    ) -> Outcome {
        let is_due = |flight: &Flight| flight.plan.step_id <= step;
        let num_due = self.flights.iter().take_while(|flight| is_due(flight)).count();
        let due: Vec<Flight> = self.flights.drain(..num_due).collect();
        let reports: Vec<_> =
            due.iter().map(|flight| flight.report(self.max_draft_tokens, &mut propose)).collect();
        let reports = reports.iter().map(|report| report.event(self.max_draft_tokens > 0));
        let events: Vec<Event<'_>> = reports.chain(now_us.map(Event::Tick)).collect();
        let outcome = self.core.advance(&events).expect("the oldest steps in flight");
        if let Some(now_us) = now_us {
            self.is_told(now_us);
        }
        self.buffers.extend(due.into_iter().map(|flight| flight.memory));
        outcome
    }

    /// Memory that is lent next is full of garbage.
    pub fn spoil_memory(&mut self, garbage: i32) {
        if let Some(memory) = self.buffers.last_mut() {
            memory.fill(garbage);
        }
    }

    /// A plan that must be refused: into this much memory.
    pub fn plan_refused(&mut self, words: usize) -> Error {
        let mut memory = vec![0; words];
        self.core.plan(&mut memory).expect_err("no such plan may be made")
    }

    pub fn num_words(&self) -> usize {
        self.core.layout().num_words()
    }

    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.core.stats();
        stats.iter().find(|(each, _)| each == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The books balance, by audit and by the sums that anybody can see.
    pub fn check_books(&self) {
        self.core.audit().expect("the books balance");
        let stats = self.core.stats();
        let find = |name: &str| stats.iter().find(|(each, _)| each == name);
        let stat = |name: &str| find(name).map_or(0, |(_, value)| *value);
        for group in GROUPS {
            let of = |kind: &str| stat(&format!("{group}_{kind}"));
            let sum: u64 = STATES.iter().map(|state| of(state)).sum();
            assert_eq!(sum, of("capacity"), "{group} blocks do not add up");
        }
        assert_eq!(stat("num_steps_in_flight"), self.flights.len() as u64);
    }

    /// The core has the requests that we have, and no other.
    pub fn check_held(&self) {
        if self.role != Role::Whole {
            return; // some wait for the other side, in lists of their own
        }
        let has = self.stat("num_running") + self.stat("num_waiting");
        assert_eq!(has, self.held.len() as u64, "requests of the core, and ours");
    }

    /// It was told the time, which never goes back.
    pub fn is_told(&mut self, now_us: u64) {
        self.told_us = self.told_us.max(now_us);
        self.first_us.get_or_insert(self.told_us);
    }

    /// Time is up for whoever has waited too long for the other side, and it has ended.
    pub fn check_deadlines(&mut self) {
        let Self { held, core, told_us, deadline_us, first_us, .. } = self;
        let first_us = first_us.expect("told just now");
        for (&id, held) in held.iter().filter(|(_, held)| held.key.is_some()) {
            let waited_us = *told_us - held.since_us.max(first_us);
            let is_late = waited_us > *deadline_us && core.explain(id).contains("room ");
            assert!(!is_late, "it waits for {waited_us} us: {}", core.explain(id));
        }
    }

    /// Every counter that is not zero.
    pub fn told(&self) -> String {
        let stats = self.core.stats().into_iter().filter(|(_, value)| *value > 0);
        let told: Vec<String> = stats.map(|(name, value)| format!("{name} {value}")).collect();
        let rooms = format!("{:?}", self.core);
        let live = rooms.find("live: {").map_or("", |start| &rooms[start..]);
        let live: String = live.chars().take(1200).collect();
        format!("{}; {live}", told.join(", "))
    }

    /// Has it given back everything?
    pub fn is_at_rest(&self) -> bool {
        let stats = self.core.stats();
        let stat = |name: &str| stats.iter().find(|(each, _)| each == name).map_or(0, |s| s.1);
        let is_back = |group: &&str| {
            let of = |state: &str| stat(&format!("{group}_{state}"));
            of("free") + of("cached") == of("capacity")
        };
        self.held.is_empty() && self.flights.is_empty() && GROUPS.iter().all(is_back)
    }

    /// Nothing runs, nothing waits, and every block is back.
    pub fn check_at_rest(&mut self) {
        let most = self.num_words();
        let planned = self.core.plan(&mut vec![0; most]).expect("a step may be planned");
        assert!(planned.is_none(), "a step with nothing to do: {planned:?}");
        self.check_books();
        for name in ["num_running", "num_waiting", "num_queued_tokens", "num_steps_in_flight"] {
            assert_eq!(self.stat(name), 0, "{name}");
        }
        for group in GROUPS {
            let of = |state: &str| self.stat(&format!("{group}_{state}"));
            let is_back = of("free") + of("cached") == of("capacity");
            assert!(is_back, "{group} blocks are not back: {}", self.told());
            assert_eq!(of("reserved"), 0, "{group} blocks are still promised");
        }
        assert_eq!(self.stat("num_violations"), 0);
        // What is quarantined is not there, whatever was promised before.
        assert!(self.role != Role::Whole || self.stat("num_stalls") == 0, "{}", self.told());
    }
}
