//! What a request leaves in the cache: its full blocks in order, and checkpoints on top of them.

use super::Prefix;
use super::checkpoint::{Save, Standing, Stops};
use super::find::Sharing;
use super::hash::Key;
use super::trie::NodeId;
use crate::block::{Block, Shared};
use crate::error::Violation;
use crate::geometry::Geometry;
use crate::ids::{RequestId, StepId};
use crate::planted::{self, Bug};
use crate::table::Tables;
use crate::tokens::Tokens;

/// What a running request and the cache have to do with each other.
#[derive(Debug, Default)]
pub(crate) struct Reuse {
    /// Tokens that it did not have to compute.
    pub(crate) num_cached_tokens: u32,
    /// Blocks up to `node`.
    pub(crate) num_published: u32,
    pub(crate) left: Box<Left>,
}

/// What changes once in a block at most.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The node of its last block in the cache; it is a user of that node.
    pub(crate) node: Option<NodeId>,
    /// State to copy into its slot before its first step.
    pub(crate) restore: Option<Block<Shared>>,
    pub(crate) stops: Stops,
    pub(crate) saves: Vec<Save>,
    /// Where its latest checkpoint of a decode is, if it is still there.
    pub(crate) rolling: Option<NodeId>,
    /// Window blocks that it slid past, by the step that was the newest then: no more than two
    /// steps are in flight, so those of two are not free again.
    pub(crate) slid: [(StepId, usize); 2],
}

/// A running request, as far as the cache is concerned.
#[derive(Debug)]
pub(crate) struct Computed<'a> {
    pub(crate) owner: RequestId,
    pub(crate) sharing: &'a mut Sharing,
    pub(crate) tokens: &'a mut Tokens,
    pub(crate) tables: &'a mut Tables,
    pub(crate) reuse: &'a mut Reuse,
}

impl Prefix {
    /// The rows below `written` are good: the full blocks and the saves among them are cached.
    pub(crate) fn publish(
        &mut self,
        computed: Computed<'_>,
        written: usize,
        geometry: &Geometry,
    ) -> Result<(), Violation> {
        let next_full = (computed.reuse.num_published as usize + 1) * self.block_tokens;
        if written < next_full || !self.caches(computed.sharing) {
            return Ok(());
        }
        self.publish_full(computed, written / self.block_tokens, geometry)
    }

    #[inline(never)] // once in a block
    fn publish_full(
        &mut self,
        mut computed: Computed<'_>,
        num_full: usize,
        geometry: &Geometry,
    ) -> Result<(), Violation> {
        computed.sharing.extend_keys(computed.tokens.all(), self.block_tokens);
        while (computed.reuse.num_published as usize) < num_full {
            let Some(node) = self.publish_block(&mut computed)? else { break };
            self.trie.move_user(computed.reuse.left.node, Some(node));
            computed.reuse.left.node = Some(node);
            computed.reuse.num_published += 1;
        }
        for save in std::mem::take(&mut computed.reuse.left.saves) {
            if save.boundary <= computed.reuse.num_published as usize * self.block_tokens {
                self.publish_save(&mut computed, save, geometry)?;
            }
        }
        Ok(())
    }

    /// The first block that is not published; None if its key means something else already.
    fn publish_block(&mut self, computed: &mut Computed<'_>) -> Result<Option<NodeId>, Violation> {
        let (index, parent) = (computed.reuse.num_published as usize, computed.reuse.left.node);
        let sharing = &computed.sharing;
        let wanted = sharing.wanted(computed.tokens.all(), index, parent, self.block_tokens);
        let full = &mut computed.tables.full;
        if let Some(node) = self.trie.find(&wanted) {
            let block = &self.trie.node(node).block;
            if !full.is_at(index, block.id()) && !planted::is(Bug::DuplicateKept) {
                // A broken block of the cache is no reason to fail whoever has its own.
                let Ok(block) = block.lend() else { return Ok(None) };
                full.replace_at(index, block);
            }
            return Ok(Some(node));
        }
        let Some(block) = full.share_at(index)? else { return Ok(None) };
        let node = self.trie.insert(&wanted, block.keep()?);
        if node.is_some() && parent.is_none() {
            *self.first_blocks.entry(Self::first_key(wanted.tokens)).or_default() += 1;
        }
        Ok(node)
    }

    fn publish_save(
        &mut self,
        computed: &mut Computed<'_>,
        save: Save,
        geometry: &Geometry,
    ) -> Result<(), Violation> {
        let num_above = computed.reuse.num_published as usize - save.boundary / self.block_tokens;
        let mut node = computed.reuse.left.node;
        for _ in 0..num_above {
            node = node.and_then(|node| self.trie.parent(node));
        }
        let Some(node) = node else { return Ok(()) };
        let (id, is_rolling) = (computed.owner, save.is_rolling);
        if self.trie.checkpoint(node).is_some() {
            self.trie.touch_checkpoint(node);
        } else if let Some(checkpoint) = save.complete(geometry, &mut computed.tables.swa, id)? {
            let is_kept = checkpoint.standing == Standing::Kept;
            self.trie.add_checkpoint(node, checkpoint);
            if is_kept {
                self.trie.pass_checkpoint_above(node);
            }
        }
        if !is_rolling || planted::is(Bug::RollingKept) {
            return Ok(());
        }
        if let Some(before) =
            computed.reuse.left.rolling.replace(node).filter(|&before| before != node)
        {
            let is_mine = |before| {
                self.trie.checkpoint(before).is_some_and(|kept| kept.rolling_for == Some(id))
            };
            if is_mine(before) {
                self.trie.remove_checkpoint(before);
            }
        }
        Ok(())
    }

    /// A first block is gone.
    pub(crate) fn forget_first(&mut self, key: Key) {
        if let Some(count) = self.first_blocks.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.first_blocks.remove(&key);
            }
        }
    }
}
