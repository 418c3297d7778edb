//! A request's blocks of one group, in logical order.
//!
//! ```text
//!   block index   0     1     2     3     4     5
//!               hole  hole  sealed sealed open  open     positions below `end()` are covered
//!                           ▲ first             ▲ being written by steps in flight
//! ```
//! A window that slides leaves holes at the front and never shifts what stays. What admission
//! promised and the table does not hold is reserved in the pool: `reserved` of the pool is the sum
//! over its tables of `entitled - held`, where positive.

use std::collections::VecDeque;

use crate::block::{Block, Open, Sealed};
use crate::error::Violation;
use crate::ids::{BlockId, RequestId, int};
use crate::pool::{Pool, SlotState, State};

/// The blocks of one request in one group. Dropping it retires them and gives the promise back.
#[derive(Debug)]
pub struct BlockTable {
    pool: Pool,
    owner: RequestId,
    block_tokens: usize,
    /// Blocks promised at admission.
    entitled: usize,
    /// Blocks before this index are holes.
    first: usize,
    sealed: VecDeque<Block<Sealed>>,
    open: VecDeque<Block<Open>>,
    /// The ids in order, ready to be copied into a step.
    row: Vec<i32>,
}

impl BlockTable {
    /// An empty table; `entitled` blocks of the pool are reserved for it from now on.
    pub(crate) fn new(pool: &Pool, owner: RequestId, block_tokens: usize, entitled: usize) -> Self {
        {
            let mut state = pool.state();
            state.counts_mut().entitled += entitled;
            state.counts_mut().reserved += entitled;
        }
        Self {
            pool: pool.share(),
            owner,
            block_tokens,
            entitled,
            first: 0,
            sealed: VecDeque::new(),
            open: VecDeque::new(),
            row: Vec::new(),
        }
    }

    /// Positions from the first block up to here are covered.
    pub fn end(&self) -> usize {
        (self.first + self.row.len()) * self.block_tokens
    }

    /// Index of the first block that is no hole.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Block ids from the first that is no hole.
    pub fn row(&self) -> &[i32] {
        &self.row
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks to take so that positions below `end` are covered.
    pub fn missing(&self, end: usize) -> usize {
        end.saturating_sub(self.end()).div_ceil(self.block_tokens)
    }

    /// The block of a position that is covered.
    pub fn id_at(&self, position: usize) -> i32 {
        self.row[position / self.block_tokens - self.first]
    }

    /// Promised and not held.
    fn remainder(&self) -> usize {
        self.entitled.saturating_sub(self.row.len())
    }

    /// Blocks that can be taken now without touching what is promised to others.
    ///
    /// `settled`: no step of this request is in flight, so nothing of its own waits to be
    /// reclaimed and its promise is backed by free blocks. Otherwise its retired blocks still
    /// stand for a part of the promise, and taking that part would take it from another.
    pub fn takeable(&self, settled: bool) -> usize {
        let counts = self.pool.counts();
        let by_right = if settled { self.remainder().min(counts.free) } else { 0 };
        by_right.max(counts.free.saturating_sub(counts.reserved - self.remainder()))
    }

    /// Takes `num_blocks` blocks, or none if they are not all to be had.
    #[must_use]
    pub fn grow(&mut self, num_blocks: usize, settled: bool) -> bool {
        if num_blocks == 0 {
            return true;
        }
        if num_blocks > self.takeable(settled) {
            return false;
        }
        for _ in 0..num_blocks {
            let promised = self.remainder() > 0;
            let Some(block) = self.pool.take(self.owner) else { return false };
            if promised {
                self.pool.state().counts_mut().reserved -= 1;
            }
            self.row.push(int(block.id().get() as usize));
            self.open.push_back(block);
        }
        true
    }

    /// Positions below `written` hold their rows for good: seals the blocks that are full.
    pub fn seal_written(&mut self, written: usize) -> Result<(), Violation> {
        while (self.first + self.sealed.len() + 1) * self.block_tokens <= written {
            let Some(block) = self.open.pop_front() else { break };
            match block.seal() {
                Ok(block) => self.sealed.push_back(block),
                Err(refused) => {
                    self.open.push_front(refused.block);
                    return Err(refused.violation);
                }
            }
        }
        Ok(())
    }

    /// Gives up the blocks wholly before `position`.
    pub fn slide(&mut self, position: usize) {
        let holes = (position / self.block_tokens - self.first).min(self.row.len());
        if holes == 0 {
            return;
        }
        let before = self.remainder();
        for _ in 0..holes {
            if self.sealed.pop_front().is_none() {
                self.open.pop_front();
            }
        }
        self.row.drain(..holes);
        self.first += holes;
        self.pool.state().counts_mut().reserved += self.remainder() - before;
    }

    /// Checks that the block of every position from `start` to `end` is open to this request.
    pub(crate) fn check_writes(
        &self,
        state: &mut State,
        start: usize,
        end: usize,
    ) -> Result<(), Violation> {
        let closed = self.first + self.sealed.len();
        for index in start / self.block_tokens..end.div_ceil(self.block_tokens) {
            let block = index.checked_sub(closed).and_then(|place| self.open.get(place));
            match block {
                Some(block) => state.expect_open(block.id(), block.generation())?,
                None => return Err(state.refuse_write(self.owner, self.sealed_id(index))),
            }
        }
        Ok(())
    }

    /// The sealed block at an index, to name in a violation.
    fn sealed_id(&self, index: usize) -> Option<BlockId> {
        let sealed = index.checked_sub(self.first).and_then(|place| self.sealed.get(place));
        sealed.map(Block::id)
    }

    /// Every handle is held by the table's owner, and the row says what the handles say.
    pub(crate) fn audit(&self) -> Result<usize, String> {
        let state = self.pool.state();
        let sealed = self.sealed.iter().map(|b| (b.id(), b.generation(), SlotState::Sealed));
        let open = self.open.iter().map(|b| (b.id(), b.generation(), SlotState::Open));
        for (place, (id, generation, expected)) in sealed.chain(open).enumerate() {
            if !state.is_held(id, generation, self.owner, expected) {
                return Err(format!("request {}: block {id} is not {expected:?}", self.owner));
            }
            if self.row.get(place) != Some(&int(id.get() as usize)) {
                return Err(format!("request {}: row {:?} lacks {id}", self.owner, self.row));
            }
        }
        if self.row.len() != self.sealed.len() + self.open.len() {
            return Err(format!("request {}: row {:?} is too long", self.owner, self.row));
        }
        Ok(self.row.len())
    }

    /// What this table adds to `reserved` of its pool.
    pub(crate) fn num_reserved(&self) -> usize {
        self.remainder()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        let remainder = self.remainder();
        let mut state = self.pool.state();
        state.counts_mut().entitled -= self.entitled;
        state.counts_mut().reserved -= remainder;
    }
}

/// Everything that a running request holds.
#[derive(Debug)]
pub struct Tables {
    /// Compressed rows.
    pub full: BlockTable,
    /// Window rows.
    pub swa: BlockTable,
    /// Compressor state.
    pub slot: Block<Open>,
}
