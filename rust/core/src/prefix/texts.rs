//! The tokens of all nodes, those of many in one allocation.
//!
//! An allocation per node would lie among those of requests, 1 KB of tokens to a few hundred bytes of
//! what is looked at, and spread it over so many more pages.

use super::trie::NodeId;

/// Nodes whose tokens lie side by side.
const CHUNK: usize = 256;

/// A block of tokens per node.
#[derive(Debug)]
pub(super) struct Texts {
    block_tokens: usize,
    chunks: Vec<Box<[i32]>>,
}

impl Texts {
    pub(super) fn new(block_tokens: usize) -> Self {
        Self { block_tokens, chunks: vec![] }
    }

    /// What was put there last.
    pub(super) fn of(&self, id: NodeId) -> &[i32] {
        &self.chunks[id / CHUNK][id % CHUNK * self.block_tokens..][..self.block_tokens]
    }

    pub(super) fn put(&mut self, id: NodeId, tokens: &[i32]) {
        while self.chunks.len() <= id / CHUNK {
            self.chunks.push(vec![0; CHUNK * self.block_tokens].into());
        }
        let chunk = &mut self.chunks[id / CHUNK];
        chunk[id % CHUNK * self.block_tokens..][..self.block_tokens].copy_from_slice(tokens);
    }
}
