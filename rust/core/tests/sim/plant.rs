//! Bugs planted between the core and what believes it, to prove that the simulator can see.
//!
//! Each stands for a bug of the core or of its caller as it would look from outside: a wrong
//! entry in the arrays, a block reused too early, a token lost on the way.

use dsv4_core::{Outcome, Plan, Posting};

use crate::arrays::{Arrays, Offsets, at};
use crate::device::Device;
use crate::rng::Rng;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    WrongFullBlock,
    WrongWindowBlock,
    PoisonBlock,
    OthersTables,
    WrongWindowSlot,
    WrongC4Slot,
    LostC4Row,
    LostC128Row,
    WrongStateSlot,
    SkippedReset,
    SkippedRestore,
    SkippedSave,
    WindowOffByOne,
    WrongPosition,
    WrongTokenSource,
    WrongBank,
    EarlyReuse,
    LostToken,
    RepeatedToken,
    CrossedTokens,
    SharedSalt,
    ForgottenAbort,
    LostReport,
    LostRequest,
    // Between prefill and decode workers.
    WrongTarget,
    WrongSource,
    WrongFirstToken,
    EarlyEnd,
    UncheckedDigest,
    FalseAck,
    FalseFence,
    FalseDeath,
    UntoldDeath,
    RankLost,
    ForgottenTicket,
    TimeWithWork,
    SameIncarnation,
}

impl Bug {
    /// Those that need two workers to show.
    pub const PAIRED: [Self; 13] = [
        Self::WrongTarget,
        Self::WrongSource,
        Self::WrongFirstToken,
        Self::EarlyEnd,
        Self::UncheckedDigest,
        Self::FalseAck,
        Self::FalseFence,
        Self::FalseDeath,
        Self::UntoldDeath,
        Self::RankLost,
        Self::ForgottenTicket,
        Self::TimeWithWork,
        Self::SameIncarnation,
    ];

    pub const ALONE: [Self; 24] = [
        Self::WrongFullBlock,
        Self::WrongWindowBlock,
        Self::PoisonBlock,
        Self::OthersTables,
        Self::WrongWindowSlot,
        Self::WrongC4Slot,
        Self::LostC4Row,
        Self::LostC128Row,
        Self::WrongStateSlot,
        Self::SkippedReset,
        Self::SkippedRestore,
        Self::SkippedSave,
        Self::WindowOffByOne,
        Self::WrongPosition,
        Self::WrongTokenSource,
        Self::WrongBank,
        Self::EarlyReuse,
        Self::LostToken,
        Self::RepeatedToken,
        Self::CrossedTokens,
        Self::SharedSalt,
        Self::ForgottenAbort,
        Self::LostReport,
        Self::LostRequest,
    ];
}

/// At most one bug, which strikes now and then.
#[derive(Debug)]
pub struct Plant {
    bug: Option<Bug>,
    rng: Rng,
    /// How often it struck.
    pub num_struck: usize,
}

impl Plant {
    pub fn none() -> Self {
        Self { bug: None, rng: Rng::new(0), num_struck: 0 }
    }

    pub fn of(bug: Bug, seed: u64) -> Self {
        Self { bug: Some(bug), rng: Rng::new(seed), num_struck: 0 }
    }

    /// Is it this bug, and always its turn?
    pub fn has(&mut self, bug: Bug) -> bool {
        let has = self.bug == Some(bug);
        self.num_struck += usize::from(has);
        has
    }

    /// Is it this bug's turn?
    pub fn strikes(&mut self, bug: Bug) -> bool {
        let strikes = self.bug == Some(bug) && self.rng.once_in(4);
        self.num_struck += usize::from(strikes);
        strikes
    }

