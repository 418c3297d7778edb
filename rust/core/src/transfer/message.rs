//! What workers say to each other about rooms: blocks and counts, never bytes.
//!
//! ```text
//!   decode                                             prefill (each rank)
//!     ── Join: this room is mine, this is the prompt ──▶
//!     ◀── Want: I am about to compute it ──────────────
//!     ── Offer: write here ────────────────────────────▶
//!     ◀── ChunkDone 1 .. n ────────────────────────────   (landed, before it is said)
//!     ◀── Final: all landed ───────────────────────────
//!     ── Commit: checked, it is mine now ──────────────▶
//!   either side, at any time:  Abort ──▶   ◀── AbortAck, Refuse
//! ```
//! Every message may be lost, repeated, late and out of order; each is safe to say again, and each
//! that waits for an answer is said again. The envelope (sender, receiver, sequence, MAC) is the
//! wire's: it delivers to the incarnation that is addressed or not at all.

use crate::transfer::ids::{Epoch, Room};

/// One message between two workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// About one room.
    About {
        /// Which.
        room: Room,
        /// Which attempt.
        epoch: Epoch,
        /// What is said.
        word: Word,
    },
    /// The sender lives, and has these rooms with the receiver.
    Beat(Beat),
    /// The same in full, after a `Beat` that did not match.
    Rooms(Vec<(Room, Epoch)>),
}

/// What is said about a room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word {
    /// D to P: this room is mine. Refused if P has another prompt.
    Join(Prompt),
    /// P to D: an Offer would be used soon.
    Want,
    /// D to P: addresses. From here on the receiver may write.
    Offer(Offer),
    /// P to D: one chunk has landed.
    ChunkDone {
        /// Its number, from 1.
        chunk: u32,
        /// Blocks, slots and rows that were written for it.
        items: u32,
        /// Over its content.
        digest: u64,
    },
    /// P to D: everything has landed, and nothing will be written any more.
    Final {
        /// How many chunks there were.
        chunks: u32,
        /// Over the digests of the chunks.
        digest: u64,
    },
    /// D to P: all checks passed; the room is over.
    Commit,
    /// Either: the room is given up.
    Abort(Reason),
    /// P to D, about an abort.
    AbortAck {
        /// All that was posted has landed or was never posted, and nothing will be posted again.
        /// False: not yet, or a transfer failed and proves nothing.
        drained: bool,
    },
    /// Either: not with me.
    Refuse(Refusal),
}

/// What both sides must agree on before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prompt {
    /// Tokens of the prompt.
    pub num_tokens: u32,
    /// Over the tokens.
    pub hash: u128,
}

/// One block, slot or row in D's memory. Lives tell one use of it from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Its index there.
    pub block: u32,
    /// Which life of that index.
    pub generation: u32,
}

/// Where to write, in logical order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offer {
    /// The same as in `Join`, which may come later or never.
    pub prompt: Prompt,
    /// How often D had cut this peer's way in when it told this; the addresses are no longer good
    /// behind the next cut.
    pub num_fences: u32,
    /// Tokens that D has already, a multiple of a full block; their blocks are not offered.
    pub num_cached_tokens: u32,
    /// Full blocks behind those.
    pub full: Vec<Target>,
    /// Window blocks of the prompt's tail, whatever is cached.
    pub swa: Vec<Target>,
    /// The slot of compressor state, already reset.
    pub state: Target,
    /// The row of what goes along.
    pub aux: Target,
}

/// Why a room was given up; the same word on every rank and on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Reason {
    Cancelled,
    Deadline,
    /// The peer, or this worker's way to it, is gone.
    PeerLost,
    /// The peer was silent for a whole lease.
    LeaseExpired,
    /// The peer does not have the room, or not any more.
    Refused(Refusal),
    /// Lists that should correspond do not have the same length.
    LengthMismatch,
    /// A chunk, or the number of chunks, is not what the plan says.
    ItemsMismatch,
    DigestMismatch,
    /// The aux row is of another room, another attempt or another peer.
    TagMismatch,
    NonFinite,
    /// The transport gave a transfer up.
    TransferFailed,
    PromptTooLong,
    /// The rank that the room's number stands for is not the one that was asked for.
    RoomDpRankMismatch,
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Never heard of it, and will not from now on. Proves that nothing was ever written.
    Unknown,
    /// It was, and is over; nothing will be written any more.
    Closed,
    /// The prompts differ. Proves nothing: an answer to `Abort` does.
    PromptMismatch,
    /// No room for one more. Proves nothing.
    Busy,
}

/// A digest of the rooms that the sender has with the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Beat {
    /// How many.
    pub count: u32,
    /// Of their keys, mixed.
    pub xor: u64,
}

impl Beat {
    /// Over these rooms, in any order.
    pub fn over(rooms: impl Iterator<Item = (Room, Epoch)>) -> Self {
        rooms.fold(Self::default(), |beat, (room, epoch)| Self {
            count: beat.count + 1,
            xor: beat.xor ^ mixed(room, epoch),
        })
    }
}

/// Spreads a key over 64 bits, so that neighbours do not cancel out.
fn mixed(room: Room, epoch: Epoch) -> u64 {
    let mut z = room.0 ^ u64::from(epoch.0).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The digest over all chunks: the sum of theirs, as theirs are sums over their items. Whoever looks at
/// all of it at once comes to the same, however it was divided.
pub fn fold(digests: impl Iterator<Item = u64>) -> u64 {
    digests.fold(0, u64::wrapping_add)
}
