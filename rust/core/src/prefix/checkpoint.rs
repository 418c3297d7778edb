//! Window checkpoints: what a request needs, besides the compressed blocks, to start at a boundary.
//!
//! ```text
//!   tokens   ......│ W tokens of window │ b = 256 k            the request goes on ──▶
//!                   window blocks: kept    slot: a copy of the request's compressor state at b,
//!                                          made by the step whose last token is b - 1
//! ```
//! The state holds the rows of the last C4 group, which the next one overlaps; nothing else is
//! pending at such a boundary. Saves become checkpoints when a sample that depends on them is
//! finite; until then they belong to their request, and are given up first when blocks are short.

use crate::block::{Block, Cached, Open, Shared};
use crate::error::Violation;
use crate::geometry::Geometry;
use crate::ids::RequestId;
use crate::planted::{self, Bug};
use crate::prefix::trie::NodeId;
use crate::table::{BlockTable, Slid};

/// What the cache keeps at a boundary.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// In order of position.
    pub(crate) window: Vec<Block<Cached>>,
    pub(crate) slot: Block<Cached>,
    pub(crate) used_at: u64,
    pub(crate) standing: Standing,
    /// Made on the way by a request that decodes, to be replaced by its next one.
    pub(crate) rolling_for: Option<RequestId>,
}

/// Which checkpoints go first when room is needed: all spare ones before the first that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Passed by its own conversation, or one of those made every so many tokens.
    Spare,
    /// Where a prompt ended, where a generation is, where prefixes part, or where a hit was.
    Kept,
}

impl Checkpoint {
    /// Its place in the order of eviction.
    pub(crate) fn rank(&self, node: NodeId) -> (Standing, u64, NodeId) {
        (self.standing, self.used_at, node)
    }
}

/// A checkpoint on its way.
#[derive(Debug)]
pub(crate) struct Save {
    pub(crate) boundary: usize,
    pub(crate) slot: Block<Open>,
    pub(crate) is_rolling: bool,
    standing: Standing,
    /// Window blocks that its request slid past meanwhile, with their indices.
    slid: Vec<(usize, Slid)>,
}

impl Save {
    pub(crate) fn new(
        boundary: usize,
        slot: Block<Open>,
        is_rolling: bool,
        standing: Standing,
    ) -> Self {
        Self { boundary, slot, is_rolling, standing, slid: vec![] }
    }

    /// Indices of the window blocks.
    fn indices(&self, geometry: &Geometry) -> std::ops::Range<usize> {
        let tokens = geometry.swa_block_tokens;
        let short = usize::from(planted::is(Bug::CheckpointShort));
        geometry.window_start(self.boundary) / tokens + short..self.boundary / tokens
    }

    /// Keeps a block that the request slides past, or gives it back to be given up.
    pub(crate) fn catch(&mut self, geometry: &Geometry, index: usize, block: Slid) -> Option<Slid> {
        if !self.indices(geometry).contains(&index) {
            return Some(block);
        }
        self.slid.push((index, block));
        None
    }

    /// All its rows are written: from now on others may read them. None if a block is missing.
    pub(crate) fn complete(
        self,
        geometry: &Geometry,
        swa: &mut BlockTable,
        owner: RequestId,
    ) -> Result<Option<Checkpoint>, Violation> {
        let indices = self.indices(geometry);
        let mut window = Vec::with_capacity(indices.len());
        let mut slid = self.slid;
        for index in indices {
            let caught = slid.iter().position(|&(other, _)| other == index);
            if let Some(place) = caught {
                window.push(share(slid.swap_remove(place).1)?.keep()?);
            } else if let Some(block) = swa.share_at(index)? {
                window.push(block.keep()?);
            } else {
                return Ok(None);
            }
        }
        let slot = share(Slid::Open(self.slot))?.keep()?;
        let rolling_for = self.is_rolling.then_some(owner);
        let standing = self.standing;
        Ok(Some(Checkpoint { window, slot, used_at: 0, standing, rolling_for }))
    }

    /// Caught blocks that are the request's own, and those that are shared.
    pub(crate) fn num_caught(&self) -> (usize, usize) {
        let is_shared = |(_, block): &(usize, Slid)| {
            matches!(block, Slid::Closed(crate::table::Closed::Shared(_)))
        };
        let num_shared = self.slid.iter().filter(|entry| is_shared(entry)).count();
        (self.slid.len() - num_shared, num_shared)
    }
}

fn share(block: Slid) -> Result<Block<Shared>, Violation> {
    match block {
        Slid::Open(block) => {
            let sealed = block.seal().map_err(|refused| refused.violation)?;
            sealed.share().map_err(|refused| refused.violation)
        }
        Slid::Closed(block) => block.share().map_err(|(_, violation)| violation),
    }
}

/// Where the chunks of a prompt end so that checkpoints can be made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stops {
    /// Where the tokens leave what the cache has, if that is further than the hit.
    pub(crate) fork: usize,
    /// The last boundary that leaves a token to compute.
    pub(crate) last: usize,
    /// Every so many tokens; 0: not.
    pub(crate) every: usize,
}

impl Stops {
    /// How a checkpoint at this position stands: those made every so many tokens are spare.
    pub(crate) fn standing(&self, position: usize) -> Standing {
        let is_regular = self.every > 0 && position % self.every == 0;
        let is_meant = position == self.fork || position == self.last;
        if is_regular && !is_meant { Standing::Spare } else { Standing::Kept }
    }

    pub(crate) fn has(&self, position: usize) -> bool {
        let is_regular = self.every > 0 && position % self.every == 0;
        position > 0 && (position == self.fork || position == self.last || is_regular)
    }

    /// The first after `start`.
    pub(crate) fn next_after(&self, start: usize) -> Option<usize> {
        let regular = (start.checked_div(self.every)).map(|count| (count + 1) * self.every);
        let regular = regular.filter(|&position| position < self.last);
        [Some(self.fork), Some(self.last), regular]
            .into_iter()
            .flatten()
            .filter(|&position| position > start)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    #[test]
    fn chunks_stop_at_the_fork_the_last_boundary_and_every_so_many_tokens() {
        let all = |stops: Stops| {
            let mut found = vec![];
            let mut at = 0;
            while let Some(next) = stops.next_after(at) {
                assert!(stops.has(next));
                found.push(next);
                at = next;
            }
            found
        };
        assert_eq!(all(Stops { fork: 0, last: 0, every: 0 }), [0; 0]);
        assert_eq!(all(Stops { fork: 512, last: 1024, every: 0 }), [512, 1024]);
        assert_eq!(all(Stops { fork: 0, last: 1024, every: 512 }), [512, 1024]);
        assert_eq!(all(Stops { fork: 1024, last: 1024, every: 256 }), [256, 512, 768, 1024]);
    }
}
