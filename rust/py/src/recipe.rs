//! Recipes: limits per concurrency, as data.

use pyo3::prelude::*;

use dsv4_core::recipe;

/// What holds from some number of requests on.
#[pyclass(frozen, module = "dsv4._core", from_py_object)]
#[derive(Clone)]
pub(crate) struct Band(recipe::Band);

#[pymethods]
impl Band {
    #[new]
    #[pyo3(signature = (*, name, min_requests, max_num_requests, max_num_tokens, max_draft_tokens = 0))]
    fn new(
        name: String,
        min_requests: usize,
        max_num_requests: usize,
        max_num_tokens: usize,
        max_draft_tokens: usize,
    ) -> Self {
        Self(recipe::Band {
            name,
            min_requests,
            max_num_requests,
            max_num_tokens,
            max_draft_tokens,
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn min_requests(&self) -> usize {
        self.0.min_requests
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
    fn max_draft_tokens(&self) -> usize {
        self.0.max_draft_tokens
    }
}

/// The bands of one device and model, in order.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Recipe(pub(crate) recipe::Recipe);

#[pymethods]
impl Recipe {
    #[new]
    #[pyo3(signature = (*, name, bands, dwell_steps = 16, margin_percent = 25))]
    fn new(name: String, bands: Vec<Band>, dwell_steps: usize, margin_percent: usize) -> Self {
        let bands = bands.into_iter().map(|Band(band)| band).collect();
        Self(recipe::Recipe { name, bands, dwell_steps, margin_percent })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn bands(&self) -> Vec<Band> {
        self.0.bands.iter().cloned().map(Band).collect()
    }

    #[getter]
    fn dwell_steps(&self) -> usize {
        self.0.dwell_steps
    }

    #[getter]
    fn margin_percent(&self) -> usize {
        self.0.margin_percent
    }
}
