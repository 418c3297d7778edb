//! Steps: planned, upset on the device, reported, and their tokens handed out.

use std::collections::{BTreeMap, BTreeSet};

use dsv4_core::ids::StepId;
use dsv4_core::{Finish, Outcome, Plan};

use crate::device::Upset;
use crate::faults::Fault;
use crate::happening::Happening;
use crate::job::{End, Reading};
use crate::plant::Bug;
use crate::setup::Role;
use crate::trace::Note;
use crate::worker::{Held, Part};
use crate::world::World;

impl World {
    /// Plans as long as there is something to plan and room in flight.
    pub(crate) fn pump(&mut self, worker: usize) {
        loop {
            let is_alone = match &self.workers[worker] {
                Some(has) if !has.is_full() => has.flights.is_empty(),
                _ => return,
            };
            if !is_alone && self.rng.once_in(4) {
                return; // the driver is busy elsewhere
            }
            let upset =
                Upset { is_reversed: self.strikes(Fault::ReversedRows), ..Upset::default() };
            let is_reversed = upset.is_reversed;
            let is_stale = self.strikes(Fault::StaleMemory);
            if is_stale {
                let garbage = i32::try_from(self.rng.below(1 << 31)).expect("an int32");
                self.workers[worker].as_mut().expect("up").spoil_memory(garbage);
            }
            let has = self.workers[worker].as_mut().expect("up");
            let Some(flight) = has.plan(upset, &mut self.plant) else {
                let is_stuck = is_alone && !has.held.is_empty() && has.role == Role::Whole;
                assert!(!is_stuck, "worker {worker}: nothing moves: {:?}", has.core.stats());
                return;
            };
            let plan = flight.plan.clone();
            self.tally.num_steps += 1;
            self.called(worker);
            self.note(Note::Planned {
                worker,
                step: plan.step_id,
                requests: plan.num_requests,
                tokens: plan.num_tokens,
                first: plan.request_ids[0],
            });
            for fault in [Fault::ReversedRows, Fault::StaleMemory] {
                if if fault == Fault::StaleMemory { is_stale } else { is_reversed } {
                    self.fired(fault, worker);
                }
            }
            self.check_sources(worker);
            self.upset_step(worker, &plan, is_alone);
            self.launch(worker, &plan);
        }
    }

    /// The step just planned writes nothing that a transfer has yet to read.
    fn check_sources(&self, worker: usize) {
        let has = self.workers[worker].as_ref().expect("up");
        if has.role != Role::Prefill {
            return;
        }
        let read = self.still_reads(self.here(worker));
        if !read.is_empty() {
            let written = has.written_last(&self.setup.geometry);
            let both = read.intersection(&written).next();
            assert!(both.is_none(), "a step writes {both:?}, which a transfer has yet to read");
        }
    }

    /// What goes wrong with the step just planned.
    pub(crate) fn upset_step(&mut self, worker: usize, plan: &Plan, is_alone: bool) {
        if !is_alone {
            self.fired(Fault::EarlyWrites, worker);
        }
        let mut upset = None;
        if self.strikes(Fault::FailedStep) {
            upset = Some(self.rng.below(plan.num_requests));
        }
        let nan = self.strikes(Fault::NanRow).then(|| self.rng.below(plan.num_tokens));
        let logits = self.strikes(Fault::NanLogits) && plan.num_samples > 0;
        let logits = logits.then(|| self.rng.below(plan.num_samples));
        let has = self.workers[worker].as_mut().expect("up");
        let flight = has.flights.back_mut().expect("just planned");
        flight.upset.dies_after = upset;
        flight.upset.nan_tokens.extend(nan);
        flight.nan_logits.extend(logits);
        let row = nan.map(|token| flight.row_of(token));
        let met = row.map(|row| plan.request_ids[row]);
        let met = met.into_iter().chain(logits.map(|sample| plan.sample_request_ids[sample]));
        let met: Vec<usize> = met.map(|id| has.held[&id].job).collect();
        for job in met {
            self.jobs[job].met_nan = true;
        }
        for (is_on, fault) in [
            (nan.is_some(), Fault::NanRow),
            (logits.is_some(), Fault::NanLogits),
            (upset.is_some(), Fault::FailedStep),
        ] {
            if is_on {
                self.fired(fault, worker);
            }
        }
    }

    pub(crate) fn launch(&mut self, worker: usize, plan: &dsv4_core::Plan) {
        let mut micros = self.setup.step_us + 20 * plan.num_tokens as u64;
        micros += self.rng.micros(0, micros / 4);
        if self.strikes(Fault::StalledStep) {
            self.fired(Fault::StalledStep, worker);
            micros *= self.rng.micros(10, 2_000);
        }
        let has = self.workers[worker].as_mut().expect("up");
        let starts_us = has.busy_until_us.max(self.agenda.now_us());
        has.busy_until_us = starts_us + micros;
        let (incarnation, step) = (has.incarnation, plan.step_id);
        let delay = has.busy_until_us - self.agenda.now_us();
        self.agenda.after(delay, Happening::Done { worker, incarnation, step });
    }

