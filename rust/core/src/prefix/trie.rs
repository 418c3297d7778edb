//! The tree of cached blocks, and the order in which they are evicted.
//!
//! ```text
//!   block 0 ── block 1 ── block 2 (checkpoint)
//!                 │
//!                 └────── block 2' ── block 3' (checkpoint)        evicted from the leaves
//! ```
//! 1. A node is one full block: its 256 tokens (in [`Texts`]), its parent, and the cache's hold on the memory.
//! 2. `users` of a node are requests whose last cached block it is. Whoever uses a node reads all
//!    blocks above it, so a node without users below it is read by nobody.
//! 3. `leaves` are the nodes with neither children nor users, least recently used first.
//! 4. `windows` are the nodes with a checkpoint, in an order of their own: spare ones before all
//!    others, and among equals the least recently used first.

use std::collections::BTreeSet;

use super::checkpoint::{Checkpoint, Standing};
use super::hash::Key;
use super::index::Index;
use super::texts::Texts;
use crate::block::{Block, Cached};
use crate::planted::{self, Bug};

/// Where a node is stored; another may come to be there later, but not while it has users.
pub(crate) type NodeId = usize;

#[derive(Debug)]
pub(crate) struct Node {
    key: Key,
    parent: Option<NodeId>,
    /// Of the first block; empty below.
    salt: Box<str>,
    pub(crate) block: Block<Cached>,
    num_children: usize,
    users: usize,
    used_at: u64,
    checkpoint: Option<Checkpoint>,
}

impl Node {
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Does a prefix begin with it?
    pub(crate) fn is_first(&self) -> bool {
        self.parent.is_none()
    }
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Trie {
    nodes: Vec<Option<Node>>,
    texts: Texts,
    vacant: Vec<NodeId>,
    by_key: Index,
    leaves: BTreeSet<(u64, NodeId)>,
    windows: BTreeSet<(Standing, u64, NodeId)>,
    /// Counts uses.
    now: u64,
}

/// A block to look for: its key, and what is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) parent: Option<NodeId>,
    pub(crate) salt: &'a str,
    pub(crate) key: Key,
    pub(crate) tokens: &'a [i32],
}

impl Trie {
    /// Room for a node per block.
    pub(crate) fn new(num_blocks: usize, block_tokens: usize) -> Self {
        Self {
            nodes: vec![],
            texts: Texts::new(block_tokens),
            vacant: vec![],
            by_key: Index::new(num_blocks),
            leaves: BTreeSet::new(),
            windows: BTreeSet::new(),
            now: 0,
        }
    }

    fn with_key(&self, key: Key) -> Option<NodeId> {
        let is_key = |id: NodeId| self.nodes[id].as_ref().is_some_and(|node| node.key == key);
        self.by_key.find(key, is_key)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("a node is named only while somebody uses it")
    }

    /// The tokens of a node, and of one that was just removed.
    pub(crate) fn text(&self, id: NodeId) -> &[i32] {
        self.texts.of(id)
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("a node is named only while somebody uses it")
    }

