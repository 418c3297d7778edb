//! From chosen rows to a step in flight: check, write, move on.

use super::{Flight, Row, Scheduler};
use crate::error::Violation;
use crate::ids::{RequestId, StepId};
use crate::metadata::{Memories, RowInput, StepArrays, StepLayout};
use crate::planted::{self, Bug};
use crate::request::{Phase, Prefilling};

/// One decided step; its arrays are in the lent memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of dsv4._core.Plan")]
pub struct Plan {
    pub step_id: StepId,
    pub num_tokens: usize,
    pub num_requests: usize,
    pub num_samples: usize,
    pub num_c4: usize,
    pub num_c128: usize,
    pub num_prefill_tokens: usize,
    /// Tokens that only the step in flight knows, and tokens that are drafts.
    pub num_forwarded: usize,
    pub num_draft_tokens: usize,
    pub max_seq_len: usize,
    /// Place of the recipe's band under which the step was chosen.
    pub band: usize,
    /// State slots to copy before the step's kernels, and after them.
    pub num_restores: usize,
    pub num_saves: usize,
    /// Requests that start, or start again, in this step, and how many of their tokens the prefix
    /// cache had.
    pub started_request_ids: Vec<RequestId>,
    pub started_cached_tokens: Vec<usize>,
    /// Request of each row.
    pub request_ids: Vec<RequestId>,
    /// Request of each sample.
    pub sample_request_ids: Vec<RequestId>,
    /// Tokens that the request had generated before each sample, drafts included.
    pub sample_positions: Vec<usize>,
    /// Samples of each request that has some: one, and one per draft.
    pub sample_counts: Vec<usize>,
}

/// Rows that are checked and then written: what the check brought into the cache is still there.
const BATCH: usize = 128;

impl Plan {
    fn of(step_id: StepId, num_rows: usize) -> Self {
        Self {
            step_id,
            request_ids: Vec::with_capacity(num_rows),
            sample_request_ids: Vec::with_capacity(num_rows),
            sample_positions: Vec::with_capacity(num_rows),
            sample_counts: Vec::with_capacity(num_rows),
            ..Self::default()
        }
    }

    fn count(&mut self, arrays: &StepArrays<'_>) {
        self.num_restores = arrays.restores.count;
        self.num_saves = arrays.saves.count;
        self.num_tokens = arrays.num_tokens;
        self.num_requests = arrays.num_rows;
        self.num_samples = arrays.num_samples;
        self.num_c4 = arrays.num_c4();
        self.num_c128 = arrays.num_c128();
        self.max_seq_len = arrays.max_seq_len;
    }
}

impl Scheduler {
    /// Decides the next step and fills `memory`; None if there is nothing to do now.
    pub(crate) fn plan(
        &mut self,
        layout: &StepLayout,
        memory: &mut [i32],
        known: &mut Memories,
    ) -> Option<Plan> {
        self.dispatch.observe(self.requests.len(), self.newest.next());
        loop {
            self.choose(); // again if all failed, without them
            if self.chosen.is_empty() {
                return None;
            }
            let mut rows = std::mem::take(&mut self.chosen);
            let num_checked = self.check_some(&mut rows);
            if num_checked > 0 {
                let arrays = layout.arrays(memory, known);
                return Some(self.launch(rows, num_checked, arrays));
            }
            self.chosen = rows;
        }
    }

    /// The first of the rows, checked: none only if none is left.
    fn check_some(&mut self, rows: &mut Vec<Row>) -> usize {
        let mut num_checked = 0;
        while num_checked == 0 && !rows.is_empty() {
            num_checked = self.check(rows, 0);
        }
        num_checked
    }

    /// Writes the rows of a step, the first so many of which are checked, and checks the others,
    /// [`BATCH`] at a time.
    fn launch(
        &mut self,
        mut rows: Vec<Row>,
        num_checked: usize,
        mut arrays: StepArrays<'_>,
    ) -> Plan {
        let step = self.newest.next();
        self.newest = step;
        // Before the windows slide: what they give up may be read by this very step.
        self.pools.begin(step);
        let mut plan = Plan::of(step, rows.len());
        let (mut start, mut end) = (0, num_checked);
        while start < end || end < rows.len() {
            self.write(&rows[start..end], &mut plan, &mut arrays);
            (start, end) = (end, self.check(&mut rows, end));
        }
        plan.band = self.dispatch.index();
        plan.count(&arrays);
        let (num_samples, num_answers) = (plan.num_samples, plan.sample_counts.len());
        self.flights.push_back(Flight { step, rows, num_samples, num_answers });
        self.chosen = self.spare_rows.pop().unwrap_or_default();
        plan
    }

