//! One pool per cache group: the slot table is the truth, handles only point into it.
//!
//! ```text
//!             take           seal            share               last reader drops
//!   Free ───────────▶ Open ────────▶ Sealed ───────▶ Shared ───────────────────▶ Cached
//!    ▲                 │ drop           │ drop         ▲ │ drop, not cached   lend │ │ evict
//!    │                 ▼                ▼              └─┼────────────────────────┘ │
//!    │              Retired(newest step that may read it)◀──────────────────────────┘
//!    │   step done     │
//!    └──── reclaim ────┘        any state ── broken invariant ──▶ Quarantined ── repair ──▶ Retired
//! ```
//! What others may touch over the wire, and when it is safe again: [`remote`].
//!
//! 1. Every block is in exactly one state; the counts per state change in [`State::enter`] alone
//!    and add up to the capacity.
//! 2. [`Pool::reclaim`] is the only door to Free. It opens for a block when the newest step that
//!    was planned when the block was given up is done, and every transfer that reads it has ended.
//! 3. A handle and its slot agree on the generation; a handle of an earlier life changes nothing
//!    and is counted.
//! 4. A shared block counts its handles, readers and keepers apart; it is given up with the last of
//!    all. One that has only keepers is cached: the cache may evict it, and nobody waits for it
//!    but steps that were planned while it had a reader.
//! 5. `reserved` blocks of the free ones are promised to requests that were admitted.
//! 6. What holds rows that are not finite is free only once [`Pool::wash`] told that it is to be
//!    zeroed.
//! 7. A block that somebody elsewhere may write is Incoming or Quarantined, and nothing else.
//!
//! The lock is never held while a handle is dropped: a drop takes it.

mod audit;
#[cfg(test)]
mod broken;
mod counts;
mod remote;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::{Block, Open, Role};
use crate::error::{Error, Violation};
use crate::ids::{BlockId, Group, MAX_BLOCKS, RequestId, StepId};
use crate::planted::{self, Bug};
use crate::transfer::ids::{Ticket, WriterKey};
pub use counts::Counts;
pub use state::MAX_REMOTE;
use state::Slot;
#[cfg(test)]
pub(crate) use state::Why;
pub(crate) use state::{SlotState, State};

/// Shared access to one group's slot table.
#[derive(Debug)]
pub struct Pool(Arc<Mutex<State>>);

impl Pool {
    /// A pool of `capacity` free blocks, numbered from 1.
    pub fn new(group: Group, capacity: usize) -> Self {
        assert!(capacity <= MAX_BLOCKS, "{group} pool of {capacity} blocks; at most {MAX_BLOCKS}");
        Self(Arc::new(Mutex::new(State::new(group, capacity))))
    }

    /// Another way to the same pool, for its handles and tables.
    pub(crate) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The slot table, locked. Drop no handle while it lives.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a violation panics, as tests want it.
    pub fn panic_on_violation(&self) {
        self.state().panics = true;
    }

    /// A free block for `owner`, if there is one.
    pub fn take(&self, owner: RequestId) -> Option<Block<Open>> {
        let (id, generation) = self.state().take(owner)?;
        Some(Block::taken(self.share(), id, generation))
    }

    /// A step is planned: blocks dropped from now on may be read by it.
    pub fn begin(&self, step: StepId) {
        let mut state = self.state();
        debug_assert!(step >= state.newest_step);
        state.newest_step = step;
    }

    /// That step and all before it are done: frees what no later step may read.
    pub fn reclaim(&self, done: StepId) {
        self.state().reclaim(done);
    }

    /// What `owner` has given up and nobody else has yet must be zeroed before it is free.
    pub fn taint(&self, owner: RequestId) {
        self.state().taint(owner);
    }

    /// Frees what waits to be zeroed. Whoever gets the ids zeroes the blocks before the next step.
    #[must_use = "the blocks are free, and have to be zeroed"]
    pub fn wash(&self) -> Vec<BlockId> {
        self.state().wash()
    }

