//! `Message`: what workers say to each other, as a word and its fields.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use dsv4_core::transfer::ids::{Epoch, Room};
use dsv4_core::transfer::message::{self, Beat, Offer, Prompt, Reason, Refusal, Target, Word};

/// A block of the other side: its index, and which life of it.
type Block = (u32, u32);

const REFUSALS: [(&str, Refusal); 4] = [
    ("unknown", Refusal::Unknown),
    ("closed", Refusal::Closed),
    ("prompt_mismatch", Refusal::PromptMismatch),
    ("busy", Refusal::Busy),
];

const REASONS: [(&str, Reason); 16] = [
    ("cancelled", Reason::Cancelled),
    ("deadline", Reason::Deadline),
    ("peer_lost", Reason::PeerLost),
    ("lease_expired", Reason::LeaseExpired),
    ("refused_unknown", Reason::Refused(Refusal::Unknown)),
    ("refused_closed", Reason::Refused(Refusal::Closed)),
    ("refused_prompt_mismatch", Reason::Refused(Refusal::PromptMismatch)),
    ("refused_busy", Reason::Refused(Refusal::Busy)),
    ("length_mismatch", Reason::LengthMismatch),
    ("items_mismatch", Reason::ItemsMismatch),
    ("digest_mismatch", Reason::DigestMismatch),
    ("tag_mismatch", Reason::TagMismatch),
    ("non_finite", Reason::NonFinite),
    ("transfer_failed", Reason::TransferFailed),
    ("prompt_too_long", Reason::PromptTooLong),
    ("room_dp_rank_mismatch", Reason::RoomDpRankMismatch),
];

/// The value of a word of ours.
pub(crate) fn named<T: Copy>(what: &str, words: &[(&'static str, T)], word: &str) -> PyResult<T> {
    let found = words.iter().find(|(name, _)| *name == word).map(|&(_, value)| value);
    found.ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|&(name, _)| name).collect();
        PyValueError::new_err(format!("{what} is {word:?}; it is one of {}", all.join(", ")))
    })
}

fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    let found = words.iter().find(|(_, each)| each == value);
    found.map_or("", |&(name, _)| name) // the tables are whole: a test goes through them
}

/// One message between two workers: a word, the room it is about, and the word's fields in order.
#[pyclass(frozen, eq, module = "dsv4._core")]
#[derive(Clone, PartialEq)]
pub(crate) struct Message(pub(crate) message::Message);

