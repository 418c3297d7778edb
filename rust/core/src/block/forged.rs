//! Handles that no caller can come by, for tests that break every precondition.
//!
//! Compiled with the feature `forged` alone, which nothing that ships turns on. It adds these four
//! constructors and changes nothing else.

use std::marker::PhantomData;

use super::{Block, Cached, Hold, Open, Role, Sealed, Shared};
use crate::ids::BlockId;
use crate::pool::Pool;

fn forged<S>(pool: &Pool, place: usize, generation: u32, role: Role) -> Block<S> {
    let hold = Hold { pool: pool.share(), id: BlockId::at(place), generation, role };
    Block { hold, state: PhantomData }
}

/// A handle on the block of a place in the slot table, as if that life of it were open.
pub fn open(pool: &Pool, place: usize, generation: u32) -> Block<Open> {
    forged(pool, place, generation, Role::Owner)
}

/// The same, as if it were sealed.
pub fn sealed(pool: &Pool, place: usize, generation: u32) -> Block<Sealed> {
    forged(pool, place, generation, Role::Owner)
}

/// The same, as if it were read.
pub fn shared(pool: &Pool, place: usize, generation: u32) -> Block<Shared> {
    forged(pool, place, generation, Role::Reader)
}

/// The same, as if the cache kept it.
pub fn cached(pool: &Pool, place: usize, generation: u32) -> Block<Cached> {
    forged(pool, place, generation, Role::Keeper)
}
