//! Prompts computed by one worker and decoded by another: rooms, as plain data and pure machines.
//!
//! - `ids`, `message`, `proof`: names, what is said, what counts
//! - `placement`, `prealloc`, `runs`: arithmetic of rooms, of what is taken, of what is copied
//! - `receiving`, `sending`: one room on either side; `action`: what they want done
//! - `rooms`: all rooms of a worker; `tombstones`: those that are over; `timing`: durations
//!
//! Nothing here knows a pool or a block's handle; everything can be cloned, compared and hashed, so
//! that a search over all small worlds walks through these machines and not through a model of them
//! (`tests/search`).

pub mod action;
pub mod ids;
pub mod message;
pub mod placement;
pub mod prealloc;
pub mod proof;
pub mod receiving;
pub mod rooms;
pub mod runs;
pub mod sending;
pub mod timing;
pub mod tombstones;
