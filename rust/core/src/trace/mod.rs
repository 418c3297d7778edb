//! A record of everything that went into a core, and of what came out: enough to see the same run
//! again, on any machine.
//!
//! ```text
//!   trace    = "dsv4trace" version:u8 record*
//!   record   = tag:u8 body check:4 bytes          check: of this record and all before it
//!   numbers  = LEB128; those that may be negative in zigzag
//!
//!   0 start     geometry, sizes, limits, recipe, hash of the layout
//!   1 submit    the request as it was handed in; answer
//!   2 plan      words of the memory; answer: nothing, a plan, or a refusal
//!   3 advance   events; answer
//!   4 abort     id; answer
//!   5 shutdown
//!   6 rooms     settings; answer
//! ```
//! Inputs are kept as they are, tokens as int32. Of answers, the numbers of a plan are kept, and checks
//! (32 bits) of its lists, of the used part of each array, of outcomes with their errands, and of
//! refusals: so that the first that differs can be named.
//! Nothing here touches a file: [`Recorded::take_trace`] hands out the bytes
//! that came since the last time.
//!
//! Whoever writes the bytes down as they come has, after a crash, a trace that ends early. Cut inside
//! of a record it is [`TraceError::Truncated`], after what is whole was replayed; cut between two, it
//! replays, and [`Report::is_complete`] is false.

mod bytes;
mod call;
mod check;
mod part;
mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use record::Recorded;
pub use replay::{Difference, Report, replay};

const MAGIC: &[u8; 9] = b"dsv4trace";
const VERSION: u8 = 3;

/// What a record tells of.
mod tag {
    pub(super) const START: u8 = 0;
    pub(super) const SUBMIT: u8 = 1;
    pub(super) const PLAN: u8 = 2;
    pub(super) const ADVANCE: u8 = 3;
    pub(super) const ABORT: u8 = 4;
    pub(super) const SHUTDOWN: u8 = 5;
    pub(super) const ROOMS: u8 = 6;
}

/// Why bytes are no trace, or not a whole one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are their numbers")]
pub enum TraceError {
    #[error("these {0} bytes are no trace: they do not begin with \"dsv4trace\"")]
    NotATrace(usize),
    #[error("the trace has version {has}; this core reads version {VERSION}")]
    Version { has: u8 },
    #[error(
        "the trace ends at byte {at}, inside of a record; the {calls} calls before it are whole"
    )]
    Truncated { at: usize, calls: usize },
    #[error("the trace is damaged before byte {at}, after {calls} calls: {what}")]
    Damaged { at: usize, calls: usize, what: String },
}
