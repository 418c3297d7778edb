//! The life of a request. States are types, and only those that run own blocks.
//!
//! ```text
//!              start(tables)                last chunk planned
//!   Waiting ───────────────▶ Prefilling ─────────────────────▶ Decoding ──▶ finished
//!      ▲                         │                                 │
//!      └──────── preempt ────────┴─────────────────────────────────┘
//! ```
//! - `tokens` is the prompt and what was generated; positions below `planned` are computed, or
//!   will be once the steps in flight are done.
//! - A decoding request either knows its next token, or samples of it are in flight:
//!
//! ```text
//!   planned = tokens - 1    tokens[planned] is next                           ┐ planned by
//!   planned = tokens        its sample is in flight, and will be next         ┘ the next step
//!   planned = tokens + 1    two are: the token of the later step is the sample of the earlier
//! ```
//! - With drafts, it computes `1 + drafts` positions in a step, of which only the first is sure to
//!   count: `planned` passes the others when the step is done, as far as they were accepted.
//! - A preempted request keeps its tokens and computes them again from where the cache has no
//!   more of them; it may not
//!   start before the steps are done that it was part of, whose answers still count.

use std::cmp::Ordering;

use crate::error::Violation;
use crate::geometry::Geometry;
use crate::ids::{RequestId, StepId, narrow};
use crate::planted::{self, Bug};
use crate::prefix::find::Sharing;
use crate::prefix::publish::{Computed, Reuse};
use crate::table::Tables;
use crate::tokens::Tokens;

/// Order among requests, smallest first: static, total, and so free of starvation.
///
/// A request that arrives k steps later, or one level of priority lower per `aging_steps` steps,
/// comes after. So only finitely many requests can ever come before a given one. Those that wait
/// start in this order; the last that runs is preempted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    urgency: i64,
    arrival: RequestId,
}

impl Rank {
    pub(crate) fn new(arrived: StepId, priority: i32, aging_steps: usize, id: RequestId) -> Self {
        let step =
            i64::try_from(arrived.0).expect("2^63 steps take longer than the hardware lasts");
        let step = if planted::is(Bug::AgingOff) { 0 } else { step };
        let aging = i64::try_from(aging_steps).expect("checked to fit int32");
        Self { urgency: step + i64::from(priority) * aging, arrival: id }
    }
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Finish {
    /// A stop token.
    Stop = 1,
    /// `max_tokens` were generated.
    Length = 2,
    /// The text layer found a stop string.
    Stopped = 3,
    /// Its logits were NaN or infinite.
    NonFinite = 4,
    /// A broken invariant.
    Violation = 5,
    /// Its prompt did not come from the other side, or did not get there.
    Transfer = 6,
}

/// What was asked, and what was generated so far.
#[derive(Debug)]
#[repr(C)] // what a step looks at comes first, here and below
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) num_prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
    pub(crate) tokens: Tokens,
    pub(crate) stop_token_ids: Box<[i32]>,
    pub(crate) asked: Box<Asked>,
}

/// What no step looks at.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) rank: Rank,
    pub(crate) submitted_us: u64,
    pub(crate) sharing: Sharing,
}

impl Request {
    pub(crate) fn num_generated(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens as usize
    }

    /// Tokens that may still be generated.
    pub(crate) fn output_left(&self) -> usize {
        self.max_tokens as usize - self.num_generated()
    }

    /// Adds a generated token; says whether the request ends with it.
    pub(crate) fn generate(&mut self, token: i32) -> Option<Finish> {
        let num_before = self.num_generated();
        self.tokens.push(token);
        if num_before >= self.min_tokens as usize && self.stop_token_ids.contains(&token) {
            return Some(Finish::Stop);
        }
        (num_before + 1 >= self.max_tokens as usize).then_some(Finish::Length)
    }
}

/// Holds no blocks.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    /// The newest step that it was part of before it was preempted.
    pub(crate) busy_until: StepId,
    /// Since when it does not fit while others may overtake it.
    pub(crate) blocked_since: Option<StepId>,
}

impl Waiting {
    pub(crate) fn new(request: Request) -> Self {
        Self { request, busy_until: StepId(0), blocked_since: None }
    }

