//! What comes out of the core: the step layout, plans and outcomes. Lists are made when asked for.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use dsv4_core::ids::RequestId;
use dsv4_core::{self, metadata};

use crate::rooms::Errands;

/// One array of a step inside the lent buffer.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Field(pub(crate) metadata::Field);

#[pymethods]
impl Field {
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    #[getter]
    fn offset(&self) -> usize {
        self.0.offset_bytes
    }

    /// Capacity; a step uses the leading part. Always int32, always at a multiple of 64 bytes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.shape)
    }
}

/// One decided step. Its arrays are in the lent buffer; these are the scalars.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Plan(pub(crate) dsv4_core::Plan);

#[pymethods]
impl Plan {
    #[getter]
    fn step_id(&self) -> u64 {
        self.0.step_id.0
    }

    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.num_tokens
    }

    #[getter]
    fn num_requests(&self) -> usize {
        self.0.num_requests
    }

    #[getter]
    fn num_samples(&self) -> usize {
        self.0.num_samples
    }

    #[getter]
    fn num_c4(&self) -> usize {
        self.0.num_c4
    }

    #[getter]
    fn num_c128(&self) -> usize {
        self.0.num_c128
    }

    #[getter]
    fn num_prefill_tokens(&self) -> usize {
        self.0.num_prefill_tokens
    }

    /// Tokens that the step before samples; `token_sources` says which sample each is.
    #[getter]
    fn num_forwarded(&self) -> usize {
        self.0.num_forwarded
    }

    /// Tokens that are drafts, to be verified.
    #[getter]
    fn num_draft_tokens(&self) -> usize {
        self.0.num_draft_tokens
    }

    #[getter]
    fn max_seq_len(&self) -> usize {
        self.0.max_seq_len
    }

    /// Place in the recipe of the band under which the step was chosen.
    #[getter]
    fn band(&self) -> usize {
        self.0.band
    }

    /// State slots to copy before the step's kernels, from `restore_sources` to `restore_targets`.
    #[getter]
    fn num_restores(&self) -> usize {
        self.0.num_restores
    }

    /// State slots to copy after the step's kernels, from `save_sources` to `save_targets`.
    #[getter]
    fn num_saves(&self) -> usize {
        self.0.num_saves
    }

    /// Requests that start, or start again, in this step.
    #[getter]
    fn started_request_ids(&self) -> Vec<u64> {
        numbers(&self.0.started_request_ids)
    }

    /// How many tokens of each of them the prefix cache had.
    #[getter]
    fn started_cached_tokens(&self) -> Vec<usize> {
        self.0.started_cached_tokens.clone()
    }

    /// Request of each row, in row order.
    #[getter]
    fn request_ids(&self) -> Vec<u64> {
        numbers(&self.0.request_ids)
    }

    /// Request of each sample, in the order of `sample_tokens`.
    #[getter]
    fn sample_request_ids(&self) -> Vec<u64> {
        numbers(&self.0.sample_request_ids)
    }

    /// How many tokens the request had generated before each sample (0 for its first), drafts included.
    #[getter]
    fn sample_positions(&self) -> Vec<usize> {
        self.0.sample_positions.clone()
    }

    /// Samples of each request that has some: one, and one per draft.
    #[getter]
    fn sample_counts(&self) -> Vec<usize> {
        self.0.sample_counts.clone()
    }
}

/// What `advance` settled: an entry per token that counts and per request that ended without one, in order of the events.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Outcome(pub(crate) dsv4_core::Outcome);

#[pymethods]
impl Outcome {
    #[getter]
    fn request_ids(&self) -> Vec<u64> {
        numbers(&self.0.request_ids)
    }

    /// The token, or -1 where a request ended without one.
    #[getter]
    fn tokens(&self) -> Vec<i32> {
        self.0.tokens.clone()
    }

    /// 0 goes on, 1 stop token, 2 length, 3 stopped by the text layer, 4 non-finite logits, 5 violation,
    /// 6 its prompt did not come, or did not get there.
    #[getter]
    fn finished(&self) -> Vec<u32> {
        self.0.finished.iter().map(|&code| u32::from(code)).collect() // a list, where u8 makes bytes
    }

    /// ("full" | "swa" | "state", block) of each block to fill with zeros before the next step runs.
    #[getter]
    fn to_zero(&self) -> Vec<(String, u32)> {
        self.0.to_zero.iter().map(|(group, id)| (group.to_string(), id.get())).collect()
    }

    /// What there is to do for rooms.
    #[getter]
    fn errands(&self) -> Errands {
        Errands(self.0.errands.clone())
    }
}

fn numbers(ids: &[RequestId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}
