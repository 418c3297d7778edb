//! What a core is sized from: geometry, pools, limits, and the plan that derives one from the other.

use pyo3::prelude::*;

use dsv4_core::budget;
use dsv4_core::geometry;
use dsv4_core::limits;

use crate::error::raised;

/// What one model needs per block, per slot and per request; derived from the checkpoint's config.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Geometry(pub(crate) geometry::Geometry);

#[pymethods]
impl Geometry {
    #[new]
    #[pyo3(signature = (
        *, ratios, window, kv_data_bytes, kv_scale_bytes, kv_page_multiple, index_data_bytes,
        index_scale_bytes, c4_state_bytes, index_state_bytes, c128_state_bytes,
        block_tokens = 256, swa_block_tokens = 64, draft_tokens = 0, hc_mult = 0, hidden_size = 0
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the geometry's fields, by keyword")]
    fn new(
        py: Python<'_>,
        ratios: Vec<usize>,
        window: usize,
        kv_data_bytes: usize,
        kv_scale_bytes: usize,
        kv_page_multiple: usize,
        index_data_bytes: usize,
        index_scale_bytes: usize,
        c4_state_bytes: usize,
        index_state_bytes: usize,
        c128_state_bytes: usize,
        block_tokens: usize,
        swa_block_tokens: usize,
        draft_tokens: usize,
        hc_mult: usize,
        hidden_size: usize,
    ) -> PyResult<Self> {
        let geometry = geometry::Geometry {
            ratios,
            window,
            kv_data_bytes,
            kv_scale_bytes,
            kv_page_multiple,
            index_data_bytes,
            index_scale_bytes,
            c4_state_bytes,
            index_state_bytes,
            c128_state_bytes,
            block_tokens,
            swa_block_tokens,
            drafts: geometry::DraftRoom { tokens: draft_tokens, hc_mult, hidden: hidden_size },
        };
        geometry.check().map_err(|e| raised(py, &e))?;
        Ok(Self(geometry))
    }

    #[getter]
    fn full_block_bytes(&self) -> usize {
        self.0.full_block_bytes()
    }

    #[getter]
    fn swa_block_bytes(&self) -> usize {
        self.0.swa_block_bytes()
    }

    #[getter]
    fn state_slot_bytes(&self) -> usize {
        self.0.state_slot_bytes()
    }

    /// Rows of the C4 rings, and copies of the C128 state, of one slot in one layer.
    #[getter]
    fn c4_ring(&self) -> usize {
        self.0.c4_ring()
    }

    #[getter]
    fn c128_banks(&self) -> usize {
        self.0.c128_banks()
    }

    #[getter]
    fn swa_page_bytes(&self) -> usize {
        self.0.swa_page_bytes()
    }

    #[getter]
    fn c4_page_bytes(&self) -> usize {
        self.0.c4_page_bytes()
    }

    #[getter]
    fn c128_page_bytes(&self) -> usize {
        self.0.c128_page_bytes()
    }

    #[getter]
    fn index_page_bytes(&self) -> usize {
        self.0.index_page_bytes()
    }

    #[getter]
    fn bytes_per_token(&self) -> f64 {
        self.0.bytes_per_token()
    }

    #[getter]
    fn request_fixed_bytes(&self) -> usize {
        self.0.request_fixed_bytes()
    }
}

/// How many blocks of each group there are; id 0 of each group, the poison block, comes on top.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct PoolSizes(pub(crate) budget::PoolSizes);

#[pymethods]
impl PoolSizes {
    #[new]
    #[pyo3(signature = (*, full_blocks, swa_blocks, state_slots))]
    fn new(full_blocks: usize, swa_blocks: usize, state_slots: usize) -> Self {
        Self(budget::PoolSizes { full_blocks, swa_blocks, state_slots })
    }

    #[getter]
    fn full_blocks(&self) -> usize {
        self.0.full_blocks
    }

    #[getter]
    fn swa_blocks(&self) -> usize {
        self.0.swa_blocks
    }

