//! A GPU that believes the step arrays: it writes where they point and reads what they name.
//!
//! ```text
//!   planned ──▶ scribble: what the step will write may change from now on
//!   executed ─▶ restores · rows in any order: write, close groups, read, sample · saves
//! ```
//! It knows no request and no owner. A stale block, another's row, a slot that was not restored
//! or was reused too early all change what is read, and so the tokens, which the oracle sees.
//! An index outside its pool panics, like an illegal address.

use std::ops::Range;

use dsv4_core::Plan;
use dsv4_core::budget::PoolSizes;
use dsv4_core::geometry::Geometry;

use crate::arrays::{Arrays, at};
use crate::cargo::AuxRow;
use crate::model::{self, NAN, Rows, Shape, State, mix};

/// All KV memory of one worker.
#[derive(Debug)]
pub struct Device {
    pub shape: Shape,
    steps: Steps,
    pub swa: Vec<u64>,
    pub c4: Vec<u64>,
    pub c128: Vec<u64>,
    pub states: Vec<State>,
    /// In host memory.
    pub aux: Vec<AuxRow>,
    num_full: usize,
    closing_c4: Vec<i32>,
    closing_c128: Vec<i32>,
    /// Samples of the step before, from which tokens may be taken.
    sampled: Vec<Sample>,
}

/// Sizes of blocks, as shifts.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    pub full: u32,
    pub swa: u32,
}

impl Steps {
    fn c4_slot(self, table: &[i32], group: usize) -> usize {
        let per_block = self.full - 2;
        (at(table[group >> per_block]) << per_block) + (group & ((1 << per_block) - 1))
    }

    fn c128_slot(self, table: &[i32], group: usize) -> usize {
        let per_block = self.full - 7;
        (at(table[group >> per_block]) << per_block) + (group & ((1 << per_block) - 1))
    }

    fn swa_slot(self, table: &[i32], first: usize, position: usize) -> usize {
        let block = at(table[(position >> self.swa) - first]);
        (block << self.swa) + (position & ((1 << self.swa) - 1))
    }
}

/// What goes wrong on the device in one step.
#[derive(Clone, Debug, Default)]
pub struct Upset {
    /// Tokens of the step whose row becomes NaN.
    pub nan_tokens: Vec<usize>,
    /// Rows run from the last to the first.
    pub is_reversed: bool,
    /// The step dies after this many rows.
    pub dies_after: Option<usize>,
}

/// What the formula of the model needs to know.
pub fn shape(geometry: &Geometry, vocab_size: usize) -> Shape {
    Shape {
        window: geometry.window,
        has_c4: geometry.num_layers_with(4) > 0,
        has_c128: geometry.num_layers_with(128) > 0,
        vocab_size,
        ring: geometry.c4_ring(),
    }
}

/// A sampled token; None if its logits were not finite.
pub type Sample = Option<i32>;

impl Device {
    /// Memory as it was found: full of what others left.
    pub fn new(
        geometry: &Geometry,
        sizes: &PoolSizes,
        num_aux: usize,
        vocab_size: usize,
        seed: u64,
    ) -> Self {
        let shape = shape(geometry, vocab_size);
        let (full, swa) = (geometry.block_tokens, geometry.swa_block_tokens);
        assert!(full.is_power_of_two() && swa.is_power_of_two(), "slots are found by shifts");
        let stale = |blocks: usize, rows: usize| {
            (0..((blocks + 1) * rows) as u64).map(|cell| mix(seed, cell)).collect()
        };
        Self {
            shape,
            steps: Steps { full: full.trailing_zeros(), swa: swa.trailing_zeros() },
            swa: stale(sizes.swa_blocks, swa),
            c4: stale(sizes.full_blocks, if shape.has_c4 { full / 4 } else { 0 }),
            c128: stale(sizes.full_blocks, if shape.has_c128 { full / 128 } else { 0 }),
            states: (0..=sizes.state_slots as u64).map(|s| State::stale(mix(seed, s))).collect(),
            aux: vec![AuxRow::default(); num_aux + 1],
            num_full: sizes.full_blocks + 1,
            closing_c4: vec![],
            closing_c128: vec![],
            sampled: vec![],
        }
    }

    /// The cells of one part of a full block: C4 rows and C128 rows.
    pub fn full_parts(&self, block: usize, part: usize) -> [Range<usize>; 2] {
        let cells = |all: usize| {
            let rows = all / self.num_full;
            let middle = block * rows + rows / 2;
            if part == 0 { block * rows..middle } else { middle..(block + 1) * rows }
        };
        [cells(self.c4.len()), cells(self.c128.len())]
    }

    /// The cells of one part of a window block.
    pub fn swa_part(&self, block: usize, part: usize) -> Range<usize> {
        let half = (1 << self.steps.swa) / 2;
        let start = (block << self.steps.swa) + part * half;
        let end = if part == 0 { start + half } else { (block + 1) << self.steps.swa };
        start..end
    }

    /// The window rows of one block.
    pub fn swa_block(&mut self, block: usize) -> &mut [u64] {
        &mut self.swa[block << self.steps.swa..(block + 1) << self.steps.swa]
    }

