//! Records of a trace, read: a call and what was answered. Each is whole before it is made.

use super::bytes::{Read, Reader, Unreadable};
use super::part::Part;
use super::{check, tag};
use crate::budget::PoolSizes;
use crate::core::{Answer, Event, NewRequest, RoomSettings, Transfer};
use crate::geometry::{DraftRoom, Geometry};
use crate::ids::{RequestId, StepId};
use crate::limits::Limits;
use crate::recipe::{Band, Recipe};
use crate::transfer::ids::{Incarnation, PeerRank, RoomKey, Ticket};
use crate::transfer::message::Message;
use crate::transfer::proof::Evidence;
use crate::transfer::receiving::Inspection;

/// What the core was made of.
pub(super) struct Start {
    pub(super) geometry: Geometry,
    pub(super) sizes: PoolSizes,
    pub(super) limits: Limits,
    pub(super) recipe: Option<Recipe>,
    pub(super) layout_hash: u64,
}

/// A call, and its answer: Err holds the check of a refusal.
pub(super) enum Call {
    Submit(Submitted, Result<u64, u32>),
    Plan { num_words: usize, was: Result<Option<Planned>, u32> },
    Rooms(RoomSettings, Result<(), u32>),
    Advance(Vec<Happened>, Result<u32, u32>),
    Abort(RequestId, bool),
    Shutdown,
}

/// A request as it was handed in.
pub(super) struct Submitted {
    prompt: Vec<i32>,
    max_tokens: i128,
    min_tokens: i128,
    stop_token_ids: Vec<i128>,
    priority: i128,
    cache_salt: String,
    no_cache: bool,
    transfer: Option<Transfer>,
}

/// What is kept of a plan.
pub(super) struct Planned {
    pub(super) numbers: [u64; check::NUM_NUMBERS],
    pub(super) lists: u32,
    pub(super) arrays: Vec<u32>,
}

/// An event.
pub(super) enum Happened {
    StepDone { step: StepId, tokens: Vec<i32>, non_finite: Vec<usize> },
    Stopped(RequestId),
    Tick(u64),
    Verified { step: StepId, answer: Answered },
    Peer { from: PeerRank, message: Message },
    TicketEnded { ticket: Ticket, landed: bool, digest: u64 },
    Inspected { key: RoomKey, first_token: i32, found: Inspection },
    PeerGone { incarnation: Incarnation, evidence: Option<Evidence> },
    Fenced { incarnation: Incarnation, evidence: Evidence },
    Reconnected { incarnation: Incarnation, num_fences: u32 },
}

/// What came back of a step of a core with drafts.
pub(super) struct Answered {
    tokens: Vec<i32>,
    non_finite: Vec<usize>,
    accepted: Vec<usize>,
    drafts: Vec<i32>,
}

impl Start {
    pub(super) fn read(reader: &mut Reader<'_>) -> Read<Self> {
        match reader.begin() {
            None => return Err(Unreadable::Ended),
            Some(tag::START) => {}
            Some(_) => return Err(Unreadable::Nonsense("it does not begin with a start")),
        }
        let ratios = (0..reader.count()?).map(|_| reader.size()).collect::<Read<_>>()?;
        let mut next = || reader.size();
        let geometry = Geometry {
            ratios,
            window: next()?,
            kv_data_bytes: next()?,
            kv_scale_bytes: next()?,
            kv_page_multiple: next()?,
            index_data_bytes: next()?,
            index_scale_bytes: next()?,
            c4_state_bytes: next()?,
            index_state_bytes: next()?,
            c128_state_bytes: next()?,
            block_tokens: next()?,
            swa_block_tokens: next()?,
            drafts: DraftRoom { tokens: next()?, hc_mult: next()?, hidden: next()? },
        };
        let sizes = PoolSizes { full_blocks: next()?, swa_blocks: next()?, state_slots: next()? };
        let limits = Limits {
            max_model_len: next()?,
            max_num_requests: next()?,
            max_num_tokens: next()?,
            max_queued_requests: next()?,
            max_queued_tokens: next()?,
            vocab_size: next()?,
            max_steps_in_flight: next()?,
            aging_steps: next()?,
            prefix_cache: next()? != 0,
            checkpoint_tokens: next()?,
            max_draft_tokens: next()?,
        };
        let recipe = if reader.number()? != 0 { Some(read_recipe(reader)?) } else { None };
        let layout_hash = reader.number()?;
        reader.end()?;
        Ok(Self { geometry, sizes, limits, recipe, layout_hash })
    }
}

fn read_recipe(reader: &mut Reader<'_>) -> Read<Recipe> {
    let name = reader.text()?.to_owned();
    let (dwell_steps, margin_percent) = (reader.size()?, reader.size()?);
    let bands = (0..reader.count()?).map(|_| {
        Ok(Band {
            name: reader.text()?.to_owned(),
            min_requests: reader.size()?,
            max_num_requests: reader.size()?,
            max_num_tokens: reader.size()?,
            max_draft_tokens: reader.size()?,
        })
    });
    Ok(Recipe { name, bands: bands.collect::<Read<_>>()?, dwell_steps, margin_percent })
}