    /// The same facts that the tables were built on, asked again of the slot tables right before
    /// the rows are written: of the next [`BATCH`] from `start` on. A row that fails takes its
    /// request with it, and nobody else. Returns the end of those that did not.
    fn check(&mut self, rows: &mut Vec<Row>, start: usize) -> usize {
        let end = rows.len().min(start + BATCH);
        let mut broken = Vec::new();
        let swa_mask = self.geometry.swa_block_tokens.next_power_of_two() - 1;
        {
            let mut full = self.pools.full.state();
            let mut swa = self.pools.swa.state();
            let mut slots = self.pools.state.state();
            for row in &rows[start..end] {
                let end = row.end();
                let mut check = || -> Result<(), Violation> {
                    let Some(active) = self.requests.at(row.place).active() else { return Ok(()) };
                    let tables = &active.tables;
                    tables.full.check_writes(&mut full, row.start(), end)?;
                    tables.swa.check_writes(&mut swa, row.start(), end)?;
                    if (row.start() + 2) & swa_mask < 3 {
                        tables.swa.look_ahead(&swa); // it slides, slid, or has another block
                    }
                    slots.expect_open(tables.slot.id(), tables.slot.generation())
                };
                if check().is_err() {
                    broken.push(row.place);
                }
            }
        }
        if planted::is(Bug::FailsAll) && !broken.is_empty() {
            broken = rows[start..end].iter().map(|row| row.place).collect();
        }
        for &place in &broken {
            rows.retain(|row| row.place != place);
            self.fail(place);
        }
        end - broken.len()
    }

    /// Fills the arrays row by row; each request then moves on to what comes after this step.
    fn write(&mut self, rows: &[Row], plan: &mut Plan, arrays: &mut StepArrays<'_>) {
        for row in rows {
            let first_sample = arrays.num_samples;
            let input = match self.requests.at_mut(row.place) {
                Phase::Waiting(_) => continue,
                Phase::Decoding(decoding) => {
                    let drafts = &decoding.drafts()[..row.num_drafts()];
                    let (tokens, bank) = (decoding.known(), decoding.bank as usize);
                    RowInput { tokens, drafts, bank, ..row.input(&decoding.active.tables) }
                }
                Phase::Prefilling(Prefilling(active)) => {
                    let (tokens, behind) =
                        active.request.tokens.all()[row.start()..].split_at(row.len());
                    let next = behind.first().copied();
                    RowInput { tokens, next, ..row.input(&active.tables) }
                }
            };
            let num_drafts = input.drafts.len();
            arrays.push(&input);
            let phase = self.requests.at(row.place);
            let Some(active) = phase.active() else { continue };
            plan.request_ids.push(row.id);
            if row.num_samples() > 0 {
                plan.sample_counts.push(row.num_samples());
            }
            for position in row.num_sure()..row.end() {
                plan.sample_request_ids.push(row.id);
                plan.sample_positions
                    .push(position + 1 - active.request.num_prompt_tokens as usize);
            }
            plan.num_forwarded += usize::from(row.source.is_some());
            plan.num_draft_tokens += num_drafts;
            if row.start() == active.reuse.num_cached_tokens as usize {
                plan.started_request_ids.push(row.id);
                plan.started_cached_tokens.push(row.start());
            }
            if let Phase::Prefilling(_) = phase {
                plan.num_prefill_tokens += row.len();
                self.restore_state(row, arrays);
            }
            self.save_state(row, arrays);
            self.move_on(row, plan.step_id, first_sample);
        }
    }

    /// The positions of `row` are in flight: the window slides, and after its last chunk a
    /// request decodes.
    fn move_on(&mut self, row: &Row, step: StepId, sample: usize) {
        let phase = self.requests.at_mut(row.place);
        let mut is_sent = false;
        if let Phase::Decoding(decoding) = phase {
            decoding.plan(step, sample);
        } else if let Phase::Prefilling(prefilling) = self.requests.take(row.place) {
            is_sent = row.num_samples() > 0 && self.rooms.departs(row.id);
            self.requests.put(row.place, prefilling.plan(row.len(), step, sample));
        }
        if planted::is(Bug::PublishedEarly)
            && let Some(active) = self.requests.at_mut(row.place).active_mut()
            && active.seal(row.end()).is_ok()
        {
            let written = row.end().min(active.request.tokens.len());
            let _ = self.prefix.publish(active.computed(), written, &self.geometry);
        }
        let is_late = planted::is(Bug::SlideLate) && row.num_samples() == 0;
        if let Some(active) = self.requests.at_mut(row.place).active_mut().filter(|_| !is_late) {
            // What is sent behind a whole prompt begins a position before what its next token sees.
            let ahead = if planted::is(Bug::DraftsSlide) { row.num_drafts() } else { 0 };
            let start = self.geometry.window_start(active.planned() + ahead);
            let is_sent = is_sent && !planted::is(Bug::SentWindowSlid);
            let start = start.saturating_sub(usize::from(is_sent));
            active.slide(start, step, &self.geometry);
        }
    }
}
