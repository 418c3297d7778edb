//! Requests with another side: what they are told, what happens to them, and what is to be done.

use pyo3::prelude::*;

use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use dsv4_core::transfer::placement::Placement;
use dsv4_core::transfer::proof::{Evidence, Transport};
use dsv4_core::transfer::receiving::{Inspection, Tag};
use dsv4_core::transfer::runs::Run;
use dsv4_core::transfer::timing::Timing;
use dsv4_core::{self, OnFailure, RoomSettings, Side};

use crate::message::{Message, named};

const SIDES: [(&str, Side); 2] = [("prefill", Side::Prefill), ("decode", Side::Decode)];

const TRANSPORTS: [(&str, Transport); 6] = [
    ("in_process", Transport::InProcess),
    ("tcp", Transport::Tcp),
    ("shared_memory", Transport::SharedMemory),
    ("nixl_cma", Transport::NixlCma),
    ("nixl_tcp", Transport::NixlTcp),
    ("nixl_rdma", Transport::NixlRdma),
];

const EVIDENCE: [(&str, Evidence); 5] = [
    ("task_joined", Evidence::TaskJoined),
    ("receiver_joined", Evidence::ReceiverJoined),
    ("process_exit", Evidence::ProcessExit),
    ("agent_destroyed", Evidence::AgentDestroyed),
    ("exit_and_agent_destroyed", Evidence::ExitAndAgentDestroyed),
];

const FAILURES: [(&str, OnFailure); 2] =
    [("recompute", OnFailure::Recompute), ("fail", OnFailure::Fail)];

/// Room, epoch, incarnation of the peer.
type Key = (u64, u32, u128);

fn of_key((room, epoch, peer): Key) -> RoomKey {
    RoomKey { room: Room(room), epoch: Epoch(epoch), peer: Incarnation(peer) }
}

fn key_of(key: RoomKey) -> Key {
    (key.room.0, key.epoch.0, key.peer.0)
}

pub(crate) fn settings(
    side: &str,
    transport: &str,
    max_rooms: usize,
    max_bytes_in_flight: u64,
    deadline_ms: u64,
    dp: Option<(u32, u32)>,
) -> PyResult<RoomSettings> {
    Ok(RoomSettings {
        side: named("side", &SIDES, side)?,
        placement: dp.map(|(rank, size)| Placement { rank, size }),
        transport: named("transport", &TRANSPORTS, transport)?,
        timing: Timing::default(),
        max_rooms,
        max_bytes_in_flight,
        deadline_ms,
    })
}

/// The other side of a request.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Transfer(pub(crate) dsv4_core::Transfer);

#[pymethods]
impl Transfer {
    #[new]
    #[pyo3(
        signature = (*, room, peer, epoch = 0, peer_ranks = None, on_failure = "recompute"),
        text_signature = "(*, room, peer, epoch=0, peer_ranks=None, on_failure='recompute')"
    )]
    fn new(
        room: u64,
        peer: u128,
        epoch: u32,
        peer_ranks: Option<Vec<u16>>,
        on_failure: &str,
    ) -> PyResult<Self> {
        let RoomKey { room, epoch, peer } = of_key((room, epoch, peer));
        let peer_ranks = peer_ranks.unwrap_or_else(|| vec![0]);
        let on_failure = named("on_failure", &FAILURES, on_failure)?;
        Ok(Self(dsv4_core::Transfer { room, epoch, peer, peer_ranks, on_failure }))
    }
}

/// Event: something happened to rooms.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct RoomEvent(Kind);

enum Kind {
    Peer { from: PeerRank, message: Message },
    Inspected { key: RoomKey, first_token: i32, found: Inspection },
    Other(dsv4_core::Event<'static>),
}

#[pymethods]
impl RoomEvent {
    /// A peer's rank said something.
    #[staticmethod]
    fn peer(incarnation: u128, rank: u16, message: &Message) -> Self {
        let from = PeerRank { incarnation: Incarnation(incarnation), rank };
        Self(Kind::Peer { from, message: message.clone() })
    }

    /// A transfer that was posted has landed, or failed.
    #[staticmethod]
    #[pyo3(signature = (ticket, landed, digest = 0))]
    fn ticket_ended(ticket: u64, landed: bool, digest: u64) -> Self {
        let ticket = Ticket(ticket);
        Self(Kind::Other(dsv4_core::Event::TicketEnded { ticket, landed, digest }))
    }

