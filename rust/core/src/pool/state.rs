//! The slot table of one group: what state every block is in, and how it gets from one to the next.

use std::collections::{BTreeSet, VecDeque};

use super::Counts;
use super::remote::Remote;
use crate::block::Role;
use crate::error::Violation;
use crate::ids::{BlockId, Group, RequestId, StepId};
use crate::planted::{self, Bug};

/// State of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Free,
    Open,
    /// Its address was disclosed: its request holds it, and writers elsewhere may write it.
    Incoming,
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
    Quarantined(Why),
}

/// Why nobody may have a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its request gave it up while somebody elsewhere may still write it.
    Written,
    /// An invariant is broken: what holds it is not known.
    Doubt,
}

/// What the check of a write asks of a slot: it looks at three per request and step, and eight of
/// them are a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    /// Grows each time the block becomes free.
    pub(super) generation: u32,
    /// The slot's state is Open.
    pub(super) is_open: bool,
}

const _: () = assert!(size_of::<Present>() == 8);

/// All else about a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    /// Who took it last.
    pub(super) owner: RequestId,
    /// Obligations of others that may write it.
    pub(super) writers: u16,
    /// Transfers in flight that read it.
    pub(super) tickets: u16,
}

/// Most writers of one block, and most transfers that read one: whoever has rooms keeps to it.
pub const MAX_REMOTE: usize = u16::MAX as usize;

/// The slot table of one group.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) group: Group,
    pub(super) slots: Vec<Slot>,
    /// Of the same slots.
    pub(super) present: Vec<Present>,
    /// Last in, first out: the block most recently used is warm in the caches of the device.
    pub(super) free: Vec<BlockId>,
    /// In order of the step; without those that a transfer still reads.
    pub(super) retired: VecDeque<(StepId, BlockId)>,
    /// To be zeroed before they are free; nearly always none.
    pub(super) tainted: BTreeSet<BlockId>,
    /// Those of them that nobody reads any more: retired, on no other list.
    pub(super) unclean: Vec<BlockId>,
    pub(super) newest_step: StepId,
    /// Rows that tables had of these blocks so far.
    num_editions: u64,
    pub(super) counts: Counts,
    pub(super) panics: bool,
    /// The books did not balance; counted once.
    is_unbalanced: bool,
    pub(super) remote: Remote,
}

impl State {
    pub(super) fn new(group: Group, capacity: usize) -> Self {
        let owner = RequestId(0);
        let slot = Slot { state: SlotState::Free, owner, writers: 0, tickets: 0 };
        Self {
            group,
            slots: vec![slot; capacity],
            present: vec![Present { generation: 0, is_open: false }; capacity],
            free: (0..capacity).rev().map(BlockId::at).collect(),
            retired: VecDeque::with_capacity(capacity),
            tainted: BTreeSet::new(),
            unclean: vec![],
            newest_step: StepId(0),
            num_editions: 0,
            counts: Counts { capacity, free: capacity, ..Counts::default() },
            panics: false,
            is_unbalanced: false,
            remote: Remote::default(),
        }
    }

    /// The one place where a slot changes its state.
    pub(super) fn enter(&mut self, id: BlockId, next: SlotState) {
        let slot = &mut self.slots[id.place()];
        self.counts.leave(slot.state);
        self.counts.enter(next);
        slot.state = next;
        self.present[id.place()].is_open = next == SlotState::Open;
    }

    pub(super) fn generation(&self, id: BlockId) -> u32 {
        self.present[id.place()].generation
    }

    /// Reads a slot for nothing but to have it in the cache.
    pub(crate) fn look_at(&self, id: BlockId) -> usize {
        self.slots[id.place()].writers.into()
    }

    pub(crate) fn take(&mut self, owner: RequestId) -> Option<(BlockId, u32)> {
        let id = self.free.pop()?;
        self.enter(id, SlotState::Open);
        self.slots[id.place()].owner = owner;
        Some((id, self.generation(id)))
    }

