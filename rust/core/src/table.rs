//! A request's blocks of one group, in logical order.
//!
//! ```text
//!   block index   0     1     2      3      4     5
//!               hole  hole  shared sealed open  open     positions below `end()` are covered
//!                           ▲ first              ▲ being written by steps in flight
//! ```
//! Blocks of the prefix cache come first, for they were there when the request started; what the
//! request computed may become shared later.
//! A request whose prompt is computed elsewhere has blocks coming in where it will have sealed and
//! open ones; it is written and read by no step of ours before they are settled.
//! A window that slides leaves holes at the front and never shifts what stays. What admission
//! promised and the table does not hold is reserved in the pool: `reserved` of the pool is the sum
//! over its tables of `entitled - held`, where positive.

use crate::block::{Block, Incoming, Open, Sealed, Shared};
use crate::error::Violation;
use crate::ids::{BlockId, RequestId, int, narrow};
use crate::planted::{self, Bug};
use crate::pool::{Pool, SlotState, State};
use crate::short::{Ids, Short};
use crate::transfer::ids::{Ticket, WriterKey};
use crate::transfer::message::Target;

/// A block that is full.
#[derive(Debug)]
pub enum Closed {
    /// This request's alone.
    Sealed(Block<Sealed>),
    /// Read by others as well, or kept by the cache.
    Shared(Block<Shared>),
}

impl Closed {
    fn id(&self) -> BlockId {
        match self {
            Self::Sealed(block) => block.id(),
            Self::Shared(block) => block.id(),
        }
    }

    /// The block in a state that others may read.
    pub(crate) fn share(self) -> Result<Block<Shared>, (Self, Violation)> {
        match self {
            Self::Shared(block) => Ok(block),
            Self::Sealed(block) => block.share().map_err(|r| (Self::Sealed(r.block), r.violation)),
        }
    }
}

/// A block that a window slid past.
#[derive(Debug)]
pub enum Slid {
    /// Steps in flight may still write it.
    Open(Block<Open>),
    /// Full.
    Closed(Closed),
}

/// The blocks of one request in one group. Dropping it retires them and gives the promise back.
///
/// What a step of one token looks at stands here, what it does not behind a pointer: the fewer
/// cache lines a request is, the more of them stay in the cache.
#[derive(Debug)]
#[repr(C)] // in the order in which blocks retire: the newest last
pub struct BlockTable {
    rest: Box<Rest>,
    /// The last block, if it is open: what a decoding request writes.
    newest: Option<Block<Open>>,
    block_tokens: u32,
    /// Blocks before this index are holes.
    first: u32,
    /// Positions from the first block up to here are covered.
    end: u32,
    /// The first open block is full once positions below this are written.
    next_full: u32,
    /// Which row this is: two of one pool that differ have different ones, at any time.
    edition: u64,
}

/// What changes once in a block at most. Of a window that slides, all lies in these three lines.
#[derive(Debug)]
#[repr(align(64))]
struct Rest {
    pool: Pool,
    owner: RequestId,
    /// Blocks promised at admission.
    entitled: usize,
    closed: Short<Closed, 3>,
    /// Between the closed and the open ones; while there are any, no step names the table. Behind
    /// a pointer, as few tables ever have some.
    incoming: Option<Box<[Block<Incoming>]>>,
    /// All but the newest.
    open: Short<Block<Open>, 0>,
    /// The ids in order, ready to be copied into a step.
    row: Ids<3>,
}

const _: () = assert!(size_of::<Rest>() == 3 * 64);

impl BlockTable {
    /// A table that begins with blocks of the cache, if there are any, the first of them at index
    /// `first`; of `entitled` blocks of the pool, the others are reserved for it from now on.
    pub(crate) fn behind(
        pool: &Pool,
        owner: RequestId,
        block_tokens: usize,
        entitled: usize,
        (first, shared): (usize, Vec<Block<Shared>>),
    ) -> Self {
        let row = Ids::new(shared.iter().map(|block| int(block.id().get() as usize)));
        {
            let mut state = pool.state();
            state.counts_mut().entitled += entitled;
            state.counts_mut().reserved += entitled.saturating_sub(row.all().len());
        }
        let closed = shared.into_iter().map(Closed::Shared).collect();
        let (pool, open) = (pool.share(), Short::new());
        let rest = Box::new(Rest { pool, owner, entitled, closed, incoming: None, open, row });
        let (block_tokens, first) = (narrow(block_tokens), narrow(first));
        let (end, next_full, edition) = (0, 0, 0);
        let mut table = Self { rest, newest: None, block_tokens, first, end, next_full, edition };
        table.renew();
        table
    }

    /// Its row is another one.
    fn renew(&mut self) {
        (self.end, self.next_full) = self.bounds();
        self.edition = self.rest.pool.state().next_edition();
    }

