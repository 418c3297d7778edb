//! Replaying what a core recorded.

use pyo3::prelude::*;

use dsv4_core::trace;

use crate::error::damaged;

/// What a replay found: how much was done again, and the first answer that was another.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Replay(trace::Report);

#[pymethods]
impl Replay {
    /// Calls that were made again, without the one that differs.
    #[getter]
    fn num_calls(&self) -> usize {
        self.0.num_calls
    }

    #[getter]
    fn num_requests(&self) -> usize {
        self.0.num_requests
    }

    #[getter]
    fn num_steps(&self) -> usize {
        self.0.num_steps
    }

    /// Tokens of these steps, prompts included.
    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.num_tokens
    }

    /// The last call is the shutdown: nothing is missing at the end.
    #[getter]
    fn is_complete(&self) -> bool {
        self.0.is_complete
    }

    /// The first answer that is not what the trace says, and both; None if all are the same.
    #[getter]
    fn difference(&self) -> Option<String> {
        self.0.difference.as_ref().map(ToString::to_string)
    }
}

/// Makes the calls of a trace again. Raises `TraceError` for bytes that are damaged, cut, or none.
#[pyfunction]
pub(crate) fn replay_trace(py: Python<'_>, trace: &[u8]) -> PyResult<Replay> {
    let report = py.detach(|| trace::replay(trace));
    report.map(Replay).map_err(|e| damaged(py, &e))
}
