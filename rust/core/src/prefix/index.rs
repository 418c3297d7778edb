//! Which node has a key, and which keys were evicted: one line of memory to look at, however many
//! there are. A tree of as many keys takes a line per level, and each is far away.
//!
//! ```text
//!   key ── some bits ──▶ row of 7 entries: 32 other bits of the key, node         compared: the node's own key
//!                        row full ─────▶ a tree beside the rows; the row counts what it has there
//! ```
//! Keys are mixed well, so rows fill alike. Whoever chooses tokens so that all keys share a row fills
//! the tree, and pays what every key would cost without the rows.

use std::collections::BTreeMap;

use super::hash::Key;
use super::trie::NodeId;

/// Entries of a row, and their overflow: a line of memory.
const ROW: usize = 7;

/// No entry, and no half of a key that would be remembered. Not 0: memory that was never written is
/// only there from its first use on, which costs more than the use.
const NONE: u64 = u64::MAX;

/// Nodes by key. Whoever asks says whether a node has it.
#[derive(Debug)]
pub(crate) struct Index {
    rows: Vec<[u64; ROW + 1]>,
    overflow: BTreeMap<Key, NodeId>,
    len: usize,
}

impl Index {
    /// For as many nodes as there are blocks.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let num_rows = (num_blocks / 3 + 1).next_power_of_two();
        let mut row = [NONE; ROW + 1];
        row[ROW] = 0;
        Self { rows: vec![row; num_rows], overflow: BTreeMap::new(), len: 0 }
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The node of this key.
    pub(crate) fn find(&self, key: Key, is_key: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let row = &self.rows[self.row_of(key)];
        let is_it = |&&entry: &&u64| entry != NONE && is_marked(entry, key) && is_key(node(entry));
        match row[..ROW].iter().find(is_it) {
            Some(&entry) => Some(node(entry)),
            None if row[ROW] > 0 => self.overflow.get(&key).copied(),
            None => None,
        }
    }

    /// Adds a node; no other has its key.
    pub(crate) fn insert(&mut self, key: Key, id: NodeId) {
        self.len += 1;
        let at = self.row_of(key);
        let row = &mut self.rows[at];
        if let Some(place) = row[..ROW].iter_mut().find(|place| **place == NONE) {
            *place = entry(key, id);
        } else {
            row[ROW] += 1;
            self.overflow.insert(key, id);
        }
    }

    /// Takes the node of this key out.
    pub(crate) fn remove(&mut self, key: Key, id: NodeId) {
        let at = self.row_of(key);
        let row = &mut self.rows[at];
        if let Some(place) = row[..ROW].iter_mut().find(|place| **place == entry(key, id)) {
            *place = NONE;
            self.len -= 1;
        } else if self.overflow.remove(&key).is_some() {
            row[ROW] -= 1;
            self.len -= 1;
        }
    }

    fn row_of(&self, key: Key) -> usize {
        place_of(key, self.rows.len())
    }
}

/// An entry: half of a half of the key, and the node.
fn entry(key: Key, id: NodeId) -> u64 {
    let id = u32::try_from(id).expect("as many nodes as blocks at most");
    mark(key) | u64::from(id)
}

fn mark(key: Key) -> u64 {
    key.halves().1 & !u64::from(u32::MAX)
}

fn is_marked(entry: u64, key: Key) -> bool {
    (entry ^ mark(key)) >> 32 == 0
}

fn node(entry: u64) -> NodeId {
    let [a, b, c, d, ..] = entry.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) as usize
}

/// Of so many rows, a power of two.
fn place_of(key: Key, num_rows: usize) -> usize {
    usize::try_from(key.halves().0 & (num_rows as u64 - 1)).expect("fewer than usize holds")
}

/// Keys of a row of those that are remembered.
const KEPT: usize = 4;

/// Keys that were evicted: nearly all of the newest half as many as there are blocks, and some older. In each row
/// the newest comes first, and the last makes room.
#[derive(Debug)]
pub(crate) struct Evicted {
    rows: Vec<[u64; 2 * KEPT]>,
}

impl Evicted {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let num_rows = (num_blocks / 2 + 1).next_power_of_two();
        Self { rows: vec![[NONE; 2 * KEPT]; num_rows] }
    }

    pub(crate) fn contains(&self, key: Key) -> bool {
        let row = &self.rows[place_of(key, self.rows.len())];
        row.chunks_exact(2).any(|kept| (kept[0], kept[1]) == key.halves())
    }

    pub(crate) fn push(&mut self, key: Key) {
        if self.contains(key) {
            return;
        }
        let at = place_of(key, self.rows.len());
        let row = &mut self.rows[at];
        row.copy_within(..2 * (KEPT - 1), 2);
        (row[0], row[1]) = key.halves();
    }
}

#[cfg(test)]
mod tests {
    use super::{Evicted, Index, ROW};
    use crate::prefix::hash::Key;
    use std::collections::BTreeMap;

    fn key(number: i32) -> Key {
        Key::root("").then(&[number, 3])
    }

    /// As many keys as there are blocks, and far more than rows were made for.
    #[test]
    fn what_was_put_in_is_found_until_it_is_taken_out() {
        for (num_blocks, num_keys) in [(1000, 1000), (1, 500), (8, 64)] {
            let mut index = Index::new(num_blocks);
            let mut all = BTreeMap::new();
            let mut draw = 1_u64;
            for step in 0..20_000 {
                draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let number = usize::try_from(draw >> 33).expect("31 bits") % num_keys;
                let asked = key(i32::try_from(number).expect("small"));
                let found = index.find(asked, |id| all.get(&id) == Some(&asked));
                assert_eq!(found, all.get(&number).map(|_| number), "step {step}");
                if found.is_some() {
                    index.remove(asked, number);
                    all.remove(&number);
                } else {
                    index.insert(asked, number);
                    all.insert(number, asked);
                }
                assert_eq!(index.len(), all.len());
            }
            let full = index.rows.iter().filter(|row| row[ROW] > 0).count();
            assert_eq!(full == 0, index.overflow.is_empty());
            assert_eq!(index.overflow.is_empty(), num_keys == num_blocks && full == 0);
        }
    }

    #[test]
    fn the_evicted_are_remembered_and_the_oldest_are_forgotten_first() {
        let mut evicted = Evicted::new(1000);
        let (mut lost, mut kept) = (0, 0);
        for number in 0..50_000 {
            evicted.push(key(number));
            evicted.push(key(number));
            assert!(evicted.contains(key(number)) && !evicted.contains(key(-1 - number)));
            lost += i32::from(number >= 500 && !evicted.contains(key(number - 500)));
            kept += i32::from(number >= 20_000 && evicted.contains(key(number - 20_000)));
        }
        assert!(lost < 1500, "{lost} of 50,000 were forgotten among the newest 500 of 1,000");
        assert_eq!(kept, 0, "nothing is remembered for ever");
    }
}
