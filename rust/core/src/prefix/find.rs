//! What the cache has of a request's tokens.

use super::Prefix;
use super::checkpoint::Stops;
use super::hash::Key;
use super::trie::{NodeId, Wanted};
use crate::block::{Block, Shared};
use crate::error::Violation;
use crate::planted::{self, Bug};

/// How a request takes part in the cache.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    /// Prefixes are shared with requests of the same salt only.
    pub(crate) salt: Box<str>,
    /// Reads nothing and leaves nothing.
    pub(crate) is_off: bool,
    /// Of its full blocks, as far as they were asked for.
    pub(crate) keys: Vec<Key>,
    /// Its first start was counted.
    pub(crate) is_counted: bool,
}

/// A prefix that was found. Names nodes, so it is good only until something is evicted or added.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Nodes down to the last one with a checkpoint.
    pub(crate) path: Vec<NodeId>,
    /// Blocks found, with or without a checkpoint.
    pub(crate) num_matched: usize,
}

/// Holds on everything that a hit reads.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) full: Vec<Block<Shared>>,
    pub(crate) window: Vec<Block<Shared>>,
    pub(crate) slot: Block<Shared>,
}

impl Found {
    /// The node at whose end the request starts.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.path.last().copied()
    }

    /// Full blocks of the hit.
    pub(crate) fn num_hit(&self) -> usize {
        self.path.len()
    }
}

impl Sharing {
    /// Keys for all full blocks of its tokens.
    pub(crate) fn extend_keys(&mut self, tokens: &[i32], block_tokens: usize) {
        let mut key = self.keys.last().copied();
        let start = self.keys.len() * block_tokens;
        for tokens in tokens[start..].chunks_exact(block_tokens) {
            // All lines are waited for together; the words of a key wait for each other.
            std::hint::black_box(tokens.iter().step_by(16).fold(0, |all, token| all ^ token));
            let next = key.unwrap_or_else(|| Key::root(&self.salt)).then(tokens);
            self.keys.push(next);
            key = Some(next);
        }
    }

    /// What to look for as block `index` behind `parent`.
    pub(crate) fn wanted<'a>(
        &'a self,
        tokens: &'a [i32],
        index: usize,
        parent: Option<NodeId>,
        block_tokens: usize,
    ) -> Wanted<'a> {
        let tokens = &tokens[index * block_tokens..(index + 1) * block_tokens];
        Wanted { parent, salt: &self.salt, key: self.keys[index], tokens }
    }
}

impl Prefix {
    /// The longest prefix that leaves at least one token to compute. Changes nothing but the
    /// request's keys.
    pub(crate) fn find(&self, sharing: &mut Sharing, tokens: &[i32]) -> Found {
        let mut found = Found::default();
        if !self.caches(sharing) {
            return found;
        }
        sharing.extend_keys(tokens, self.block_tokens);
        let last = usize::from(!planted::is(Bug::HitCoversAll));
        let most = (tokens.len() - last) / self.block_tokens;
        let most = most.saturating_sub(usize::from(planted::is(Bug::HitOneShort)));
        let mut num_hit = 0;
        let mut parent = None;
        for index in 0..most {
            let wanted = sharing.wanted(tokens, index, parent, self.block_tokens);
            let Some(node) = self.trie.find(&wanted) else { break };
            parent = Some(node);
            found.path.push(node);
            if self.trie.checkpoint(node).is_some() {
                num_hit = index + 1;
            }
        }
        found.num_matched = found.path.len();
        found.path.truncate(num_hit);
        found
    }

    /// All blocks that the cache has of these tokens, for a request whose window and state come from
    /// elsewhere: it needs no checkpoint, and no token has to be left to compute.
    pub(crate) fn find_blocks(&self, sharing: &mut Sharing, tokens: &[i32]) -> Found {
        let mut found = Found::default();
        if !self.caches(sharing) {
            return found;
        }
        sharing.extend_keys(tokens, self.block_tokens);
        for index in 0..tokens.len() / self.block_tokens {
            let wanted = sharing.wanted(tokens, index, found.node(), self.block_tokens);
            let Some(node) = self.trie.find(&wanted) else { break };
            found.path.push(node);
        }
        found.num_matched = found.path.len();
        found
    }

    /// Holds on the blocks that were found, without a checkpoint.
    pub(crate) fn lend_blocks(&self, found: &Found) -> Result<Vec<Block<Shared>>, Violation> {
        found.path.iter().map(|&node| self.trie.node(node).block.lend()).collect()
    }

    /// Goes without the last checkpoint: the hit ends at the one before, or is none.
    pub(crate) fn shorten(&self, found: &mut Found) {
        found.path.pop();
        while found.node().is_some_and(|node| self.trie.checkpoint(node).is_none()) {
            found.path.pop();
        }
    }

    pub(crate) fn caches(&self, sharing: &Sharing) -> bool {
        self.is_enabled && !sharing.is_off
    }

    /// Holds for a request that starts with this hit; None if it is none.
    pub(crate) fn lend(&self, found: &Found) -> Result<Option<Lent>, Violation> {
        let Some(node) = found.node() else { return Ok(None) };
        let Some(checkpoint) = self.trie.checkpoint(node) else { return Ok(None) };
        let full = found.path.iter().map(|&node| self.trie.node(node).block.lend());
        let window = checkpoint.window.iter().map(Block::lend);
        Ok(Some(Lent {
            full: full.collect::<Result<_, _>>()?,
            window: window.collect::<Result<_, _>>()?,
            slot: checkpoint.slot.lend()?,
        }))
    }

    /// Where the chunks of a request end that starts with this hit.
    pub(crate) fn stops(&self, sharing: &Sharing, num_tokens: usize, found: &Found) -> Stops {
        if !self.caches(sharing) {
            return Stops::default();
        }
        let last = (num_tokens - 1) / self.block_tokens * self.block_tokens;
        Stops { fork: found.num_matched * self.block_tokens, last, every: self.every }
    }

    /// Counts a request that starts for the first time, its tokens by what came of them.
    pub(crate) fn count(&mut self, sharing: &mut Sharing, tokens: &[i32], found: &Found) {
        if sharing.is_counted || !self.caches(sharing) {
            return;
        }
        sharing.is_counted = true;
        let num_tokens = tokens.len();
        let matched = found.num_matched * self.block_tokens;
        let hit = found.num_hit() * self.block_tokens;
        let most = (num_tokens - 1) / self.block_tokens;
        let next = sharing.keys[..most].get(found.num_matched);
        let is_under_another_salt =
            matched == 0 && next.is_some() && self.is_under_another_salt(tokens);
        let lookups = &mut self.lookups;
        lookups.requests += 1;
        lookups.tokens += num_tokens;
        lookups.hits += hit;
        lookups.evicted_window += matched - hit;
        let missed = num_tokens - matched;
        if next.is_some_and(|&key| self.evicted.contains(key)) {
            lookups.evicted_full += missed;
        } else if is_under_another_salt {
            lookups.salt += missed;
        } else {
            lookups.never_seen += missed;
        }
    }

    fn is_under_another_salt(&self, tokens: &[i32]) -> bool {
        let first = Self::first_key(&tokens[..self.block_tokens]);
        self.first_blocks.contains_key(&first)
    }
}
