//! Who may start: probe → [`Reservation`] → commit | forfeit. All groups or none.
//!
//! A request that starts is promised, in every group, what it takes to get through its prompt:
//!
//! ```text
//!   full   ceil((tokens so far + reserved output + tokens in flight - 1) / 256)
//!   swa    floor((W + tokens in flight + 64 - 3) / 64) + 1
//!   state  1
//! ```
//! Tokens in flight: `1 + drafts` of every step in flight.
//! The window blocks that chunks need beyond that are one term of the pool, set aside once for
//! all requests. A promise is backed twice: by free blocks now, and by the capacity for good.

use std::fmt;

use crate::block::{Block, Shared};
use crate::budget::PoolSizes;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::{Group, RequestId, StepId};
use crate::limits::Limits;
use crate::planted::{self, Bug};
use crate::pool::Pool;
use crate::table::{BlockTable, Tables};

/// Output that is promised room at admission, in full blocks (512 tokens of the real model); what
/// comes after grows from the free pool.
pub const RESERVED_OUTPUT_BLOCKS: usize = 2;

/// The pools of one core.
#[derive(Debug)]
pub struct Pools {
    /// Compressed rows.
    pub full: Pool,
    /// Window rows.
    pub swa: Pool,
    /// Compressor state.
    pub state: Pool,
    /// Rows of what is sent along with a prompt.
    pub aux: Pool,
    geometry: Geometry,
    transient_swa: usize,
    /// Tokens of one request in flight.
    in_flight: usize,
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
        sizes.check(geometry, limits)?;
        Ok(Self {
            full: Pool::new(Group::Full, sizes.full_blocks),
            swa: Pool::new(Group::Swa, sizes.swa_blocks),
            state: Pool::new(Group::State, sizes.state_slots),
            aux: Pool::new(Group::Aux, sizes.aux_rows(limits)),
            geometry: geometry.clone(),
            transient_swa: sizes.transient_swa_blocks(geometry, limits),
            in_flight: limits.tokens_in_flight(),
        })
    }

    /// All of them, by name.
    pub fn each(&self) -> [(Group, &Pool); 4] {
        [Group::Full, Group::Swa, Group::State, Group::Aux].map(|group| (group, self.of(group)))
    }

    /// Does the same to all of them.
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

    /// The pool of a group.
    pub fn of(&self, group: Group) -> &Pool {
        match group {
            Group::Full => &self.full,
            Group::Swa => &self.swa,
            Group::State => &self.state,
            Group::Aux => &self.aux,
        }
    }

    /// What a request is promised that has `tokens` tokens, may generate `output` more, and
    /// starts behind `hit` full blocks of the cache.
    pub(crate) fn need(&self, tokens: usize, output: usize, hit: usize) -> Need {
        let geometry = &self.geometry;
        // No position is ever computed that has no token in the end: what is in flight counts only
        // as far as there is output left.
        let ahead = RESERVED_OUTPUT_BLOCKS * geometry.block_tokens + self.in_flight - 1;
        let reserved = output.min(ahead);
        let start = hit * geometry.block_tokens;
        let window_block = geometry.swa_block_tokens;
        let first = if hit == 0 { 0 } else { geometry.window_start(start) / window_block };
        let lent = (start / window_block).saturating_sub(first);
        let swa = geometry.steady_swa_blocks(self.in_flight);
        let swa =
            if planted::is(Bug::TransientPerRequest) { swa + self.transient_swa } else { swa };
        Need { full: (geometry.full_blocks(tokens + reserved), hit), swa: (swa, lent), first }
    }

    /// The same for a request whose prompt comes from elsewhere, but for `hit` full blocks: the window
    /// begins with the tail of the prompt.
    pub(crate) fn need_landing(&self, tokens: usize, output: usize, hit: usize) -> Need {
        let need = self.need(tokens, output, 0);
        let tail = tokens - self.geometry.tail_tokens(tokens);
        let first = tail / self.geometry.swa_block_tokens;
        Need { full: (need.full.0, hit), swa: (need.swa.0, 0), first }
    }

    /// Blocks of each group to evict before a request can start, given how many could be.
    ///
    /// Changes nothing. Err if even all of them would not do, or if the window of another request
    /// would have to be given up for it.
    pub(crate) fn shortage(
        &self,
        need: &Need,
        evictable: impl Fn(Group) -> usize,
    ) -> Result<[(Group, usize); 3], Wait> {
        let swa = self.swa.counts();
        let promised = swa.entitled + self.transient_swa + swa.quarantined;
        let unpromised = swa.capacity.saturating_sub(promised);
        if need.swa.0 > unpromised && !planted::is(Bug::WindowOverbooked) {
            return Err(Wait { group: Group::Swa, needs: need.swa.0, has: unpromised });
        }
        let mut short = [Group::State, Group::Swa, Group::Full].map(|group| (group, 0));
        for (group, num_short) in &mut short {
            let counts = self.of(*group).counts();
            let needs = need.of(*group);
            *num_short = counts.short_of(needs);
            let could = if *num_short > 0 { evictable(*group) } else { 0 };
            if *num_short > could {
                let has = (counts.free + could).saturating_sub(counts.reserved);
                return Err(Wait { group: *group, needs, has });
            }
        }
        Ok(short)
    }

    /// Looks whether a request may start that has `tokens` tokens and may generate `output` more.
    ///
    /// Changes nothing. The reservation borrows the pools, so that nobody can come in between.
    pub fn probe(&mut self, tokens: usize, output: usize) -> Result<Reservation<'_>, Wait> {
        let need = self.need(tokens, output, 0);
        self.probe_for(need)
    }

    /// The same for a request that may start with blocks of the cache.
    pub(crate) fn probe_for(&mut self, need: Need) -> Result<Reservation<'_>, Wait> {
        let (full, swa, state) = (self.full.counts(), self.swa.counts(), self.state.counts());
        let promised = swa.entitled + self.transient_swa + swa.quarantined;
        let unpromised = swa.capacity.saturating_sub(promised);
        for (group, needs, has) in [
            (Group::State, 1, state.free),
            (
                Group::Swa,
                if planted::is(Bug::WindowOverbooked) { 0 } else { need.swa.0 },
                unpromised,
            ),
            (Group::Swa, need.of(Group::Swa), swa.unreserved()),
            (Group::Full, need.of(Group::Full), full.unreserved()),
        ] {
            if needs > has {
                return Err(Wait { group, needs, has });
            }
        }
        Ok(Reservation { pools: self, need })
    }
}