    /// Sends blocks in doubt back through Retired, if no handle is left that they could be in doubt
    /// for; those with writers wait for them.
    pub fn repair(&self) {
        let mut state = self.state();
        let is_held = state.counts.held() + state.counts.cached > 0;
        if state.counts.doubted > 0 && (!is_held || planted::is(Bug::RepairInUse)) {
            state.repair();
        }
    }

    /// It is proved that this writer can write no more: blocks that wait for it alone retire.
    /// Returns how many blocks it could write; 0 if it owed none, which changes nothing.
    pub fn discharge(&self, writer: &WriterKey) -> usize {
        self.state().discharge(writer)
    }

    /// This transfer reads no more. Returns how many blocks it read; 0 if none, which changes
    /// nothing.
    pub fn end_read(&self, ticket: Ticket) -> usize {
        self.state().end_read(ticket)
    }

    /// The counts per state.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Every block is in exactly one place, and the counts say so.
    pub fn audit(&self) -> Result<(), Error> {
        self.state().audit()
    }

    pub(crate) fn seal(&self, id: BlockId, generation: u32) -> Result<(), Violation> {
        let mut state = self.state();
        state.expect_open(id, generation)?;
        state.enter(id, SlotState::Sealed);
        Ok(())
    }

    pub(crate) fn share_block(&self, id: BlockId, generation: u32) -> Result<(), Violation> {
        let mut state = self.state();
        let slot = state.slots[id.place()];
        if slot.state != SlotState::Sealed || state.generation(id) != generation {
            return Err(state.violate(id, generation, "to be shared, and is not sealed"));
        }
        state.enter(id, SlotState::Shared { readers: 1, keepers: 0 });
        Ok(())
    }

    /// One more hold on a block that is shared or cached.
    pub(crate) fn count_hold(
        &self,
        id: BlockId,
        generation: u32,
        role: Role,
    ) -> Result<(), Violation> {
        let mut state = self.state();
        let slot = state.slots[id.place()];
        let next = match (slot.state, role) {
            _ if state.generation(id) != generation => None,
            (SlotState::Shared { readers, keepers }, Role::Reader) => {
                Some(SlotState::Shared { readers: readers + 1, keepers })
            }
            (SlotState::Cached { keepers, .. }, Role::Reader) => {
                Some(SlotState::Shared { readers: 1, keepers })
            }
            (SlotState::Shared { readers, keepers }, Role::Keeper) => {
                Some(SlotState::Shared { readers, keepers: keepers + 1 })
            }
            _ => None,
        };
        let Some(next) = next else {
            return Err(state.violate(id, generation, "to be lent or kept, and is not shared"));
        };
        state.enter(id, next);
        Ok(())
    }

    pub(crate) fn disclose(
        &self,
        id: BlockId,
        generation: u32,
        writers: &[WriterKey],
    ) -> Result<(), Violation> {
        self.state().disclose((id, generation), writers)
    }

    pub(crate) fn settle(&self, id: BlockId, generation: u32) -> Result<(), Violation> {
        self.state().settle((id, generation))
    }

    pub(crate) fn begin_read(
        &self,
        id: BlockId,
        generation: u32,
        ticket: Ticket,
    ) -> Result<(), Violation> {
        self.state().begin_read((id, generation), ticket)
    }

    /// A hold was dropped.
    pub(crate) fn give_up(&self, id: BlockId, generation: u32, role: Role) {
        self.state().give_up(id, generation, role);
    }

    /// Holds of readers and of keepers, all blocks together.
    pub(crate) fn num_holds(&self) -> (usize, usize) {
        let state = self.state();
        let count = |(all_readers, all_keepers): (usize, usize), slot: &Slot| match slot.state {
            SlotState::Shared { readers, keepers } => {
                (all_readers + readers as usize, all_keepers + keepers as usize)
            }
            SlotState::Cached { keepers, .. } => (all_readers, all_keepers + keepers as usize),
            _ => (all_readers, all_keepers),
        };
        state.slots.iter().fold((0, 0), count)
    }
}
