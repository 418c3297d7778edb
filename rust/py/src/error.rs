//! The one place where errors of the core become exceptions of `dsv4.errors`.

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use dsv4_core::error::Error;
use dsv4_core::trace::TraceError;
use dsv4_core::validate::Invalid;

use crate::guarded::Lost;

static INVALID_REQUEST: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static QUEUE_FULL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static CONFIG_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static ENGINE_CLOSED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static MISUSE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static TRACE_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static VIOLATION: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// `InvalidRequest` with its field and code.
pub(crate) fn refused(py: Python<'_>, invalid: &Invalid) -> PyErr {
    let arguments = (invalid.message.as_str(), invalid.param, invalid.code.as_str());
    raise(py, &INVALID_REQUEST, "InvalidRequest", arguments)
}

/// The exception of an error of the core.
pub(crate) fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let (class, name) = match error {
        Error::Invalid(invalid) => return refused(py, invalid),
        Error::RoomTaken { .. } => {
            let arguments = (error.to_string(), "room", "invalid_value");
            return raise(py, &INVALID_REQUEST, "InvalidRequest", arguments);
        }
        Error::QueueFull { .. } | Error::RoomsFull { .. } => (&QUEUE_FULL, "QueueFull"),
        Error::Config(_) => (&CONFIG_ERROR, "ConfigError"),
        Error::Closed => (&ENGINE_CLOSED, "EngineClosed"),
        Error::Audit(_) => (&VIOLATION, "Violation"),
        Error::TooManySteps { .. }
        | Error::UnknownStep { .. }
        | Error::WrongSampleCount { .. }
        | Error::NoSuchSample { .. }
        | Error::NoSuchToken { .. }
        | Error::WrongDraftCount { .. }
        | Error::NoSuchDraft { .. }
        | Error::TooManyAccepted { .. }
        | Error::NotTheDraft { .. }
        | Error::UnknownRequest(_)
        | Error::NoRooms
        | Error::MemoryTooSmall { .. } => (&MISUSE, "Misuse"),
    };
    raise(py, class, name, (error.to_string(),))
}

/// `TraceError`, with how far the trace was good.
pub(crate) fn damaged(py: Python<'_>, error: &TraceError) -> PyErr {
    raise(py, &TRACE_ERROR, "TraceError", (error.to_string(),))
}

/// The exception of a call that found no core.
pub(crate) fn lost(py: Python<'_>, lost: &Lost) -> PyErr {
    match lost {
        Lost::Panicked(message) => {
            let message = format!("the core panicked and is closed: {message}");
            raise(py, &VIOLATION, "Violation", (message,))
        }
        Lost::Closed => {
            let message = "the core is closed: an earlier call panicked";
            raise(py, &ENGINE_CLOSED, "EngineClosed", (message,))
        }
    }
}

/// Makes the exception `name`; failing that, whatever went wrong while making it.
fn raise<'py>(
    py: Python<'py>,
    class: &PyOnceLock<Py<PyType>>,
    name: &str,
    arguments: impl PyCallArgs<'py>,
) -> PyErr {
    let made = class.import(py, "dsv4.errors", name).and_then(|class| class.call1(arguments));
    made.map_or_else(|error| error, PyErr::from_value)
}
