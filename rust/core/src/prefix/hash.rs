//! Keys of blocks: each is chained to its parent's, so that a key stands for a whole prefix.
//!
//! ```text
//!   key(block i) = hash(key(block i - 1), its tokens)        key(block -1) = hash(salt)
//! ```
//! 128 bits by folded multiplications, over [`NUM_LANES`] lanes that a processor works on at once, for
//! each word of a lane waits for the one before it. The same everywhere: there is no randomness
//! in the core. A key only finds; parent, tokens and salt are compared before anything is lent, so
//! that whoever makes two prefixes collide loses a hit and reads nothing of another's.

use crate::planted::{self, Bug};
/// What a prefix is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u64, u64);

const MULTIPLIERS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xd6e8_feb8_6659_fd93];

const NUM_LANES: usize = MULTIPLIERS.len();

/// Both halves of the 128-bit product, one over the other.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a product")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Key {
    /// Where the prefixes of one tenant begin.
    pub fn root(salt: &str) -> Self {
        let salt = if planted::is(Bug::SaltIgnored) { "" } else { salt };
        let bytes = salt.as_bytes().iter().map(|&byte| u64::from(byte) + 1);
        Self(MULTIPLIERS[2], MULTIPLIERS[3]).mix(bytes)
    }

    /// The key of the block of `tokens` behind this one.
    #[must_use]
    pub fn then(self, tokens: &[i32]) -> Self {
        let word = |pair: &[i32]| {
            let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(-1)]
                .map(|token| u32::from_le_bytes(token.to_le_bytes()));
            u64::from(low) << 32 | u64::from(high)
        };
        let mut lanes = MULTIPLIERS.map(|multiplier| Self(self.0 ^ multiplier, self.1));
        let rounds = tokens.chunks_exact(2 * NUM_LANES);
        let rest = rounds.remainder().chunks(2).map(word);
        for round in rounds {
            for (lane, pair) in lanes.iter_mut().zip(round.chunks_exact(2)) {
                lane.add(word(pair));
            }
        }
        self.mix(lanes.into_iter().flat_map(|Self(a, b)| [a, b]).chain(rest))
    }

    /// As two numbers.
    pub(crate) fn halves(self) -> (u64, u64) {
        (self.0, self.1)
    }

    /// As one number.
    pub fn bits(self) -> u128 {
        u128::from(self.0) << 64 | u128::from(self.1)
    }

    fn mix(self, words: impl Iterator<Item = u64>) -> Self {
        let mut sum = self;
        words.for_each(|word| sum.add(word));
        let Self(a, b) = sum;
        if planted::is(Bug::ShortKey) {
            return Self(a & 0xff, 0);
        }
        Self(fold(a ^ MULTIPLIERS[2], b | 1), fold(b ^ MULTIPLIERS[3], a | 1))
    }

    fn add(&mut self, word: u64) {
        let Self(a, b) = self;
        *a = fold(*a ^ word, MULTIPLIERS[0] ^ b.rotate_left(23));
        *b = (*b ^ word).wrapping_mul(MULTIPLIERS[1]).rotate_left(31).wrapping_add(*a);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Key;

    #[test]
    fn a_key_depends_on_salt_parent_and_every_token() {
        let tokens: Vec<i32> = (0..256).collect();
        let root = Key::root("");
        let mut keys = BTreeSet::from([root.then(&tokens), Key::root("a").then(&tokens)]);
        keys.insert(root.then(&tokens).then(&tokens));
        for place in 0..tokens.len() {
            for token in [-1, 1000, i32::MAX] {
                let mut other = tokens.clone();
                other[place] = token;
                keys.insert(root.then(&other));
            }
        }
        assert_eq!(keys.len(), 3 + 3 * tokens.len());
    }

    #[test]
    fn a_key_is_the_same_on_every_machine() {
        let tokens: Vec<i32> = (0..19).collect();
        let key = Key::root("tenant").then(&[1, 2, 3]).then(&tokens);
        assert_eq!(format!("{key:x?}"), "Key(e34d90d1290c76f5, 56f38694b86c3501)");
    }

    #[test]
    fn half_a_million_blocks_that_look_alike_have_different_keys() {
        let mut keys = BTreeSet::new();
        for first in 0..700 {
            for last in 0..700 {
                keys.insert(Key::root("").then(&[first, 0, 0, last, 0, 0, 0, 0]));
            }
        }
        assert_eq!(keys.len(), 490_000);
    }
}