    /// Starts behind what the cache has.
    pub(crate) fn start(self, tables: Tables, reuse: Reuse) -> Prefilling {
        let Self { request, .. } = self;
        let planned = reuse.num_cached_tokens as usize;
        Prefilling(Active::new(planned, request, tables, reuse))
    }
}

/// What every running request has.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Active {
    planned: u32,
    covered: u32,
    pub(crate) request: Request,
    /// The newest step that it is part of.
    pub(crate) last_step: StepId,
    pub(crate) tables: Tables,
    pub(crate) reuse: Reuse,
}

impl Active {
    fn new(planned: usize, request: Request, tables: Tables, reuse: Reuse) -> Self {
        let (planned, last_step) = (narrow(planned), StepId(0));
        let mut active = Self { planned, covered: 0, request, last_step, reuse, tables };
        active.measure();
        active
    }

    /// Positions below this are computed or in flight.
    pub(crate) fn planned(&self) -> usize {
        self.planned as usize
    }

    /// Both tables cover positions below this.
    pub(crate) fn covered(&self) -> usize {
        self.covered as usize
    }

    /// To be called when a table has grown.
    pub(crate) fn measure(&mut self) {
        self.covered = narrow(self.tables.full.end().min(self.tables.swa.end()));
    }

    /// Positions below `written` hold their rows for good.
    pub(crate) fn seal(&mut self, written: usize) -> Result<(), Violation> {
        self.tables.full.seal_written(written)?;
        self.tables.swa.seal_written(written)
    }

    /// Gives up all blocks.
    pub(crate) fn preempt(self) -> Waiting {
        let Self { request, last_step, .. } = self;
        Waiting { request, busy_until: last_step, blocked_since: None }
    }

    /// What the prefix cache may take from it.
    pub(crate) fn computed(&mut self) -> Computed<'_> {
        let Request { id: owner, asked, tokens, .. } = &mut self.request;
        let (tables, reuse) = (&mut self.tables, &mut self.reuse);
        Computed { owner: *owner, sharing: &mut asked.sharing, tokens, tables, reuse }
    }

    /// Its window blocks that are on their way back.
    pub(crate) fn num_retired(&self, done: StepId) -> usize {
        self.reuse.left.slid.iter().filter(|(step, _)| *step > done).map(|(_, count)| count).sum()
    }

    /// The window begins at `position` from now on. `newest`: the newest step that was planned.
    pub(crate) fn slide(&mut self, position: usize, newest: StepId, geometry: &Geometry) {
        if self.tables.swa.holes_before(position) > 0 {
            self.slide_past(position, newest, geometry);
        }
    }

    #[inline(never)] // once in a block
    fn slide_past(&mut self, position: usize, newest: StepId, geometry: &Geometry) {
        let (saves, mut count) = (&mut self.reuse.left.saves, 0);
        self.tables.swa.slide(position, |index, block| {
            count += 1;
            let mut block = Some(block);
            for save in &mut *saves {
                block = block.take().and_then(|b| save.catch(geometry, index, b));
            }
        });
        if count == 0 {
            return;
        }
        let slid = &mut self.reuse.left.slid;
        match slid.iter_mut().find(|(step, _)| *step == newest) {
            Some((_, sum)) => *sum += count,
            None => *slid = [slid[1], (newest, count)],
        }
    }

    /// `len` more positions are part of `step`.
    fn plan(&mut self, len: usize, step: StepId) {
        self.planned += narrow(len);
        self.last_step = step;
    }
}

/// Has tokens that no step has computed yet, and no sample in flight.
#[derive(Debug)]
pub(crate) struct Prefilling(pub(crate) Active);

impl Prefilling {
    /// The next chunk is part of `step`; after the last one a sample is in flight.
    ///
    /// `sample`: the place of that sample among those of the step.
    pub(crate) fn plan(mut self, len: usize, step: StepId, sample: usize) -> Phase {
        self.0.plan(len, step);
        if self.0.planned() < self.0.request.tokens.len() {
            Phase::Prefilling(self)
        } else {
            Phase::Decoding(Decoding::new(sample, self.0))
        }
    }
}

