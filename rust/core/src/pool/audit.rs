//! Every block is in exactly one place, and the counts say so.

use super::Counts;
use super::state::{SlotState, State};
use crate::error::Error;
use crate::ids::BlockId;

impl State {
    pub(super) fn audit(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Audit(format!("{} pool: {what}", self.group)));
        let mut found = Counts {
            capacity: self.counts.capacity,
            read: self.slots.iter().filter(|slot| slot.tickets > 0).count(),
            reserved: self.counts.reserved,
            entitled: self.counts.entitled,
            violations: self.counts.violations,
            ..Counts::default()
        };
        self.slots.iter().for_each(|slot| found.enter(slot.state));
        let is_open = |slot: &super::state::Slot| slot.state == SlotState::Open;
        if !self.slots.iter().map(is_open).eq(self.present.iter().map(|life| life.is_open)) {
            return wrong("what is open is not what the checks of writes would find".into());
        }
        if found != self.counts {
            return wrong(format!("the table has {found:?}, the counts say {:?}", self.counts));
        }
        if found.reserved > found.entitled {
            return wrong(format!("{} reserved of {} entitled", found.reserved, found.entitled));
        }
        self.audit_remote().or_else(wrong)?;
        self.audit_lists().or_else(wrong)
    }

    fn audit_lists(&self) -> Result<(), String> {
        let mut seen = vec![false; self.slots.len()];
        let listed = self.free.iter().map(|&id| (id, SlotState::Free));
        let retired = self.retired.iter().map(|&(step, id)| (id, SlotState::Retired(step)));
        let unclean = self.unclean.iter().map(|&id| (id, self.slots[id.place()].state));
        for (id, state) in listed.chain(retired).chain(unclean) {
            if std::mem::replace(&mut seen[id.place()], true) {
                return Err(format!("block {id} is listed twice"));
            }
            if self.slots[id.place()].state != state {
                let is = self.slots[id.place()].state;
                return Err(format!("block {id} is listed as {state:?} and is {is:?}"));
            }
        }
        let is_listed = |slot: &&super::state::Slot| {
            matches!(slot.state, SlotState::Retired(_)) && slot.tickets == 0
        };
        let num_retired = self.slots.iter().filter(is_listed).count();
        let num_listed = self.retired.len() + self.unclean.len();
        if self.free.len() != self.counts.free || num_listed != num_retired {
            return Err(format!("{} listed free, {} retired", self.free.len(), self.retired.len()));
        }
        let may_be_tainted = |id: &BlockId| {
            let state = self.slots[id.place()].state;
            matches!(state, SlotState::Retired(_) | SlotState::Quarantined(_))
        };
        if !self.tainted.iter().chain(&self.unclean).all(may_be_tainted) {
            return Err(format!("{:?}, {:?} to be zeroed", self.tainted, self.unclean));
        }
        if !self.retired.iter().map(|&(step, _)| step).is_sorted() {
            return Err("the retired are out of order".into());
        }
        Ok(())
    }
}
