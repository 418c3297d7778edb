//! Handles of blocks: thin, move-only, made by a pool and by nothing else.
//!
//! ```text
//!   Pool::take ──▶ Block<Open> ──seal──▶ Block<Sealed> ──share──▶ Block<Shared> ◀──lend─┐
//!        settle ───▶ │    │ drop            │ drop                 │  │ keep ──▶ Block<Cached>
//!          │ disclose│    ▼                 ▼                      ▼  ▼ last drop of all   │
//!          │         │ Retired(newest step that may read it) ◀────────────────────────────┘
//!          │         ▼                               ▲ the last writer is proved gone
//!        Block<Incoming> ──drop──▶ Quarantined ──────┘
//! ```
//! Open and sealed blocks have one handle. A shared block has one per reader, and one per place in
//! the cache that keeps it; when only the cache keeps it, it is evictable.
//!
//! A handle has no `Clone` and no public constructor; a transition consumes it. Giving a block up
//! is dropping its handle, which can happen only once:
//!
//! ```compile_fail,E0382
//! use dsv4_core::ids::{Group, RequestId};
//! use dsv4_core::pool::Pool;
//!
//! let pool = Pool::new(Group::Full, 4);
//! let block = pool.take(RequestId(1)).expect("4 blocks are free");
//! drop(block);
//! drop(block); // use of moved value
//! ```
//!
//! The same without the second drop compiles:
//!
//! ```
//! use dsv4_core::ids::{Group, RequestId};
//! use dsv4_core::pool::Pool;
//!
//! let pool = Pool::new(Group::Full, 4);
//! let block = pool.take(RequestId(1)).expect("4 blocks are free");
//! drop(block);
//! assert_eq!(pool.counts().retired, 1);
//! ```
//!
//! A block that others may write is neither sealed nor shared nor copied; its request may settle it,
//! once they are all proved gone, or drop it:
//!
//! ```compile_fail,E0599
//! # use dsv4_core::block::{Block, Incoming};
//! fn seal(block: Block<Incoming>) { let _ = block.seal(); }
//! ```
//! ```compile_fail,E0599
//! # use dsv4_core::block::{Block, Incoming};
//! fn share(block: Block<Incoming>) { let _ = block.share(); }
//! ```
//! ```compile_fail,E0599
//! # use dsv4_core::block::{Block, Incoming};
//! fn copy(block: &Block<Incoming>) -> Block<Incoming> { block.clone() }
//! ```
//! ```
//! # use dsv4_core::block::{Block, Incoming};
//! fn settle(block: Block<Incoming>) { let _ = block.settle(); }
//! ```

#[cfg(feature = "forged")]
pub mod forged;

use std::fmt;
use std::marker::PhantomData;

use crate::error::Violation;
use crate::ids::BlockId;
use crate::pool::Pool;
use crate::transfer::ids::{Ticket, WriterKey};
use crate::transfer::message::Target;

/// Being written by its request.
#[derive(Debug)]
pub enum Open {}

/// Being written by others, whom its address was disclosed to. Its request may only wait for the
/// last of them, or drop it.
#[derive(Debug)]
pub enum Incoming {}

/// Full; nobody may write it any more.
#[derive(Debug)]
pub enum Sealed {}

/// Full, and read by whoever holds one of these; there may be many.
#[derive(Debug)]
pub enum Shared {}

/// Kept by the prefix cache; dropping it is evicting it.
#[derive(Debug)]
pub enum Cached {}

/// States in which a block holds rows that may be sent elsewhere.
pub trait Sendable {}

impl Sendable for Open {}
impl Sendable for Sealed {}
impl Sendable for Shared {}

/// Hold on one block in state `S`; gives it up when dropped.
#[must_use = "dropping a block gives it up"]
pub struct Block<S> {
    hold: Hold,
    state: PhantomData<fn() -> S>,
}

/// The part that gives the block up: private, no `Clone`, exactly one `Drop`.
struct Hold {
    pool: Pool,
    id: BlockId,
    generation: u32,
    role: Role,
}

/// What a hold counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The only one there is.
    Owner,
    /// One of those that read.
    Reader,
    /// One place in the cache.
    Keeper,
}

