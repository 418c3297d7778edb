//! One-sided writes on their way: parts that leave one memory and land in another, late.
//!
//! ```text
//!   posted ──▶ parts leave (bytes are read) ──▶ parts land (bytes are written) ──▶ ended: ok
//!      │             │ the writer dies: no more leave          │ fenced: no more land
//!      │             │ an error: told at once; what left lands later all the same
//! ```
//! Nobody asks the memory's owner. What left before its writer died, or before its error was told,
//! lands whenever it lands: only a fence, or the death of the receiving process, ends that.

use dsv4_core::Posting;
use dsv4_core::transfer::ids::{Incarnation, RoomKey};

use crate::cargo::{Cargo, Share, Spot};

/// A process: a worker's place and which start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub worker: usize,
    pub incarnation: u32,
}

/// One ticket on its way.
#[derive(Clone, Debug)]
pub struct Flow {
    pub from: Process,
    pub to: Process,
    pub ticket: u64,
    /// The room as its receiver knows it.
    pub key: RoomKey,
    /// Over what was to be sent when it was posted.
    pub digest: u64,
    pub parts: Vec<Part>,
    /// Parts that have not landed.
    pub num_left: usize,
    /// No more parts leave: its writer was told that it failed.
    pub has_failed: bool,
    /// Its writer was told how it ended, or is no more.
    pub is_told: bool,
    /// No more parts land: the receiver cut the way in.
    pub is_cut: bool,
}

/// A piece of an item.
#[derive(Clone, Debug)]
pub struct Part {
    pub source: Spot,
    pub target: Spot,
    pub half: usize,
    pub stage: Stage,
}

/// Where a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    Waits,
    OnItsWay(Cargo),
    Over,
}

impl Flow {
    /// This rank's share of items in order, source and target by position.
    pub fn new(
        from: Process,
        to: Process,
        posting: &Posting,
        items: &[(Spot, Spot)],
        share: Share,
        digest: u64,
    ) -> Self {
        let peer = Incarnation(u128::from(from.incarnation));
        let key = RoomKey { peer, ..posting.key };
        let ticket = posting.ticket.0;
        let parts: Vec<Part> = items
            .iter()
            .flat_map(|&(source, target)| {
                let part = move |half| Part { source, target, half, stage: Stage::Waits };
                share.parts(source).map(part)
            })
            .collect();
        let num_left = parts.len();
        Self {
            from,
            to,
            ticket,
            key,
            digest,
            parts,
            num_left,
            has_failed: false,
            is_told: false,
            is_cut: false,
        }
    }

    /// Is there a part that has not landed, and may?
    pub fn may_land(&self) -> bool {
        let lands = |part: &Part| match part.stage {
            Stage::Waits => !self.has_failed,
            Stage::OnItsWay(_) => true,
            Stage::Over => false,
        };
        self.parts.iter().any(lands)
    }

    /// Can nothing of it land any more, and has nobody to be told?
    pub fn is_over(&self) -> bool {
        self.is_told && (self.is_cut || !self.may_land())
    }
}
