//! The fake model: what a token's row holds, and which token comes next, as hashes of what is READ.
//!
//! ```text
//!   row at p      = hash(tag, token, p, some rows of the window, some C4 and C128 rows)
//!   C4 row        = hash(the rows of the last 8 positions, from the request's state)
//!   C128 row      = hash(the rows of its 128 positions, gathered in the request's state)
//!   token after p = hash(every row of the window, every C4 row, every C128 row)
//! ```
//! As in the real model a row depends on what its token read, so whatever was wrong once stays
//! wrong; and a sample depends on every row that it may see. The tag stands for the salt: a row
//! that another tenant computed is another row. The device reads through the step arrays, the
//! oracle from plain vectors; the formula is this one for both.

/// What a row holds whose computation met a NaN; it spreads to all that reads it.
pub const NAN: u64 = u64::MAX;

/// Rows that a C4 row is made from: its own group, and the one before.
const OVERLAP: usize = 8;

/// What the formula needs to know of the geometry.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub window: usize,
    pub has_c4: bool,
    pub has_c128: bool,
    pub vocab_size: usize,
    /// Rows of the state's ring.
    pub ring: usize,
}

/// Where rows are read from.
pub trait Rows {
    fn window(&mut self, position: usize) -> u64;
    fn c4(&mut self, group: usize) -> u64;
    fn c128(&mut self, group: usize) -> u64;
}

/// Scrambles two numbers into one that is not [`NAN`].
pub fn mix(a: u64, b: u64) -> u64 {
    let z = (a ^ b.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 29) ^ b).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 32)) >> 1
}

/// A sum over rows in which each place counts differently, so that two swapped rows show.
struct Digest {
    sum: u64,
    place: u64,
    is_nan: bool,
}

impl Digest {
    fn new(start: u64) -> Self {
        Self { sum: start, place: 1, is_nan: start == NAN }
    }

    fn add(&mut self, row: u64) {
        self.is_nan |= row == NAN;
        self.sum = self.sum.wrapping_add(row.wrapping_mul(self.place));
        self.place = self.place.wrapping_add(2);
    }

    fn end(self) -> u64 {
        if self.is_nan { NAN } else { mix(self.sum, self.place) }
    }
}

fn scatter(from: u64, below: usize) -> usize {
    usize::try_from(from % below as u64).expect("below a usize")
}

/// The row of the token at `position`.
pub fn row(shape: &Shape, tag: u64, token: i32, position: usize, rows: &mut impl Rows) -> u64 {
    let token = u64::try_from(token).expect("ids are not negative");
    let start = mix(mix(tag, token), position as u64);
    let mut digest = Digest::new(start);
    let num_before = position.min(shape.window - 1);
    if num_before > 0 {
        for back in [1, num_before, 1 + scatter(start, num_before)] {
            digest.add(rows.window(position - back));
        }
    }
    let (num_c4, num_c128) = (position / 4, position / 128);
    if shape.has_c4 && num_c4 > 0 {
        digest.add(rows.c4(num_c4 - 1));
        digest.add(rows.c4(scatter(start >> 20, num_c4)));
    }
    if shape.has_c128 && num_c128 > 0 {
        digest.add(rows.c128(num_c128 - 1));
        digest.add(rows.c128(scatter(start >> 40, num_c128)));
    }
    digest.end()
}

/// The token that follows `position`; None if any row that it depends on is NaN.
pub fn sample(shape: &Shape, position: usize, rows: &mut impl Rows) -> Option<i32> {
    let mut digest = Digest::new(position as u64);
    for position in (position + 1).saturating_sub(shape.window)..=position {
        digest.add(rows.window(position));
    }
    if shape.has_c4 {
        (0..(position + 1) / 4).for_each(|group| digest.add(rows.c4(group)));
    }
    if shape.has_c128 {
        (0..(position + 1) / 128).for_each(|group| digest.add(rows.c128(group)));
    }
    let end = digest.end();
    let token = scatter(end, shape.vocab_size);
    (end != NAN).then(|| i32::try_from(token).expect("vocabularies fit int32"))
}

/// What a request carries from step to step: rows that compressed rows are made of.
///
/// C4 rows are made from a ring of rows, C128 rows from what is gathered of their group. Where
/// tokens are drafted the ring is longer, and there is a bank behind each draft: which of them
/// counts is known later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    ring: [u64; MOST_RING],
    pub banks: [u64; MOST_BANKS],
}

/// The longest ring, and the most banks, that a geometry can have.
const MOST_RING: usize = 24;
const MOST_BANKS: usize = 16;

impl State {
    /// As a reset leaves it.
    pub const EMPTY: Self = Self { ring: [0; MOST_RING], banks: [0; MOST_BANKS] };

    /// What a slot holds before anybody reset it.
    pub fn stale(seed: u64) -> Self {
        Self { ring: [mix(seed, 1); MOST_RING], banks: [mix(seed, 2); MOST_BANKS] }
    }

    /// One bit is not what it was.
    pub fn flip(&mut self, mask: u64) {
        self.ring[0] ^= mask;
    }

    pub fn digest(&self) -> u64 {
        self.ring.iter().chain(&self.banks).fold(3, |digest, &row| mix(digest, row))
    }

    /// The row at `position` was computed.
    pub fn push(&mut self, shape: &Shape, position: usize, row: u64) {
        self.ring[position % shape.ring] = row;
    }

    /// The C4 row that `position` closes.
    pub fn c4(&self, shape: &Shape, position: usize) -> u64 {
        let mut digest = Digest::new(position as u64);
        for back in (0..OVERLAP).rev() {
            digest.add(self.ring[(position + shape.ring - back) % shape.ring]);
        }
        digest.end()
    }
}

/// What is gathered of an open C128 group, after one more row; whole, it is the C128 row.
pub fn gather(before: u64, position: usize, row: u64) -> u64 {
    let before = if position % 128 == 0 { 0 } else { before };
    if before == NAN || row == NAN { NAN } else { mix(before, row) }
}