    /// Frees what no later step may read. Whether the books balance, as far as a glance shows, is
    /// looked at every time: it costs a few comparisons.
    pub(super) fn reclaim(&mut self, done: StepId) {
        if !self.seems_balanced() && !self.is_unbalanced {
            self.refuse_books();
        }
        let done = if planted::is(Bug::ReclaimEarly) { done.next() } else { done };
        while let Some(&(_, id)) = self.retired.front().filter(|(step, _)| *step <= done) {
            self.retired.pop_front();
            if !self.tainted.is_empty() && self.tainted.remove(&id) {
                self.unclean.push(id);
            } else {
                self.make_free(id);
            }
        }
    }

    fn make_free(&mut self, id: BlockId) {
        self.enter(id, SlotState::Free);
        let present = &mut self.present[id.place()];
        present.generation = present.generation.wrapping_add(1);
        self.free.push(id);
    }

    /// What `owner` has given up and nobody else has yet holds rows that are not finite.
    pub(super) fn taint(&mut self, owner: RequestId) {
        let listed = self.retired.iter().map(|&(_, id)| id);
        let sent = self.remote.tickets.values().flatten().map(|&(id, _)| id);
        let is_given_up = |id: &BlockId| {
            let slot = &self.slots[id.place()];
            slot.owner == owner && matches!(slot.state, SlotState::Retired(_))
        };
        self.tainted.extend(listed.chain(sent).filter(is_given_up));
    }

    /// Frees what was waiting to be zeroed: whoever is told does so before the next step.
    pub(super) fn wash(&mut self) -> Vec<BlockId> {
        let unclean = std::mem::take(&mut self.unclean);
        for &id in &unclean {
            self.make_free(id);
        }
        unclean
    }

    /// What was cached for a while retires with an older step than what was read just now; what a
    /// transfer reads waits for that as well.
    pub(super) fn retire_at(&mut self, id: BlockId, step: StepId) {
        let step = if planted::is(Bug::DropFrees) { StepId(0) } else { step };
        self.enter(id, SlotState::Retired(step));
        if self.slots[id.place()].tickets == 0 || planted::is(Bug::ReadForgotten) {
            self.list_retired(id, step);
        }
    }

    pub(super) fn list_retired(&mut self, id: BlockId, step: StepId) {
        let place = match self.retired.back() {
            Some(&(newest, _)) if newest > step => {
                self.retired.partition_point(|&(other, _)| other <= step)
            }
            _ => self.retired.len(),
        };
        self.retired.insert(place, (step, id));
    }

    /// A hold was dropped.
    pub(super) fn give_up(&mut self, id: BlockId, generation: u32, role: Role) {
        let slot = self.slots[id.place()];
        let newest = self.newest_step;
        match (slot.state, role) {
            _ if self.generation(id) != generation && !planted::is(Bug::StaleHandle) => {
                self.violate(id, generation, "given up by a handle of an earlier life");
            }
            (SlotState::Open, Role::Owner) if planted::is(Bug::DoubleFree) => {
                self.retire_at(id, newest);
                self.retire_at(id, newest);
            }
            (SlotState::Shared { keepers: 0, .. }, Role::Reader)
                if planted::is(Bug::ReaderTakesAll) =>
            {
                self.retire_at(id, newest);
            }
            (SlotState::Open | SlotState::Sealed, Role::Owner)
            | (SlotState::Shared { readers: 1, keepers: 0 }, Role::Reader) => {
                self.retire_at(id, newest);
            }
            (SlotState::Shared { readers: 1, keepers }, Role::Reader) => {
                self.enter(id, SlotState::Cached { keepers, since: newest });
            }
            (SlotState::Shared { readers, keepers }, Role::Reader) => {
                self.enter(id, SlotState::Shared { readers: readers - 1, keepers });
            }
            (SlotState::Shared { readers, keepers: keepers @ 1.. }, Role::Keeper) => {
                self.enter(id, SlotState::Shared { readers, keepers: keepers - 1 });
            }
            (SlotState::Cached { keepers: 1, since }, Role::Keeper) => self.retire_at(id, since),
            (SlotState::Cached { keepers, since }, Role::Keeper) => {
                self.enter(id, SlotState::Cached { keepers: keepers - 1, since });
            }
            (SlotState::Incoming, Role::Owner) => self.give_up_incoming(id),
            // Found out before, when it was put there.
            (SlotState::Quarantined(Why::Doubt), _) => {}
            _ => {
                self.violate(id, generation, "given up by a handle that does not hold it");
            }
        }
    }

