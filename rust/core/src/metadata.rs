//! The arrays of a step: where each lies in the lent memory, and how they are filled.
//!
//! One typed description, [`StepLayout`], gives every array its name, its shape as a formula of
//! the limits, and its offset. It is computed once, so the largest legal step fits by
//! construction, and addresses never move. Meanings are those of `dsv4.model.inputs.StepInputs`.
//!
//! A row of the block tables is written when it differs from what the memory has there, so that a
//! step costs the same however long the contexts are. Behind the arrays lies a digest of all rows
//! that were ever written to the memory; who lends one of which the core knows what rows it came
//! of gets those rows changed that have changed, and any other memory is cleared once. So whoever
//! else writes to the block tables has to overwrite the last two words as well.
//!
//! ```text
//!   T tokens  B requests  F full blocks of a request  S window blocks of a chunk  R samples
//! ```
//! A step in flight may know what this one computes, and drafts may be wrong; the last arrays are
//! about that (those of drafts are empty where nothing is drafted):
//!
//! ```text
//!   token_sources  [T]      -1: token_ids has it; else the sample of the step before that it is
//!   sample_starts  [B + 1]  samples of row b are sample_starts[b]..sample_starts[b + 1]
//!   draft_widths   [B]      how many of the row's tokens are drafts; they are its last
//!   next_tokens    [B]      the token behind the row where it is known, for draft layers; else -1
//!   state_banks    [B]      the bank of the slot that holds the C128 state before the row
//!   bank_writes    [T]      the bank that takes the C128 state behind this token; -1: none does
//! ```

use crate::geometry::{C4, C128, Geometry};
use crate::ids::{BlockId, int, narrow};
use crate::limits::Limits;
use crate::planted::{self, Bug};
use crate::table::Tables;

/// Arrays start at multiples of this many bytes.
pub const ALIGN_BYTES: usize = 64;
const WORD_BYTES: usize = 4;

/// One array of a step; always int32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// As in `StepInputs`.
    pub name: &'static str,
    /// Bytes from the start of the memory.
    pub offset_bytes: usize,
    /// Capacity; a step uses the leading part.
    pub shape: Vec<usize>,
}

