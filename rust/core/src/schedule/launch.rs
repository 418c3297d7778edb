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

impl Scheduler {
    /// Decides the next step and fills `memory`; None if there is nothing to do now.
    pub(crate) fn plan(
        &mut self,
        layout: &StepLayout,
        memory: &mut [i32],
        known: &mut Memories,
    ) -> Option<Plan> {
        self.dispatch.observe(self.requests.len(), self.newest.next());
        self.choose();
        while !self.check_chosen() && self.chosen.is_empty() {
            self.choose(); // without those that failed
        }
        if self.chosen.is_empty() {
            return None;
        }
        let step = self.newest.next();
        self.newest = step;
        // Before the windows slide: what they give up may be read by this very step.
        self.pools.begin(step);
        let spare = self.spare_rows.pop().unwrap_or_default();
        let rows = std::mem::replace(&mut self.chosen, spare);
        let plan = self.write(step, &rows, layout.arrays(memory, known));
        let (num_samples, num_answers) = (plan.num_samples, plan.sample_counts.len());
        self.flights.push_back(Flight { step, rows, num_samples, num_answers });
        Some(plan)
    }

    /// The same facts that the tables were built on, asked again of the slot tables before
    /// anything is written. A row that fails takes its request with it, and nobody else. True if
    /// none failed.
    fn check_chosen(&mut self) -> bool {
        let mut broken = Vec::new();
        {
            let mut full = self.pools.full.state();
            let mut swa = self.pools.swa.state();
            let mut slots = self.pools.state.state();
            for row in &self.chosen {
                let end = row.end();
                let mut check = || -> Result<(), Violation> {
                    let Some(active) = self.requests.at(row.place).active() else { return Ok(()) };
                    let tables = &active.tables;
                    tables.full.check_writes(&mut full, row.start, end)?;
                    tables.swa.check_writes(&mut swa, row.start, end)?;
                    slots.expect_open(tables.slot.id(), tables.slot.generation())
                };
                if check().is_err() {
                    broken.push(row.place);
                }
            }
        }
        if planted::is(Bug::FailsAll) && !broken.is_empty() {
            broken = self.chosen.iter().map(|row| row.place).collect();
        }
        for &place in &broken {
            self.chosen.retain(|row| row.place != place);
            self.fail(place);
        }
        broken.is_empty()
    }

    /// Fills the arrays row by row; each request then moves on to what comes after this step.
    fn write(&mut self, step: StepId, rows: &[Row], mut arrays: StepArrays<'_>) -> Plan {
        let mut plan = Plan {
            step_id: step,
            request_ids: Vec::with_capacity(rows.len()),
            sample_request_ids: Vec::with_capacity(rows.len()),
            sample_positions: Vec::with_capacity(rows.len()),
            sample_counts: Vec::with_capacity(rows.len()),
            ..Plan::default()
        };
        for row in rows {
            let first_sample = arrays.num_samples;
            let input = match self.requests.at_mut(row.place) {
                Phase::Waiting(_) => continue,
                Phase::Decoding(decoding) => {
                    let drafts = &decoding.drafts[..row.num_drafts()];
                    let (tokens, bank) = (decoding.known(), decoding.bank);
                    RowInput { tokens, drafts, bank, ..row.input(&decoding.active.tables) }
                }
                Phase::Prefilling(Prefilling(active)) => {
                    let (tokens, behind) =
                        active.request.tokens.all()[row.start..].split_at(row.len);
                    let next = behind.first().copied();
                    RowInput { tokens, next, ..row.input(&active.tables) }
                }
            };
            let num_drafts = input.drafts.len();
            arrays.push(&input);
            let phase = self.requests.at(row.place);
            let Some(active) = phase.active() else { continue };
            plan.request_ids.push(row.id);
            if row.num_samples > 0 {
                plan.sample_counts.push(row.num_samples);
            }
            for position in row.num_sure()..row.end() {
                plan.sample_request_ids.push(row.id);
                plan.sample_positions.push(position + 1 - active.request.num_prompt_tokens);
            }
            plan.num_forwarded += usize::from(row.source.is_some());
            plan.num_draft_tokens += num_drafts;
            if row.start == active.reuse.num_cached_tokens {
                plan.started_request_ids.push(row.id);
                plan.started_cached_tokens.push(row.start);
            }
            if let Phase::Prefilling(_) = phase {
                plan.num_prefill_tokens += row.len;
                self.restore_state(row, &mut arrays);
            }
            self.save_state(row, &mut arrays);
            self.move_on(row, step, first_sample);
        }
        plan.num_restores = arrays.restores.count;
        plan.num_saves = arrays.saves.count;
        plan.num_tokens = arrays.num_tokens;
        plan.num_requests = arrays.num_rows;
        plan.num_samples = arrays.num_samples;
        plan.num_c4 = arrays.num_c4();
        plan.num_c128 = arrays.num_c128();
        plan.max_seq_len = arrays.max_seq_len;
        plan.band = self.dispatch.index();
        plan
    }

    /// The positions of `row` are in flight: the window slides, and after its last chunk a
    /// request decodes.
    fn move_on(&mut self, row: &Row, step: StepId, sample: usize) {
        let phase = self.requests.at_mut(row.place);
        let mut is_sent = false;
        if let Phase::Decoding(decoding) = phase {
            decoding.plan(step, sample);
        } else if let Phase::Prefilling(prefilling) = self.requests.take(row.place) {
            is_sent = row.num_samples > 0 && self.rooms.departs(row.id);
            self.requests.put(row.place, prefilling.plan(row.len, step, sample));
        }
        if planted::is(Bug::PublishedEarly)
            && let Some(active) = self.requests.at_mut(row.place).active_mut()
            && active.seal(row.end()).is_ok()
        {
            let written = row.end().min(active.request.tokens.len());
            let _ = self.prefix.publish(active.computed(), written, &self.geometry);
        }
        let is_late = planted::is(Bug::SlideLate) && row.num_samples == 0;
        if let Some(active) = self.requests.at_mut(row.place).active_mut().filter(|_| !is_late) {
            // What is sent behind a whole prompt begins a position before what its next token sees.
            let ahead = if planted::is(Bug::DraftsSlide) { row.num_drafts() } else { 0 };
            let start = self.geometry.window_start(active.planned + ahead);
            let is_sent = is_sent && !planted::is(Bug::SentWindowSlid);
            let start = start.saturating_sub(usize::from(is_sent));
            active.slide(start, step, &self.geometry);
        }
    }
}
