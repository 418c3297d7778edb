//! Owner of every block of KV memory, and planner of every step: a pure state machine.
#![forbid(unsafe_code)]

pub mod validate;
