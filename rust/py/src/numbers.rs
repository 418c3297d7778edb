//! Numbers and lists as a caller wrote them. What is too large saturates here and is refused by
//! the validator, with the field's name and its limit.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use dsv4_core::validate::{self, Capacity, Code, Invalid};

use crate::error::refused;
use crate::memory::{exact_int32, read_int32};

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

/// Integers of 32 bits: a buffer of them, or any sequence.
pub(crate) fn int32s(object: &Bound<'_, PyAny>) -> PyResult<Vec<i32>> {
    if let Some(numbers) = exact_int32(object) {
        return Ok(numbers);
    }
    let is_list = object.is_exact_instance_of::<PyList>();
    let numbers = if is_list { None } else { read_int32(object)? };
    numbers.map_or_else(|| object.extract(), Ok)
}

/// The ids of a prompt. One too long for any context is refused before its ids are looked at, and
/// one that is no 32-bit integer is outside every vocabulary.
pub(crate) fn prompt_ids(object: &Bound<'_, PyAny>, has: &Capacity) -> PyResult<Vec<i32>> {
    let py = object.py();
    validate::check_lengths(object.len()?.max(1), None, 0, has).map_err(|e| refused(py, &e))?;
    int32s(object).or_else(|error| {
        if !error.is_instance_of::<PyOverflowError>(py) {
            return Err(error);
        }
        object.try_iter()?.map(|id| small_id(&id?, has)).collect()
    })
}

fn small_id(object: &Bound<'_, PyAny>, has: &Capacity) -> PyResult<i32> {
    let Whole(id) = object.extract()?;
    validate::check_token("prompt", id, has.vocab_size).map_err(|e| refused(object.py(), &e))?;
    object.extract()
}
