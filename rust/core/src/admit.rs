//! Who may start: probe → [`Reservation`] → commit | forfeit. All groups or none.
//!
//! A request that starts is promised, in every group, what it takes to get through its prompt:
//!
//! ```text
//!   full   ceil((tokens so far + reserved output) / 256)
//!   swa    ceil(W / 64) + 1
//!   state  1
//! ```
//! The window blocks that chunks need beyond that are one term of the pool, set aside once for
//! all requests. A promise is backed twice: by free blocks now, and by the capacity for good.

use std::fmt;

use crate::budget::PoolSizes;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::{Group, RequestId, StepId};
use crate::limits::Limits;
use crate::pool::Pool;
use crate::table::{BlockTable, Tables};

/// Output that is promised room at admission, in full blocks (512 tokens of the real model); what
/// comes after grows from the free pool.
pub const RESERVED_OUTPUT_BLOCKS: usize = 2;

/// The three pools of one core.
#[derive(Debug)]
pub struct Pools {
    /// Compressed rows.
    pub full: Pool,
    /// Window rows.
    pub swa: Pool,
    /// Compressor state.
    pub state: Pool,
    geometry: Geometry,
    transient_swa: usize,
}

/// Why a request does not start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The group that is short.
    pub group: Group,
    /// Blocks that the request would be promised.
    pub needs: usize,
    /// Blocks that are promised to nobody.
    pub has: usize,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, needs, has } = self;
        write!(f, "needs {needs} {group} blocks, {has} are free and promised to nobody")
    }
}

impl Pools {
    /// Pools of these sizes, all free.
    pub fn new(geometry: &Geometry, sizes: &PoolSizes, limits: &Limits) -> Result<Self, Error> {
        sizes.check(geometry)?;
        Ok(Self {
            full: Pool::new(Group::Full, sizes.full_blocks),
            swa: Pool::new(Group::Swa, sizes.swa_blocks),
            state: Pool::new(Group::State, sizes.state_slots),
            geometry: geometry.clone(),
            transient_swa: sizes.transient_swa_blocks(geometry, limits),
        })
    }

    /// All three, by name.
    pub fn each(&self) -> [(Group, &Pool); 3] {
        [(Group::Full, &self.full), (Group::Swa, &self.swa), (Group::State, &self.state)]
    }

    /// Does the same to all three.
    pub fn for_each(&self, act: impl FnMut(&Pool)) {
        self.each().into_iter().map(|(_, pool)| pool).for_each(act);
    }

    /// A step is planned; see [`Pool::begin`].
    pub fn begin(&self, step: StepId) {
        self.for_each(|pool| pool.begin(step));
    }

    /// Steps up to this one are done; see [`Pool::reclaim`].
    pub fn reclaim(&self, done: StepId) {
        self.for_each(|pool| pool.reclaim(done));
    }

    /// Looks whether a request may start that has `tokens` tokens and may generate `output` more.
    ///
    /// Changes nothing. The reservation borrows the pools, so that nobody can come in between.
    pub fn probe(&mut self, tokens: usize, output: usize) -> Result<Reservation<'_>, Wait> {
        let reserved = output.min(RESERVED_OUTPUT_BLOCKS * self.geometry.block_tokens);
        let full_blocks = self.geometry.full_blocks(tokens + reserved);
        let swa_blocks = self.geometry.steady_swa_blocks();
        let (full, swa, state) = (self.full.counts(), self.swa.counts(), self.state.counts());
        let swa_promised = swa.entitled + self.transient_swa + swa.quarantined;
        let swa_has = swa.unreserved().min(swa.capacity.saturating_sub(swa_promised));
        for (group, needs, has) in [
            (Group::State, 1, state.free),
            (Group::Swa, swa_blocks, swa_has),
            (Group::Full, full_blocks, full.unreserved()),
        ] {
            if needs > has {
                return Err(Wait { group, needs, has });
            }
        }
        Ok(Reservation { pools: self, full_blocks, swa_blocks })
    }
}

/// Room that was found. Committed or forfeited; forgetting it is forfeiting it.
#[must_use = "commit or forfeit"]
#[derive(Debug)]
pub struct Reservation<'a> {
    pools: &'a mut Pools,
    full_blocks: usize,
    swa_blocks: usize,
}

impl Reservation<'_> {
    /// Takes the slot and reserves the blocks for `owner`.
    pub fn commit(self, owner: RequestId) -> Tables {
        let Self { pools, full_blocks, swa_blocks } = self;
        let geometry = &pools.geometry;
        Tables {
            full: BlockTable::new(&pools.full, owner, geometry.block_tokens, full_blocks),
            swa: BlockTable::new(&pools.swa, owner, geometry.swa_block_tokens, swa_blocks),
            slot: pools.state.take(owner).expect("probe saw a free slot, and nobody came between"),
        }
    }

    /// Lets it go.
    pub fn forfeit(self) {}
}
