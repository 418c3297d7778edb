//! What rooms say and are told, in a trace: each type is written and read by one line of a list.

use super::bytes::{Read, Reader, Unreadable, Writer};
use crate::core::{Check, Errands, OnFailure, Posting, Reset, RoomSettings, Side, Transfer};
use crate::ids::RequestId;
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use crate::transfer::message::{Beat, Message, Offer, Prompt, Reason, Refusal, Target, Word};
use crate::transfer::placement::Placement;
use crate::transfer::proof::{Evidence, Transport};
use crate::transfer::receiving::{Inspection, Tag};
use crate::transfer::runs::{Copies, Run};
use crate::transfer::timing::Timing;

/// Something that is written and comes back the same.
pub(super) trait Part: Sized {
    fn write(&self, to: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Read<Self>;
}

/// A struct: its fields in this order.
macro_rules! fields {
    ($($type:ty { $($field:ident),* })*) => {$(
        impl Part for $type {
            fn write(&self, to: &mut Writer) {
                let Self { $($field),* } = self;
                $($field.write(to);)*
            }

            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Ok(Self { $($field: Part::read(from)?),* })
            }
        }
    )*};
}

/// An enum: the place of the variant in this list, then what it holds.
macro_rules! variants {
    ($($type:ident { $($at:literal $variant:ident
        $(($($item:ident),*))? $({ $($field:ident),* })?),* })*) => {$(
        impl Part for $type {
            fn write(&self, to: &mut Writer) {
                match self {$(
                    Self::$variant $(($($item),*))? $({ $($field),* })? => {
                        to.number($at);
                        $($($item.write(to);)*)?
                        $($($field.write(to);)*)?
                    }
                )*}
            }

            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Ok(match from.number()? {
                    $($at => Self::$variant
                        $(($({ let $item = Part::read(from)?; $item }),*))?
                        $({ $($field: Part::read(from)?),* })?,)*
                    _ => return Err(Unreadable::Nonsense(concat!("no such ", stringify!($type)))),
                })
            }
        }
    )*};
}

/// One number around another.
macro_rules! wraps {
    ($($type:ident)*) => {$(
        impl Part for $type {
            fn write(&self, to: &mut Writer) {
                self.0.write(to);
            }

            fn read(from: &mut Reader<'_>) -> Read<Self> {
                Part::read(from).map(Self)
            }
        }
    )*};
}

/// Numbers of at most 64 bits.
macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Part for $type {
            fn write(&self, to: &mut Writer) {
                to.number(u64::try_from(*self).expect("no wider than 64 bits"));
            }

            fn read(from: &mut Reader<'_>) -> Read<Self> {
                let number = from.number()?;
                number.try_into().map_err(|_| Unreadable::Nonsense("a number is too large"))
            }
        }
    )*};
}

numbers! { u16 u32 u64 usize }
wraps! { Room Epoch Incarnation Ticket RequestId }

fields! {
    PeerRank { incarnation, rank }
    RoomKey { room, epoch, peer }
    Prompt { num_tokens, hash }
    Target { block, generation }
    Offer { prompt, num_fences, num_cached_tokens, full, swa, state, aux }
    Beat { count, xor }
    Tag { room, epoch, writer }
    Inspection { tag, digests, non_finite }
    Timing { first_repeat, last_repeat, beat, suspect, lease, tombstone }
    Placement { rank, size }
    RoomSettings {
        side, placement, transport, timing, max_rooms, max_bytes_in_flight, deadline_ms
    }
    Transfer { room, epoch, peer, peer_ranks, on_failure }
    Run { source, target, count }
    Copies { full, swa, state, aux }
}

variants! {
    Side { 0 Prefill, 1 Decode }
    OnFailure { 0 Recompute, 1 Fail }
    Transport { 0 InProcess, 1 Tcp, 2 SharedMemory, 3 NixlCma, 4 NixlTcp, 5 NixlRdma }
    Evidence {
        0 TaskJoined, 1 ReceiverJoined, 2 ProcessExit, 3 AgentDestroyed, 4 ExitAndAgentDestroyed
    }
    Refusal { 0 Unknown, 1 Closed, 2 PromptMismatch, 3 Busy }
    Reason {
        0 Cancelled, 1 Deadline, 2 PeerLost, 3 LeaseExpired, 4 Refused(refusal),
        5 LengthMismatch, 6 ItemsMismatch, 7 DigestMismatch, 8 TagMismatch, 9 NonFinite,
        10 TransferFailed, 11 PromptTooLong, 12 RoomDpRankMismatch
    }
    Word {
        0 Join(prompt), 1 Want, 2 Offer(offer), 3 ChunkDone { chunk, items, digest },
        4 Final { chunks, digest }, 5 Commit, 6 Abort(reason), 7 AbortAck { drained },
        8 Refuse(refusal)
    }
    Message { 0 About { room, epoch, word }, 1 Beat(beat), 2 Rooms(rooms) }
}

impl Part for bool {
    fn write(&self, to: &mut Writer) {
        to.number(u64::from(*self));
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Ok(from.number()? != 0)
    }
}

impl Part for u128 {
    fn write(&self, to: &mut Writer) {
        for half in [*self & u128::from(u64::MAX), *self >> 64] {
            to.number(u64::try_from(half).expect("64 bits"));
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let low = from.number()?;
        Ok(u128::from(low) | u128::from(from.number()?) << 64)
    }
}

impl Part for i32 {
    fn write(&self, to: &mut Writer) {
        to.whole(i128::from(*self));
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        let whole = from.whole()?;
        whole.try_into().map_err(|_| Unreadable::Nonsense("a number is no int32"))
    }
}

/// What `advance` wants done for rooms; never read back, only compared.
pub(super) fn write_errands(errands: &Errands, to: &mut Writer) {
    let Errands { resets, messages, postings, checks } = errands;
    to.count(resets.len());
    for Reset { group, block } in resets {
        to.number(*group as u64);
        block.get().write(to);
    }
    messages.write(to);
    to.count(postings.len());
    for Posting { key, ticket, copies } in postings {
        key.write(to);
        ticket.write(to);
        copies.write(to);
    }
    to.count(checks.len());
    for Check { request, key, aux } in checks {
        request.write(to);
        key.write(to);
        aux.get().write(to);
    }
}

impl<T: Part> Part for Option<T> {
    fn write(&self, to: &mut Writer) {
        to.number(u64::from(self.is_some()));
        if let Some(part) = self {
            part.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        if from.number()? == 0 { Ok(None) } else { T::read(from).map(Some) }
    }
}

impl<T: Part> Part for Vec<T> {
    fn write(&self, to: &mut Writer) {
        to.count(self.len());
        for part in self {
            part.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        (0..from.count()?).map(|_| T::read(from)).collect()
    }
}

impl<A: Part, B: Part> Part for (A, B) {
    fn write(&self, to: &mut Writer) {
        self.0.write(to);
        self.1.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Read<Self> {
        Ok((A::read(from)?, B::read(from)?))
    }
}
