//! Checks of what a core answers.

use super::bytes::{Writer, mix, mix_ints, mix_until_zero, mix_words, short, step};
use super::part::write_errands;
use crate::core::{Errands, Outcome, Plan};
use crate::error::Error;
use crate::ids::RequestId;
use crate::metadata::StepLayout;

pub(super) const NUM_ARRAYS: usize = 26;
pub(super) const NUM_NUMBERS: usize = 13;

/// Which part of an array a step fills.
#[derive(Clone, Copy, Debug)]
enum Used {
    Tokens,
    Requests,
    RequestsAndOne,
    /// Rows of requests, each up to its first zero.
    Rows,
    C4,
    C128,
    Samples,
    Restores,
    Saves,
}

/// In the order of the layout.
const FIELDS: [(&str, Used); NUM_ARRAYS] = [
    ("token_ids", Used::Tokens),
    ("positions", Used::Tokens),
    ("token_rows", Used::Tokens),
    ("query_starts", Used::RequestsAndOne),
    ("seq_lens", Used::Requests),
    ("block_table_full", Used::Rows),
    ("block_table_swa", Used::Rows),
    ("swa_first_block", Used::Requests),
    ("swa_slots", Used::Tokens),
    ("state_slots", Used::Requests),
    ("state_resets", Used::Requests),
    ("c4_tokens", Used::C4),
    ("c4_slots", Used::C4),
    ("c128_tokens", Used::C128),
    ("c128_slots", Used::C128),
    ("sample_tokens", Used::Samples),
    ("restore_sources", Used::Restores),
    ("restore_targets", Used::Restores),
    ("save_sources", Used::Saves),
    ("save_targets", Used::Saves),
    ("token_sources", Used::Tokens),
    ("sample_starts", Used::RequestsAndOne),
    ("draft_widths", Used::Requests),
    ("next_tokens", Used::Requests),
    ("state_banks", Used::Requests),
    ("bank_writes", Used::Tokens),
];

impl Used {
    fn check(self, plan: &Plan, array: &[i32], columns: usize) -> u64 {
        let len = match self {
            Self::Tokens => plan.num_tokens,
            Self::Requests => plan.num_requests,
            Self::RequestsAndOne => plan.num_requests + 1,
            Self::C4 => plan.num_c4,
            Self::C128 => plan.num_c128,
            Self::Samples => plan.num_samples,
            Self::Restores => plan.num_restores,
            Self::Saves => plan.num_saves,
            Self::Rows => {
                let rows = array.chunks_exact(columns).take(plan.num_requests);
                // In four lanes, so that a row need not wait for the one before.
                let mut lanes = [0, 1, 2, 3];
                for (place, row) in rows.enumerate() {
                    let lane = &mut lanes[place % 4];
                    *lane = mix_until_zero(*lane, row);
                }
                return lanes.into_iter().fold(0, step);
            }
        };
        mix_ints(0, &array[..len.min(array.len())]) // arrays of drafts are empty without drafts
    }
}

/// One check per array of a step, by name.
pub(super) fn arrays<'a>(
    plan: &'a Plan,
    layout: &'a StepLayout,
    memory: &'a [i32],
) -> impl ExactSizeIterator<Item = (&'static str, u32)> + 'a {
    FIELDS.iter().zip(layout.fields()).map(move |(&(name, used), field)| {
        let len = field.shape.iter().product();
        let array = &memory[field.offset_bytes / 4..][..len];
        let columns = field.shape.last().copied().unwrap_or(1).max(1);
        (name, short(used.check(plan, array, columns)))
    })
}

/// The numbers of a plan, by name.
pub(super) fn numbers(plan: &Plan) -> [(&'static str, u64); NUM_NUMBERS] {
    [
        ("step_id", plan.step_id.0),
        ("num_tokens", plan.num_tokens as u64),
        ("num_requests", plan.num_requests as u64),
        ("num_samples", plan.num_samples as u64),
        ("num_c4", plan.num_c4 as u64),
        ("num_c128", plan.num_c128 as u64),
        ("num_prefill_tokens", plan.num_prefill_tokens as u64),
        ("num_forwarded", plan.num_forwarded as u64),
        ("num_draft_tokens", plan.num_draft_tokens as u64),
        ("max_seq_len", plan.max_seq_len as u64),
        ("band", plan.band as u64),
        ("num_restores", plan.num_restores as u64),
        ("num_saves", plan.num_saves as u64),
    ]
}

/// Of the lists of a plan.
pub(super) fn lists(plan: &Plan) -> u32 {
    let ids = |check, ids: &[RequestId]| mix_words(check, ids.iter().map(|id| id.0));
    let sizes = |check, sizes: &[usize]| mix_words(check, sizes.iter().map(|&size| size as u64));
    let check = ids(0, &plan.started_request_ids);
    let check = ids(sizes(check, &plan.started_cached_tokens), &plan.request_ids);
    let check = sizes(ids(check, &plan.sample_request_ids), &plan.sample_positions);
    short(sizes(check, &plan.sample_counts))
}

pub(super) fn outcome(outcome: &Outcome) -> u32 {
    let check = mix_words(0, outcome.request_ids.iter().map(|id| id.0));
    let check = mix(mix_ints(check, &outcome.tokens), &outcome.finished);
    let zeroed = outcome.to_zero.iter();
    let zeroed = zeroed.map(|&(group, id)| u64::from(id.get()) << 8 | group as u64);
    let check = mix_words(check, zeroed);
    if outcome.errands == Errands::default() {
        return short(check);
    }
    let mut errands = Writer::default();
    write_errands(&outcome.errands, &mut errands);
    short(mix(check, &errands.take()))
}

pub(super) fn refusal(error: &Error) -> u32 {
    short(mix(1, error.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::FIELDS;
    use crate::geometry::tests::flash;
    use crate::limits::Limits;
    use crate::metadata::StepLayout;

    #[test]
    fn every_array_of_a_step_is_checked() {
        let limits = Limits {
            max_model_len: 100,
            max_num_requests: 1,
            max_num_tokens: 1,
            max_queued_requests: 1,
            max_queued_tokens: 100,
            vocab_size: 9,
            max_steps_in_flight: 1,
            aging_steps: 1,
            prefix_cache: true,
            checkpoint_tokens: 0,
            max_draft_tokens: 0,
        };
        let layout = StepLayout::new(&flash(), &limits);
        let names = layout.fields().iter().map(|field| field.name);
        assert!(FIELDS.iter().map(|&(name, _)| name).eq(names), "add the new array to FIELDS");
    }
}