    pub(crate) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).parent
    }

    pub(crate) fn checkpoint(&self, id: NodeId) -> Option<&Checkpoint> {
        self.node(id).checkpoint.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn num_checkpoints(&self) -> usize {
        self.windows.len()
    }

    /// The node that holds exactly this.
    pub(crate) fn find(&self, wanted: &Wanted<'_>) -> Option<NodeId> {
        let id = self.with_key(wanted.key)?;
        let node = self.node(id);
        let same_salt =
            planted::is(Bug::SaltIgnored) || wanted.parent.is_some() || *node.salt == *wanted.salt;
        let same = node.parent == wanted.parent && same_salt && *self.text(id) == *wanted.tokens;
        (same || planted::is(Bug::ShortKey)).then_some(id)
    }

    /// Adds a block, or gives it back if its key means something else.
    pub(crate) fn insert(&mut self, wanted: &Wanted<'_>, block: Block<Cached>) -> Option<NodeId> {
        if self.with_key(wanted.key).is_some() {
            return None;
        }
        let salt = if wanted.parent.is_none() { wanted.salt } else { "" };
        let node = Node {
            key: wanted.key,
            parent: wanted.parent,
            salt: salt.into(),
            block,
            num_children: 0,
            users: 0,
            used_at: self.tick(),
            checkpoint: None,
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        self.texts.put(id, wanted.tokens);
        let used_at = node.used_at;
        self.nodes[id] = Some(node);
        self.by_key.insert(wanted.key, id);
        self.leaves.insert((used_at, id));
        if let Some(parent) = wanted.parent {
            self.unlist(parent);
            self.node_mut(parent).num_children += 1;
        }
        Some(id)
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn unlist(&mut self, id: NodeId) {
        let used_at = self.node(id).used_at;
        self.leaves.remove(&(used_at, id));
    }

    fn list(&mut self, id: NodeId) {
        let node = self.node(id);
        let is_inner = node.num_children > 0 && !planted::is(Bug::EvictsInnerNode);
        let is_used = node.users > 0 && !planted::is(Bug::EvictsUsed);
        if !is_inner && !is_used {
            self.leaves.insert((node.used_at, id));
        }
    }

    /// A request's last cached block is now `to`, and was `from`.
    pub(crate) fn move_user(&mut self, from: Option<NodeId>, to: Option<NodeId>) {
        if let Some(id) = to {
            self.unlist(id);
            self.node_mut(id).users += 1;
        }
        if let Some(id) = from {
            let now = self.tick();
            let node = self.node_mut(id);
            node.users -= 1;
            node.used_at = now;
            self.list(id);
        }
    }

    /// The least recently used leaf, but not `protected`.
    pub(crate) fn oldest_leaf(&self, protected: Option<NodeId>) -> Option<NodeId> {
        if planted::is(Bug::EvictsNewest) {
            return self.leaves.iter().map(|&(_, id)| id).rfind(|&id| Some(id) != protected);
        }
        self.leaves.iter().map(|&(_, id)| id).find(|&id| Some(id) != protected)
    }

    /// The least recently used checkpoint, but not that of `protected`.
    pub(crate) fn oldest_window(&self, protected: Option<NodeId>) -> Option<NodeId> {
        self.windows.iter().map(|&(_, _, id)| id).find(|&id| Some(id) != protected)
    }

    /// Drops a leaf and its checkpoint; its parent counts as used when it was.
    pub(crate) fn remove_leaf(&mut self, id: NodeId) -> Option<Node> {
        self.remove_checkpoint(id);
        self.unlist(id);
        let node = self.nodes[id].take()?;
        if !planted::is(Bug::PhantomHit) {
            self.by_key.remove(node.key, id);
        }
        self.vacant.push(id);
        if let Some(parent) = node.parent {
            if planted::is(Bug::EvictsInnerNode) {
                self.unlist(parent); // otherwise no node with a child is listed
            }
            let above = self.node_mut(parent);
            above.num_children -= 1;
            above.used_at = above.used_at.max(node.used_at);
            self.list(parent);
        }
        Some(node)
    }

    pub(crate) fn add_checkpoint(&mut self, id: NodeId, mut checkpoint: Checkpoint) {
        self.remove_checkpoint(id);
        checkpoint.used_at = self.tick();
        self.windows.insert(checkpoint.rank(id));
        self.node_mut(id).checkpoint = Some(checkpoint);
    }

    pub(crate) fn remove_checkpoint(&mut self, id: NodeId) {
        if let Some(checkpoint) = self.node_mut(id).checkpoint.take() {
            self.windows.remove(&checkpoint.rank(id));
        }
    }

    /// The nearest checkpoint above a node has been passed by what goes on from there. Unless
    /// others went on from it too, it is spare from now on: whoever comes back, comes back deeper.
    pub(crate) fn pass_checkpoint_above(&mut self, id: NodeId) {
        let mut above = self.parent(id);
        while let Some(id) = above.filter(|&id| self.checkpoint(id).is_none()) {
            above = self.parent(id);
        }
        let Some(id) = above else { return };
        let node = self.node_mut(id);
        if node.num_children > 1 && !planted::is(Bug::EvictsFork) {
            return;
        }
        let Some(checkpoint) = &mut node.checkpoint else { return };
        let before = checkpoint.rank(id);
        checkpoint.standing = Standing::Spare;
        let now = checkpoint.rank(id);
        self.windows.remove(&before);
        self.windows.insert(now);
    }

    /// A checkpoint was used, or would have been made again: it is nobody's own from now on.
    pub(crate) fn touch_checkpoint(&mut self, id: NodeId) {
        let now = self.tick();
        let Some(checkpoint) = &mut self.node_mut(id).checkpoint else { return };
        let before = checkpoint.rank(id);
        checkpoint.used_at = now;
        checkpoint.standing = Standing::Kept;
        checkpoint.rolling_for = None;
        let after = checkpoint.rank(id);
        self.windows.remove(&before);
        self.windows.insert(after);
    }

    /// Counts of holds on window blocks and on slots; an error if lists and nodes disagree.
    pub(crate) fn audit(&self) -> Result<(usize, usize), String> {
        let (mut num_window_holds, mut num_slots) = (0, 0);
        let mut children = vec![0; self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            if let Some(parent) = node.parent {
                children[parent] += 1;
            }
            if let Some(checkpoint) = &node.checkpoint {
                num_window_holds += checkpoint.window.len();
                num_slots += 1;
                if !self.windows.contains(&checkpoint.rank(id)) {
                    return Err(format!("the checkpoint of node {id} is not listed"));
                }
            }
            if self.with_key(node.key) != Some(id) {
                return Err(format!("node {id} is not found by its key"));
            }
        }
        for (id, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let is_leaf = node.num_children == 0 && node.users == 0;
            if node.num_children != children[id]
                || is_leaf != self.leaves.contains(&(node.used_at, id))
            {
                return Err(format!("node {id} has {} children: {node:?}", children[id]));
            }
        }
        if num_slots != self.windows.len() || self.len() + self.vacant.len() != self.nodes.len() {
            return Err(format!("{num_slots} checkpoints, {} nodes listed", self.len()));
        }
        Ok((num_window_holds, num_slots))
    }

    /// Requests that use nodes.
    pub(crate) fn num_users(&self) -> usize {
        self.nodes.iter().flatten().map(|node| node.users).sum()
    }
}
