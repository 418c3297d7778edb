//! A set of 128-bit states: open addressing, 16 bytes a place. Exact: the whole state is stored.

const EMPTY: u128 = u128::MAX;

pub struct Visited {
    places: Vec<u128>,
    len: usize,
    /// Most places that the set may grow to.
    most: usize,
}

impl Visited {
    pub fn new(first: usize, most: usize) -> Self {
        let first = first.next_power_of_two();
        Self { places: vec![EMPTY; first], len: 0, most: most.next_power_of_two() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it was not there; None if there is no place for it.
    pub fn insert(&mut self, state: u128) -> Option<bool> {
        if self.len * 10 >= self.places.len() * 8 && !self.grow() {
            return None;
        }
        let fresh = Self::place(&mut self.places, state);
        self.len += usize::from(fresh);
        Some(fresh)
    }

    fn place(places: &mut [u128], state: u128) -> bool {
        let mask = places.len() - 1;
        let mut at = spread(state) & mask;
        loop {
            if places[at] == state {
                return false;
            }
            if places[at] == EMPTY {
                places[at] = state;
                return true;
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) -> bool {
        if self.places.len() >= self.most {
            return self.len * 100 < self.places.len() * 95; // the last 15 in a hundred, slowly
        }
        let mut larger = vec![EMPTY; self.places.len() * 2];
        for &state in self.places.iter().filter(|&&state| state != EMPTY) {
            Self::place(&mut larger, state);
        }
        self.places = larger;
        true
    }
}

#[expect(clippy::cast_possible_truncation, reason = "mixing wants the low bits")]
fn spread(state: u128) -> usize {
    let mut z = (state as u64) ^ ((state >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (z ^ (z >> 32)) as usize
}
