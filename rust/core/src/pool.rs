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
//! 1. Every block is in exactly one state; the counts per state change in [`State::enter`] alone
//!    and add up to the capacity.
//! 2. [`Pool::reclaim`] is the only door to Free. It opens for a block when the newest step that
//!    was planned when the block was given up is done.
//! 3. A handle and its slot agree on the generation; a handle of an earlier life changes nothing
//!    and is counted.
//! 4. A shared block counts its handles, readers and keepers apart; it is given up with the last of
//!    all. One that has only keepers is cached: the cache may evict it, and nobody waits for it
//!    but steps that were planned while it had a reader.
//! 5. `reserved` blocks of the free ones are promised to requests that were admitted.
//!
//! The lock is never held while a handle is dropped: a drop takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::{Block, Open, Role};
use crate::error::{Error, Violation};
use crate::ids::{BlockId, Group, MAX_BLOCKS, RequestId, StepId};

/// Shared access to one group's slot table.
#[derive(Debug)]
pub struct Pool(Arc<Mutex<State>>);

/// State of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Free,
    Open,
    Sealed,
    /// At least one reader.
    Shared {
        readers: u32,
        keepers: u32,
    },
    /// At least one keeper, and no reader since that step was the newest.
    Cached {
        keepers: u32,
        since: StepId,
    },
    Retired(StepId),
    Quarantined,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: SlotState,
    /// Grows each time the block becomes free.
    generation: u32,
    /// Who took it last.
    owner: RequestId,
}

/// How many blocks are in which state; `reserved` and `entitled` are promises, not states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the states")]
pub struct Counts {
    pub capacity: usize,
    pub free: usize,
    pub open: usize,
    pub sealed: usize,
    pub shared: usize,
    pub cached: usize,
    pub retired: usize,
    pub quarantined: usize,
    /// Free blocks promised to admitted requests that have not taken them yet.
    pub reserved: usize,
    /// Blocks promised at admission to requests that run, taken or not.
    pub entitled: usize,
    /// Broken invariants found so far.
    pub violations: usize,
}

/// The slot table of one group.
#[derive(Debug)]
pub(crate) struct State {
    group: Group,
    slots: Vec<Slot>,
    /// Last in, first out: the block most recently used is warm in the caches of the device.
    free: Vec<BlockId>,
    /// In order of the step.
    retired: VecDeque<(StepId, BlockId)>,
    newest_step: StepId,
    counts: Counts,
    panics: bool,
}

impl Pool {
    /// A pool of `capacity` free blocks, numbered from 1.
    pub fn new(group: Group, capacity: usize) -> Self {
        assert!(capacity <= MAX_BLOCKS, "{group} pool of {capacity} blocks; at most {MAX_BLOCKS}");
        let slot = Slot { state: SlotState::Free, generation: 0, owner: RequestId(0) };
        Self(Arc::new(Mutex::new(State {
            group,
            slots: vec![slot; capacity],
            free: (0..capacity).rev().map(BlockId::at).collect(),
            retired: VecDeque::with_capacity(capacity),
            newest_step: StepId(0),
            counts: Counts { capacity, free: capacity, ..Counts::default() },
            panics: false,
        })))
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
        let mut state = self.state();
        while let Some(&(_, id)) = state.retired.front().filter(|(step, _)| *step <= done) {
            state.retired.pop_front();
            state.enter(id, SlotState::Free);
            let slot = &mut state.slots[id.place()];
            slot.generation = slot.generation.wrapping_add(1);
            state.free.push(id);
        }
    }