    /// A name for the row of a table that no other row of this pool has or had.
    pub(crate) fn next_edition(&mut self) -> u64 {
        self.num_editions += 1;
        self.num_editions
    }

    pub(crate) fn counts_mut(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// Counts against each other and against the lists: the part of the audit that needs no walk.
    fn seems_balanced(&self) -> bool {
        let Counts { capacity, free, retired, reserved, entitled, .. } = self.counts;
        let listed = self.retired.len() + self.unclean.len();
        // What a transfer still reads is retired, and on no list.
        self.counts.of_all_states() == capacity
            && self.free.len() == free
            && (listed == retired || (listed < retired && self.counts.read > 0))
            && reserved <= entitled
    }

    /// There is no block that could be quarantined and no request to fail: it is counted, and an
    /// audit says what is wrong.
    #[cold]
    fn refuse_books(&mut self) {
        self.counts.violations += 1;
        self.is_unbalanced = true;
        assert!(!self.panics, "{} pool: the books do not balance: {:?}", self.group, self.counts);
    }

    /// The check of every write: the block is open, in the life that the handle knows.
    pub(crate) fn expect_open(&mut self, id: BlockId, generation: u32) -> Result<(), Violation> {
        if self.present[id.place()] == (Present { generation, is_open: true }) {
            return Ok(());
        }
        Err(self.violate(id, generation, "to be written or sealed, and is not open"))
    }

    /// A write outside the open blocks of `owner`, as its table found it; `id` if it names a block.
    #[cold]
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
        slot.state == state && self.generation(id) == generation && slot.owner == owner
    }

    /// Is this block kept by the cache alone?
    pub(crate) fn is_cached(&self, id: BlockId, generation: u32) -> bool {
        let slot = &self.slots[id.place()];
        matches!(slot.state, SlotState::Cached { .. }) && self.generation(id) == generation
    }

    /// Does this block have a reader?
    pub(crate) fn is_shared(&self, id: BlockId, generation: u32) -> bool {
        let slot = &self.slots[id.place()];
        matches!(slot.state, SlotState::Shared { .. }) && self.generation(id) == generation
    }

    /// Counts a broken invariant and, if the handle is of the slot's present life, quarantines
    /// the block: its state is in doubt. A handle of an earlier life has no say over the block.
    #[cold]
    pub(super) fn violate(&mut self, id: BlockId, generation: u32, what: &str) -> Violation {
        let (slot, life) = (self.slots[id.place()], self.generation(id));
        self.counts.violations += 1;
        let violation = Violation {
            group: self.group,
            block: Some(id),
            request: slot.owner,
            what: format!("{what} ({:?}, life {life} against {generation})", slot.state),
        };
        assert!(!self.panics, "{violation}");
        if life == generation {
            self.quarantine(id);
        }
        violation
    }

    /// Takes the block out of whatever list it is on; linear, but this never happens.
    fn quarantine(&mut self, id: BlockId) {
        match self.slots[id.place()].state {
            SlotState::Free => self.free.retain(|&other| other != id),
            SlotState::Retired(_) => {
                self.retired.retain(|&(_, other)| other != id);
                if let Some(at) = self.unclean.iter().position(|&other| other == id) {
                    self.unclean.swap_remove(at);
                    self.tainted.insert(id);
                }
            }
            _ => {}
        }
        self.enter(id, SlotState::Quarantined(Why::Doubt));
    }

    /// No handle is left that could be in doubt: what is quarantined for that goes back through
    /// Retired, or waits for its writers.
    pub(super) fn repair(&mut self) {
        for place in 0..self.slots.len() {
            if self.slots[place].state == SlotState::Quarantined(Why::Doubt) {
                let (id, newest) = (BlockId::at(place), self.newest_step);
                if self.slots[place].writers > 0 {
                    self.enter(id, SlotState::Quarantined(Why::Written));
                } else {
                    self.retire_at(id, newest);
                }
            }
        }
    }
}
