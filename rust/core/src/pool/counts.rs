//! How many blocks are in which state.

use super::state::{SlotState, Why};

/// How many blocks are in which state. The states up to `quarantined` add up to the capacity;
/// what comes after them is told on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the states")]
pub struct Counts {
    pub capacity: usize,
    pub free: usize,
    /// Held by one request and not full; those that come in from elsewhere are among them.
    pub open: usize,
    pub sealed: usize,
    pub shared: usize,
    pub cached: usize,
    pub retired: usize,
    pub quarantined: usize,
    /// Open blocks that somebody elsewhere may write.
    pub incoming: usize,
    /// Quarantined blocks whose state is in doubt; the others wait for their writers.
    pub doubted: usize,
    /// Blocks that a transfer in flight reads, whatever else they are.
    pub read: usize,
    /// Free blocks promised to admitted requests that have not taken them yet.
    pub reserved: usize,
    /// Blocks promised at admission to requests that run, taken or not.
    pub entitled: usize,
    /// Broken invariants found so far.
    pub violations: usize,
}

impl Counts {
    pub(super) fn enter(&mut self, state: SlotState) {
        *self.of(state) += 1;
        if let Some(special) = self.special(state) {
            *special += 1;
        }
    }

    pub(super) fn leave(&mut self, state: SlotState) {
        *self.of(state) -= 1;
        if let Some(special) = self.special(state) {
            *special -= 1;
        }
    }

    fn of(&mut self, state: SlotState) -> &mut usize {
        match state {
            SlotState::Free => &mut self.free,
            SlotState::Open | SlotState::Incoming => &mut self.open,
            SlotState::Sealed => &mut self.sealed,
            SlotState::Shared { .. } => &mut self.shared,
            SlotState::Cached { .. } => &mut self.cached,
            SlotState::Retired(_) => &mut self.retired,
            SlotState::Quarantined(_) => &mut self.quarantined,
        }
    }

    fn special(&mut self, state: SlotState) -> Option<&mut usize> {
        match state {
            SlotState::Incoming => Some(&mut self.incoming),
            SlotState::Quarantined(Why::Doubt) => Some(&mut self.doubted),
            _ => None,
        }
    }

    /// Blocks in any state: as many as there are.
    pub(super) fn of_all_states(&self) -> usize {
        self.free + self.held() + self.cached + self.retired + self.quarantined
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