    /// Sends quarantined blocks back through Retired, if no handle is left that could be in doubt.
    pub fn repair(&self) {
        let mut state = self.state();
        if state.counts.quarantined == 0 || state.counts.held() + state.counts.cached > 0 {
            return;
        }
        for place in 0..state.slots.len() {
            if state.slots[place].state == SlotState::Quarantined {
                let newest = state.newest_step;
                state.retire_at(BlockId::at(place), newest);
            }
        }
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
        if slot.state != SlotState::Sealed || slot.generation != generation {
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
            _ if slot.generation != generation => None,
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

    /// A hold was dropped.
    pub(crate) fn give_up(&self, id: BlockId, generation: u32, role: Role) {
        let mut state = self.state();
        let slot = state.slots[id.place()];
        let newest = state.newest_step;
        match (slot.state, role) {
            _ if slot.generation != generation => {
                state.violate(id, generation, "given up by a handle of an earlier life");
            }
            (SlotState::Open | SlotState::Sealed, Role::Owner)
            | (SlotState::Shared { readers: 1, keepers: 0 }, Role::Reader) => {
                state.retire_at(id, newest);
            }
            (SlotState::Shared { readers: 1, keepers }, Role::Reader) => {
                state.enter(id, SlotState::Cached { keepers, since: newest });
            }
            (SlotState::Shared { readers, keepers }, Role::Reader) => {
                state.enter(id, SlotState::Shared { readers: readers - 1, keepers });
            }
            (SlotState::Shared { readers, keepers: keepers @ 1.. }, Role::Keeper) => {
                state.enter(id, SlotState::Shared { readers, keepers: keepers - 1 });
            }
            (SlotState::Cached { keepers: 1, since }, Role::Keeper) => state.retire_at(id, since),
            (SlotState::Cached { keepers, since }, Role::Keeper) => {
                state.enter(id, SlotState::Cached { keepers: keepers - 1, since });
            }
            // Found out before, when it was put there.
            (SlotState::Quarantined, _) => {}
            _ => {
                state.violate(id, generation, "given up by a handle that does not hold it");
            }
        }
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

impl State {
    /// The one place where a slot changes its state.
    fn enter(&mut self, id: BlockId, next: SlotState) {
        let slot = &mut self.slots[id.place()];
        *self.counts.of(slot.state) -= 1;
        *self.counts.of(next) += 1;
        slot.state = next;
    }

    pub(crate) fn take(&mut self, owner: RequestId) -> Option<(BlockId, u32)> {
        let id = self.free.pop()?;
        self.enter(id, SlotState::Open);
        let slot = &mut self.slots[id.place()];
        slot.owner = owner;
        Some((id, slot.generation))
    }

    /// What was cached for a while retires with an older step than what was read just now.
    fn retire_at(&mut self, id: BlockId, step: StepId) {
        self.enter(id, SlotState::Retired(step));
        let place = match self.retired.back() {
            Some(&(newest, _)) if newest > step => {
                self.retired.partition_point(|&(other, _)| other <= step)
            }
            _ => self.retired.len(),
        };
        self.retired.insert(place, (step, id));
    }

    pub(crate) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// The check of every write: the block is open, in the life that the handle knows.
    pub(crate) fn expect_open(&mut self, id: BlockId, generation: u32) -> Result<(), Violation> {
        let slot = &self.slots[id.place()];
        if slot.state == SlotState::Open && slot.generation == generation {
            return Ok(());
        }
        Err(self.violate(id, generation, "to be written or sealed, and is not open"))
    }

    /// A write outside the open blocks of `owner`, as its table found it; `id` if it names a block.
    pub(crate) fn refuse_write(&mut self, owner: RequestId, id: Option<BlockId>) -> Violation {
        self.counts.violations += 1;
        let violation = Violation {
            group: self.group,
            block: id,
            request: owner,
            what: "to be written, but its table has no open block there".into(),
        };
        assert!(!self.panics, "{violation}");
        if let Some(id) = id {
            self.quarantine(id);
        }
        violation
    }

    /// Is this block held by `owner`, as the audit of tables asks?
    pub(crate) fn is_held(
        &self,
        id: BlockId,
        generation: u32,
        owner: RequestId,
        state: SlotState,
    ) -> bool {
        let slot = &self.slots[id.place()];
        slot.state == state && slot.generation == generation && slot.owner == owner
    }

    /// Is this block kept by the cache alone?
    pub(crate) fn is_cached(&self, id: BlockId, generation: u32) -> bool {
        let slot = &self.slots[id.place()];
        matches!(slot.state, SlotState::Cached { .. }) && slot.generation == generation
    }

    /// Does this block have a reader?
    pub(crate) fn is_shared(&self, id: BlockId, generation: u32) -> bool {
        let slot = &self.slots[id.place()];
        matches!(slot.state, SlotState::Shared { .. }) && slot.generation == generation
    }

    /// Counts a broken invariant and, if the handle is of the slot's present life, quarantines
    /// the block: its state is in doubt. A handle of an earlier life has no say over the block.
    fn violate(&mut self, id: BlockId, generation: u32, what: &str) -> Violation {
        let slot = self.slots[id.place()];
        self.counts.violations += 1;
        let violation = Violation {
            group: self.group,
            block: Some(id),
            request: slot.owner,
            what: format!(
                "{what} ({:?}, life {} against {generation})",
                slot.state, slot.generation
            ),
        };
        assert!(!self.panics, "{violation}");
        if slot.generation == generation {
            self.quarantine(id);
        }
        violation
    }

    /// Takes the block out of whatever list it is on; linear, but this never happens.
    fn quarantine(&mut self, id: BlockId) {
        match self.slots[id.place()].state {
            SlotState::Free => self.free.retain(|&other| other != id),
            SlotState::Retired(_) => self.retired.retain(|&(_, other)| other != id),
            _ => {}
        }
        self.enter(id, SlotState::Quarantined);
    }

    /// Breaks the newest block of `owner`, as no caller can.
    #[cfg(test)]
    pub(crate) fn overwrite(&mut self, owner: RequestId, state: SlotState) -> BlockId {
        let held = |slot: &Slot| {
            slot.owner == owner && matches!(slot.state, SlotState::Open | SlotState::Sealed)
        };
        let place = self.slots.iter().rposition(held).expect("it holds a block");
        let id = BlockId::at(place);
        self.enter(id, state);
        match state {
            SlotState::Free => self.free.push(id),
            SlotState::Retired(step) => self.retired.push_back((step, id)),
            _ => {}
        }
        id
    }

    /// Breaks some block that only the cache keeps.
    #[cfg(test)]
    pub(crate) fn overwrite_cached(&mut self) {
        let is_cached = |slot: &Slot| matches!(slot.state, SlotState::Cached { .. });
        let place = self.slots.iter().position(is_cached).expect("something is cached");
        self.enter(BlockId::at(place), SlotState::Quarantined);
    }

    /// As if the block had been given back while its handle lives on.
    #[cfg(test)]
    pub(crate) fn begin_next_life(&mut self, id: BlockId) {
        self.slots[id.place()].generation += 1;
    }

    fn audit(&self) -> Result<(), Error> {
        let mut found = Counts { capacity: self.counts.capacity, ..Counts::default() };
        (found.reserved, found.entitled) = (self.counts.reserved, self.counts.entitled);
        found.violations = self.counts.violations;
        for slot in &self.slots {
            *found.of(slot.state) += 1;
        }
        let wrong = |what: String| Err(Error::Audit(format!("{} pool: {what}", self.group)));
        if found != self.counts {
            return wrong(format!("the table has {found:?}, the counts say {:?}", self.counts));
        }
        if found.reserved > found.entitled {
            return wrong(format!("{} reserved of {} entitled", found.reserved, found.entitled));
        }
        let mut seen = vec![false; self.slots.len()];
        let listed = self.free.iter().map(|&id| (id, SlotState::Free));
        let retired = self.retired.iter().map(|&(step, id)| (id, SlotState::Retired(step)));
        for (id, state) in listed.chain(retired) {
            if std::mem::replace(&mut seen[id.place()], true) {
                return wrong(format!("block {id} is listed twice"));
            }
            if self.slots[id.place()].state != state {
                let is = self.slots[id.place()].state;
                return wrong(format!("block {id} is listed as {state:?} and is {is:?}"));
            }
        }
        if self.free.len() != found.free || self.retired.len() != found.retired {
            return wrong(format!(
                "{} listed free, {} retired",
                self.free.len(),
                self.retired.len()
            ));
        }
        if !self.retired.iter().map(|&(step, _)| step).is_sorted() {
            return wrong("the retired are out of order".into());
        }
        Ok(())
    }
}

impl Counts {
    fn of(&mut self, state: SlotState) -> &mut usize {
        match state {
            SlotState::Free => &mut self.free,
            SlotState::Open => &mut self.open,
            SlotState::Sealed => &mut self.sealed,
            SlotState::Shared { .. } => &mut self.shared,
            SlotState::Cached { .. } => &mut self.cached,
            SlotState::Retired(_) => &mut self.retired,
            SlotState::Quarantined => &mut self.quarantined,
        }
    }

    /// Blocks that some handle of a request may read.
    pub fn held(&self) -> usize {
        self.open + self.sealed + self.shared
    }

    /// Blocks to evict so that `needs` of them are free and promised to nobody, once the retired
    /// ones are free again.
    pub fn short_of(&self, needs: usize) -> usize {
        (needs + self.reserved).saturating_sub(self.free + self.retired)
    }

    /// Free blocks that are promised to nobody.
    pub fn unreserved(&self) -> usize {
        self.free.saturating_sub(self.reserved)
    }
}
