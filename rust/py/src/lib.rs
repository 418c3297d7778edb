//! `dsv4._core`: the Rust core of dsv4 as Python sees it. Conversions only; no decision is made here.

mod core;
mod error;
mod event;
mod guarded;
mod memory;
mod message;
mod numbers;
mod plan;
mod recipe;
mod rooms;
mod sampling;
mod sizes;
mod trace;

use pyo3::prelude::*;

/// The Rust core of dsv4: owner of every block of KV memory, and planner of every step.
#[pymodule(gil_used = false)]
mod _core {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_export]
    use crate::core::Core;
    #[pymodule_export]
    use crate::event::{StepDone, Stopped, Tick};
    #[pymodule_export]
    use crate::message::Message;
    #[pymodule_export]
    use crate::plan::{Field, Outcome, Plan};
    #[pymodule_export]
    use crate::recipe::{Band, Recipe};
    #[pymodule_export]
    use crate::rooms::{Errands, Posting, RoomEvent, Transfer};
    #[pymodule_export]
    use crate::sampling::check_sampling;
    #[pymodule_export]
    use crate::sizes::{Geometry, Limits, MemoryPlan, PoolSizes, plan_memory};
    #[pymodule_export]
    use crate::trace::{Replay, replay_trace};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("build_info", format!("dsv4-core {} {profile}", env!("CARGO_PKG_VERSION")))
    }
}