    /// What a check found: the first token, whose row it is, a digest per writing rank, and its flag.
    #[staticmethod]
    #[pyo3(signature = (key, *, first_token, tag, digests, non_finite = false))]
    fn inspected(
        key: Key,
        first_token: i32,
        tag: Key,
        digests: Vec<u64>,
        non_finite: bool,
    ) -> Self {
        let RoomKey { room, epoch, peer } = of_key(tag);
        let tag = Tag { room, epoch, writer: peer };
        let found = Inspection { tag, digests, non_finite };
        Self(Kind::Inspected { key: of_key(key), first_token, found })
    }

    /// A peer's process is gone; without evidence, what it may write stays quarantined.
    #[staticmethod]
    #[pyo3(signature = (incarnation, evidence = None))]
    fn peer_gone(incarnation: u128, evidence: Option<&str>) -> PyResult<Self> {
        let evidence = evidence.map(|word| named("evidence", &EVIDENCE, word)).transpose()?;
        let incarnation = Incarnation(incarnation);
        Ok(Self(Kind::Other(dsv4_core::Event::PeerGone { incarnation, evidence })))
    }

    /// This worker cut a peer's way in.
    #[staticmethod]
    fn fenced(incarnation: u128, evidence: &str) -> PyResult<Self> {
        let evidence = named("evidence", &EVIDENCE, evidence)?;
        let incarnation = Incarnation(incarnation);
        Ok(Self(Kind::Other(dsv4_core::Event::Fenced { incarnation, evidence })))
    }

    /// A peer that lives connects anew; before the new connection carries anything.
    #[staticmethod]
    fn reconnected(incarnation: u128, num_fences: u32) -> Self {
        let incarnation = Incarnation(incarnation);
        Self(Kind::Other(dsv4_core::Event::Reconnected { incarnation, num_fences }))
    }
}

impl RoomEvent {
    pub(crate) fn borrow(&self) -> dsv4_core::Event<'_> {
        match &self.0 {
            Kind::Peer { from, message } => {
                dsv4_core::Event::Peer { from: *from, message: &message.0 }
            }
            Kind::Inspected { key, first_token, found } => {
                dsv4_core::Event::Inspected { key: *key, first_token: *first_token, found }
            }
            Kind::Other(event) => *event,
        }
    }
}

/// A ticket to be posted: copies from this worker's memory into the peer's.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Posting(pub(crate) dsv4_core::Posting);

/// First block here, first block there, how many.
type Copy = (u32, u32, u32);

fn copies<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<Copy> {
    runs.into_iter().map(|run| (run.source, run.target, run.count)).collect()
}

#[pymethods]
impl Posting {
    #[getter]
    fn key(&self) -> Key {
        key_of(self.0.key)
    }

    #[getter]
    fn ticket(&self) -> u64 {
        self.0.ticket.0
    }

    #[getter]
    fn full(&self) -> Vec<Copy> {
        copies(&self.0.copies.full)
    }

    #[getter]
    fn swa(&self) -> Vec<Copy> {
        copies(&self.0.copies.swa)
    }

    #[getter]
    fn state(&self) -> Vec<Copy> {
        copies(&self.0.copies.state)
    }

    #[getter]
    fn aux(&self) -> Vec<Copy> {
        copies(&self.0.copies.aux)
    }
}

/// What there is to do for rooms, in this order.
#[pyclass(frozen, module = "dsv4._core")]
pub(crate) struct Errands(pub(crate) dsv4_core::Errands);

#[pymethods]
impl Errands {
    /// Group and id of state slots and aux rows to reset before the messages are sent.
    #[getter]
    fn resets(&self) -> Vec<(String, u32)> {
        self.0.resets.iter().map(|reset| (reset.group.to_string(), reset.block.get())).collect()
    }

    /// Incarnation, rank and what to say.
    #[getter]
    fn messages(&self) -> Vec<(u128, u16, Message)> {
        let messages = self.0.messages.iter();
        messages.map(|(to, said)| (to.incarnation.0, to.rank, Message(said.clone()))).collect()
    }

    #[getter]
    fn postings(&self) -> Vec<Posting> {
        self.0.postings.iter().cloned().map(Posting).collect()
    }

    /// Request, room and aux row of what has landed and is to be looked at.
    #[getter]
    fn checks(&self) -> Vec<(u64, Key, u32)> {
        let checks = self.0.checks.iter();
        checks.map(|check| (check.request.0, key_of(check.key), check.aux.get())).collect()
    }
}
