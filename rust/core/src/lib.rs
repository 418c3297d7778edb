//! Owner of every block of KV memory, and planner of every step: a pure state machine.
//!
//! No Python, no clock, no thread, no file, no randomness: time and events arrive as arguments,
//! so the same calls give the same plans anywhere.
//!
//! ```text
//!   submit ─▶ queue ─▶ admit ─▶ schedule ─▶ metadata ─▶ Plan          a step goes out
//!                                  ▲                      │
//!                                  └────── advance ◀──────┘ Event    what happened comes in
//! ```
//! Life of a block: [`pool`]. Life of a request: `request`. What holds at all times:
//!
//! 1. Every block is in exactly one state, and the counts per state add up to the capacity.
//! 2. A block is free again only when every step that may read it is done.
//! 3. Only the request that holds an open block writes it; a sealed block is never written.
//! 4. A request starts with all it needs or not at all; with nothing in flight, some request moves.
//! 5. A call that is refused changes nothing.
//! 6. A block that somebody elsewhere may write is nobody else's before that one is proved gone.
//! 7. What the prefix cache lends holds exactly the tokens that were asked for, and is never
//!    written again.
#![forbid(unsafe_code)]

// Floors, lowest first, a paragraph each: a module uses only paragraphs above its own
// (tests/core/test_floors_rust.py).
pub mod error;
pub mod ids;
mod planted;
mod short;
mod tokens;

pub mod geometry;
pub mod limits;
pub mod recipe;
pub mod validate;

pub mod transfer;

pub mod block;
pub mod budget;
pub mod pool;

pub mod table;

pub mod prefix;

mod evict;
pub mod metadata;

pub mod admit;
mod request;

mod schedule;

mod audit;
pub mod core;
pub mod trace;

#[cfg(test)]
mod violations;

pub use crate::core::{
    Answer, Check, Core, Errands, Event, NewRequest, OnFailure, Outcome, Plan, Posting, Reset,
    RoomSettings, Side, Transfer,
};
pub use crate::request::Finish;
