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
use std::ops::Bound;

use super::outbox::{Outbox, Posting};
use super::receive::{Arriving, Landing};
use super::send::Departing;
use super::turns::Turns;
use crate::ids::{BlockId, Group, RequestId};
use crate::planted::{self, Bug};
use crate::request::{Decoding, Rank, Request};
use crate::transfer::action::Oddity;
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use crate::transfer::message::Message;
use crate::transfer::placement::Placement;
use crate::transfer::proof::Transport;
use crate::transfer::rooms::{Rooms as Machines, Side};
use crate::transfer::timing::Timing;

/// What a decode side does when the prompt does not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Computes it itself, once.
    #[default]
    Recompute,
    /// Ends the request.
    Fail,
}

/// The other side of a request: it is computed there, or decoded, as this worker's side has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Transfer {
    pub room: Room,
    pub epoch: Epoch,
    pub peer: Incarnation,
    /// Ranks of the peer that write to this worker, at least one; a prefill worker needs none.
    pub peer_ranks: Vec<u16>,
    pub on_failure: OnFailure,
}

/// What a worker that has rooms is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct RoomSettings {
    pub side: Side,
    /// Of a prefill worker with several ranks, which this is: rooms of others are refused.
    pub placement: Option<Placement>,
    pub transport: Transport,
    pub timing: Timing,
    /// Most rooms, live and remembered.
    pub max_rooms: usize,
    /// Most bytes on their way to one peer; a single ticket may be larger.
    pub max_bytes_in_flight: u64,
    /// How long a request waits for its other side, from its submission on: a peer that lives may
    /// still never hear of a room.
    pub deadline_ms: u64,
}

/// To be reset in this worker's memory before the messages of the same outcome are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// A state slot (m = -inf, scores -inf, rest 0), or the tag of an aux row (0).
    pub group: Group,
    /// Which.
    pub block: BlockId,
}

/// An aux row has landed: to be read and checked, and answered with [`Event::Inspected`].
///
/// [`Event::Inspected`]: crate::Event::Inspected
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
    pub(super) turns: Turns,
    pub(super) by_key: BTreeMap<RoomKey, RequestId>,
    /// None: this worker has no rooms.
    pub(super) machines: Option<Machines>,
    pub(super) outbox: Outbox,
    deadline_us: u64,
    /// When it was told the time first.
    pub(super) first_us: Option<u64>,
    /// Up to when the machines were told the time.
    pub(super) counted_us: Option<u64>,
    last_ticket: u64,
    pub(super) num_stale_proofs: usize,
    pub(super) num_recomputed: usize,
    oddities: BTreeMap<Oddity, usize>,
}

impl Rooms {
    /// From now on this worker has rooms.
    pub(crate) fn open(&mut self, settings: &RoomSettings) {
        let &RoomSettings {
            side,
            placement,
            transport,
            timing,
            max_rooms,
            max_bytes_in_flight,
            deadline_ms,
        } = settings;
        let machines = Machines::new(side, transport, timing, max_rooms);
        self.machines = Some(machines.placed(placement));
        self.outbox = Outbox::new(max_bytes_in_flight);
        self.deadline_us = deadline_ms.saturating_mul(1000);
    }

    pub(crate) fn side(&self) -> Option<Side> {
        self.machines.as_ref().map(Machines::side)
    }

    pub(super) fn count(&mut self, oddity: Oddity) {
        *self.oddities.entry(oddity).or_default() += 1;
    }

    /// The other side is about to compute this prompt.
    pub(super) fn wanted(&mut self, key: RoomKey) {
        let id = self.by_key.get(&key);
        let Some(arriving) = id.and_then(|id| self.arriving.get(id)) else { return };
        if arriving.landing.is_none() {
            self.wanted.insert(arriving.request.asked.rank, arriving.request.id);
        }
    }

    /// The first that may land after this one.
    pub(super) fn wanted_after(&self, rank: Option<Rank>) -> Option<(Rank, RequestId)> {
        let from = rank.map_or(Bound::Unbounded, Bound::Excluded);
        self.wanted.range((from, Bound::Unbounded)).next().map(|(&rank, &id)| (rank, id))
    }

