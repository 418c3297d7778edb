//! What the core refuses, and why. A refusal changes nothing.

use crate::ids::{BlockId, Group, RequestId, StepId};

/// Stable machine-readable word of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A field is outside its range.
    InvalidValue,
    /// Prompt and output together do not fit the context or the pools.
    ContextLengthExceeded,
}

impl Code {
    /// The word as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidValue => "invalid_value",
            Self::ContextLengthExceeded => "context_length_exceeded",
        }
    }
}

/// Why a request is refused: the field at fault, a stable code, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field at fault.
    pub param: &'static str,
    /// A stable word for machines.
    pub code: Code,
    /// For people: the field, the limit, the number given, what to do.
    pub message: String,
}

/// A broken invariant: a bug in this crate, or memory that is not what it was.
///
/// The block concerned is quarantined and the request that holds it fails; nothing else stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{group} block {} of request {request}: {what}", block.map_or(0, BlockId::get))]
pub struct Violation {
    /// Where the block lives.
    pub group: Group,
    /// The block, where there is one to name.
    pub block: Option<BlockId>,
    /// Who holds it, as far as is known.
    pub request: RequestId,
    /// What was found.
    pub what: String,
}

/// Everything that a call of the core may refuse with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are their numbers")]
pub enum Error {
    /// The client's mistake.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The same request may be sent again later.
    #[error("the queue is full: {queued} {unit} wait, this request adds {adds}, {limit} may wait")]
    QueueFull { unit: &'static str, queued: usize, adds: usize, limit: usize },
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
    /// After `shutdown`.
    #[error("the core was shut down")]
    Closed,
    #[error("step {oldest} is not done, and at most {limit} steps may be in flight")]
    TooManySteps { oldest: StepId, limit: usize },
    #[error("step {step} is not the oldest in flight ({oldest:?} is); steps complete in order")]
    UnknownStep { step: StepId, oldest: Option<StepId> },
    #[error("step {step} has {samples} samples, but {tokens} tokens came back")]
    WrongSampleCount { step: StepId, samples: usize, tokens: usize },
    #[error("step {step} has {samples} samples; there is no sample {sample}")]
    NoSuchSample { step: StepId, samples: usize, sample: usize },
    #[error("sample {sample} of step {step} is token {token}, outside the vocabulary of {vocab}")]
    NoSuchToken { step: StepId, sample: usize, token: i32, vocab: usize },
    #[error("step {step} takes {needs} {what} or none, not {has}")]
    WrongDraftCount { step: StepId, what: &'static str, needs: usize, has: usize },
    #[error("draft {draft} after step {step} is outside the vocabulary of {vocab}, and not -1")]
    NoSuchDraft { step: StepId, draft: i32, vocab: usize },
    #[error(
        "request {request} has {accepted} drafts accepted in step {step}; it brought {drafted}"
    )]
    TooManyAccepted { step: StepId, request: RequestId, accepted: usize, drafted: usize },
    #[error("request {request} accepts draft {draft} in step {step} with token {token}")]
    NotTheDraft { step: StepId, request: RequestId, draft: i32, token: i32 },
    /// A request with another side, on a core that was told of none.
    #[error("this core has no rooms: it was not told its side")]
    NoRooms,
    #[error("room {room} {what}")]
    RoomTaken { room: u64, what: &'static str },
    /// The same request may be sent again later.
    #[error("room {room} finds no place: as many are live and remembered as may be")]
    RoomsFull { room: u64 },
    #[error("request {0} was never submitted")]
    UnknownRequest(RequestId),
    #[error("memory holds {has} int32; a step needs {needs}")]
    MemoryTooSmall { has: usize, needs: usize },
    /// The books do not balance.
    #[error("{0}")]
    Audit(String),
}
