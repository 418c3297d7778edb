//! What happens at a time, and who has to do with it.

use dsv4_core::Check;
use dsv4_core::ids::StepId;
use dsv4_core::transfer::proof::Evidence;

use crate::faults::Fault;
use crate::flow::Process;
use crate::peers::Letter;
use crate::router::Pairing;
use crate::world::World;

/// What happens at a time.
#[derive(Clone, Debug)]
pub enum Happening {
    Arrive,
    Again {
        job: usize,
    },
    Done {
        worker: usize,
        incarnation: u32,
        step: StepId,
    },
    Cancel {
        job: usize,
        fault: Fault,
    },
    StopString {
        job: usize,
    },
    Read {
        job: usize,
    },
    Mischief,
    Crash,
    Die {
        process: Process,
    },
    Up {
        worker: usize,
    },
    /// Something may have to be told that no event told.
    Nudge {
        worker: usize,
        incarnation: u32,
    },
    Tick {
        worker: usize,
        incarnation: u32,
    },
    Letter(Box<Letter>),
    SubmitPrefill {
        job: usize,
        worker: usize,
        pairing: Pairing,
    },
    Deadline {
        job: usize,
        epoch: u32,
    },
    PartLeaves {
        flow: u64,
        part: usize,
    },
    PartLands {
        flow: u64,
        part: usize,
    },
    FlowFails {
        flow: u64,
    },
    TicketEnds {
        flow: u64,
        landed: bool,
    },
    Check {
        worker: usize,
        incarnation: u32,
        check: Check,
    },
    Gone {
        to: Process,
        gone: Process,
        evidence: Option<Evidence>,
    },
    CutOff {
        at: Process,
        from: Process,
    },
    Reconnect {
        at: Process,
        from: Process,
    },
    CutLink,
}

impl World {
    pub(crate) fn happen(&mut self, happening: Happening) {
        if let Some(delay) = self.stops(&happening) {
            return self.agenda.after(delay, happening);
        }
        match happening {
            Happening::Arrive => self.arrive(),
            Happening::Again { job } => {
                self.num_coming -= 1;
                self.route(job);
            }
            Happening::Done { worker, incarnation, step } => self.done(worker, incarnation, step),
            Happening::Cancel { job, fault } => self.cancel(job, fault),
            Happening::StopString { job } => self.stop_string(job),
            Happening::Read { job } => self.read(job),
            Happening::Mischief => self.mischief(),
            Happening::Crash => self.crash(),
            Happening::Die { process } => {
                if self.process(process).is_some() {
                    self.go_down(process.worker, Fault::DiesAtWork);
                }
            }
            Happening::Up { worker } => self.come_up(worker),
            paired => self.happen_between(paired),
        }
    }

    /// How long what a stopped process would do has to wait.
    fn stops(&self, happening: &Happening) -> Option<u64> {
        let worker = match happening {
            Happening::Done { worker, .. }
            | Happening::Nudge { worker, .. }
            | Happening::Tick { worker, .. }
            | Happening::Check { worker, .. } => *worker,
            Happening::Letter(letter) => letter.to.worker,
            _ => return None,
        };
        let until = *self.stopped.get(&worker)?;
        let now_us = self.agenda.now_us();
        (until > now_us).then(|| until - now_us)
    }

    /// What happens between prefill and decode workers.
    fn happen_between(&mut self, happening: Happening) {
        match happening {
            Happening::Nudge { worker, incarnation } => {
                if self.process(Process { worker, incarnation }).is_some() {
                    self.tell(worker, &[]);
                }
            }
            Happening::Tick { worker, incarnation } => self.tick(worker, incarnation),
            Happening::Letter(letter) => self.receive_letter(&letter),
            Happening::SubmitPrefill { job, worker, pairing } => {
                self.submit_prefill(job, worker, pairing);
            }
            Happening::Deadline { job, epoch } => self.deadline(job, epoch),
            Happening::PartLeaves { flow, part } => self.part_leaves(flow, part),
            Happening::PartLands { flow, part } => self.part_lands(flow, part),
            Happening::FlowFails { flow } => self.fail_flow(flow),
            Happening::TicketEnds { flow, landed } => self.ticket_ends(flow, landed),
            Happening::Check { worker, incarnation, check } => {
                self.check(worker, incarnation, check);
            }
            Happening::Gone { to, gone, evidence } => self.learn_death(to, gone, evidence),
            Happening::CutOff { at, from } => self.cut_off(at, from),
            Happening::Reconnect { at, from } => self.reconnect(at, from),
            Happening::CutLink => self.cut_link(),
            other => panic!("{other:?} concerns one worker"),
        }
    }
}