    /// `end` and `next_full`, from the blocks.
    fn bounds(&self) -> (u32, u32) {
        let Rest { row, closed, .. } = &*self.rest;
        let [end, next_full] = [row.all().len(), closed.len() + 1]
            .map(|num_blocks| (self.first + narrow(num_blocks)) * self.block_tokens);
        (end, next_full)
    }

    /// Positions from the first block up to here are covered.
    pub fn end(&self) -> usize {
        self.end as usize
    }

    /// Index of the first block that is no hole.
    pub fn first(&self) -> usize {
        self.first as usize
    }

    /// Block ids from the first that is no hole.
    pub fn row(&self) -> &[i32] {
        self.rest.row.all()
    }

    /// Which row this is; never 0.
    pub(crate) fn edition(&self) -> u64 {
        self.edition
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens as usize
    }

    /// Blocks to take so that positions below `end` are covered.
    pub fn missing(&self, end: usize) -> usize {
        end.saturating_sub(self.end()).div_ceil(self.block_tokens())
    }

    /// The block of a position that is covered, and the place of the position in it.
    pub fn locate(&self, position: usize) -> (i32, usize) {
        if let (Some(block), Some(inside)) = (&self.newest, self.inside_last(position)) {
            return (int(block.id().get() as usize), inside);
        }
        let place = position / self.block_tokens() - self.first();
        (self.row()[place], position % self.block_tokens())
    }

    /// The place of a position in the last block, if it is there. What a decoding request writes
    /// is, and needs no division.
    fn inside_last(&self, position: usize) -> Option<usize> {
        let inside = (position + self.block_tokens()).checked_sub(self.end())?;
        (inside < self.block_tokens()).then_some(inside)
    }

    /// Blocks promised at admission.
    pub(crate) fn entitled(&self) -> usize {
        self.rest.entitled
    }

    /// Promised and not held.
    fn remainder(&self) -> usize {
        self.rest.entitled.saturating_sub(self.row().len())
    }

    /// Blocks that can be taken now without touching what is promised to others.
    ///
    /// `num_retired`: blocks of this table that wait to be reclaimed. They still stand for a part of
    /// its promise, and taking that part would take it from another; the rest is backed by free
    /// blocks.
    pub fn takeable(&self, num_retired: usize) -> usize {
        let counts = self.rest.pool.counts();
        if planted::is(Bug::PromiseBroken) {
            return counts.free;
        }
        let num_retired = if planted::is(Bug::UnsettledPromise) { 0 } else { num_retired };
        let by_right = self.remainder().saturating_sub(num_retired).min(counts.free);
        by_right.max(counts.free.saturating_sub(counts.reserved - self.remainder()))
    }

    /// Blocks to evict so that `num_blocks` can be taken, once the retired ones are free again.
    pub(crate) fn short_of(&self, num_blocks: usize, num_retired: usize) -> usize {
        if num_blocks == 0 || num_blocks <= self.takeable(num_retired) {
            return 0;
        }
        self.rest.pool.counts().short_of(num_blocks).saturating_sub(self.remainder())
    }

    /// Takes `num_blocks` blocks, or none if they are not all to be had.
    #[must_use]
    pub fn grow(&mut self, num_blocks: usize, num_retired: usize) -> bool {
        if num_blocks == 0 {
            return true;
        }
        if num_blocks > self.takeable(num_retired) {
            return false;
        }
        let are_taken = self.take(num_blocks);
        self.renew();
        are_taken
    }

    /// Takes so many blocks under one lock; false if there are too few.
    fn take(&mut self, num_blocks: usize) -> bool {
        let num_promised = self.remainder();
        let Rest { pool, owner, open, row, .. } = &mut *self.rest;
        let mut state = pool.state();
        for place in 0..num_blocks {
            let Some((id, generation)) = state.take(*owner) else { return false };
            state.counts_mut().reserved -= usize::from(place < num_promised);
            row.push(int(id.get() as usize - usize::from(planted::is(Bug::NeighbourBlock))));
            if let Some(block) = self.newest.replace(Block::taken(pool.share(), id, generation)) {
                open.push_back(block);
            }
        }
        true
    }

    fn push_open(&mut self, block: Block<Open>) {
        if let Some(before) = self.newest.replace(block) {
            self.rest.open.push_back(before);
        }
    }

    /// The first of the open blocks.
    fn pop_open(&mut self) -> Option<Block<Open>> {
        self.rest.open.pop_front().or_else(|| self.newest.take())
    }

    /// In order.
    fn open(&self) -> impl Iterator<Item = &Block<Open>> {
        self.rest.open.iter().chain(&self.newest)
    }

    fn open_at(&self, place: usize) -> Option<&Block<Open>> {
        let newest = self.newest.as_ref().filter(|_| place == self.rest.open.len());
        newest.or_else(|| self.rest.open.get(place))
    }

