//! The arrays of one step, as a kernel is given them: offsets once, then plain slices.

use dsv4_core::metadata::StepLayout;

/// Where each array lies, in int32.
#[derive(Clone, Debug)]
pub struct Offsets {
    fields: Vec<(&'static str, usize, usize)>,
    full_columns: usize,
    swa_columns: usize,
}

impl Offsets {
    pub fn new(layout: &StepLayout) -> Self {
        let columns = |name| {
            let field = layout.fields().iter().find(|field| field.name == name);
            field.expect("a field of the layout").shape[1]
        };
        let words = |shape: &[usize]| shape.iter().product();
        let fields = layout.fields().iter();
        Self {
            fields: fields.map(|f| (f.name, f.offset_bytes / 4, words(&f.shape))).collect(),
            full_columns: columns("block_table_full"),
            swa_columns: columns("block_table_swa"),
        }
    }

    /// Start and length of an array.
    pub fn of(&self, name: &str) -> (usize, usize) {
        let field = self.fields.iter().find(|(each, ..)| *each == name);
        let &(_, start, len) = field.unwrap_or_else(|| panic!("no array {name}"));
        (start, len)
    }

    fn slice<'a>(&self, memory: &'a [i32], name: &str) -> &'a [i32] {
        let (start, len) = self.of(name);
        &memory[start..start + len]
    }

    pub fn read<'a>(&self, memory: &'a [i32]) -> Arrays<'a> {
        let get = |name| self.slice(memory, name);
        Arrays {
            token_ids: get("token_ids"),
            positions: get("positions"),
            query_starts: get("query_starts"),
            seq_lens: get("seq_lens"),
            full: Table { words: get("block_table_full"), columns: self.full_columns },
            swa: Table { words: get("block_table_swa"), columns: self.swa_columns },
            swa_first_block: get("swa_first_block"),
            swa_slots: get("swa_slots"),
            state_slots: get("state_slots"),
            state_resets: get("state_resets"),
            c4_tokens: get("c4_tokens"),
            c4_slots: get("c4_slots"),
            c128_tokens: get("c128_tokens"),
            c128_slots: get("c128_slots"),
            sample_tokens: get("sample_tokens"),
            restore_sources: get("restore_sources"),
            restore_targets: get("restore_targets"),
            save_sources: get("save_sources"),
            save_targets: get("save_targets"),
            token_sources: get("token_sources"),
            state_banks: get("state_banks"),
            bank_writes: get("bank_writes"),
            draft_widths: get("draft_widths"),
        }
    }
}

/// A block table of all rows.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    words: &'a [i32],
    columns: usize,
}

impl<'a> Table<'a> {
    pub fn row(&self, index: usize) -> &'a [i32] {
        &self.words[index * self.columns..][..self.columns]
    }
}

/// See `dsv4.model.inputs.StepInputs`.
#[derive(Clone, Copy)]
pub struct Arrays<'a> {
    pub token_ids: &'a [i32],
    pub positions: &'a [i32],
    pub query_starts: &'a [i32],
    pub seq_lens: &'a [i32],
    pub full: Table<'a>,
    pub swa: Table<'a>,
    pub swa_first_block: &'a [i32],
    pub swa_slots: &'a [i32],
    pub state_slots: &'a [i32],
    pub state_resets: &'a [i32],
    pub c4_tokens: &'a [i32],
    pub c4_slots: &'a [i32],
    pub c128_tokens: &'a [i32],
    pub c128_slots: &'a [i32],
    pub sample_tokens: &'a [i32],
    pub restore_sources: &'a [i32],
    pub restore_targets: &'a [i32],
    pub save_sources: &'a [i32],
    pub save_targets: &'a [i32],
    pub token_sources: &'a [i32],
    pub state_banks: &'a [i32],
    pub bank_writes: &'a [i32],
    pub draft_widths: &'a [i32],
}

/// An index out of an array; a negative one is a bug wherever it stands.
pub fn at(value: i32) -> usize {
    usize::try_from(value).expect("no negative index in a step")
}
