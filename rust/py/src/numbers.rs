//! Numbers and lists as a caller wrote them. What is too large saturates here and is refused by
//! the validator, with the field's name and its limit.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use dsv4_core::validate::{self, Code, Invalid};

use crate::error::refused;

/// An integer of any size, saturated to 128 bits, which is outside every range of ours.
#[derive(Clone, Copy)]
pub(crate) struct Whole(pub(crate) i128);

impl<'py> FromPyObject<'_, 'py> for Whole {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        saturate(object, i128::MIN, i128::MAX).map(Self)
    }
}

/// A real number; an integer too large for a float is infinite.
#[derive(Clone, Copy)]
pub(crate) struct Real(pub(crate) f64);

impl<'py> FromPyObject<'_, 'py> for Real {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        saturate(object, f64::NEG_INFINITY, f64::INFINITY).map(Self)
    }
}

fn saturate<'py, T>(object: Borrowed<'_, 'py, PyAny>, low: T, high: T) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    match object.extract::<T>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            Ok(if object.lt(0)? { low } else { high })
        }
        other => other,
    }
}

/// The entries of a sequence, counted against `limit` before any of them is converted.
pub(crate) fn entries<'py, T>(
    object: &Bound<'py, PyAny>,
    param: &'static str,
    limit: usize,
    mut convert: impl FnMut(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    if object.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(format!("{param} is one string; pass a list of entries")));
    }
    validate::check_count(param, object.len()?, limit).map_err(|e| refused(object.py(), &e))?;
    object.try_iter()?.take(limit + 1).map(|entry| convert(&entry?)).collect()
}

/// The text of a string; one with lone surrogates has none.
pub(crate) fn text(object: &Bound<'_, PyAny>, param: &'static str) -> PyResult<String> {
    object.extract().map_err(|error: PyErr| {
        if !error.is_instance_of::<PyUnicodeEncodeError>(object.py()) {
            return error;
        }
        let message = format!("{param} holds a lone surrogate, which is not valid Unicode");
        refused(object.py(), &Invalid { param, code: Code::InvalidValue, message })
    })
}
