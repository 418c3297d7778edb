//! Requests with two sides: who arrives, who departs, and what there is to tell and to do for them.
//!
//! ```text
//!   Event::Peer, TicketEnded, Checked, PeerGone, Tick        Outcome: resets, messages, postings,
//!            │                                                        checks         ▲
//!            ▼                                                                       │
//!   machines of the rooms (`transfer`) ── actions ──▶ holds and requests (here, receive, send)
//! ```
//! Requests are here, outside the queue and the running list, as long as the other side has to act.

use std::collections::BTreeMap;

use super::receive::{Arriving, Landing};
use super::send::{Departing, Sources};
use crate::ids::{BlockId, Group, RequestId};
use crate::request::{Decoding, Rank, Request};
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use crate::transfer::message::Message;

/// Which part of a request is done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The prompt; the tokens are generated elsewhere.
    Prefill,
    /// The generation; the prompt is computed elsewhere.
    Decode,
}

/// What a decode side does when the prompt does not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Computes it itself, once.
    #[default]
    Recompute,
    /// Ends the request.
    Fail,
}

/// The other side of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Transfer {
    pub side: Side,
    pub room: Room,
    pub epoch: Epoch,
    pub peer: Incarnation,
    /// Ranks of the peer that write to this one, or that this one writes to; at least one.
    pub peer_ranks: Vec<u16>,
    pub on_failure: OnFailure,
}

/// To be reset in this worker's memory before the messages of the same outcome are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// A state slot (m = -inf, scores -inf, rest 0), or the tag of an aux row (0).
    pub group: Group,
    /// Which.
    pub block: BlockId,
}

/// To be posted: one ticket for one rank, item lists that correspond by position.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Posting {
    pub ticket: Ticket,
    pub request: RequestId,
    pub to: PeerRank,
    pub sources: Sources,
}

/// An aux row has landed: to be read and checked, and answered with [`Event::Checked`].
///
/// [`Event::Checked`]: crate::Event::Checked
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Check {
    pub request: RequestId,
    pub key: RoomKey,
    pub aux: BlockId,
}

/// What there is to do outside for the rooms, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Errands {
    pub resets: Vec<Reset>,
    pub messages: Vec<(PeerRank, Message)>,
    pub postings: Vec<Posting>,
    pub checks: Vec<Check>,
}

impl Errands {
    pub(super) fn append(&mut self, other: &mut Self) {
        self.resets.append(&mut other.resets);
        self.messages.append(&mut other.messages);
        self.postings.append(&mut other.postings);
        self.checks.append(&mut other.checks);
    }
}

/// All requests of this core whose other side is elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    /// Their prompt comes from elsewhere.
    pub(super) arriving: BTreeMap<RequestId, Arriving>,
    /// Those of them that may land, in the order in which they do.
    pub(super) wanted: BTreeMap<Rank, RequestId>,
    /// One that has waited so long that nobody behind it may start or land.
    pub(super) overdue: Option<Rank>,
    /// Their prompt is here, and all rows of a step are taken.
    pub(super) seats: BTreeMap<Rank, Decoding>,
    /// Their tokens are generated elsewhere.
    pub(super) departing: BTreeMap<RequestId, Departing>,
    /// Those of them that have not asked for a place, in the order in which they will.
    pub(super) parked: BTreeMap<Rank, RequestId>,
    pub(super) by_key: BTreeMap<RoomKey, RequestId>,
    last_ticket: u64,
    pub(crate) num_stale_proofs: usize,
    pub(crate) num_recomputed: usize,
}

impl Rooms {
    /// Requests that have a landing, with what they hold.
    pub(crate) fn landings(&self) -> impl Iterator<Item = (&Request, &Landing)> {
        self.arriving.values().filter_map(|arriving| {
            arriving.landing.as_ref().map(|landing| (&arriving.request, landing))
        })
    }

    /// Requests whose prompt is here and that do not run yet.
    pub(crate) fn seats(&self) -> impl Iterator<Item = &Decoding> {
        self.seats.values()
    }

    /// Rows of what goes along that requests hold.
    pub(crate) fn num_aux_rows(&self) -> usize {
        let departing = self.departing.values().filter(|departing| departing.holds_aux());
        departing.count() + self.landings().count()
    }

    /// Requests that wait for the other side, and their tokens.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let arriving = self.arriving.values().map(|arriving| arriving.request.tokens.len());
        let departing = self.departing.values().filter_map(Departing::waits_with);
        arriving.chain(departing).fold((0, 0), |(count, sum), tokens| (count + 1, sum + tokens))
    }

    /// Are the tokens of this request generated elsewhere?
    pub(super) fn departs(&self, id: RequestId) -> bool {
        self.departing.contains_key(&id)
    }

    /// May a request of this rank not start, because one before it has waited too long to land?
    pub(super) fn is_held_back(&self, rank: Rank) -> bool {
        self.overdue.is_some_and(|first| first < rank)
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// For good: its room goes on without it, if it is not over.
    pub(super) fn take_arriving(&mut self, id: RequestId) -> Option<Arriving> {
        let arriving = self.arriving.remove(&id)?;
        self.wanted.remove(&arriving.request.rank);
        self.by_key.remove(&arriving.key);
        if self.overdue == Some(arriving.request.rank) {
            self.overdue = None;
        }
        Some(arriving)
    }

    /// The same for the other side.
    pub(super) fn take_departing(&mut self, id: RequestId) -> Option<Departing> {
        let departing = self.departing.remove(&id)?;
        self.by_key.remove(&departing.key);
        if let Some(rank) = departing.parked_rank() {
            self.parked.remove(&rank);
        }
        Some(departing)
    }
}