impl<S> Block<S> {
    /// The block's number.
    pub fn id(&self) -> BlockId {
        self.hold.id
    }

    /// Which life of that number this is.
    pub fn generation(&self) -> u32 {
        self.hold.generation
    }
}

impl<S: Sendable> Block<S> {
    /// A transfer reads the block until [`Pool::end_read`], whatever becomes of this handle.
    pub fn read_by(&self, ticket: Ticket) -> Result<(), Violation> {
        self.hold.pool.begin_read(self.hold.id, self.hold.generation, ticket)
    }
}

impl Block<Open> {
    /// The one constructor, for the pool that just took the block from its free list.
    pub(crate) fn taken(pool: Pool, id: BlockId, generation: u32) -> Self {
        Self { hold: Hold { pool, id, generation, role: Role::Owner }, state: PhantomData }
    }

    /// Closes the block for writing. A refusal is a violation, and gives the handle back.
    pub fn seal(self) -> Result<Block<Sealed>, Refused<Block<Open>>> {
        match self.hold.pool.seal(self.hold.id, self.hold.generation) {
            Ok(()) => Ok(Block { hold: self.hold, state: PhantomData }),
            Err(violation) => Err(Refused { block: self, violation }),
        }
    }

    /// Lets others write the block from now on: to be called before its address is sent. A
    /// refusal is a violation, and gives the handle back.
    pub fn disclose(self, writers: &[WriterKey]) -> Result<Block<Incoming>, Refused<Block<Open>>> {
        match self.hold.pool.disclose(self.hold.id, self.hold.generation, writers) {
            Ok(()) => Ok(Block { hold: self.hold, state: PhantomData }),
            Err(violation) => Err(Refused { block: self, violation }),
        }
    }
}

impl Block<Incoming> {
    /// How others name it.
    pub fn target(&self) -> Target {
        Target { block: self.id().get(), generation: self.generation() }
    }

    /// Takes the block back once every writer is discharged; before that it is a violation. A
    /// refusal gives the handle back.
    pub fn settle(self) -> Result<Block<Open>, Refused<Block<Incoming>>> {
        match self.hold.pool.settle(self.hold.id, self.hold.generation) {
            Ok(()) => Ok(Block { hold: self.hold, state: PhantomData }),
            Err(violation) => Err(Refused { block: self, violation }),
        }
    }
}

impl Block<Sealed> {
    /// Lets others read the block too. A refusal is a violation, and gives the handle back.
    pub fn share(mut self) -> Result<Block<Shared>, Refused<Block<Sealed>>> {
        match self.hold.pool.share_block(self.hold.id, self.hold.generation) {
            Ok(()) => {
                self.hold.role = Role::Reader;
                Ok(Block { hold: self.hold, state: PhantomData })
            }
            Err(violation) => Err(Refused { block: self, violation }),
        }
    }
}

impl Block<Shared> {
    /// A hold for the cache, which outlives the readers.
    pub fn keep(&self) -> Result<Block<Cached>, Violation> {
        self.hold.another(Role::Keeper)
    }
}

impl Block<Cached> {
    /// A hold for one more reader.
    pub fn lend(&self) -> Result<Block<Shared>, Violation> {
        self.hold.another(Role::Reader)
    }

    /// Does nobody read it?
    pub(crate) fn is_idle(&self) -> bool {
        self.hold.pool.state().is_cached(self.hold.id, self.hold.generation)
    }
}

impl Hold {
    fn another<S>(&self, role: Role) -> Result<Block<S>, Violation> {
        self.pool.count_hold(self.id, self.generation, role)?;
        let (id, generation) = (self.id, self.generation);
        let hold = Self { pool: self.pool.share(), id, generation, role };
        Ok(Block { hold, state: PhantomData })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pool.give_up(self.id, self.generation, self.role);
    }
}

impl<S> fmt::Debug for Block<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} life {})", self.hold.id, self.hold.generation)
    }
}

/// A transition that did not happen, with the handle that was to make it.
#[derive(Debug)]
pub struct Refused<B> {
    /// As it was.
    pub block: B,
    /// Why.
    pub violation: Violation,
}
