//! Calls that no caller should make, clients that leave all at once, and workers that die.
//!
//! A call that is refused changes nothing: whatever follows must be as if it had not been made.

use dsv4_core::error::Error;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::{Event, NewRequest};

use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::phases;
use crate::plant::Bug;
use crate::worker::Part;
use crate::world::World;

impl World {
    pub(crate) fn mischief(&mut self) {
        let kinds = [
            Fault::CancelUnknown,
            Fault::CancelStorm,
            Fault::WrongStep,
            Fault::RepeatedStep,
            Fault::WrongCount,
            Fault::WildToken,
            Fault::GreedyPlan,
            Fault::ShortMemory,
            Fault::ClockBack,
            Fault::Shutdown,
        ];
        for fault in kinds {
            if self.strikes(fault)
                && let Some(worker) = self.any_worker()
            {
                self.misbehave(worker, fault);
            }
        }
        if self.is_arriving() {
            let gap = self.rng.micros(1, 4 * self.setup.step_us);
            self.agenda.after(gap, Happening::Mischief);
        }
    }

    fn misbehave(&mut self, worker: usize, fault: Fault) {
        let now_us = self.clock_of();
        let has = self.workers[worker].as_mut().expect("up");
        let oldest = has.flights.front().map(|f| (f.plan.step_id, f.plan.num_samples));
        match fault {
            Fault::CancelStorm => return self.storm(worker),
            Fault::Shutdown => return self.shutdown(worker),
            Fault::CancelUnknown => assert!(!has.core.abort(RequestId(u64::MAX))),
            Fault::ClockBack => {
                self.tell(worker, &[Event::Tick(0), Event::Tick(now_us)]);
            }
            Fault::ShortMemory => {
                let words = has.num_words() - 1;
                assert!(matches!(has.plan_refused(words), Error::MemoryTooSmall { .. }));
            }
            Fault::GreedyPlan => {
                if !has.is_full() {
                    return;
                }
                let words = has.num_words();
                assert!(matches!(has.plan_refused(words), Error::TooManySteps { .. }));
            }
            Fault::RepeatedStep => {
                let Some((step, _)) = oldest else { return };
                let told = StepId(step.0 - 1);
                let again = Event::StepDone { step: told, tokens: &[], non_finite: &[] };
                has.core.advance(&[again]).expect_err("it was told before");
            }
            Fault::WrongStep | Fault::WrongCount | Fault::WildToken => {
                let Some((step, samples)) = oldest else { return };
                let mut tokens = vec![0; samples];
                let mut wrong = step;
                match fault {
                    Fault::WrongCount => tokens.push(0),
                    Fault::WildToken if samples > 0 => tokens[0] = -7,
                    Fault::WildToken => return,
                    _ => wrong = StepId(step.0 + 1),
                }
                let event = Event::StepDone { step: wrong, tokens: &tokens, non_finite: &[] };
                let batch = [Event::Tick(now_us), event];
                has.core.advance(&batch).expect_err("all of it is refused");
            }
            _ => unreachable!("not a kind of mischief"),
        }
        self.fired(fault, worker);
        self.called(worker);
    }

    /// Everybody leaves within a moment.
    fn storm(&mut self, worker: usize) {
        let has = self.workers[worker].as_ref().expect("up");
        let jobs: Vec<usize> = has.held.values().map(|held| held.job).collect();
        for job in jobs {
            let delay = self.rng.micros(0, self.setup.step_us);
            self.agenda.after(delay, Happening::Cancel { job, fault: Fault::CancelStorm });
        }
    }

    fn shutdown(&mut self, worker: usize) {
        let has = self.workers[worker].as_mut().expect("up");
        has.core.shutdown();
        has.core.audit().expect("the books balance");
        has.core.shutdown();
        assert_eq!(has.core.advance(&[]), Err(Error::Closed));
        let new = NewRequest {
            prompt: vec![1],
            max_tokens: 1,
            min_tokens: 0,
            stop_token_ids: &[],
            priority: 0,
            cache_salt: "",
            no_cache: false,
            transfer: None,
        };
        assert_eq!(has.core.submit(new), Err(Error::Closed));
        self.go_down(worker, Fault::Shutdown);
    }

    pub(crate) fn crash(&mut self) {
        if self.strikes(Fault::Crash)
            && let Some(worker) = self.any_worker()
        {
            self.go_down(worker, Fault::Crash);
        }
        if self.is_arriving() {
            let gap = self.rng.micros(1, 20 * self.setup.step_us);
            self.agenda.after(gap, Happening::Crash);
        }
    }

    /// An instance is gone with all it held; its jobs go elsewhere, and it comes back later.
    pub(crate) fn go_down(&mut self, worker: usize, fault: Fault) {
        let leader = self.setup.leader_of(worker);
        if self.workers[leader].is_none() {
            return;
        }
        self.fired(fault, worker);
        let instance = self.here(leader);
        for worker in self.setup.instance(leader) {
            let mut gone = self.workers[worker].take().expect("ranks live and die together");
            for death in phases::deaths_with(&mut gone) {
                self.fired(death, worker);
            }
            for held in gone.held.values().filter(|held| held.part != Part::Prefill) {
                self.later(held.job);
            }
            self.flows_of_gone(Process { worker, ..instance });
        }
        if self.plant.strikes(Bug::SameIncarnation) {
            self.kept.insert(leader, instance.incarnation);
        } else if self.setup.is_paired() {
            self.spread_death(instance);
        }
        let delay = self.rng.micros(1_000, 3_000_000);
        self.agenda.after(delay, Happening::Up { worker: leader });
    }

    /// An instance starts, as one that nobody has heard of.
    pub(crate) fn come_up(&mut self, leader: usize) {
        self.fired(Fault::Restart, leader);
        self.started.push(leader);
        let last = u32::try_from(self.started.len()).expect("few starts");
        let kept = self.kept.remove(&leader);
        for worker in self.setup.instance(leader) {
            self.workers[worker] = Some(self.fresh_worker(worker, kept.unwrap_or(last)));
        }
    }
}
