//! Prompts computed by one worker and decoded by another: rooms, as plain data and pure machines.
//!
//! - `ids`, `message`, `proof`: names, what is said, what counts
//! - `placement`, `prealloc`, `runs`: arithmetic of rooms, of what is taken, of what is copied
//!
//! Nothing here knows a pool or a block's handle; everything can be cloned, compared and hashed, so
//! that a search over all small worlds walks through these machines and not through a model of them.

pub mod ids;
pub mod message;
pub mod placement;
pub mod prealloc;
pub mod proof;
pub mod runs;
