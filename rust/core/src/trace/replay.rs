//! The same calls again, and the first answer that is another.

use std::fmt;

use super::bytes::{Reader, Unreadable};
use super::call::{Call, Happened, Planned, Start};
use super::{MAGIC, TraceError, VERSION, check};
use crate::core::{Core, Event, Plan};
use crate::error::Error;
use crate::ids::StepId;

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Calls that were made again, without the one that differs.
    pub num_calls: usize,
    /// Requests among them that were accepted.
    pub num_requests: usize,
    /// Steps that were planned.
    pub num_steps: usize,
    /// Tokens of these steps.
    pub num_tokens: usize,
    /// The last call is the shutdown: nothing is missing at the end.
    pub is_complete: bool,
    /// The first answer that is another; the replay ends there.
    pub difference: Option<Difference>,
}

/// An answer that is not what the trace says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Calls before it.
    pub call: usize,
    /// The newest step that was planned.
    pub step: StepId,
    /// Which part of the answer, and what both say.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, step, what } = self;
        write!(f, "call {call}, after step {step}: {what}")
    }
}

/// Replays a whole trace. Err if the bytes are none, or end early, or are damaged.
pub fn replay(bytes: &[u8]) -> Result<Report, TraceError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(TraceError::NotATrace(bytes.len()))?;
    match body.first() {
        None => return Err(TraceError::Truncated { at: bytes.len(), calls: 0 }),
        Some(&has) if has != VERSION => return Err(TraceError::Version { has }),
        Some(_) => {}
    }
    let mut reader = Reader::new(bytes, MAGIC.len() + 1);
    let mut report = Report::default();
    let played = play(&mut reader, &mut report);
    let (at, calls) = (reader.at, report.num_calls);
    match played {
        Ok(()) => Ok(report),
        Err(Stop::Differs(what)) => {
            let step = StepId(report.num_steps as u64);
            report.difference = Some(Difference { call: calls, step, what });
            Ok(report)
        }
        Err(Stop::Unreadable(Unreadable::Ended)) => Err(TraceError::Truncated { at, calls }),
        Err(Stop::Unreadable(Unreadable::Nonsense(what))) => {
            Err(TraceError::Damaged { at, calls, what: what.into() })
        }
        Err(Stop::Refused(what)) => Err(TraceError::Damaged { at, calls, what }),
    }
}

/// Why a replay ends before the trace does.
enum Stop {
    Unreadable(Unreadable),
    /// The core cannot start as the trace says.
    Refused(String),
    Differs(String),
}

impl From<Unreadable> for Stop {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

fn play(reader: &mut Reader<'_>, report: &mut Report) -> Result<(), Stop> {
    let Start { geometry, sizes, limits, recipe, layout_hash } = Start::read(reader)?;
    let core = Core::new(geometry, &sizes, limits);
    let refused = |error| Stop::Refused(format!("no core starts so: {error}"));
    let mut core = core.map_err(refused)?;
    if let Some(recipe) = recipe {
        core.follow(recipe).map_err(refused)?;
    }
    compare("the hash of the layout", core.layout().hash(), layout_hash)?;
    let mut memory = vec![0; core.layout().num_words()];
    while let Some(call) = Call::read(reader)? {
        report.is_complete = matches!(call, Call::Shutdown);
        call.make(&mut core, &mut memory, report)?;
        report.num_calls += 1;
    }
    Ok(())
}

fn compare<T: Copy + PartialEq + fmt::Debug>(what: &str, is: T, was: T) -> Result<(), Stop> {
    if is == was {
        return Ok(());
    }
    Err(Stop::Differs(format!("{what} is {is:?}, and was {was:?}")))
}

/// The two answers, if they are of one kind: none if both are the same refusal.
fn compare_kind<T: fmt::Debug, U>(
    what: &str,
    is: Result<T, Error>,
    was: Result<U, u32>,
) -> Result<Option<(T, U)>, Stop> {
    match (is, was) {
        (Ok(is), Ok(was)) => Ok(Some((is, was))),
        (Err(is), Err(was)) if check::refusal(&is) == was => Ok(None),
        (Err(is), Err(_)) => Err(Stop::Differs(format!("{what} is refused otherwise: {is}"))),
        (Ok(is), Err(_)) => Err(Stop::Differs(format!("{what} is {is:?}, and was refused"))),
        (Err(is), Ok(_)) => Err(Stop::Differs(format!("{what} is refused, and was not: {is}"))),
    }
}

impl Call {
    fn make(self, core: &mut Core, memory: &mut [i32], report: &mut Report) -> Result<(), Stop> {
        match self {
            Self::Submit(request, was) => {
                let is = core.submit(request.borrow());
                if let Some((is, was)) = compare_kind("the submission", is, was)? {
                    compare("the id", is.0, was)?;
                    report.num_requests += 1;
                }
            }
            Self::Plan { num_words, was } => {
                let lent = num_words.min(memory.len());
                let is = core.plan(&mut memory[..lent]);
                if let Some((is, was)) = compare_kind("the plan", is, was)? {
                    compare_plans(is.as_ref(), was.as_ref(), core, memory)?;
                    report.num_steps += usize::from(is.is_some());
                    report.num_tokens += is.map_or(0, |plan| plan.num_tokens);
                }
            }
            Self::Advance(events, was) => {
                let borrowed: Vec<Event<'_>> = events.iter().map(Happened::borrow).collect();
                let is = core.advance(&borrowed);
                if let Some((is, was)) = compare_kind("the outcome", is, was)? {
                    let what = format!("the check of {is:?}");
                    compare(&what, check::outcome(&is), was)?;
                }
            }
            Self::Rooms(settings, was) => {
                compare_kind("the opening of rooms", core.open_rooms(&settings), was)?;
            }
            Self::Abort(id, was) => compare("whether it was there", core.abort(id), was)?,
            Self::Shutdown => core.shutdown(),
        }
        Ok(())
    }
}

fn compare_plans(
    is: Option<&Plan>,
    was: Option<&Planned>,
    core: &Core,
    memory: &[i32],
) -> Result<(), Stop> {
    let (is, was) = match (is, was) {
        (None, None) => return Ok(()),
        (Some(is), None) => return Err(Stop::Differs(format!("{is:?} is planned, and was not"))),
        (None, Some(_)) => return Err(Stop::Differs("nothing is planned, and a step was".into())),
        (Some(is), Some(was)) => (is, was),
    };
    for ((name, is), was) in check::numbers(is).into_iter().zip(was.numbers) {
        compare(name, is, was)?;
    }
    compare("the check of requests and samples", check::lists(is), was.lists)?;
    let arrays = check::arrays(is, core.layout(), memory);
    for ((name, is), &was) in arrays.zip(&was.arrays) {
        compare(&format!("the check of {name}"), is, was)?;
    }
    Ok(())
}
