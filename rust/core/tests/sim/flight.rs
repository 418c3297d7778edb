//! A step between its plan and its report.

use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::{Answer, Event, Plan};

use crate::arrays::{Arrays, at};
use crate::device::{Sample, Upset};

/// A step that the device has and has not reported.
#[derive(Debug)]
pub struct Flight {
    pub plan: Plan,
    /// What it was lent.
    pub memory: Vec<i32>,
    pub tags: Vec<u64>,
    row_starts: Vec<usize>,
    /// Drafts of each row that was sampled, in order.
    drafts: Vec<Vec<i32>>,
    pub upset: Upset,
    /// Samples whose logits alone are not finite.
    pub nan_logits: Vec<usize>,
    /// None while it has not run, and if it died.
    pub samples: Option<Vec<Sample>>,
    pub is_executed: bool,
}

/// What a step is reported as.
pub struct Report {
    step: StepId,
    tokens: Vec<i32>,
    non_finite: Vec<usize>,
    accepted: Vec<usize>,
    drafts: Vec<i32>,
}

impl Report {
    pub fn event(&self, is_verified: bool) -> Event<'_> {
        let Self { step, tokens, non_finite, accepted, drafts } = self;
        if is_verified {
            Event::Verified { step: *step, answer: Answer { tokens, non_finite, accepted, drafts } }
        } else {
            Event::StepDone { step: *step, tokens, non_finite }
        }
    }
}

/// The drafts that each sampled row brought.
fn drafts_of(plan: &Plan, arrays: &Arrays<'_>) -> Vec<Vec<i32>> {
    let rows = (0..plan.num_requests).map(|row| {
        let (start, end) = (at(arrays.query_starts[row]), at(arrays.query_starts[row + 1]));
        let width = arrays.draft_widths.get(row).map_or(0, |&width| at(width));
        let samples = arrays.sample_tokens[..plan.num_samples].iter();
        let is_sampled = samples.clone().any(|&token| (start..end).contains(&at(token)));
        is_sampled.then(|| arrays.token_ids[end - width..end].to_vec())
    });
    rows.flatten().collect()
}

impl Flight {
    /// A step just planned; its memory comes with it later.
    pub fn new(plan: Plan, tags: Vec<u64>, arrays: &Arrays<'_>, upset: Upset) -> Self {
        let starts = arrays.query_starts[..plan.num_requests].iter();
        Self {
            row_starts: starts.map(|&start| at(start)).collect(),
            drafts: drafts_of(&plan, arrays),
            plan,
            memory: vec![],
            tags,
            upset,
            nan_logits: vec![],
            samples: None,
            is_executed: false,
        }
    }

    /// What the device tells: samples, how many drafts were right, and what is drafted next.
    pub fn report(
        &self,
        max_draft_tokens: usize,
        propose: &mut impl FnMut(RequestId, &[i32], usize) -> Vec<i32>,
    ) -> Report {
        let num_samples = self.plan.num_samples;
        let mut samples = self.samples.clone().unwrap_or(vec![Some(0); num_samples]);
        for &sample in &self.nan_logits {
            samples[sample] = None;
        }
        let (mut accepted, mut next, mut first) = (vec![], vec![], 0);
        for brought in &self.drafts {
            let answers = &samples[first..=first + brought.len()];
            let right = brought.iter().zip(answers).take_while(|(draft, s)| **s == Some(**draft));
            let count = right.count();
            accepted.push(count);
            let told: Vec<i32> = answers[..=count].iter().map_while(|sample| *sample).collect();
            let id = self.plan.sample_request_ids[first];
            let mut drafts = propose(id, &told, max_draft_tokens);
            drafts.resize(max_draft_tokens, -1);
            next.extend(drafts);
            first += brought.len() + 1;
        }
        Report {
            step: self.plan.step_id,
            non_finite: (0..num_samples).filter(|&sample| samples[sample].is_none()).collect(),
            tokens: samples.iter().map(|sample| sample.unwrap_or(-1)).collect(),
            accepted,
            drafts: next,
        }
    }

    /// The row that a token of the step belongs to.
    pub fn row_of(&self, token: usize) -> usize {
        self.row_starts.partition_point(|&start| start <= token) - 1
    }
}
