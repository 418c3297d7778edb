//! What goes into the core: events.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use dsv4_core::ids::{RequestId, StepId};

use crate::numbers::int32s;
use crate::rooms::RoomEvent;

/// Event: a step completed. tokens[i] belongs to sample i of that plan; `non_finite` lists samples with NaN or inf.
/// With drafts, `accepted` counts those that are right and `drafts` are the next ones.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct StepDone {
    step: StepId,
    tokens: Vec<i32>,
    non_finite: Vec<usize>,
    accepted: Vec<usize>,
    drafts: Vec<i32>,
}

#[pymethods]
impl StepDone {
    #[new]
    #[pyo3(
        signature = (step_id, tokens, non_finite = None, accepted = None, drafts = None),
        text_signature = "(step_id, tokens, non_finite=(), accepted=(), drafts=())"
    )]
    fn new(
        step_id: u64,
        tokens: &Bound<'_, PyAny>,
        non_finite: Option<Vec<usize>>,
        accepted: Option<Vec<usize>>,
        drafts: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Ok(Self {
            step: StepId(step_id),
            tokens: int32s(tokens)?,
            non_finite: non_finite.unwrap_or_default(),
            accepted: accepted.unwrap_or_default(),
            drafts: drafts.map(int32s).transpose()?.unwrap_or_default(),
        })
    }
}

/// Event: the text layer found a stop string; the request ends as if by a stop token.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Stopped(RequestId);

#[pymethods]
impl Stopped {
    #[new]
    fn new(request_id: u64) -> Self {
        Self(RequestId(request_id))
    }
}

/// Event: time passed; microseconds of a monotonic clock.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Tick(u64);

#[pymethods]
impl Tick {
    #[new]
    fn new(now_us: u64) -> Self {
        Self(now_us)
    }
}

/// Any event, kept alive for the call.
pub(crate) enum Event {
    StepDone(Py<StepDone>),
    Stopped(RequestId),
    Tick(u64),
    Room(Py<RoomEvent>),
}

impl Event {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(done) = object.cast::<StepDone>() {
            Ok(Self::StepDone(done.clone().unbind()))
        } else if let Ok(stopped) = object.cast::<Stopped>() {
            Ok(Self::Stopped(stopped.get().0))
        } else if let Ok(tick) = object.cast::<Tick>() {
            Ok(Self::Tick(tick.get().0))
        } else if let Ok(event) = object.cast::<RoomEvent>() {
            Ok(Self::Room(event.clone().unbind()))
        } else {
            let kind = object.get_type().qualname()?;
            Err(PyTypeError::new_err(format!(
                "{kind} is no event; pass StepDone, Stopped, RoomEvent or Tick"
            )))
        }
    }

    /// As the core takes it; the lists are borrowed, for events are frozen.
    pub(crate) fn borrow(&self) -> dsv4_core::Event<'_> {
        match self {
            Self::StepDone(done) => {
                let StepDone { step, tokens, non_finite, accepted, drafts } = done.get();
                let answer = dsv4_core::Answer { tokens, non_finite, accepted, drafts };
                dsv4_core::Event::Verified { step: *step, answer }
            }
            Self::Stopped(id) => dsv4_core::Event::Stopped(*id),
            Self::Tick(now_us) => dsv4_core::Event::Tick(*now_us),
            Self::Room(event) => event.get().borrow(),
        }
    }
}
