//! Memory that Python lends: the one file with `unsafe`.
//!
//! A step's arrays are written straight into a buffer that Python owns. [`Lent::writable`]
//! checks everything that makes the address usable (format, writability, contiguity, size,
//! alignment) and holds the export for as long as it lives, so that the memory cannot move,
//! shrink or vanish meanwhile. [`Lent::fill`] is the only way to the memory.
//!
//! The other way round, [`exact_int32`] reads the lists and tuples of small integers that prompts are.

use std::ops::Range;
use std::slice;
use std::sync::{Mutex, PoisonError};

use pyo3::buffer::{PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Step arrays start at multiples of this many bytes, and so does the memory.
const ALIGN_BYTES: usize = 64;

/// Addresses that are being written right now, by any thread, for any core.
static BEING_FILLED: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// A writable, contiguous, aligned buffer of int32, lent by Python.
pub(crate) struct Lent {
    buffer: PyUntypedBuffer,
}

impl Lent {
    /// Borrows `object`, of at least `need_bytes` bytes; `BufferError` says what is wrong with it.
    pub(crate) fn writable(object: &Bound<'_, PyAny>, need_bytes: usize) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        let refuse = |what: String| Err(PyBufferError::new_err(format!("memory {what}")));
        if !holds_int32(&buffer) {
            return refuse(format!(
                "holds items of format {:?} and {} bytes; lend int32",
                buffer.format(),
                buffer.item_size()
            ));
        }
        if buffer.readonly() {
            return refuse("is read-only; lend a writable buffer".into());
        }
        if !buffer.is_c_contiguous() {
            return refuse("is not contiguous; lend a whole array, not a strided view".into());
        }
        if buffer.len_bytes() < need_bytes {
            return refuse(format!(
                "has {} bytes; a step needs {need_bytes} (step_bytes)",
                buffer.len_bytes()
            ));
        }
        let offset_bytes = buffer.buf_ptr() as usize % ALIGN_BYTES;
        if offset_bytes != 0 {
            return refuse(format!(
                "starts {offset_bytes} bytes past a multiple of {ALIGN_BYTES}; align it to {ALIGN_BYTES}"
            ));
        }
        Ok(Self { buffer })
    }

    /// Runs `write` with the memory, or refuses if another call is writing there.
    pub(crate) fn fill<R>(&mut self, write: impl FnOnce(&mut [i32]) -> R) -> Result<R, Busy> {
        let len = self.buffer.len_bytes() / size_of::<i32>();
        let start = self.buffer.buf_ptr() as usize;
        let _claim = Claim::new(start..start + len * size_of::<i32>())?;
        let pointer = self.buffer.buf_ptr().cast::<i32>();
        if len == 0 {
            return Ok(write(&mut []));
        }
        #[expect(unsafe_code, reason = "the one place where lent memory becomes a slice")]
        // SAFETY: `writable` found `pointer` to be the start of `len` contiguous, writable int32
        // at a multiple of 64 bytes (so it is not null, and aligned for i32), all initialised
        // as far as Rust is concerned, because any 32 bits are an i32 and the buffer protocol
        // exports live memory. The export held in `self.buffer` keeps the memory alive and in
        // place. `_claim` excludes every other slice made here, and `self` is borrowed
        // mutably; the slice ends with this call. What remains is the lender's part of the
        // contract, as for any extension that works outside the interpreter lock: Python code
        // does not touch the memory while the call that it was lent to runs.
        let memory = unsafe { slice::from_raw_parts_mut(pointer, len) };
        Ok(write(memory))
    }
}

/// The memory is being filled by another call.
#[derive(Debug)]
pub(crate) struct Busy;

impl From<Busy> for PyErr {
    fn from(_: Busy) -> Self {
        PyBufferError::new_err(
            "memory is being filled by another call; lend each step in flight its own memory",
        )
    }
}

/// The right to write to a range of addresses, for as long as it lives.
struct Claim(Range<usize>);

impl Claim {
    fn new(range: Range<usize>) -> Result<Self, Busy> {
        let mut claimed = BEING_FILLED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.iter().any(|other| other.start < range.end && range.start < other.end) {
            return Err(Busy);
        }
        claimed.push(range.clone());
        Ok(Self(range))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = BEING_FILLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = claimed.iter().position(|range| *range == self.0) {
            claimed.swap_remove(index);
        }
    }
}

/// The contents of `object` if it exports a buffer of int32, in order; None if it exports none.
pub(crate) fn read_int32(object: &Bound<'_, PyAny>) -> PyResult<Option<Vec<i32>>> {
    let Ok(buffer) = PyUntypedBuffer::get(object) else {
        return Ok(None);
    };
    if !holds_int32(&buffer) || buffer.dimensions() != 1 {
        return Err(PyBufferError::new_err(format!(
            "the buffer has {} dimensions of format {:?}; pass one dimension of int32, or a list",
            buffer.dimensions(),
            buffer.format()
        )));
    }
    let buffer: PyBuffer<i32> = buffer.into_typed()?;
    buffer.to_vec(object.py()).map(Some)
}

/// The integers of a list or a tuple, if all of them are of the very type int and of 32 bits; None
/// otherwise, and whoever asks goes the long way.
///
/// Twice as fast as an iterator: no references are counted, and no object is made.
pub(crate) fn exact_int32(sequence: &Bound<'_, PyAny>) -> Option<Vec<i32>> {
    let get = if sequence.is_exact_instance_of::<PyList>() {
        ffi::PyList_GetItem
    } else if sequence.is_exact_instance_of::<PyTuple>() {
        ffi::PyTuple_GetItem
    } else {
        return None;
    };
    let len = ffi::Py_ssize_t::try_from(sequence.len().ok()?).ok()?;
    let small_int = |index| {
        let mut overflow = 0;
        #[expect(unsafe_code, reason = "a borrowed item, for as long as it takes to read it")]
        // SAFETY: `get` is the one of the sequence's type, and the interpreter is attached, as the
        // Bound says. The call checks the place; outside, it returns null and sets an exception that
        // is cleared at once. The item is borrowed from the sequence; between there and here
        // nothing runs that could take it out: an exact int has no method of its own, so that reading
        // it runs no Python code and sets no exception, and the interpreter's lock is held
        // (the limited API that this is built for knows no interpreter without one).
        let value = unsafe {
            let item = get(sequence.as_ptr(), index);
            if item.is_null() {
                ffi::PyErr_Clear();
                return None;
            }
            if ffi::PyLong_CheckExact(item) == 0 {
                return None;
            }
            ffi::PyLong_AsLongAndOverflow(item, &raw mut overflow)
        };
        if overflow == 0 { i32::try_from(value).ok() } else { None }
    };
    (0..len).map(small_int).collect()
}

/// Native 32-bit integers. The formats are listed here because a foreign byte order must not pass.
fn holds_int32(buffer: &PyUntypedBuffer) -> bool {
    let little: &[&[u8]] = if cfg!(target_endian = "little") { &[b"<i", b"<l"] } else { &[] };
    let format = buffer.format().to_bytes();
    let native: [&[u8]; 5] = [b"i", b"@i", b"=i", b"l", b"=l"];
    buffer.item_size() == size_of::<i32>() && (native.contains(&format) || little.contains(&format))
}