    /// The step is planned, and may start before those before it are over: whatever it writes is
    /// garbage from now on. No legal plan lets another step in flight read any of it.
    pub fn scribble(&mut self, plan: &Plan, arrays: &Arrays<'_>) {
        let garbage = mix(plan.step_id.0, 0xdead);
        for &slot in &arrays.swa_slots[..plan.num_tokens] {
            self.swa[at(slot)] = garbage;
        }
        for &slot in &arrays.c4_slots[..plan.num_c4] {
            self.c4[at(slot)] = garbage;
        }
        for &slot in &arrays.c128_slots[..plan.num_c128] {
            self.c128[at(slot)] = garbage;
        }
        let fresh = (0..plan.num_requests).filter(|&row| arrays.state_resets[row] != 0);
        let reset = fresh.map(|row| arrays.state_slots[row]);
        let copied = arrays.restore_targets[..plan.num_restores].iter();
        let saved = arrays.save_targets[..plan.num_saves].iter();
        for slot in reset.chain(copied.copied()).chain(saved.copied()) {
            self.states[at(slot)] = State::stale(garbage);
        }
    }

    /// Runs the step; None if it died on the way.
    pub fn execute(
        &mut self,
        plan: &Plan,
        arrays: &Arrays<'_>,
        tags: &[u64],
        upset: &Upset,
    ) -> Option<Vec<Sample>> {
        for copy in 0..plan.num_restores {
            let [source, target] =
                [arrays.restore_sources, arrays.restore_targets].map(|a| a[copy]);
            self.states[at(target)] = self.states[at(source)];
        }
        self.note_closing(plan, arrays);
        let mut samples = vec![None; plan.num_samples];
        for turn in 0..plan.num_requests {
            if upset.dies_after == Some(turn) {
                self.sampled = samples; // what the next step may still take up
                return None;
            }
            let row = if upset.is_reversed { plan.num_requests - 1 - turn } else { turn };
            self.run_row(row, arrays, tags[row], upset);
            let tokens = at(arrays.query_starts[row])..at(arrays.query_starts[row + 1]);
            let behind = at(arrays.seq_lens[row]);
            for (sample, &token) in arrays.sample_tokens[..plan.num_samples].iter().enumerate() {
                if tokens.contains(&at(token)) {
                    let position = behind - (tokens.end - at(token));
                    let mut rows = self.reader(row, arrays);
                    samples[sample] = model::sample(&self.shape, position, &mut rows);
                }
            }
        }
        self.sampled.clone_from(&samples);
        for copy in 0..plan.num_saves {
            let [source, target] = [arrays.save_sources, arrays.save_targets].map(|a| a[copy]);
            self.states[at(target)] = self.states[at(source)];
        }
        Some(samples)
    }

    /// Which token closes a group, and where its entry goes; -1 where none closes.
    fn note_closing(&mut self, plan: &Plan, arrays: &Arrays<'_>) {
        for (closing, count, tokens, slots) in [
            (&mut self.closing_c4, plan.num_c4, arrays.c4_tokens, arrays.c4_slots),
            (&mut self.closing_c128, plan.num_c128, arrays.c128_tokens, arrays.c128_slots),
        ] {
            closing.clear();
            closing.resize(plan.num_tokens, -1);
            for (&token, &slot) in tokens[..count].iter().zip(slots) {
                closing[at(token)] = slot;
            }
        }
    }

    fn run_row(&mut self, row: usize, arrays: &Arrays<'_>, tag: u64, upset: &Upset) {
        let slot = at(arrays.state_slots[row]);
        if arrays.state_resets[row] != 0 {
            self.states[slot] = State::EMPTY;
        }
        let shape = self.shape;
        let bank = arrays.state_banks.get(row).map_or(0, |&bank| at(bank));
        let mut gathered = self.states[slot].banks[bank];
        for token in at(arrays.query_starts[row])..at(arrays.query_starts[row + 1]) {
            let position = at(arrays.positions[token]);
            let id = match arrays.token_sources[token] {
                -1 => arrays.token_ids[token],
                sample => self.sampled[at(sample)].unwrap_or(0),
            };
            let mut value = model::row(&shape, tag, id, position, &mut self.reader(row, arrays));
            if upset.nan_tokens.contains(&token) {
                value = NAN;
            }
            self.swa[at(arrays.swa_slots[token])] = value;
            gathered = model::gather(gathered, position, value);
            let state = &mut self.states[slot];
            state.push(&shape, position, value);
            match arrays.bank_writes.get(token) {
                None => state.banks[0] = gathered,
                Some(-1) => {}
                Some(&bank) => state.banks[at(bank)] = gathered,
            }
            if self.closing_c4[token] >= 0 {
                self.c4[at(self.closing_c4[token])] = self.states[slot].c4(&shape, position);
            }
            if self.closing_c128[token] >= 0 {
                self.c128[at(self.closing_c128[token])] = gathered;
            }
        }
    }

    fn reader<'a>(&'a self, row: usize, arrays: &Arrays<'a>) -> Reader<'a> {
        let (full, swa) = (arrays.full.row(row), arrays.swa.row(row));
        Reader { device: self, full, swa, first: at(arrays.swa_first_block[row]) }
    }
}

/// Memory through the tables of one request.
struct Reader<'a> {
    device: &'a Device,
    full: &'a [i32],
    swa: &'a [i32],
    first: usize,
}

impl Rows for Reader<'_> {
    fn window(&mut self, position: usize) -> u64 {
        self.device.swa[self.device.steps.swa_slot(self.swa, self.first, position)]
    }

    fn c4(&mut self, group: usize) -> u64 {
        self.device.c4[self.device.steps.c4_slot(self.full, group)]
    }

    fn c128(&mut self, group: usize) -> u64 {
        self.device.c128[self.device.steps.c128_slot(self.full, group)]
    }
}
