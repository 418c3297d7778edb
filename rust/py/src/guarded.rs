//! One lock around the core, which survives a panic inside it.
//!
//! No panic is reachable from input. Should there be one all the same, the core's state is in
//! doubt: it is set aside, the caller is told what happened, and every later call finds the
//! core closed. No lock stays poisoned and nothing hangs.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// A value behind a lock, gone once a panic has been through it.
pub(crate) struct Guarded<T>(Mutex<Option<T>>);

/// Why a call did not reach the value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// This very call panicked, with this message.
    Panicked(String),
    /// An earlier call did.
    Closed,
}

impl<T> Guarded<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    /// Runs `call` alone with the value.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut T) -> R) -> Result<R, Lost> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = slot.as_mut().ok_or(Lost::Closed)?;
        catch_unwind(AssertUnwindSafe(|| call(value))).map_err(|panic| {
            mem::forget(slot.take()); // its destructors might panic again
            Lost::Panicked(message(panic.as_ref()))
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}
