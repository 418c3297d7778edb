//! The prefix cache: blocks that outlive their requests, found by what they hold.
//!
//! ```text
//!   find ──▶ Found ──lend──▶ tables of a request that starts          a hit
//!   blocks that a request computed ──publish──▶ trie                  what it leaves
//!   trie ──evict──▶ Retired                                           when blocks are short
//! ```
//! 1. A hit needs every full block below a boundary and a window checkpoint at it.
//! 2. A block is published when a sample that depends on it was finite: no NaN is ever shared.
//! 3. One prefix is cached once: who computed it again reads what is there, and gives up its own.
//! 4. Compressed blocks are evicted from the leaves; checkpoints in their own order, and without
//!    the blocks below them. What has a user is not evicted.

pub(crate) mod checkpoint;
pub(crate) mod find;
pub mod hash;
pub(crate) mod index;
pub(crate) mod publish;
mod texts;
pub(crate) mod trie;

use std::collections::BTreeMap;

use crate::geometry::Geometry;
use crate::limits::Limits;
use hash::Key;
use index::Evicted;
use trie::Trie;

/// Tokens of prompts that were looked for, by what came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lookups {
    pub(crate) requests: usize,
    pub(crate) tokens: usize,
    pub(crate) hits: usize,
    pub(crate) never_seen: usize,
    pub(crate) evicted_full: usize,
    pub(crate) evicted_window: usize,
    pub(crate) salt: usize,
}

/// All that is cached.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) trie: Trie,
    pub(crate) is_enabled: bool,
    pub(crate) block_tokens: usize,
    /// Tokens between checkpoints inside a prompt; 0: none but at fork and end.
    pub(crate) every: usize,
    pub(crate) lookups: Lookups,
    pub(crate) num_evicted_blocks: usize,
    pub(crate) num_evicted_windows: usize,
    num_blocks: usize,
    evicted: Evicted,
    /// First blocks in the cache by tokens alone, so that a miss can be put down to the salt.
    first_blocks: BTreeMap<Key, usize>,
}

impl Prefix {
    pub(crate) fn new(geometry: &Geometry, limits: &Limits, full_blocks: usize) -> Self {
        // Without a cache nothing is ever looked for.
        let num_blocks = if limits.prefix_cache { full_blocks } else { 0 };
        Self {
            trie: Trie::new(num_blocks, geometry.block_tokens),
            is_enabled: limits.prefix_cache,
            block_tokens: geometry.block_tokens,
            every: limits.checkpoint_tokens.next_multiple_of(geometry.block_tokens),
            lookups: Lookups::default(),
            num_evicted_blocks: 0,
            num_evicted_windows: 0,
            num_blocks,
            evicted: Evicted::new(num_blocks),
            first_blocks: BTreeMap::new(),
        }
    }

    /// What first blocks of these tokens are counted by, whatever their salt.
    pub(crate) fn first_key(tokens: &[i32]) -> Key {
        Key::root("").then(tokens)
    }

    /// Later it can be told that this block was here.
    pub(crate) fn remember(&mut self, key: Key) {
        self.evicted.push(key);
    }

    /// Drops everything; nobody may be using any of it.
    pub(crate) fn clear(&mut self) {
        self.trie = Trie::new(self.num_blocks, self.block_tokens);
        self.first_blocks.clear();
    }
}