impl Field {
    fn num_words(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every array of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLayout {
    fields: Vec<Field>,
    num_bytes: usize,
    seeds: SeedRows,
    hash: u64,
    max_num_requests: usize,
    block_tokens: usize,
    has_c4: bool,
    has_c128: bool,
}

/// Host memory for what draft layers start from: the residual streams of a position, before the
/// head joins them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedRows {
    /// One per request of a step; 0 where nothing is drafted.
    pub rows: usize,
    /// Values of a row: all streams, `hc_mult * hidden`.
    pub values: usize,
}

const NUM_FIELDS: usize = 26;

impl StepLayout {
    /// The layout for these limits.
    pub fn new(geometry: &Geometry, limits: &Limits) -> Self {
        let tokens = limits.max_num_tokens;
        let requests = limits.max_num_requests;
        let full = geometry.full_blocks(limits.max_model_len);
        let chunk = tokens.min(limits.max_model_len);
        let swa = geometry
            .chunk_swa_blocks(chunk)
            .min(limits.max_model_len.div_ceil(geometry.swa_block_tokens));
        // Every request may be one token short of closing a group: n tokens close at most
        // (n + ratio - 1) / ratio groups, summed over the requests of the step.
        let closing = |ratio: usize| {
            let some = geometry.num_layers_with(ratio) > 0;
            if some { tokens.min((tokens + requests * (ratio - 1)) / ratio) } else { 0 }
        };
        let drafts = limits.max_draft_tokens;
        let drafting = |rows: usize| if drafts > 0 { rows } else { 0 };
        let samples = tokens.min(requests * (1 + drafts));
        let shapes: [(&'static str, Vec<usize>); NUM_FIELDS] = [
            ("token_ids", vec![tokens]),
            ("positions", vec![tokens]),
            ("token_rows", vec![tokens]),
            ("query_starts", vec![requests + 1]),
            ("seq_lens", vec![requests]),
            ("block_table_full", vec![requests, full]),
            ("block_table_swa", vec![requests, swa]),
            ("swa_first_block", vec![requests]),
            ("swa_slots", vec![tokens]),
            ("state_slots", vec![requests]),
            ("state_resets", vec![requests]),
            ("c4_tokens", vec![closing(C4)]),
            ("c4_slots", vec![closing(C4)]),
            ("c128_tokens", vec![closing(C128)]),
            ("c128_slots", vec![closing(C128)]),
            ("sample_tokens", vec![samples]),
            ("restore_sources", vec![requests]),
            ("restore_targets", vec![requests]),
            ("save_sources", vec![requests]),
            ("save_targets", vec![requests]),
            ("token_sources", vec![tokens]),
            ("sample_starts", vec![drafting(requests + 1)]),
            ("draft_widths", vec![drafting(requests)]),
            ("next_tokens", vec![drafting(requests)]),
            ("state_banks", vec![drafting(requests)]),
            ("bank_writes", vec![drafting(tokens)]),
        ];
        let mut num_bytes = 0;
        let mut fields = Vec::with_capacity(NUM_FIELDS);
        for (name, shape) in shapes {
            let field = Field { name, offset_bytes: num_bytes, shape };
            num_bytes = (num_bytes + field.num_words() * WORD_BYTES).next_multiple_of(ALIGN_BYTES);
            fields.push(field);
        }
        let room = geometry.drafts;
        let streams = if planted::is(Bug::SeedByHidden) { 1 } else { room.hc_mult };
        let seeds = SeedRows { rows: drafting(requests), values: streams * room.hidden };
        let hash = fnv1a(&format!("{geometry:?} {fields:?} {seeds:?} {drafts}"));
        num_bytes += ALIGN_BYTES; // the digest, in the last words
        Self {
            fields,
            num_bytes,
            seeds,
            hash,
            max_num_requests: requests,
            block_tokens: geometry.block_tokens,
            has_c4: geometry.num_layers_with(C4) > 0,
            has_c128: geometry.num_layers_with(C128) > 0,
        }
    }

    /// Every array, in order of its offset.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Rows that draft layers start from; no part of the step's memory.
    pub fn seeds(&self) -> SeedRows {
        self.seeds
    }

    /// Bytes of memory that a step needs.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The same number of int32.
    pub fn num_words(&self) -> usize {
        self.num_bytes / WORD_BYTES
    }

    /// Equal on two machines exactly if geometry and arrays are.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The arrays inside `memory`, which has at least [`Self::num_words`] words; `known` are the
    /// memories that were lent before.
    pub(crate) fn arrays<'a>(
        &self,
        memory: &'a mut [i32],
        known: &'a mut Memories,
    ) -> StepArrays<'a> {
        let (mut rest, digest) = memory[..self.num_words()].split_at_mut(self.num_words() - 2);
        let (written, is_known) = known.of(digest, self);
        let mut at = 0;
        let mut arrays = self.fields.iter().map(|field| {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(field.offset_bytes / 4 - at);
            let (array, tail) = tail.split_at_mut(field.num_words());
            at = field.offset_bytes / WORD_BYTES + field.num_words();
            rest = tail;
            array
        });
        let mut next = || arrays.next().expect("the layout has NUM_FIELDS fields");
        // In the order of `new`.
        let arrays = StepArrays {
            token_ids: next(),
            positions: next(),
            token_rows: next(),
            query_starts: next(),
            seq_lens: next(),
            block_table_full: next(),
            block_table_swa: next(),
            swa_first_block: next(),
            swa_slots: next(),
            state_slots: next(),
            state_resets: next(),
            c4: Closing::new(self.block_tokens, self.has_c4, next(), next()),
            c128: Closing::new(self.block_tokens, self.has_c128, next(), next()),
            sample_tokens: next(),
            restores: Copies { sources: next(), targets: next(), count: 0 },
            saves: Copies { sources: next(), targets: next(), count: 0 },
            token_sources: next(),
            drafts: Drafts {
                sample_starts: next(),
                widths: next(),
                next_tokens: next(),
                banks: next(),
                bank_writes: next(),
            },
            full_columns: self.fields[5].shape[1],
            swa_columns: self.fields[6].shape[1],
            num_tokens: 0,
            num_rows: 0,
            num_samples: 0,
            max_seq_len: 0,
            written,
            digest,
        };
        if !is_known {
            arrays.block_table_full.fill(0);
            arrays.block_table_swa.fill(0);
        }
        arrays
    }
}