/// Generates token by token, or a few at a time where drafts are accepted.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Decoding {
    /// Place of its newest sample among those of its newest step.
    sample: u32,
    /// The bank of its state slot that holds what its computed positions left.
    pub(crate) bank: u32,
    /// Tokens that may come after the next one; a step finds out. In 8 bytes: few have any.
    #[expect(clippy::box_collection, reason = "what a step looks at is to be small")]
    drafts: Option<Box<Vec<i32>>>,
    pub(crate) active: Active,
}

/// Where the token comes from that a decoding request computes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Known,
    /// The step in flight samples it, at this place.
    Sampled(usize),
    /// Two steps are in flight, or it ends with the token that is being sampled.
    None,
}

impl Decoding {
    /// Its prompt was computed elsewhere; its tokens end with the one to compute next.
    pub(crate) fn arrived(request: Request, tables: Tables, reuse: Reuse) -> Self {
        Self::new(0, Active::new(request.tokens.len() - 1, request, tables, reuse))
    }

    fn new(sample: usize, active: Active) -> Self {
        Self { sample: narrow(sample), bank: 0, drafts: None, active }
    }

    /// Tokens that may come after the next one.
    pub(crate) fn drafts(&self) -> &[i32] {
        self.drafts.as_ref().map_or(&[], |drafts| drafts)
    }

    pub(crate) fn next(&self) -> Next {
        let num_tokens = self.active.request.tokens.len();
        match self.active.planned().cmp(&num_tokens) {
            Ordering::Less => Next::Known,
            Ordering::Equal
                if self.active.request.output_left() > 1 || planted::is(Bug::ForwardedPastEnd) =>
            {
                Next::Sampled(if planted::is(Bug::WrongSample) { 0 } else { self.sample as usize })
            }
            _ => Next::None,
        }
    }

    /// The tokens that its next row is sure of: one, or none if only a step in flight knows it.
    pub(crate) fn known(&self) -> &[i32] {
        let last = self.active.request.tokens.last().filter(|_| self.next() == Next::Known);
        last.map_or(&[], std::slice::from_ref)
    }

    /// The next token is part of `step`, and a sample is in flight.
    pub(crate) fn plan(&mut self, step: StepId, sample: usize) {
        self.active.plan(1, step);
        self.sample = narrow(sample);
    }

    /// These tokens came of a step that was sure of one: the drafts before the last are computed.
    pub(crate) fn accept(&mut self, tokens: &[i32], drafts: &[i32]) {
        let Some((_, accepted)) = tokens.split_last() else { return };
        self.bank = if planted::is(Bug::BankKept) { 0 } else { narrow(accepted.len()) };
        let all = planted::is(Bug::AllAccepted);
        self.active.planned += narrow(if all { self.drafts().len() } else { accepted.len() });
        if drafts.is_empty() && self.drafts.is_none() {
            return;
        }
        let kept = self.drafts.get_or_insert_default();
        if !planted::is(Bug::DraftsKept) {
            kept.clear();
        }
        kept.extend(drafts.iter().take_while(|&&draft| draft >= 0));
    }
}

/// Where a request is.
#[derive(Debug)]
#[repr(u32)] // which it is, comes first
pub(crate) enum Phase {
    Waiting(Waiting),
    Prefilling(Prefilling),
    Decoding(Decoding),
}

impl Phase {
    pub(crate) fn request(&self) -> &Request {
        match self {
            Self::Waiting(waiting) => &waiting.request,
            Self::Prefilling(Prefilling(active)) | Self::Decoding(Decoding { active, .. }) => {
                &active.request
            }
        }
    }

    /// What it holds while it runs.
    pub(crate) fn active(&self) -> Option<&Active> {
        match self {
            Self::Waiting(_) => None,
            Self::Prefilling(Prefilling(active)) | Self::Decoding(Decoding { active, .. }) => {
                Some(active)
            }
        }
    }

    pub(crate) fn active_mut(&mut self) -> Option<&mut Active> {
        match self {
            Self::Waiting(_) => None,
            Self::Prefilling(Prefilling(active)) | Self::Decoding(Decoding { active, .. }) => {
                Some(active)
            }
        }
    }

    pub(crate) fn request_mut(&mut self) -> &mut Request {
        match self {
            Self::Waiting(waiting) => &mut waiting.request,
            Self::Prefilling(Prefilling(active)) | Self::Decoding(Decoding { active, .. }) => {
                &mut active.request
            }
        }
    }
}
