//! One engine process: a core, its device, and the steps in flight between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsv4_core::error::Error;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::{Core, Event, Outcome, Plan};

use crate::arrays::{Offsets, at};
use crate::device::{Device, Sample, Upset};
use crate::plant::Plant;
use crate::setup::Setup;

/// A request as its worker knows it.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub job: usize,
    pub tag: u64,
}

/// A step that the device has and has not reported.
#[derive(Debug)]
pub struct Flight {
    pub plan: Plan,
    memory: Vec<i32>,
    tags: Vec<u64>,
    row_starts: Vec<usize>,
    pub upset: Upset,
    /// Samples whose logits alone are not finite.
    pub nan_logits: Vec<usize>,
    samples: Option<Vec<Sample>>,
    is_executed: bool,
}

pub struct Worker {
    pub incarnation: u32,
    pub core: Core,
    pub device: Device,
    offsets: Offsets,
    /// Memory to lend; a step keeps what it was lent until it is reported.
    buffers: Vec<Vec<i32>>,
    pub flights: VecDeque<Flight>,
    pub held: BTreeMap<RequestId, Held>,
    most_in_flight: usize,
    /// What the step that the device ran last sampled, for the next one to take its tokens from.
    sampled: Vec<i32>,
    /// When the device is through with all it has.
    pub busy_until_us: u64,
}

impl Flight {
    /// The row that a token of the step belongs to.
    pub fn row_of(&self, token: usize) -> usize {
        self.row_starts.partition_point(|&start| start <= token) - 1
    }
}

impl Worker {
    pub fn new(setup: &Setup, incarnation: u32, seed: u64) -> Self {
        let core = Core::new(setup.geometry.clone(), &setup.sizes, setup.limits.clone());
        let core = core.expect("a legal setup");
        core.panic_on_violation();
        let (most_in_flight, words) = (setup.limits.max_steps_in_flight, core.layout().num_words());
        Self {
            incarnation,
            device: Device::new(&setup.geometry, &setup.sizes, setup.limits.vocab_size, seed),
            offsets: Offsets::new(core.layout()),
            buffers: vec![vec![-1; words]; most_in_flight],
            core,
            flights: VecDeque::new(),
            held: BTreeMap::new(),
            most_in_flight,
            sampled: vec![],
            busy_until_us: 0,
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
        let starts = arrays.query_starts[..plan.num_requests].iter();
        let row_starts = starts.map(|&start| at(start)).collect();
        if let Some(before) = self.flights.front().filter(|flight| !flight.is_executed) {
            let arrays = self.offsets.read(&before.memory);
            plant.reuse_early(&before.plan, &arrays, &mut self.device);
        }
        self.flights.push_back(Flight {
            plan,
            memory,
            tags,
            row_starts,
            upset,
            nan_logits: vec![],
            samples: None,
            is_executed: false,
        });
        self.flights.back_mut()
    }

    /// The device runs everything up to `step`, in order.
    pub fn execute(&mut self, step: StepId) {
        for flight in &mut self.flights {
            if flight.is_executed || flight.plan.step_id > step {
                continue;
            }
            self.offsets.forward(&mut flight.memory, flight.plan.num_tokens, &self.sampled);
            let arrays = self.offsets.read(&flight.memory);
            let Flight { plan, tags, upset, .. } = flight;
            flight.samples = self.device.execute(plan, &arrays, tags, upset);
            let samples = flight.samples.clone().unwrap_or(vec![Some(0); plan.num_samples]);
            self.sampled = samples.iter().map(|sample| sample.unwrap_or(0)).collect();
            flight.is_executed = true;
        }
    }

    /// The jobs that a step was for which died on the device, as far as they are still here.
    pub fn failed_jobs(&self, step: StepId) -> Vec<usize> {
        let due = self.flights.iter().filter(|flight| flight.plan.step_id <= step);
        let failed = due.filter(|flight| flight.samples.is_none());
        let ids = failed.flat_map(|flight| &flight.plan.request_ids);
        let jobs: BTreeSet<usize> = ids.filter_map(|id| Some(self.held.get(id)?.job)).collect();
        jobs.into_iter().collect()
    }

    /// Reports everything up to `step` in one call.
    pub fn report(&mut self, step: StepId, now_us: Option<u64>) -> Outcome {
        let is_due = |flight: &Flight| flight.plan.step_id <= step;
        let num_due = self.flights.iter().take_while(|flight| is_due(flight)).count();
        let due: Vec<Flight> = self.flights.drain(..num_due).collect();
        let mut reports = vec![];
        for flight in &due {
            let num_samples = flight.plan.num_samples;
            let samples = flight.samples.clone().unwrap_or(vec![Some(0); num_samples]);
            let is_nan = |&i: &usize| samples[i].is_none() || flight.nan_logits.contains(&i);
            let non_finite: Vec<usize> = (0..num_samples).filter(is_nan).collect();
            let tokens: Vec<i32> = samples.iter().map(|sample| sample.unwrap_or(-1)).collect();
            reports.push((flight.plan.step_id, tokens, non_finite));
        }
        let done = |(step, tokens, non_finite)| Event::StepDone { step, tokens, non_finite };
        let reports = reports.iter().map(|(step, tokens, nan)| done((*step, tokens, nan)));
        let events: Vec<Event<'_>> = reports.chain(now_us.map(Event::Tick)).collect();
        let outcome = self.core.advance(&events).expect("the oldest steps in flight");
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
        let stat = |name: &str| stats.iter().find(|(each, _)| each == name).expect("a counter").1;
        for group in ["full", "swa", "state"] {
            let of = |kind: &str| stat(&format!("{group}_{kind}"));
            let kinds = ["free", "open", "sealed", "shared", "cached", "retired", "quarantined"];
            let sum: u64 = kinds.iter().map(|kind| of(kind)).sum();
            assert_eq!(sum, of("capacity"), "{group} blocks do not add up");
        }
        assert_eq!(stat("num_steps_in_flight"), self.flights.len() as u64);
    }

    /// The core has the requests that we have, and no other.
    pub fn check_held(&self) {
        let has = self.stat("num_running") + self.stat("num_waiting");
        assert_eq!(has, self.held.len() as u64, "requests of the core, and ours");
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
        for group in ["full", "swa", "state"] {
            let of = |state: &str| self.stat(&format!("{group}_{state}"));
            assert_eq!(of("free") + of("cached"), of("capacity"), "{group} blocks are not back");
            assert_eq!(of("reserved"), 0, "{group} blocks are still promised");
        }
        assert_eq!((self.stat("num_violations"), self.stat("num_stalls")), (0, 0));
    }
}