/// Memories whose block tables the core knows, at most [`MOST_KNOWN`]; the latest first.
#[derive(Debug, Default)]
pub(crate) struct Memories(Vec<Written>);

/// One for each step in flight, and as many again.
const MOST_KNOWN: usize = 4;

/// What one lent memory has in its block tables.
#[derive(Debug)]
struct Written {
    /// Over every row that was written; the memory carries it too.
    digest: u64,
    /// Of each row, the editions of the full and the window table; 0: zeros.
    editions: Vec<[u64; 2]>,
    /// And how many ids they have, so that nobody reads the memory to find out.
    lengths: Vec<[u32; 2]>,
}

impl Memories {
    /// What the memory with this digest has, and whether that was known; if not, it is to be cleared.
    fn of(&mut self, digest: &[i32], layout: &StepLayout) -> (&mut Written, bool) {
        let found = self.0.iter().position(|written| words(written.digest) == *digest);
        if found.is_none() {
            self.0.truncate(MOST_KNOWN - 1);
            let editions = vec![[0; 2]; layout.max_num_requests];
            let lengths = vec![[0; 2]; layout.max_num_requests];
            self.0.insert(0, Written { digest: layout.hash, editions, lengths });
        }
        (&mut self.0[found.unwrap_or(0)], found.is_some())
    }
}

impl Written {
    /// These ids were written to a row of the full (0) or the window (1) table.
    fn note(&mut self, row: usize, table: usize, ids: &[i32]) {
        let (place, num_ids) = ((2 * row + table) as u64, ids.len());
        let ids = ids.iter().map(|id| u64::from(id.unsigned_abs()));
        self.digest = ids.fold(mixed(self.digest, place), mixed);
        self.digest = mixed(self.digest, u64::MAX);
        self.lengths[row][table] = narrow(num_ids);
    }
}

/// A hash and one word more.
fn mixed(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 29)
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
fn words(digest: u64) -> [i32; 2] {
    [digest as i32, (digest >> 32) as i32]
}

/// What one request does in a step.
pub(crate) struct RowInput<'a> {
    /// Its tokens in this step, as far as they are known.
    pub(crate) tokens: &'a [i32],
    /// Its one token is this sample of the step before, and `tokens` is empty.
    pub(crate) source: Option<usize>,
    /// Tokens behind them that may be wrong.
    pub(crate) drafts: &'a [i32],
    /// The token behind all of them, if it is known.
    pub(crate) next: Option<i32>,
    /// Position of the first of them.
    pub(crate) start: usize,
    pub(crate) tables: &'a Tables,
    /// The logits of so many tokens are wanted, of the last ones.
    pub(crate) num_samples: usize,
    /// The bank of its slot that holds the state before it.
    pub(crate) bank: usize,
}

impl RowInput<'_> {
    fn num_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.source.is_some()) + self.drafts.len()
    }
}

/// The arrays of a step that is being filled, row by row. Every index into them is checked by the
/// slices, and every block id in them comes from a handle of its pool.
pub(crate) struct StepArrays<'a> {
    token_ids: &'a mut [i32],
    positions: &'a mut [i32],
    token_rows: &'a mut [i32],
    query_starts: &'a mut [i32],
    seq_lens: &'a mut [i32],
    block_table_full: &'a mut [i32],
    block_table_swa: &'a mut [i32],
    swa_first_block: &'a mut [i32],
    swa_slots: &'a mut [i32],
    state_slots: &'a mut [i32],
    state_resets: &'a mut [i32],
    c4: Closing<'a, C4>,
    c128: Closing<'a, C128>,
    sample_tokens: &'a mut [i32],
    pub(crate) restores: Copies<'a>,
    pub(crate) saves: Copies<'a>,
    token_sources: &'a mut [i32],
    drafts: Drafts<'a>,
    full_columns: usize,
    swa_columns: usize,
    pub(crate) num_tokens: usize,
    pub(crate) num_rows: usize,
    pub(crate) num_samples: usize,
    pub(crate) max_seq_len: usize,
    written: &'a mut Written,
    digest: &'a mut [i32],
}