    /// Lets `writers` write all open blocks from now on. The table is good for nothing but dropping
    /// if that is refused.
    pub(crate) fn disclose(&mut self, writers: &[WriterKey]) -> Result<(), Violation> {
        let disclose = |block: Block<Open>| block.disclose(writers).map_err(|r| r.violation);
        let open = self.rest.open.take().chain(self.newest.take());
        let incoming: Result<_, _> = open.map(disclose).collect();
        self.rest.incoming = Some(incoming?);
        Ok(())
    }

    /// The blocks that come in, as others name them.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.rest.incoming.iter().flatten().map(Block::target).collect()
    }

    /// Nobody elsewhere may write any block any more: they are open. The table is good for nothing
    /// but dropping if that is refused.
    pub(crate) fn settle(&mut self) -> Result<(), Violation> {
        for block in self.rest.incoming.take().into_iter().flatten() {
            self.push_open(block.settle().map_err(|refused| refused.violation)?);
        }
        Ok(())
    }

    /// A transfer reads the blocks of these indices. Returns their ids.
    pub(crate) fn read_by(
        &self,
        ticket: Ticket,
        indices: std::ops::Range<usize>,
    ) -> Result<Vec<BlockId>, Violation> {
        let mut ids = Vec::with_capacity(indices.len());
        for place in indices.map(|index| index - self.first()) {
            let closed = &self.rest.closed;
            let open = place.checked_sub(closed.len()).and_then(|at| self.open_at(at));
            ids.push(match (closed.get(place), open) {
                (Some(Closed::Sealed(block)), _) => block.read_by(ticket).map(|()| block.id()),
                (Some(Closed::Shared(block)), _) => block.read_by(ticket).map(|()| block.id()),
                (None, Some(block)) => block.read_by(ticket).map(|()| block.id()),
                (None, None) => break,
            }?);
        }
        Ok(ids)
    }

    /// Positions below `written` hold their rows for good: seals the blocks that are full.
    pub fn seal_written(&mut self, written: usize) -> Result<(), Violation> {
        let written = written + usize::from(planted::is(Bug::SealedEarly));
        if self.next_full as usize > written { Ok(()) } else { self.seal_full(written) }
    }

    #[inline(never)] // once in a block
    fn seal_full(&mut self, written: usize) -> Result<(), Violation> {
        while self.next_full as usize <= written {
            let Some(block) = self.pop_open() else { break };
            match block.seal() {
                Ok(block) => self.rest.closed.push_back(Closed::Sealed(block)),
                Err(refused) => {
                    self.rest.open.push_front(refused.block);
                    return Err(refused.violation);
                }
            }
            (_, self.next_full) = self.bounds();
        }
        Ok(())
    }

    /// Reads what sliding and naming the row to a step read, to have it in the cache by then: many
    /// tables that are looked at one after the other wait for their lines together.
    pub(crate) fn look_ahead(&self, state: &State) {
        let Rest { entitled, closed, row, .. } = &*self.rest;
        let first = closed.get(0).map_or(0, |block| state.look_at(block.id()));
        std::hint::black_box(first + entitled + row.all().len());
    }

    /// Blocks wholly before `position`.
    pub(crate) fn holes_before(&self, position: usize) -> usize {
        let early = if planted::is(Bug::SlideEarly) { self.block_tokens() - 1 } else { 0 };
        let position = position + early;
        if position < (self.first() + 1) * self.block_tokens() {
            return 0; // nearly always, and without a division
        }
        (position / self.block_tokens() - self.first()).min(self.row().len())
    }

    /// Hands the blocks wholly before `position`, with their indices, to `take`, which gives them
    /// up by dropping them.
    pub fn slide(&mut self, position: usize, mut take: impl FnMut(usize, Slid)) {
        let holes = self.holes_before(position);
        if holes == 0 {
            return;
        }
        let before = self.remainder();
        for index in self.first()..self.first() + holes {
            if let Some(block) = self.rest.closed.pop_front() {
                take(index, Slid::Closed(block));
            } else if let Some(block) = self.pop_open() {
                take(index, Slid::Open(block));
            }
        }
        self.rest.row.pop_front(holes);
        self.first += narrow(holes);
        self.rest.pool.state().counts_mut().reserved += self.remainder() - before;
        self.renew();
    }

    /// The full block at an index, from now on readable by others. None if the table holds no
    /// full block there.
    pub(crate) fn share_at(&mut self, index: usize) -> Result<Option<&Block<Shared>>, Violation> {
        let Some(place) = index.checked_sub(self.first()) else { return Ok(None) };
        let closed = &mut self.rest.closed;
        if let Some(Closed::Sealed(_)) = closed.get(place) {
            let share = |block: Closed| match block.share() {
                Ok(block) => (Closed::Shared(block), Ok(())),
                Err((block, violation)) => (block, Err(violation)),
            };
            closed.change(place, share).unwrap_or(Ok(()))?;
        }
        match closed.get(place) {
            Some(Closed::Shared(block)) => Ok(Some(block)),
            _ => Ok(None),
        }
    }

    /// From now on `block`, which holds the same tokens, stands at an index; what stood there is
    /// given up.
    pub(crate) fn replace_at(&mut self, index: usize, block: Block<Shared>) {
        let Some(place) = index.checked_sub(self.first()) else { return };
        if let Some(closed) = self.rest.closed.get_mut(place) {
            if let Some(id) = self.rest.row.get_mut(place) {
                *id = int(block.id().get() as usize);
            }
            *closed = Closed::Shared(block);
            self.renew();
        }
    }

    /// Is the block at an index already `id`?
    pub(crate) fn is_at(&self, index: usize, id: BlockId) -> bool {
        let place = index.checked_sub(self.first()).and_then(|place| self.row().get(place));
        place == Some(&int(id.get() as usize))
    }

    /// Checks that the block of every position from `start` to `end` is open to this request.
    pub(crate) fn check_writes(
        &self,
        state: &mut State,
        start: usize,
        end: usize,
    ) -> Result<(), Violation> {
        if let Some(block) = &self.newest
            && self.inside_last(start).is_some()
            && end <= self.end()
        {
            return state.expect_open(block.id(), block.generation());
        }
        let mut indices = start / self.block_tokens()..end.div_ceil(self.block_tokens());
        indices.try_for_each(|index| self.check_write(state, index))
    }

    fn check_write(&self, state: &mut State, index: usize) -> Result<(), Violation> {
        let place = index.checked_sub(self.first() + self.rest.closed.len());
        match place.and_then(|place| self.open_at(place)) {
            Some(block) => state.expect_open(block.id(), block.generation()),
            None => Err(state.refuse_write(self.rest.owner, self.closed_id(index))),
        }
    }

    /// The full block at an index, to name in a violation: only if no other request reads it.
    fn closed_id(&self, index: usize) -> Option<BlockId> {
        match index.checked_sub(self.first()).and_then(|place| self.rest.closed.get(place)) {
            Some(Closed::Sealed(block)) => Some(block.id()),
            Some(Closed::Shared(_)) | None => None,
        }
    }

    /// Every handle is held by the table's owner, and the row says what the handles say.
    ///
    /// Returns the blocks that are its own, and those that are shared.
    pub(crate) fn audit(&self) -> Result<(usize, usize), String> {
        let Rest { pool, owner, closed, incoming, row, .. } = &*self.rest;
        let (state, owner) = (pool.state(), *owner);
        let mut num_shared = 0;
        for block in closed.iter() {
            let (id, is_right) = match block {
                Closed::Sealed(b) => {
                    (b.id(), state.is_held(b.id(), b.generation(), owner, SlotState::Sealed))
                }
                Closed::Shared(b) => {
                    num_shared += 1;
                    (b.id(), state.is_shared(b.id(), b.generation()))
                }
            };
            if !is_right {
                return Err(format!("request {owner}: block {id} is not what {block:?} says"));
            }
        }
        for block in incoming.iter().flatten() {
            if !state.is_held(block.id(), block.generation(), owner, SlotState::Incoming) {
                return Err(format!("request {owner}: block {} is not Incoming", block.id()));
            }
        }
        for block in self.open() {
            let (id, generation) = (block.id(), block.generation());
            if !state.is_held(id, generation, owner, SlotState::Open) {
                return Err(format!("request {owner}: block {id} is not Open"));
            }
        }
        let ids = closed.iter().map(Closed::id).chain(incoming.iter().flatten().map(Block::id));
        let ids = ids.chain(self.open().map(Block::id)).map(|id| int(id.get() as usize));
        let row = row.all();
        if !row.iter().copied().eq(ids) || self.bounds() != (self.end, self.next_full) {
            return Err(format!(
                "request {owner}: row {row:?} to {}, full at {}, is not what it holds",
                self.end, self.next_full
            ));
        }
        Ok((row.len() - num_shared, num_shared))
    }

    /// What this table adds to `reserved` of its pool.
    pub(crate) fn num_reserved(&self) -> usize {
        self.remainder()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        let remainder = if planted::is(Bug::PromiseLeaks) { 0 } else { self.remainder() };
        let mut state = self.rest.pool.state();
        state.counts_mut().entitled -= self.rest.entitled;
        state.counts_mut().reserved -= remainder;
    }
}

/// Everything that a running request holds.
#[derive(Debug)]
#[repr(C)]
pub struct Tables {
    /// Compressed rows.
    pub full: BlockTable,
    /// Window rows.
    pub swa: BlockTable,
    /// Compressor state.
    pub slot: Block<Open>,
}
