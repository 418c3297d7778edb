//! How large a world is searched, and by which rules its memory is given out.

use dsv4_core::transfer::proof::Transport;

/// One world.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind of fault")]
pub struct Scope {
    pub name: &'static str,
    /// Requests that compete for the blocks of one decode worker.
    pub requests: usize,
    /// Blocks of that worker. A request takes as many as it has chunks.
    pub blocks: usize,
    /// Ranks of the prefill worker, each of which writes.
    pub ranks: usize,
    /// Chunks of a prompt; each rank posts one ticket for each.
    pub chunks: usize,
    /// Attempts of one request: epochs of its room.
    pub attempts: usize,
    /// Tickets may end in an error, with bytes that land later or never.
    pub errors: bool,
    /// The prefill worker may give up by itself.
    pub prefill_aborts: bool,
    /// What lands may be found wrong.
    pub corrupt: bool,
    /// The prefill worker may die and come back as another incarnation.
    pub prefill_crash: bool,
    /// The decode worker may die and come back as another incarnation.
    pub decode_crash: bool,
    /// The decode worker may cut the way in, and connect again.
    pub fence: bool,
    pub arm: Arm,
}

/// By which rule blocks are freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// By proofs.
    Sound,
    /// When the request is over.
    FreedAtOnce,
    /// After a time.
    TimeProves,
    /// When the writer's process is gone, although the kernel still delivers.
    DeathProves,
    /// By a fence, after which the peer connects again without giving up what it had.
    FenceForgotten,
}

impl Arm {
    /// What the decode worker believes of its transport. The bytes always behave as over TCP.
    pub fn transport(self) -> Transport {
        match self {
            Self::DeathProves => Transport::NixlCma,
            _ => Transport::NixlTcp,
        }
    }
}

/// Everything small: the base of all scopes.
pub const BASE: Scope = Scope {
    name: "base",
    requests: 2,
    blocks: 1,
    ranks: 1,
    chunks: 1,
    attempts: 1,
    errors: true,
    prefill_aborts: true,
    corrupt: true,
    prefill_crash: true,
    decode_crash: false,
    fence: false,
    arm: Arm::Sound,
};