impl StepArrays<'_> {
    /// Adds one request.
    pub(crate) fn push(&mut self, input: &RowInput<'_>) {
        let (row, first, start) = (self.num_rows, self.num_tokens, input.start);
        let tokens = first..first + input.num_tokens();
        let end = start + input.num_tokens();
        self.push_ids(first, input);
        count_up(&mut self.positions[tokens.clone()], int(start));
        self.token_rows[tokens.clone()].fill(int(row));
        if row == 0 {
            self.query_starts[0] = 0;
        }
        self.query_starts[row + 1] = int(tokens.end);
        self.seq_lens[row] = int(end);

        let tables = input.tables;
        if self.written.editions[row] != [tables.full.edition(), tables.swa.edition()] {
            self.copy_rows(row, tables);
        }
        if !planted::is(Bug::StaleFirst) {
            self.swa_first_block[row] = int(tables.swa.first());
        }
        fill_swa_slots(&mut self.swa_slots[tokens.clone()], start, tables);
        self.state_slots[row] = int(tables.slot.id().get() as usize);
        self.state_resets[row] = i32::from(start == 0 && !planted::is(Bug::SlotNotReset));
        self.c4.push(first, start, end, tables);
        self.c128.push(first, start, end, tables);
        self.drafts.push(row, tokens.clone(), self.num_samples, input);
        let too_many = usize::from(input.num_samples == 0 && planted::is(Bug::SampleTooMany));
        let num_samples = input.num_samples + too_many;
        let samples = &mut self.sample_tokens[self.num_samples..][..num_samples];
        count_up(samples, int(tokens.end - num_samples));
        self.num_samples += num_samples;
        self.num_tokens = tokens.end;
        self.num_rows += 1;
        self.max_seq_len = self.max_seq_len.max(end);
    }

    #[inline(never)] // once in a block
    fn copy_rows(&mut self, row: usize, tables: &Tables) {
        let editions = [tables.full.edition(), tables.swa.edition()];
        let before = std::mem::replace(&mut self.written.editions[row], editions);
        let targets = [
            (&mut *self.block_table_full, self.full_columns, &tables.full),
            (&mut *self.block_table_swa, self.swa_columns, &tables.swa),
        ];
        for (table, (array, columns, blocks)) in targets.into_iter().enumerate() {
            if before[table] != editions[table] {
                let num_before = self.written.lengths[row][table] as usize;
                copy_row(&mut array[row * columns..][..columns], num_before, blocks.row());
                self.written.note(row, table, blocks.row());
            }
        }
        self.digest.copy_from_slice(&words(self.written.digest));
    }

    /// Ids that are known, 0 for one that is not, then drafts.
    fn push_ids(&mut self, first: usize, input: &RowInput<'_>) {
        let ids = &mut self.token_ids[first..first + input.num_tokens()];
        let sources = &mut self.token_sources[first..first + input.num_tokens()];
        if let ([id], [source]) = (&mut *ids, &mut *sources) {
            let told = input.source.filter(|_| !planted::is(Bug::SourceUntold));
            *id = input.tokens.first().copied().unwrap_or(0); // nearly every row
            *source = told.map_or(-1, int);
            return;
        }
        debug_assert!(input.source.is_none(), "such a row has one token");
        sources.fill(-1);
        let (known, drafts) = ids.split_at_mut(input.tokens.len());
        known.copy_from_slice(input.tokens);
        drafts.copy_from_slice(input.drafts);
    }

    pub(crate) fn num_c4(&self) -> usize {
        self.c4.count + usize::from(self.c4.count > 0 && planted::is(Bug::Underfilled))
    }

    pub(crate) fn num_c128(&self) -> usize {
        self.c128.count
    }
}

/// What verifying and drafting need; all empty where nothing is drafted.
struct Drafts<'a> {
    sample_starts: &'a mut [i32],
    widths: &'a mut [i32],
    next_tokens: &'a mut [i32],
    banks: &'a mut [i32],
    bank_writes: &'a mut [i32],
}

