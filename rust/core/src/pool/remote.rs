//! Who elsewhere may touch blocks: writers of what comes in, readers of what goes out.
//!
//! ```text
//!               disclose(writers)          last writer discharged, settle
//!   Open ──────────────────────▶ Incoming ────────────────────────────────▶ Open
//!                                   │ dropped with writers left
//!                                   ▼
//!                              Quarantined ── last writer discharged ──▶ Retired ──▶ Free
//!
//!   any state + tickets ── given up ──▶ Retired, on no list ── last ticket ended ──▶ Retired, listed
//! ```
//! 1. A writer's obligation begins when an address is disclosed and ends with a proof, never with
//!    time. A proof for a writer that owes nothing changes nothing.
//! 2. No way leads from Quarantined to Sealed, Shared or Cached: what comes late is discarded.
//! 3. What a transfer reads is not free before the transfer ended and the steps are done.
//! 4. The counts of a slot are the entries of the ledger that name it (the audit adds them up).

use std::collections::BTreeMap;

use super::state::{SlotState, State, Why};
use crate::error::Violation;
use crate::ids::BlockId;
use crate::planted::{self, Bug};
use crate::transfer::ids::{Ticket, WriterKey};

/// A block in one of its lives.
type Life = (BlockId, u32);

/// The ledger: who may write which blocks, and which blocks a transfer reads.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) writers: BTreeMap<WriterKey, Vec<Life>>,
    pub(super) tickets: BTreeMap<Ticket, Vec<Life>>,
}

impl State {
    /// From now on `writers` may write the block, besides its request.
    pub(super) fn disclose(
        &mut self,
        (id, generation): Life,
        writers: &[WriterKey],
    ) -> Result<(), Violation> {
        let slot = self.slots[id.place()];
        if slot.state != SlotState::Open || self.generation(id) != generation || slot.writers > 0 {
            return Err(self.violate(id, generation, "to be disclosed, and is not open"));
        }
        for &writer in writers {
            let owed = self.remote.writers.entry(writer).or_default();
            if owed.last() != Some(&(id, generation)) {
                owed.push((id, generation));
                self.slots[id.place()].writers += 1;
            }
        }
        self.enter(id, SlotState::Incoming);
        Ok(())
    }

    /// Nobody may write the block any more: it is its request's own.
    pub(super) fn settle(&mut self, (id, generation): Life) -> Result<(), Violation> {
        let slot = self.slots[id.place()];
        if slot.state != SlotState::Incoming || self.generation(id) != generation {
            return Err(self.violate(id, generation, "to be settled, and is not coming in"));
        }
        if slot.writers > 0 && !planted::is(Bug::SettledEarly) {
            return Err(self.violate(id, generation, "to be settled, and has writers"));
        }
        self.enter(id, SlotState::Open);
        Ok(())
    }

    /// Its request gave up a block that was coming in.
    pub(super) fn give_up_incoming(&mut self, id: BlockId) {
        if self.slots[id.place()].writers > 0 && !planted::is(Bug::IncomingFreed) {
            self.enter(id, SlotState::Quarantined(Why::Written));
        } else {
            self.retire_at(id, self.newest_step);
        }
    }

    /// It is proved that this writer can write no more. Returns the blocks it owed; 0 if none.
    pub(super) fn discharge(&mut self, writer: &WriterKey) -> usize {
        let stale = |known: &&WriterKey| planted::is(Bug::StaleProof) && known.room == writer.room;
        let meant = self.remote.writers.keys().find(stale).copied().unwrap_or(*writer);
        let Some(owed) = self.remote.writers.remove(&meant) else { return 0 };
        for &(id, generation) in &owed {
            let (newest, is_now) = (self.newest_step, self.generation(id) == generation);
            let slot = &mut self.slots[id.place()];
            slot.writers -= 1;
            let is_last = slot.writers == 0 || planted::is(Bug::FirstWriterFrees);
            if !is_now {
                self.violate(id, generation, "discharged of a writer of an earlier life");
            } else if is_last && slot.state == SlotState::Quarantined(Why::Written) {
                self.retire_at(id, newest);
            }
        }
        owed.len()
    }

    /// A transfer reads the block until it has ended.
    pub(super) fn begin_read(
        &mut self,
        (id, generation): Life,
        ticket: Ticket,
    ) -> Result<(), Violation> {
        let is_now = self.generation(id) == generation;
        let slot = &mut self.slots[id.place()];
        let holds_rows = matches!(
            slot.state,
            SlotState::Open
                | SlotState::Sealed
                | SlotState::Shared { .. }
                | SlotState::Cached { .. }
        );
        if !holds_rows || !is_now {
            return Err(self.violate(id, generation, "to be sent, and is not held"));
        }
        self.counts.read += usize::from(slot.tickets == 0);
        slot.tickets += 1;
        self.remote.tickets.entry(ticket).or_default().push((id, generation));
        Ok(())
    }

    /// A transfer ended, well or not: it reads no more. Returns the blocks it read; 0 if none.
    pub(super) fn end_read(&mut self, ticket: Ticket) -> usize {
        let Some(read) = self.remote.tickets.remove(&ticket) else { return 0 };
        for &(id, generation) in &read {
            let is_now = self.generation(id) == generation;
            let slot = &mut self.slots[id.place()];
            slot.tickets -= 1;
            let is_last = slot.tickets == 0;
            self.counts.read -= usize::from(is_last);
            if !is_now {
                self.violate(id, generation, "read by a transfer of an earlier life");
            } else if let (true, SlotState::Retired(step)) = (is_last, slot.state) {
                self.list_retired(id, step);
            }
        }
        read.len()
    }

    /// Ledger and slots agree, and nobody elsewhere touches what another may have.
    pub(super) fn audit_remote(&self) -> Result<(), String> {
        let mut owed = vec![(0_u16, 0_u16); self.slots.len()];
        for &(id, _) in self.remote.writers.values().flatten() {
            owed[id.place()].0 += 1;
        }
        for &(id, _) in self.remote.tickets.values().flatten() {
            owed[id.place()].1 += 1;
        }
        for (place, (slot, owed)) in self.slots.iter().zip(owed).enumerate() {
            let id = BlockId::at(place);
            if (slot.writers, slot.tickets) != owed {
                return Err(format!("block {id}: the ledger has {owed:?}, the slot is {slot:?}"));
            }
            let may_have_writers = match slot.state {
                SlotState::Incoming | SlotState::Quarantined(Why::Doubt) => true,
                SlotState::Quarantined(Why::Written) if slot.writers > 0 => true,
                SlotState::Quarantined(Why::Written) => false,
                _ => slot.writers == 0,
            };
            let may_be_read = slot.tickets == 0 || slot.state != SlotState::Free;
            if !may_have_writers || !may_be_read {
                return Err(format!("block {id} is {slot:?}"));
            }
        }
        Ok(())
    }
}
