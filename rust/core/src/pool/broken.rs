//! Broken on purpose, as no caller can: for the tests of what a violation costs.

use super::state::{Slot, SlotState, State, Why};
use crate::ids::{BlockId, RequestId};

impl State {
    /// Breaks the newest block of `owner`.
    pub(crate) fn overwrite(&mut self, owner: RequestId, state: SlotState) -> BlockId {
        let held = |slot: &Slot| {
            let is_held =
                matches!(slot.state, SlotState::Open | SlotState::Sealed | SlotState::Incoming);
            slot.owner == owner && is_held
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
    pub(crate) fn overwrite_cached(&mut self) {
        let is_cached = |slot: &Slot| matches!(slot.state, SlotState::Cached { .. });
        let place = self.slots.iter().position(is_cached).expect("something is cached");
        self.enter(BlockId::at(place), SlotState::Quarantined(Why::Doubt));
    }

    /// As if what the cache keeps had been given to others meanwhile.
    pub(crate) fn age_cached(&mut self) {
        let is_cached = |slot: &Slot| matches!(slot.state, SlotState::Cached { .. });
        let aged = self.slots.iter().zip(&mut self.present).filter(|(slot, _)| is_cached(slot));
        aged.for_each(|(_, life)| life.generation += 1);
    }

    /// As if a block had been lost from the list of the free.
    pub(crate) fn lose_free(&mut self) {
        self.free.pop().expect("one is free");
    }

    /// As if a block had been counted without being there.
    pub(crate) fn miscount(&mut self) {
        self.counts.cached += 1;
    }

    /// As if the block had been given back while its handle lives on.
    pub(crate) fn begin_next_life(&mut self, id: BlockId) {
        self.present[id.place()].generation += 1;
    }
}
