//! `dsv4._core`: the Rust core of dsv4 as Python sees it. Conversions only; no decision is made here.

mod error;
mod guarded;
mod memory;
mod numbers;
mod sampling;

use pyo3::prelude::*;

/// The Rust core of dsv4: owner of every block of KV memory, and planner of every step.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::sampling::check_sampling;
}
