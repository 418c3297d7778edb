//! Names of things. An id, a count and a number of bytes are never the same type.

use std::fmt;
use std::num::NonZeroU32;

/// One block of a cache group, or one slot of the state group. Id 0 is the poison block, which
/// no allocation returns: it is no value of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(NonZeroU32);

/// Most blocks of a pool, so that slots (`block * rows + row`) fit int32 at up to 256 rows a block.
pub const MAX_BLOCKS: usize = (i32::MAX as usize >> 8) - 1;

/// Most draft tokens of one request in one step.
pub const MOST_DRAFT_TOKENS: usize = 15;

/// A count or an index as the step arrays hold it.
pub(crate) fn int(value: usize) -> i32 {
    i32::try_from(value).expect("limits and pool sizes are checked to fit int32")
}

/// A count or a position in half the bytes.
pub(crate) fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("limits and pool sizes are checked to fit int32")
}

impl BlockId {
    /// The block of a place in the slot table, where place 0 is block 1.
    pub(crate) fn at(place: usize) -> Self {
        let id = u32::try_from(place + 1).ok().and_then(NonZeroU32::new);
        Self(id.expect("pool sizes are checked against MAX_BLOCKS"))
    }

    /// Its place in the slot table.
    pub(crate) fn place(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The number as kernels see it.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One request, numbered from 1 in order of arrival; never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One planned step, numbered from 1. Step 0 is the time before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

impl StepId {
    /// The step after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cache group: blocks of one geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Compressed rows of 256 tokens, over all layers.
    Full,
    /// Window rows of 64 tokens, over all layers.
    Swa,
    /// Compressor state, one slot per running request.
    State,
    /// What is sent along with a prompt: rows of host memory, one per room.
    Aux,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Swa => "swa",
            Self::State => "state",
            Self::Aux => "aux",
        })
    }
}
