//! The last things that happened, printed when a run fails.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use dsv4_core::ids::{RequestId, StepId};

use crate::faults::Fault;
use crate::job::End;

/// How much a failing run tells.
const KEPT: usize = 60;

thread_local! {
    /// Runs that are meant to fail say nothing.
    pub static QUIET: Cell<bool> = const { Cell::new(false) };
    /// What the last panic said.
    pub static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// One thing that happened; small, so that noting it costs nothing.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "read by Debug")]
pub enum Note {
    Submitted { job: usize, worker: usize, id: RequestId, tokens: usize, most: usize },
    Refused { job: usize, worker: usize },
    Planned { worker: usize, step: StepId, requests: usize, tokens: usize, first: RequestId },
    Settled { worker: usize, step: StepId, samples: usize },
    Ended { job: usize, end: End },
    Struck { fault: Fault, whom: usize },
}

/// A ring of notes that prints itself when its owner panics.
#[derive(Debug)]
pub struct Trace {
    seed: u64,
    notes: VecDeque<(u64, Note)>,
    /// What else may help.
    said: String,
}

impl Trace {
    pub fn new(seed: u64) -> Self {
        Self { seed, notes: VecDeque::with_capacity(KEPT), said: String::new() }
    }

    pub fn say(&mut self, what: String) {
        self.said = what;
    }

    pub fn note(&mut self, now_us: u64, note: Note) {
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back((now_us, note));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !std::thread::panicking() || QUIET.get() {
            return;
        }
        eprintln!("seed {} failed; what happened last:", self.seed);
        for (at_us, note) in &self.notes {
            eprintln!("{:>10}.{:06} s  {note:?}", at_us / 1_000_000, at_us % 1_000_000);
        }
        eprintln!("{}", self.said);
        eprintln!("replay: cargo test --release --test sim -- --seeds {0}..{0}", self.seed);
    }
}

/// From now on panics of quiet runs are not printed.
pub fn install() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let said = info.payload();
        let text = said.downcast_ref::<String>().map(String::as_str);
        let text = text.or(said.downcast_ref::<&str>().copied());
        SAID.set(text.unwrap_or("something else").to_owned());
        if !QUIET.get() {
            loud(info);
        }
    }));
}

/// Runs `act`; None if it panicked. Quiet: without saying so.
pub fn caught<T>(is_quiet: bool, act: impl FnOnce() -> T) -> Option<T> {
    QUIET.set(is_quiet);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    QUIET.set(false);
    result.ok()
}