    pub(crate) fn done(&mut self, worker: usize, incarnation: u32, step: StepId) {
        let Some(has) = &mut self.workers[worker] else { return };
        if has.incarnation != incarnation || has.flights.is_empty() {
            return; // the answer of a process that is gone
        }
        if self.plant.strikes(Bug::LostReport) {
            return;
        }
        let is_last = has.flights.back().is_some_and(|flight| flight.plan.step_id == step);
        if !is_last && self.strikes(Fault::LateReport) {
            return self.fired(Fault::LateReport, worker); // told with the next one
        }
        let has = self.workers[worker].as_mut().expect("up");
        has.execute(step);
        for id in has.failed_requests(step) {
            let has = self.workers[worker].as_mut().expect("up");
            let Held { job, part, .. } = has.held[&id];
            if part == Part::Prefill {
                assert!(has.core.abort(id), "a request that is held");
                has.held.remove(&id);
                self.nudge(worker);
                continue;
            }
            self.withdraw(job);
            if self.rng.once_in(2) {
                self.later(job);
            } else {
                self.end(job, End::StepFailed);
            }
        }
        let now_us = self.rng.once_in(2).then(|| self.clock_of());
        let has = self.workers[worker].as_mut().expect("up");
        let (jobs, rng) = (&self.jobs, &mut self.rng);
        let is_drafting = self.setup.limits.max_draft_tokens > 0;
        let held = if is_drafting { has.held.clone() } else { BTreeMap::new() };
        let mut outcome = has.report(step, now_us, |id, told, most| {
            let Some(held) = held.get(&id) else { return vec![] };
            jobs[held.job].guess(told, rng.below(most + 1), rng)
        });
        self.plant.distort(&mut outcome);
        self.note(Note::Settled { worker, step, samples: outcome.tokens.len() });
        self.deliver(worker, &outcome);
        self.called(worker);
        self.workers[worker].as_ref().expect("up").check_held();
        self.pump(worker);
    }

    /// Time as the workers are told it.
    pub(crate) fn clock_of(&mut self) -> u64 {
        let mut now_us = self.setup.origin_us + self.agenda.now_us() + self.clock_skew_us;
        if self.strikes(Fault::ClockBack) {
            self.fired(Fault::ClockBack, 0);
            now_us = now_us.saturating_sub(self.rng.micros(1, 10_000_000));
        }
        if self.strikes(Fault::ClockJump) {
            self.fired(Fault::ClockJump, 0);
            self.clock_skew_us += self.rng.micros(1, 3_600_000_000);
        }
        now_us
    }

    /// Hands tokens and ends to the clients, each checked.
    pub(crate) fn deliver(&mut self, worker: usize, outcome: &Outcome) {
        let mut too_slow = BTreeSet::new();
        let entries = outcome.request_ids.iter().zip(&outcome.tokens).zip(&outcome.finished);
        for ((&id, &token), &finished) in entries {
            let has = self.workers[worker].as_mut().expect("up");
            let held = has.held.get(&id);
            let held = held.unwrap_or_else(|| panic!("{id} has ended and says more"));
            let Held { job, part, key, fails, .. } = *held;
            if part == Part::Prefill && token >= 0 {
                has.desk.first_tokens.insert(key.expect("half of a job"), token);
            }
            if finished != 0 {
                has.held.remove(&id);
            }
            if part == Part::Prefill {
                self.check_half_end(job, finished);
                continue;
            }
            if finished == Finish::Transfer as u8 {
                assert!(fails, "job {job} was to be computed here when its room failed");
                self.fired(Fault::RoomFailed, worker);
                self.later(job);
                continue;
            }
            let mut due = None;
            if token >= 0 {
                due = self.jobs[job].receive(token);
                self.tally.num_tokens += 1;
            }
            let end = End::of(finished);
            match end {
                Some(End::NonFinite) => assert!(self.jobs[job].met_nan, "no NaN was planted"),
                Some(End::StopString) => assert!(self.jobs[job].wants_stop, "nobody stopped it"),
                Some(End::Violation) => panic!("an invariant broke for job {job}"),
                _ => assert_eq!(end, due, "job {job} must end where it must, and nowhere else"),
            }
            if let Some(end) = end {
                if self.plant.strikes(Bug::LostRequest) {
                    continue;
                }
                self.end(job, end);
            } else if self.overruns(job) {
                too_slow.insert(job);
            }
        }
        for job in too_slow {
            if !self.jobs[job].is_open() {
                continue;
            }
            self.fired(Fault::SlowClient, job);
            self.withdraw(job);
            self.end(job, End::Overrun);
        }
        self.run_errands(worker, &outcome.errands);
    }

    /// The prefill half of a job is over; the client hears nothing of it.
    fn check_half_end(&mut self, job: usize, finished: u8) {
        match End::of(finished) {
            Some(End::NonFinite) => assert!(self.jobs[job].met_nan, "no NaN was planted"),
            Some(End::Violation) => panic!("an invariant broke for half of job {job}"),
            _ => {}
        }
    }

    pub(crate) fn overruns(&self, job: usize) -> bool {
        let job = &self.jobs[job];
        job.reading != Reading::Prompt && job.unread > self.setup.output_queue
    }
}

impl End {
    fn of(finished: u8) -> Option<Self> {
        let known = [
            (Finish::Stop, Self::Stop),
            (Finish::Length, Self::Length),
            (Finish::Stopped, Self::StopString),
            (Finish::NonFinite, Self::NonFinite),
            (Finish::Violation, Self::Violation),
            (Finish::Transfer, Self::RoomFailed),
        ];
        let found = known.into_iter().find(|&(finish, _)| finish as u8 == finished);
        assert_eq!(found.is_none(), finished == 0, "unknown finish {finished}");
        found.map(|(_, end)| end)
    }
}
