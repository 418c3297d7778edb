//! What crosses between two devices: blocks, slots and rows, as bytes that know no owner.

use crate::device::Device;
use crate::model::{State, mix};

/// A row of what goes along with a prompt, in host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuxRow {
    /// Room, epoch and prefill incarnation, mixed; 0: nothing was written here.
    pub tag: u64,
    pub first_token: i32,
    pub non_finite: bool,
}

/// An item in the memory of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    Full(usize),
    Swa(usize),
    State(usize),
    Aux(usize),
}

impl Spot {
    /// Is it written in two halves, of which one may land without the other?
    pub fn num_parts(self) -> usize {
        if matches!(self, Self::Full(_) | Self::Swa(_)) { 2 } else { 1 }
    }
}

/// What one rank of an instance writes of every item: each half of a block is one rank's, and what
/// is not divided is the last one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub num_ranks: usize,
}

impl Share {
    pub fn parts(self, spot: Spot) -> impl Iterator<Item = usize> {
        let count = spot.num_parts();
        let is_mine = move |&half: &usize| match count {
            1 => self.rank + 1 == self.num_ranks,
            _ => half % self.num_ranks == self.rank,
        };
        (0..count).filter(is_mine)
    }
}

/// The bytes of one part of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cargo {
    Rows(Vec<u64>),
    State(Box<State>),
    Aux(AuxRow),
}

impl Cargo {
    /// One bit is not what it was; false if there is none.
    pub fn flip(&mut self, bit: usize) -> bool {
        let mask = 1 << (bit % 62);
        match self {
            Self::Rows(rows) if rows.is_empty() => return false,
            Self::Rows(rows) => {
                let place = bit % rows.len();
                rows[place] ^= mask;
            }
            Self::State(state) => state.flip(mask),
            Self::Aux(row) => row.tag ^= mask,
        }
        true
    }
}

impl Device {
    /// Reads one part of an item, as a network card would.
    pub fn load(&self, spot: Spot, part: usize) -> Cargo {
        match spot {
            Spot::Full(block) => {
                let [c4, c128] = self.full_parts(block, part);
                Cargo::Rows([&self.c4[c4], &self.c128[c128]].concat())
            }
            Spot::Swa(block) => Cargo::Rows(self.swa[self.swa_part(block, part)].to_vec()),
            Spot::State(place) => Cargo::State(Box::new(self.states[place])),
            Spot::Aux(row) => Cargo::Aux(self.aux[row]),
        }
    }

    /// Writes one part of an item, whoever owns it now.
    pub fn land(&mut self, spot: Spot, part: usize, cargo: &Cargo) {
        match (spot, cargo) {
            (Spot::Full(block), Cargo::Rows(rows)) => {
                let [c4, c128] = self.full_parts(block, part);
                let (first, second) = rows.split_at(c4.len());
                self.c4[c4].copy_from_slice(first);
                self.c128[c128].copy_from_slice(second);
            }
            (Spot::Swa(block), Cargo::Rows(rows)) => {
                let part = self.swa_part(block, part);
                self.swa[part].copy_from_slice(rows);
            }
            (Spot::State(place), Cargo::State(state)) => self.states[place] = **state,
            (Spot::Aux(row), Cargo::Aux(aux)) => self.aux[row] = *aux,
            _ => panic!("{spot:?} cannot hold {cargo:?}"),
        }
    }

    /// Over a share of an item; the same wherever it lies.
    pub fn digest_of(&self, spot: Spot, share: Share) -> u64 {
        share.parts(spot).fold(7, |digest, part| match self.load(spot, part) {
            Cargo::Rows(rows) => rows.iter().fold(digest, |digest, &row| mix(digest, row)),
            Cargo::State(state) => mix(digest, state.digest()),
            Cargo::Aux(row) => mix(digest, mix(row.tag, u64::from(row.first_token.unsigned_abs()))),
        })
    }
}
