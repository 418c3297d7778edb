//! Who has each block of a worker, as far as anybody outside can tell: what lands must land with
//! the room that it was meant for.
//!
//! ```text
//!   an offer names a block ──▶ the room's      a step names it ──▶ the request's
//!   a part lands in it: legal only while the room that was offered it is the last that was named
//! ```
//! It knows nothing of the core's books. A block that was given up, and named again for somebody
//! else while a writer of the first room could still reach it, shows as soon as that write lands.

use std::collections::{BTreeMap, BTreeSet};

use dsv4_core::Plan;
use dsv4_core::geometry::Geometry;
use dsv4_core::ids::RequestId;
use dsv4_core::transfer::ids::RoomKey;
use dsv4_core::transfer::message::Offer;

use crate::arrays::{Arrays, at};
use crate::cargo::Spot;
use crate::desk::spots_of;

/// For whom a block was named last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Room(RoomKey),
    Request(RequestId),
}

/// The ledger of one process.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    owners: BTreeMap<Spot, Owner>,
}

impl Ledger {
    /// A peer is told that it may write these.
    pub fn offered(&mut self, key: RoomKey, offer: &Offer) {
        for spot in spots_of(offer) {
            self.owners.insert(spot, Owner::Room(key));
        }
    }

    /// A step reads and writes these.
    pub fn planned(&mut self, plan: &Plan, arrays: &Arrays<'_>) {
        for (row, &id) in plan.request_ids.iter().enumerate() {
            let full = arrays.full.row(row).iter().map(|&block| Spot::Full(at(block)));
            let swa = arrays.swa.row(row).iter().map(|&block| Spot::Swa(at(block)));
            let state = Spot::State(at(arrays.state_slots[row]));
            for spot in full.chain(swa).chain([state]) {
                self.owners.insert(spot, Owner::Request(id));
            }
        }
    }

    /// Blocks and slots that a step writes.
    pub fn written(plan: &Plan, arrays: &Arrays<'_>, geometry: &Geometry) -> BTreeSet<Spot> {
        let block = |slot: &i32, rows: usize| at(*slot) / rows;
        let swa = arrays.swa_slots[..plan.num_tokens].iter();
        let swa = swa.map(|slot| Spot::Swa(block(slot, geometry.swa_block_tokens)));
        let full = |slots: &'_ [i32], count: usize, ratio: usize| {
            let rows = geometry.block_tokens / ratio;
            slots[..count].iter().map(|slot| Spot::Full(block(slot, rows))).collect::<Vec<_>>()
        };
        let c4 = full(arrays.c4_slots, plan.num_c4, 4);
        let c128 = full(arrays.c128_slots, plan.num_c128, 128);
        let copied = arrays.restore_targets[..plan.num_restores].iter();
        let saved = arrays.save_targets[..plan.num_saves].iter();
        let states = arrays.state_slots[..plan.num_requests].iter().chain(copied).chain(saved);
        let states = states.map(|&slot| Spot::State(at(slot)));
        swa.chain(c4).chain(c128).chain(states).collect()
    }

    /// Bytes of `key` land in `spot`: panics if it is somebody else's by now.
    pub fn lands(&self, spot: Spot, key: RoomKey) {
        let owner = self.owners.get(&spot);
        let is_its_own = owner == Some(&Owner::Room(key));
        assert!(is_its_own, "what {key:?} writes lands in {spot:?}, which {owner:?} has");
    }
}
