//! `Core`: one lock around the core, and the interpreter released while it works.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use dsv4_core::error::Error;
use dsv4_core::ids::RequestId;
use dsv4_core::trace::Recorded;
use dsv4_core::validate::{Capacity, MAX_ENDINGS};
use dsv4_core::{self, NewRequest};

use crate::error::{lost, raised};
use crate::event::Event;
use crate::guarded::Guarded;
use crate::memory::Lent;
use crate::numbers::{Whole, entries, prompt_ids};
use crate::plan::{Field, Outcome, Plan};
use crate::recipe::Recipe;
use crate::rooms::{Transfer, settings};
use crate::sizes::{Geometry, Limits, PoolSizes};

/// Plan out, events in. Thread-safe; every call is short; no call blocks.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Core {
    inner: Guarded<Recorded>,
    layout: dsv4_core::metadata::StepLayout,
    capacity: Capacity,
}

impl Core {
    /// Runs `call` with the core, without the interpreter.
    fn call<R: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut Recorded) -> Result<R, Error> + Send,
    ) -> PyResult<R> {
        match py.detach(|| self.inner.with(call)) {
            Ok(answer) => answer.map_err(|e| raised(py, &e)),
            Err(e) => Err(lost(py, &e)),
        }
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (geometry, sizes, limits, recipe = None))]
    fn new(
        py: Python<'_>,
        geometry: &Geometry,
        sizes: &PoolSizes,
        limits: &Limits,
        recipe: Option<&Recipe>,
    ) -> PyResult<Self> {
        let core = Recorded::new(geometry.0.clone(), &sizes.0, limits.0.clone());
        let mut core = core.map_err(|e| raised(py, &e))?;
        if let Some(Recipe(recipe)) = recipe {
            core.follow(recipe.clone()).map_err(|e| raised(py, &e))?;
        }
        let (layout, capacity) = (core.layout().clone(), *core.capacity());
        Ok(Self { inner: Guarded::new(core), layout, capacity })
    }

    /// The step layout: every array, its capacity and offset.
    #[getter]
    fn step_fields(&self) -> Vec<Field> {
        self.layout.fields().iter().cloned().map(Field).collect()
    }

    #[getter]
    fn step_bytes(&self) -> usize {
        self.layout.num_bytes()
    }

    /// Rows and values of host memory that draft layers start from; (0, 0) where nothing is drafted.
    #[getter]
    fn seed_shape(&self) -> (usize, usize) {
        let seeds = self.layout.seeds();
        (seeds.rows, seeds.values)
    }

    #[getter]
    fn layout_hash(&self) -> String {
        format!("{:016x}", self.layout.hash())
    }

    /// Validates and enqueues; returns the request id. Raises `InvalidRequest` or `QueueFull`, changing nothing.
    #[pyo3(
        signature = (prompt, *, max_tokens, min_tokens = None, stop_token_ids = None, priority = None,
            cache_salt = None, no_cache = false, transfer = None),
        text_signature = "($self, prompt, *, max_tokens, min_tokens=0, stop_token_ids=(), priority=0, cache_salt=None, no_cache=False, transfer=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are the request's fields, by keyword")]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        max_tokens: Whole,
        min_tokens: Option<Whole>,
        stop_token_ids: Option<&Bound<'_, PyAny>>,
        priority: Option<Whole>,
        cache_salt: Option<&str>,
        no_cache: bool,
        transfer: Option<&Transfer>,
    ) -> PyResult<u64> {
        let prompt = prompt_ids(prompt, &self.capacity)?;
        let stop_token_ids = stop_token_ids.map(|list| {
            entries(list, "stop_token_ids", MAX_ENDINGS, |id| id.extract().map(|Whole(id)| id))
        });
        let stop_token_ids = stop_token_ids.transpose()?.unwrap_or_default();
        let or_zero = |number: Option<Whole>| number.map_or(0, |Whole(number)| number);
        let new = NewRequest {
            prompt,
            max_tokens: max_tokens.0,
            min_tokens: or_zero(min_tokens),
            stop_token_ids: &stop_token_ids,
            priority: or_zero(priority),
            cache_salt: cache_salt.unwrap_or_default(),
            no_cache,
            transfer: transfer.map(|other| other.0.clone()),
        };
        self.call(py, |core| core.submit(new)).map(|id| id.0)
    }

    /// From now on requests may have another side; told once, before the first of them.
    /// `dp`: which rank of a prefill worker this is, and of how many; rooms of other ranks are refused.
    #[pyo3(signature = (side, *, transport, max_rooms, max_bytes_in_flight, deadline_ms = 300_000, dp = None))]
    #[expect(clippy::too_many_arguments, reason = "they are the settings, by keyword")]
    fn open_rooms(
        &self,
        py: Python<'_>,
        side: &str,
        transport: &str,
        max_rooms: usize,
        max_bytes_in_flight: u64,
        deadline_ms: u64,
        dp: Option<(u32, u32)>,
    ) -> PyResult<()> {
        let settings = settings(side, transport, max_rooms, max_bytes_in_flight, deadline_ms, dp)?;
        self.call(py, |core| core.open_rooms(&settings))
    }

    /// Decides the next step and fills `memory` (writable, contiguous, at least `step_bytes`, aligned to 64).
    fn plan(&self, py: Python<'_>, memory: &Bound<'_, PyAny>) -> PyResult<Option<Plan>> {
        let mut memory = Lent::writable(memory, self.layout.num_bytes())?;
        let planned = py.detach(|| memory.fill(|words| self.inner.with(|core| core.plan(words))));
        match planned? {
            Ok(plan) => plan.map(|plan| plan.map(Plan)).map_err(|e| raised(py, &e)),
            Err(e) => Err(lost(py, &e)),
        }
    }

    /// Applies what happened, or refuses all of it.
    fn advance(&self, py: Python<'_>, events: &Bound<'_, PyAny>) -> PyResult<Outcome> {
        let events: Vec<Event> =
            events.try_iter()?.map(|event| Event::of(&event?)).collect::<PyResult<_>>()?;
        let borrowed: Vec<dsv4_core::Event<'_>> = events.iter().map(Event::borrow).collect();
        self.call(py, |core| core.advance(&borrowed)).map(Outcome)
    }

    /// True if it was waiting or running. Idempotent; an unknown id is False.
    fn abort(&self, py: Python<'_>, request_id: Whole) -> PyResult<bool> {
        let Ok(id) = u64::try_from(request_id.0) else { return Ok(false) };
        self.call(py, |core| Ok(core.abort(RequestId(id))))
    }

    /// Counters and gauges by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, value) in self.call(py, |core| Ok(core.stats()))? {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }

    /// What a request is doing and, if it waits, for what.
    fn explain(&self, py: Python<'_>, request_id: u64) -> PyResult<String> {
        self.call(py, |core| Ok(core.explain(RequestId(request_id))))
    }

    /// Which band of the recipe is in force, why, and when it changes.
    fn explain_recipe(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |core| Ok(core.explain_recipe()))
    }

    /// Raises Violation unless every block is in exactly one place.
    fn audit(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |core| core.audit())
    }

    /// Records every call from now on, which must be before the first. Raises `ConfigError` afterwards.
    fn record(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, Recorded::record)
    }

    /// The bytes of the trace that came since the last time; put together, they are the trace.
    fn take_trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.call(py, |core| Ok(core.take_trace()))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Ends every request; idempotent. `submit`, `plan` and `advance` raise `EngineClosed` afterwards.
    fn shutdown(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |core| {
            core.shutdown();
            Ok(())
        })
    }
}