    /// Damages the arrays of a step.
    pub fn tamper(&mut self, plan: &mut Plan, memory: &mut [i32], offsets: &Offsets) {
        let Some(bug) = self.bug else { return };
        let row = self.rng.below(plan.num_requests);
        let start = |name| offsets.of(name).0;
        let columns = |name| offsets.of(name).1 / offsets.of("seq_lens").1;
        let entry = |name, column| start(name) + row * columns(name) + column;
        let (rows, tokens) = (plan.num_requests, plan.num_tokens);
        let word = match bug {
            Bug::WrongFullBlock | Bug::WrongWindowBlock | Bug::PoisonBlock => {
                let is_full = bug == Bug::WrongFullBlock;
                let name = if is_full { "block_table_full" } else { "block_table_swa" };
                let ids = &memory[entry(name, 0)..entry(name, columns(name))];
                let used = ids.iter().position(|&id| id == 0).unwrap_or(ids.len());
                let word = entry(name, self.rng.below(used));
                let wrong = if memory[word] == 1 { 2 } else { 1 };
                Some((word, if bug == Bug::PoisonBlock { 0 } else { wrong }))
            }
            Bug::OthersTables if rows > 1 => {
                let width = columns("block_table_swa");
                let other = start("block_table_swa") + (row + 1) % rows * width;
                memory.copy_within(other..other + width, entry("block_table_swa", 0));
                Some((entry("block_table_swa", 0), memory[other]))
            }
            Bug::WrongWindowSlot => {
                let word = start("swa_slots") + self.rng.below(tokens);
                Some((word, memory[word] - 1))
            }
            Bug::WrongC4Slot if plan.num_c4 > 0 => {
                let word = start("c4_slots") + self.rng.below(plan.num_c4);
                Some((word, memory[word] - 1))
            }
            Bug::WrongStateSlot => {
                let word = start("state_slots") + row;
                Some((word, if memory[word] == 1 { 2 } else { 1 }))
            }
            Bug::SkippedReset => Some((start("state_resets") + row, 0)),
            Bug::WindowOffByOne => {
                let word = start("swa_first_block") + row;
                (memory[word] > 0).then(|| (word, memory[word] - 1))
            }
            Bug::WrongPosition => {
                let word = start("positions") + self.rng.below(tokens);
                (memory[word] > 0).then(|| (word, memory[word] - 1))
            }
            Bug::WrongTokenSource => {
                let sources = start("token_sources")..start("token_sources") + tokens;
                let forwarded = memory[sources.clone()].iter().position(|&source| source > 0);
                forwarded.map(|token| (sources.start + token, 0))
            }
            Bug::WrongBank if plan.num_c128 > 0 && offsets.of("state_banks").1 > 0 => {
                let word = start("state_banks") + row;
                (memory[word] > 0).then(|| (word, memory[word] - 1))
            }
            _ => None,
        };
        if let Some((word, wrong)) = word
            && self.strikes(bug)
        {
            memory[word] = wrong;
        }
        let counts = [
            (Bug::LostC4Row, &mut plan.num_c4),
            (Bug::LostC128Row, &mut plan.num_c128),
            (Bug::SkippedRestore, &mut plan.num_restores),
            (Bug::SkippedSave, &mut plan.num_saves),
        ];
        for (each, count) in counts {
            if each == bug && *count > 0 && self.strikes(bug) {
                *count -= 1;
            }
        }
    }

    /// Another's write lands in a block that a step in flight has yet to read.
    pub fn reuse_early(&mut self, plan: &Plan, arrays: &Arrays<'_>, device: &mut Device) {
        if self.strikes(Bug::EarlyReuse) {
            let row = self.rng.below(plan.num_requests);
            device.swa_block(at(arrays.swa.row(row)[0])).fill(7);
        }
    }

    /// Sends a ticket's copies from or to a wrong place.
    pub fn misdirect(&mut self, posting: &mut Posting) {
        let copies = &mut posting.copies;
        let Some(run) = copies.full.iter_mut().chain(&mut copies.swa).next() else { return };
        let wrong = |block: u32| if block == 1 { 2 } else { block - 1 };
        if self.strikes(Bug::WrongTarget) {
            run.target = wrong(run.target);
        } else if self.strikes(Bug::WrongSource) {
            run.source = wrong(run.source);
        }
    }

    /// Damages what a step reported.
    pub fn distort(&mut self, outcome: &mut Outcome) {
        let num = outcome.tokens.len();
        if num == 0 {
            return;
        }
        let entry = self.rng.below(num);
        if self.strikes(Bug::LostToken) {
            outcome.request_ids.remove(entry);
            outcome.tokens.remove(entry);
            outcome.finished.remove(entry);
        } else if self.strikes(Bug::RepeatedToken) {
            outcome.request_ids.insert(entry, outcome.request_ids[entry]);
            outcome.tokens.insert(entry, outcome.tokens[entry]);
            outcome.finished.insert(entry, outcome.finished[entry]);
        } else if num > 1 && self.strikes(Bug::CrossedTokens) {
            outcome.tokens.swap(entry, (entry + 1) % num);
        }
    }
}