/// Blocks that a request is promised in all, and how many of them the cache lends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    full: (usize, usize),
    swa: (usize, usize),
    /// Index of the first window block.
    first: usize,
}

impl Need {
    /// Full blocks promised in all.
    pub(crate) fn num_full(&self) -> usize {
        self.full.0
    }

    /// Blocks that have to be free.
    fn of(&self, group: Group) -> usize {
        match group {
            Group::Full => self.full.0.saturating_sub(self.full.1),
            Group::Swa => self.swa.0.saturating_sub(self.swa.1),
            Group::State => 1,
            Group::Aux => 0,
        }
    }
}

/// Room that was found. Committed or forfeited; forgetting it is forfeiting it.
#[must_use = "commit or forfeit"]
#[derive(Debug)]
pub struct Reservation<'a> {
    pools: &'a mut Pools,
    need: Need,
}

impl Reservation<'_> {
    /// Takes the slot and reserves the blocks for `owner`.
    pub fn commit(self, owner: RequestId) -> Tables {
        self.commit_behind(owner, vec![], vec![])
    }

    /// The same for a request that starts with these blocks of the cache, as many as it was
    /// reserved for.
    pub(crate) fn commit_behind(
        self,
        owner: RequestId,
        full: Vec<Block<Shared>>,
        window: Vec<Block<Shared>>,
    ) -> Tables {
        let Self { pools, need } = self;
        debug_assert_eq!((full.len(), window.len()), (need.full.1, need.swa.1));
        let geometry = &pools.geometry;
        let (full_tokens, swa_tokens) = (geometry.block_tokens, geometry.swa_block_tokens);
        let first = need.first;
        Tables {
            full: BlockTable::behind(&pools.full, owner, full_tokens, need.full.0, (0, full)),
            swa: BlockTable::behind(&pools.swa, owner, swa_tokens, need.swa.0, (first, window)),
            slot: pools.state.take(owner).expect("probe saw a free slot, and nobody came between"),
        }
    }

    /// Lets it go.
    pub fn forfeit(self) {}
}