#[pymethods]
impl Message {
    #[new]
    #[pyo3(
        signature = (word, room = 0, epoch = 0, fields = None),
        text_signature = "(word, room=0, epoch=0, fields=())"
    )]
    fn new(
        py: Python<'_>,
        word: &str,
        room: u64,
        epoch: u32,
        fields: Option<Bound<'_, PyTuple>>,
    ) -> PyResult<Self> {
        let fields = fields.unwrap_or_else(|| PyTuple::empty(py));
        let none = || fields.extract::<Nothing>().map(|Nothing| ());
        let word = match word {
            "beat" => {
                let (count, xor) = fields.extract()?;
                return Ok(Self(message::Message::Beat(Beat { count, xor })));
            }
            "rooms" => {
                let (rooms,) = fields.extract::<(Vec<(u64, u32)>,)>()?;
                let rooms = rooms.into_iter().map(|(room, epoch)| (Room(room), Epoch(epoch)));
                return Ok(Self(message::Message::Rooms(rooms.collect())));
            }
            "join" => {
                let (num_tokens, hash) = fields.extract()?;
                Word::Join(Prompt { num_tokens, hash })
            }
            "want" => none().map(|()| Word::Want)?,
            "offer" => Word::Offer(offer(&fields)?),
            "chunk_done" => {
                let (chunk, items, digest) = fields.extract()?;
                Word::ChunkDone { chunk, items, digest }
            }
            "final" => {
                let (chunks, digest) = fields.extract()?;
                Word::Final { chunks, digest }
            }
            "commit" => none().map(|()| Word::Commit)?,
            "abort" => {
                let (reason,) = fields.extract::<(String,)>()?;
                Word::Abort(named("reason", &REASONS, &reason)?)
            }
            "abort_ack" => {
                let (drained,) = fields.extract()?;
                Word::AbortAck { drained }
            }
            "refuse" => {
                let (refusal,) = fields.extract::<(String,)>()?;
                Word::Refuse(named("refusal", &REFUSALS, &refusal)?)
            }
            _ => return Err(PyValueError::new_err(format!("{word:?} is no word of a message"))),
        };
        Ok(Self(message::Message::About { room: Room(room), epoch: Epoch(epoch), word }))
    }

    #[getter]
    fn word(&self) -> &'static str {
        match &self.0 {
            message::Message::Beat(_) => "beat",
            message::Message::Rooms(_) => "rooms",
            message::Message::About { word, .. } => match word {
                Word::Join(_) => "join",
                Word::Want => "want",
                Word::Offer(_) => "offer",
                Word::ChunkDone { .. } => "chunk_done",
                Word::Final { .. } => "final",
                Word::Commit => "commit",
                Word::Abort(_) => "abort",
                Word::AbortAck { .. } => "abort_ack",
                Word::Refuse(_) => "refuse",
            },
        }
    }

    #[getter]
    fn room(&self) -> u64 {
        match &self.0 {
            message::Message::About { room, .. } => room.0,
            _ => 0,
        }
    }

    #[getter]
    fn epoch(&self) -> u32 {
        match &self.0 {
            message::Message::About { epoch, .. } => epoch.0,
            _ => 0,
        }
    }

    /// As the constructor takes them.
    #[getter]
    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match &self.0 {
            message::Message::Beat(beat) => (beat.count, beat.xor).into_pyobject(py),
            message::Message::Rooms(rooms) => {
                let rooms: Vec<_> = rooms.iter().map(|(room, epoch)| (room.0, epoch.0)).collect();
                (rooms,).into_pyobject(py)
            }
            message::Message::About { word, .. } => match word {
                Word::Want | Word::Commit => Ok(PyTuple::empty(py)),
                Word::Join(prompt) => (prompt.num_tokens, prompt.hash).into_pyobject(py),
                Word::Offer(offer) => {
                    let Prompt { num_tokens, hash } = offer.prompt;
                    let list = |all: &[Target]| all.iter().copied().map(block).collect::<Vec<_>>();
                    let (full, swa) = (list(&offer.full), list(&offer.swa));
                    let (state, aux) = (block(offer.state), block(offer.aux));
                    let (fences, cached) = (offer.num_fences, offer.num_cached_tokens);
                    (num_tokens, hash, fences, cached, full, swa, state, aux).into_pyobject(py)
                }
                Word::ChunkDone { chunk, items, digest } => {
                    (*chunk, *items, *digest).into_pyobject(py)
                }
                Word::Final { chunks, digest } => (*chunks, *digest).into_pyobject(py),
                Word::Abort(reason) => (word_of(&REASONS, reason),).into_pyobject(py),
                Word::AbortAck { drained } => (*drained,).into_pyobject(py),
                Word::Refuse(refusal) => (word_of(&REFUSALS, refusal),).into_pyobject(py),
            },
        }
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let fields = self.fields(py)?.repr()?;
        Ok(format!("Message({:?}, {}, {}, {fields})", self.word(), self.room(), self.epoch()))
    }
}

/// An empty tuple, and no other.
struct Nothing;

impl<'py> FromPyObject<'_, 'py> for Nothing {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.len()? == 0 {
            return Ok(Self);
        }
        Err(PyValueError::new_err("this word has no fields"))
    }
}

fn block(target: Target) -> Block {
    (target.block, target.generation)
}

fn offer(fields: &Bound<'_, PyTuple>) -> PyResult<Offer> {
    type Fields = (u32, u128, u32, u32, Vec<Block>, Vec<Block>, Block, Block);
    let (num_tokens, hash, num_fences, num_cached_tokens, full, swa, state, aux): Fields =
        fields.extract()?;
    let target = |(block, generation)| Target { block, generation };
    Ok(Offer {
        prompt: Prompt { num_tokens, hash },
        num_fences,
        num_cached_tokens,
        full: full.into_iter().map(target).collect(),
        swa: swa.into_iter().map(target).collect(),
        state: target(state),
        aux: target(aux),
    })
}