    #[getter]
    fn state_slots(&self) -> usize {
        self.0.state_slots
    }
}

/// The largest legal step and queue. Everything is sized from these at start.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Limits(pub(crate) limits::Limits);

#[pymethods]
impl Limits {
    #[new]
    #[pyo3(signature = (
        *, max_model_len, max_num_requests, max_num_tokens, max_queued_requests,
        max_queued_tokens, vocab_size, max_steps_in_flight = 1, aging_steps = 256,
        prefix_cache = false, checkpoint_tokens = 0, max_draft_tokens = 0
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the limits' fields, by keyword")]
    fn new(
        py: Python<'_>,
        max_model_len: usize,
        max_num_requests: usize,
        max_num_tokens: usize,
        max_queued_requests: usize,
        max_queued_tokens: usize,
        vocab_size: usize,
        max_steps_in_flight: usize,
        aging_steps: usize,
        prefix_cache: bool,
        checkpoint_tokens: usize,
        max_draft_tokens: usize,
    ) -> PyResult<Self> {
        let limits = limits::Limits {
            max_model_len,
            max_num_requests,
            max_num_tokens,
            max_queued_requests,
            max_queued_tokens,
            vocab_size,
            max_steps_in_flight,
            aging_steps,
            prefix_cache,
            checkpoint_tokens,
            max_draft_tokens,
        };
        limits.check().map_err(|e| raised(py, &e))?;
        Ok(Self(limits))
    }

    #[getter]
    fn max_model_len(&self) -> usize {
        self.0.max_model_len
    }

    #[getter]
    fn max_num_requests(&self) -> usize {
        self.0.max_num_requests
    }

    #[getter]
    fn max_num_tokens(&self) -> usize {
        self.0.max_num_tokens
    }

    #[getter]
    fn max_queued_requests(&self) -> usize {
        self.0.max_queued_requests
    }

    #[getter]
    fn max_queued_tokens(&self) -> usize {
        self.0.max_queued_tokens
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    #[getter]
    fn max_steps_in_flight(&self) -> usize {
        self.0.max_steps_in_flight
    }

    #[getter]
    fn aging_steps(&self) -> usize {
        self.0.aging_steps
    }

    #[getter]
    fn prefix_cache(&self) -> bool {
        self.0.prefix_cache
    }

    #[getter]
    fn checkpoint_tokens(&self) -> usize {
        self.0.checkpoint_tokens
    }

    #[getter]
    fn max_draft_tokens(&self) -> usize {
        self.0.max_draft_tokens
    }
}

/// Outcome of `plan_memory`: pool sizes, their bytes, and what they serve.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct MemoryPlan(budget::MemoryPlan);

#[pymethods]
impl MemoryPlan {
    #[getter]
    fn sizes(&self) -> PoolSizes {
        PoolSizes(self.0.sizes)
    }

    #[getter]
    fn full_bytes(&self) -> usize {
        self.0.full_bytes
    }

    #[getter]
    fn swa_bytes(&self) -> usize {
        self.0.swa_bytes
    }

    #[getter]
    fn state_bytes(&self) -> usize {
        self.0.state_bytes
    }

    #[getter]
    fn transient_swa_blocks(&self) -> usize {
        self.0.transient_swa_blocks
    }

    /// The longest request (prompt and output) that these pools can hold alone.
    #[getter]
    fn max_request_tokens(&self) -> usize {
        self.0.max_request_tokens
    }

    /// Requests of `context` tokens that run at once.
    fn capacity(&self, context: usize) -> usize {
        self.0.capacity(context)
    }
}

/// How many blocks of each group fit in `total_bytes`, poison blocks included. Raises `ConfigError` with the numbers.
#[pyfunction]
pub(crate) fn plan_memory(
    py: Python<'_>,
    geometry: &Geometry,
    limits: &Limits,
    total_bytes: usize,
) -> PyResult<MemoryPlan> {
    let plan = budget::plan_memory(&geometry.0, &limits.0, total_bytes);
    plan.map(MemoryPlan).map_err(|e| raised(py, &e))
}
