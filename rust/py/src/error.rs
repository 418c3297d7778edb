//! The one place where errors of the core become exceptions of `dsv4.errors`.

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use dsv4_core::validate::Invalid;

static INVALID_REQUEST: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// `InvalidRequest` with its field and code.
pub(crate) fn refused(py: Python<'_>, invalid: &Invalid) -> PyErr {
    let arguments = (invalid.message.as_str(), invalid.param, invalid.code.as_str());
    raise(py, &INVALID_REQUEST, "InvalidRequest", arguments)
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