impl Call {
    /// The next one; None behind the last.
    pub(super) fn read(reader: &mut Reader<'_>) -> Read<Option<Self>> {
        let Some(tag) = reader.begin() else { return Ok(None) };
        let call = match tag {
            tag::SUBMIT => Self::Submit(Submitted::read(reader)?, answer(reader, Reader::number)?),
            tag::PLAN => {
                Self::Plan { num_words: reader.size()?, was: answer(reader, Planned::read)? }
            }
            tag::ADVANCE => {
                let events = (0..reader.count()?).map(|_| Happened::read(reader));
                Self::Advance(events.collect::<Read<_>>()?, answer(reader, Reader::check)?)
            }
            tag::ABORT => Self::Abort(RequestId(reader.number()?), reader.number()? != 0),
            tag::SHUTDOWN => Self::Shutdown,
            tag::ROOMS => Self::Rooms(Part::read(reader)?, answer(reader, |_| Ok(()))?),
            _ => return Err(Unreadable::Nonsense("there is no such call")),
        };
        reader.end()?;
        Ok(Some(call))
    }
}

fn answer<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<Result<T, u32>> {
    let is_refusal = reader.number()? != 0;
    if is_refusal { reader.check().map(Err) } else { read(reader).map(Ok) }
}

fn counts(reader: &mut Reader<'_>) -> Read<Vec<usize>> {
    (0..reader.count()?).map(|_| reader.size()).collect()
}

impl Submitted {
    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        Ok(Self {
            prompt: reader.tokens()?,
            max_tokens: reader.whole()?,
            min_tokens: reader.whole()?,
            stop_token_ids: (0..reader.count()?).map(|_| reader.whole()).collect::<Read<_>>()?,
            priority: reader.whole()?,
            cache_salt: reader.text()?.to_owned(),
            no_cache: reader.number()? != 0,
            transfer: Part::read(reader)?,
        })
    }

    pub(super) fn borrow(&self) -> NewRequest<'_> {
        NewRequest {
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop_token_ids: &self.stop_token_ids,
            priority: self.priority,
            cache_salt: &self.cache_salt,
            no_cache: self.no_cache,
            transfer: self.transfer.clone(),
        }
    }
}

impl Planned {
    fn read(reader: &mut Reader<'_>) -> Read<Option<Self>> {
        if reader.number()? == 0 {
            return Ok(None);
        }
        let mut numbers = [0; check::NUM_NUMBERS];
        for number in &mut numbers {
            *number = reader.number()?;
        }
        let lists = reader.check()?;
        let arrays = (0..check::NUM_ARRAYS).map(|_| reader.check()).collect::<Read<_>>()?;
        Ok(Some(Self { numbers, lists, arrays }))
    }
}

impl Happened {
    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        Ok(match reader.number()? {
            0 => Self::StepDone {
                step: StepId(reader.number()?),
                tokens: reader.tokens()?,
                non_finite: counts(reader)?,
            },
            1 => Self::Stopped(RequestId(reader.number()?)),
            2 => Self::Tick(reader.number()?),
            3 => Self::Verified {
                step: StepId(reader.number()?),
                answer: Answered {
                    tokens: reader.tokens()?,
                    non_finite: counts(reader)?,
                    accepted: counts(reader)?,
                    drafts: reader.tokens()?,
                },
            },
            4 => Self::Peer { from: Part::read(reader)?, message: Part::read(reader)? },
            5 => Self::TicketEnded {
                ticket: Part::read(reader)?,
                landed: Part::read(reader)?,
                digest: Part::read(reader)?,
            },
            6 => Self::Inspected {
                key: Part::read(reader)?,
                first_token: Part::read(reader)?,
                found: Part::read(reader)?,
            },
            7 => Self::PeerGone { incarnation: Part::read(reader)?, evidence: Part::read(reader)? },
            8 => Self::Fenced { incarnation: Part::read(reader)?, evidence: Part::read(reader)? },
            9 => Self::Reconnected {
                incarnation: Part::read(reader)?,
                num_fences: Part::read(reader)?,
            },
            _ => return Err(Unreadable::Nonsense("there is no such event")),
        })
    }

    pub(super) fn borrow(&self) -> Event<'_> {
        match self {
            Self::StepDone { step, tokens, non_finite } => {
                Event::StepDone { step: *step, tokens, non_finite }
            }
            Self::Stopped(id) => Event::Stopped(*id),
            Self::Tick(now_us) => Event::Tick(*now_us),
            Self::Peer { from, message } => Event::Peer { from: *from, message },
            &Self::TicketEnded { ticket, landed, digest } => {
                Event::TicketEnded { ticket, landed, digest }
            }
            Self::Inspected { key, first_token, found } => {
                Event::Inspected { key: *key, first_token: *first_token, found }
            }
            &Self::PeerGone { incarnation, evidence } => Event::PeerGone { incarnation, evidence },
            &Self::Fenced { incarnation, evidence } => Event::Fenced { incarnation, evidence },
            &Self::Reconnected { incarnation, num_fences } => {
                Event::Reconnected { incarnation, num_fences }
            }
            Self::Verified { step, answer } => {
                let Answered { tokens, non_finite, accepted, drafts } = answer;
                Event::Verified {
                    step: *step,
                    answer: Answer { tokens, non_finite, accepted, drafts },
                }
            }
        }
    }
}