impl Drafts<'_> {
    /// Row `row` has these tokens of the step, and the samples from `first_sample` on.
    fn push(
        &mut self,
        row: usize,
        tokens: std::ops::Range<usize>,
        first_sample: usize,
        input: &RowInput<'_>,
    ) {
        if self.widths.is_empty() {
            return;
        }
        self.sample_starts[row] = int(first_sample);
        self.sample_starts[row + 1] = int(first_sample + input.num_samples);
        self.widths[row] = int(input.drafts.len());
        self.next_tokens[row] = input.next.unwrap_or(-1);
        self.banks[row] = int(input.bank);
        // A bank for each state that may come to count: behind every draft, and before the first.
        let writes = &mut self.bank_writes[tokens];
        let (passed, kept) = writes.split_at_mut(writes.len() - 1 - input.drafts.len());
        passed.fill(if planted::is(Bug::BankOverwritten) { 0 } else { -1 });
        for (place, bank) in kept.iter_mut().zip(0..) {
            *place = bank;
        }
    }
}

/// State slots to copy, one into another.
pub(crate) struct Copies<'a> {
    sources: &'a mut [i32],
    targets: &'a mut [i32],
    pub(crate) count: usize,
}

impl Copies<'_> {
    pub(crate) fn push(&mut self, source: BlockId, target: BlockId) {
        self.sources[self.count] = int(source.get() as usize);
        self.targets[self.count] = int(target.get() as usize);
        self.count += 1;
    }
}

/// first, first + 1, ..
fn count_up(places: &mut [i32], first: i32) {
    if let [place] = places {
        *place = first; // of nearly every row; no loop to set up
        return;
    }
    for (place, number) in places.iter_mut().zip(first..) {
        *place = number;
    }
}

/// The ids of a table, then zeros instead of what is left of one that had `num_before`.
fn copy_row(row: &mut [i32], num_before: usize, ids: &[i32]) {
    let (used, rest) = row.split_at_mut(ids.len());
    used.copy_from_slice(ids);
    let num_stale = num_before.saturating_sub(ids.len());
    let num_stale = if planted::is(Bug::RowNotCleared) { 0 } else { num_stale };
    rest[..num_stale].fill(0);
}

/// `block * 64 + position % 64` of each token, a run per block.
fn fill_swa_slots(slots: &mut [i32], start: usize, tables: &Tables) {
    let block_tokens = tables.swa.block_tokens();
    let mut position = start;
    let mut rest = slots;
    while !rest.is_empty() {
        let (id, inside) = tables.swa.locate(position);
        let run_past = usize::from(planted::is(Bug::RunPastBlock));
        let (run, tail) = rest.split_at_mut((block_tokens + run_past - inside).min(rest.len()));
        let slot = id * int(block_tokens) + int(inside);
        position += run.len();
        count_up(run, slot);
        rest = tail;
    }
}

/// The tokens that close a group of one compression ratio, and where the entry goes.
struct Closing<'a, const RATIO: usize> {
    rows_per_block: usize,
    in_use: bool,
    tokens: &'a mut [i32],
    slots: &'a mut [i32],
    count: usize,
}

impl<'a, const RATIO: usize> Closing<'a, RATIO> {
    fn new(block_tokens: usize, in_use: bool, tokens: &'a mut [i32], slots: &'a mut [i32]) -> Self {
        Self { rows_per_block: block_tokens / RATIO, in_use, tokens, slots, count: 0 }
    }

    /// Token `first` of the step is position `start` of the request, and so on to `end`.
    fn push(&mut self, first: usize, start: usize, end: usize, tables: &Tables) {
        if !self.in_use {
            return;
        }
        let mut closing = (start + 1).next_multiple_of(RATIO) - 1;
        let missed = planted::is(Bug::GroupNotClosed) && start % RATIO != 0;
        closing += if missed { RATIO } else { 0 };
        while closing < end {
            let (id, inside) = tables.full.locate(closing);
            let row = if planted::is(Bug::GroupMisplaced) { 0 } else { inside / RATIO };
            self.tokens[self.count] = int(first + closing - start);
            self.slots[self.count] = id * int(self.rows_per_block) + int(row);
            self.count += 1;
            closing += RATIO;
        }
    }
}

/// FNV-1a, 64 bits: enough to tell two layouts apart, and the same everywhere.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