    /// The first request that has waited too long, and its room.
    pub(super) fn expired(&self, now_us: u64) -> Option<(RequestId, RoomKey)> {
        if planted::is(Bug::DeadlineIgnored) {
            return None;
        }
        let first_us = self.first_us?; // before it was told the time, it cannot know
        let is_over = |since_us: u64| now_us - since_us.max(first_us) > self.deadline_us;
        let arriving = self.arriving.first_key_value();
        let arriving = arriving.map(|(&id, a)| (a.request.asked.submitted_us, id, a.key));
        let departing = self.departing.first_key_value();
        let departing = departing.map(|(&id, d)| (d.submitted_us, id, d.key));
        let mut oldest = [arriving, departing].into_iter().flatten();
        oldest.find(|&(since_us, ..)| is_over(since_us)).map(|(_, id, key)| (id, key))
    }

    /// All requests that are here.
    pub(super) fn ids(&self) -> Vec<RequestId> {
        let seats = self.seats.values().map(|seated| seated.active.request.id);
        self.arriving.keys().chain(self.departing.keys()).copied().chain(seats).collect()
    }

    /// Counters and gauges by name.
    pub(crate) fn stats(&self) -> Vec<(&'static str, usize)> {
        let (num_held, num_posted) = self.outbox.counts();
        let odd = |oddity| self.oddities.get(&oddity).copied().unwrap_or_default();
        vec![
            ("num_rooms", self.machines.as_ref().map_or(0, Machines::num_live)),
            ("num_arriving", self.arriving.len()),
            ("num_landing", self.landings().count()),
            ("num_seated", self.seats.len()),
            ("num_departing", self.departing.len()),
            ("num_tickets_waiting", num_held),
            ("num_tickets_posted", num_posted),
            ("num_recomputed", self.num_recomputed),
            ("num_stale_proofs", self.num_stale_proofs),
            ("num_late_messages", odd(Oddity::Late)),
            ("num_early_messages", odd(Oddity::Early)),
            ("num_strange_messages", odd(Oddity::Stranger)),
            ("num_repeated_messages", odd(Oddity::Repeated)),
            ("num_unremembered_rooms", odd(Oddity::Full)),
        ]
    }

    /// What a request waits for on the other side; None if it is not here.
    pub(crate) fn explain(&self, id: RequestId) -> Option<String> {
        let phase = |key: RoomKey| {
            let machines = self.machines.as_ref();
            let receiving =
                machines.and_then(|m| m.receiving(key)).map(|room| format!("{:?}", room.phase()));
            let sending =
                machines.and_then(|m| m.sending(key)).map(|room| format!("{:?}", room.phase()));
            receiving.or(sending).unwrap_or_else(|| "over".into())
        };
        let named = |key: RoomKey| format!("room {} of {} is {}", key.room.0, key.peer, phase(key));
        if let Some(arriving) = self.arriving.get(&id) {
            let why = match (&arriving.landing, arriving.waits_for) {
                (Some(_), _) => "has a place for its prompt".into(),
                (None, Some(wait)) => format!("waits for a place for its prompt: it {wait}"),
                (None, None) => "waits until its prompt is about to be computed".into(),
            };
            return Some(format!("{why}; {}", named(arriving.key)));
        }
        if let Some(departing) = self.departing.get(&id) {
            return Some(format!("{}; {}", departing.explain(), named(departing.key)));
        }
        let is_seated = self.seats.values().any(|seated| seated.active.request.id == id);
        is_seated.then(|| "has its prompt and waits for a row".into())
    }

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
        !self.departing.is_empty() && self.departing.contains_key(&id)
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
        self.wanted.remove(&arriving.request.asked.rank);
        self.by_key.remove(&arriving.key);
        if self.overdue == Some(arriving.request.asked.rank) {
            self.overdue = None;
        }
        Some(arriving)
    }

    /// The same for the other side.
    pub(super) fn take_departing(&mut self, id: RequestId) -> Option<Departing> {
        let departing = self.departing.remove(&id)?;
        self.by_key.remove(&departing.key);
        self.turns.leave(&departing);
        Some(departing)
    }
}
