//! Making blocks of the cache free again: before anything is refused, and never what is in use.
//!
//! ```text
//!   full         the least recently used leaf of the trie, then what became a leaf
//!   swa, state   the least recently used checkpoint, whose full blocks stay
//! ```
//! An evicted block retires with the newest step that was planned while somebody read it, so it
//! mostly is free at once. Evicted blocks that still wait count as what they are, on their way: no
//! second one is evicted for the same need.

use crate::ids::Group;
use crate::planted::{self, Bug};
use crate::pool::Pool;
use crate::prefix::Prefix;
use crate::prefix::find::Found;
use crate::prefix::trie::NodeId;

impl Prefix {
    /// Evicts until `num_blocks` of the group are given up, or nothing is left to evict.
    /// `protected` is the node that the one who asks wants to start from.
    pub(crate) fn evict(
        &mut self,
        pool: &Pool,
        group: Group,
        num_blocks: usize,
        protected: Option<NodeId>,
    ) {
        let protected = protected.filter(|_| !planted::is(Bug::EvictsOwnHit));
        let before = pool.counts().cached;
        while before - pool.counts().cached < num_blocks {
            let evicted = match group {
                Group::Full => self.evict_leaf(protected),
                _ if planted::is(Bug::EvictsOneGroup) => false,
                Group::Swa | Group::State => self.evict_window(protected),
                Group::Aux => false, // nothing of it is ever cached
            };
            if !evicted {
                return;
            }
        }
    }

    fn evict_leaf(&mut self, protected: Option<NodeId>) -> bool {
        let Some(node) = self.trie.oldest_leaf(protected) else { return false };
        self.num_evicted_windows += usize::from(self.trie.checkpoint(node).is_some());
        self.num_evicted_blocks += 1;
        let Some(gone) = self.trie.remove_leaf(node) else { return true };
        if gone.is_first() {
            let key = Self::first_key(self.trie.text(node));
            self.forget_first(key);
        }
        self.remember(gone.key());
        true
    }

    fn evict_window(&mut self, protected: Option<NodeId>) -> bool {
        let Some(node) = self.trie.oldest_window(protected) else { return false };
        self.trie.remove_checkpoint(node);
        self.num_evicted_windows += 1;
        true
    }

    /// Blocks of a group that could be evicted for a request that starts with this hit: what is
    /// cached, without the hit itself.
    pub(crate) fn num_evictable(&self, pool: &Pool, group: Group, found: &Found) -> usize {
        let cached = pool.counts().cached;
        let Some(node) = found.node() else { return cached };
        let idle = |is_idle: bool| usize::from(is_idle);
        let protected = match (group, self.trie.checkpoint(node)) {
            (Group::Full, _) => {
                found.path.iter().map(|&node| idle(self.trie.node(node).block.is_idle())).sum()
            }
            (_, None) | (Group::Aux, _) => 0,
            (Group::Swa, Some(kept)) => kept.window.iter().map(|b| idle(b.is_idle())).sum(),
            (Group::State, Some(kept)) => idle(kept.slot.is_idle()),
        };
        cached.saturating_sub(protected)
    }
}
