//! A core that writes down what it is told and what it answers.

use std::ops::Deref;

use super::bytes::Writer;
use super::part::Part;
use super::{MAGIC, VERSION, check, tag};
use crate::budget::PoolSizes;
use crate::core::{Answer, Core, Event, NewRequest, Outcome, Plan, RoomSettings};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::RequestId;
use crate::limits::Limits;
use crate::recipe::Recipe;

/// A [`Core`] whose calls may be recorded. Everything that changes nothing is the core's own.
#[derive(Debug)]
pub struct Recorded {
    pub(super) core: Core,
    start: (Geometry, PoolSizes, Limits),
    recipe: Option<Recipe>,
    pub(super) trace: Option<Writer>,
    was_called: bool,
    rooms: Option<RoomSettings>,
}

impl Deref for Recorded {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Recorded {
    /// As [`Core::new`]; nothing is recorded yet.
    pub fn new(geometry: Geometry, sizes: &PoolSizes, limits: Limits) -> Result<Self, Error> {
        let core = Core::new(geometry.clone(), sizes, limits.clone())?;
        let start = (geometry, *sizes, limits);
        Ok(Self { core, start, recipe: None, trace: None, was_called: false, rooms: None })
    }

    /// As [`Core::follow`], but before anything is recorded: a trace begins with its recipe.
    pub fn follow(&mut self, recipe: Recipe) -> Result<(), Error> {
        if self.trace.is_some() {
            return Err(Error::Config("a recipe is followed before recording begins".into()));
        }
        self.core.follow(recipe.clone())?;
        self.recipe = Some(recipe);
        Ok(())
    }

    /// As [`Core::open_rooms`].
    pub fn open_rooms(&mut self, settings: &RoomSettings) -> Result<(), Error> {
        let answer = self.core.open_rooms(settings);
        if let Some(trace) = &mut self.trace {
            trace.rooms(settings, &answer);
        } else if answer.is_ok() {
            self.rooms = Some(*settings);
        }
        answer
    }

    /// Records from now on, which must be before the first call: a trace begins with all blocks
    /// free. A second time changes nothing.
    pub fn record(&mut self) -> Result<(), Error> {
        if self.trace.is_some() {
            return Ok(());
        }
        if self.was_called {
            let what = "a trace begins with the first call; this core was called before";
            return Err(Error::Config(what.into()));
        }
        let mut trace = Writer::default();
        trace.raw(MAGIC);
        trace.raw(&[VERSION]);
        trace.begin(tag::START);
        let (geometry, sizes, limits) = &self.start;
        trace.start(geometry, sizes, limits);
        trace.recipe(self.recipe.as_ref());
        trace.number(self.core.layout().hash());
        trace.end();
        if let Some(settings) = &self.rooms {
            trace.rooms(settings, &Ok(()));
        }
        self.trace = Some(trace);
        Ok(())
    }

    /// The bytes that came since the last time; all of them, put together, are the trace.
    pub fn take_trace(&mut self) -> Vec<u8> {
        self.trace.as_mut().map(Writer::take).unwrap_or_default()
    }

    /// Bytes that wait to be taken.
    pub fn num_trace_bytes(&self) -> usize {
        self.trace.as_ref().map_or(0, Writer::len)
    }

    /// As [`Core::submit`].
    pub fn submit(&mut self, new: NewRequest<'_>) -> Result<RequestId, Error> {
        self.was_called = true;
        let Some(trace) = &mut self.trace else { return self.core.submit(new) };
        trace.begin(tag::SUBMIT);
        trace.request(&new);
        let answer = self.core.submit(new);
        trace.answer(&answer, |trace, id| trace.number(id.0));
        trace.end();
        answer
    }

    /// As [`Core::plan`].
    pub fn plan(&mut self, memory: &mut [i32]) -> Result<Option<Plan>, Error> {
        self.was_called = true;
        let answer = self.core.plan(memory);
        if let Some(trace) = &mut self.trace {
            trace.begin(tag::PLAN);
            trace.count(memory.len());
            trace.answer(&answer, |trace, plan| {
                trace.number(u64::from(plan.is_some()));
                if let Some(plan) = plan {
                    trace.plan(plan, &self.core, memory);
                }
            });
            trace.end();
        }
        answer
    }

    /// As [`Core::advance`].
    pub fn advance(&mut self, events: &[Event<'_>]) -> Result<Outcome, Error> {
        self.was_called = true;
        let answer = self.core.advance(events);
        if let Some(trace) = &mut self.trace {
            trace.begin(tag::ADVANCE);
            trace.count(events.len());
            for event in events {
                trace.event(event);
            }
            trace.answer(&answer, |trace, outcome| trace.check(check::outcome(outcome)));
            trace.end();
        }
        answer
    }

    /// As [`Core::abort`].
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.was_called = true;
        let answer = self.core.abort(id);
        if let Some(trace) = &mut self.trace {
            trace.begin(tag::ABORT);
            trace.number(id.0);
            trace.number(u64::from(answer));
            trace.end();
        }
        answer
    }

    /// As [`Core::explain`], which changes nothing that a plan could depend on.
    pub fn explain(&mut self, id: RequestId) -> String {
        self.core.explain(id)
    }

    /// As [`Core::shutdown`].
    pub fn shutdown(&mut self) {
        self.was_called = true;
        self.core.shutdown();
        if let Some(trace) = &mut self.trace {
            trace.begin(tag::SHUTDOWN);
            trace.end();
        }
    }
}

/// In the order in which `replay` reads them.
impl Writer {
    fn start(&mut self, geometry: &Geometry, sizes: &PoolSizes, limits: &Limits) {
        self.count(geometry.ratios.len());
        for &ratio in &geometry.ratios {
            self.count(ratio);
        }
        for number in [
            geometry.window,
            geometry.kv_data_bytes,
            geometry.kv_scale_bytes,
            geometry.kv_page_multiple,
            geometry.index_data_bytes,
            geometry.index_scale_bytes,
            geometry.c4_state_bytes,
            geometry.index_state_bytes,
            geometry.c128_state_bytes,
            geometry.block_tokens,
            geometry.swa_block_tokens,
            geometry.drafts.tokens,
            geometry.drafts.hc_mult,
            geometry.drafts.hidden,
            sizes.full_blocks,
            sizes.swa_blocks,
            sizes.state_slots,
            limits.max_model_len,
            limits.max_num_requests,
            limits.max_num_tokens,
            limits.max_queued_requests,
            limits.max_queued_tokens,
            limits.vocab_size,
            limits.max_steps_in_flight,
            limits.aging_steps,
            usize::from(limits.prefix_cache),
            limits.checkpoint_tokens,
            limits.max_draft_tokens,
        ] {
            self.count(number);
        }
    }

    fn recipe(&mut self, recipe: Option<&Recipe>) {
        self.number(u64::from(recipe.is_some()));
        let Some(recipe) = recipe else { return };
        self.text(&recipe.name);
        self.count(recipe.dwell_steps);
        self.count(recipe.margin_percent);
        self.count(recipe.bands.len());
        for band in &recipe.bands {
            self.text(&band.name);
            self.count(band.min_requests);
            self.count(band.max_num_requests);
            self.count(band.max_num_tokens);
            self.count(band.max_draft_tokens);
        }
    }

    fn request(&mut self, new: &NewRequest<'_>) {
        self.tokens(&new.prompt);
        self.whole(new.max_tokens);
        self.whole(new.min_tokens);
        self.count(new.stop_token_ids.len());
        for &id in new.stop_token_ids {
            self.whole(id);
        }
        self.whole(new.priority);
        self.text(new.cache_salt);
        self.number(u64::from(new.no_cache));
        new.transfer.write(self);
    }

    fn rooms(&mut self, settings: &RoomSettings, answer: &Result<(), Error>) {
        self.begin(tag::ROOMS);
        settings.write(self);
        self.answer(answer, |_, ()| ());
        self.end();
    }

    fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::StepDone { step, tokens, non_finite } => {
                self.number(0);
                self.number(step.0);
                self.tokens(tokens);
                self.counts(non_finite);
            }
            Event::Verified { step, answer: Answer { tokens, non_finite, accepted, drafts } } => {
                self.number(3);
                self.number(step.0);
                self.tokens(tokens);
                self.counts(non_finite);
                self.counts(accepted);
                self.tokens(drafts);
            }
            Event::Stopped(id) => {
                self.number(1);
                self.number(id.0);
            }
            Event::Tick(now_us) => {
                self.number(2);
                self.number(now_us);
            }
            Event::Peer { from, message } => {
                self.number(4);
                from.write(self);
                message.write(self);
            }
            Event::TicketEnded { ticket, landed, digest } => {
                self.number(5);
                ticket.write(self);
                landed.write(self);
                digest.write(self);
            }
            Event::Inspected { key, first_token, found } => {
                self.number(6);
                key.write(self);
                first_token.write(self);
                found.write(self);
            }
            Event::PeerGone { incarnation, evidence } => {
                self.number(7);
                incarnation.write(self);
                evidence.write(self);
            }
            Event::Fenced { incarnation, evidence } => {
                self.number(8);
                incarnation.write(self);
                evidence.write(self);
            }
            Event::Reconnected { incarnation, num_fences } => {
                self.number(9);
                incarnation.write(self);
                num_fences.write(self);
            }
        }
    }

    fn counts(&mut self, counts: &[usize]) {
        self.count(counts.len());
        for &count in counts {
            self.count(count);
        }
    }

    fn answer<T>(&mut self, answer: &Result<T, Error>, write: impl FnOnce(&mut Self, &T)) {
        self.number(u64::from(answer.is_err()));
        match answer {
            Ok(answer) => write(self, answer),
            Err(error) => self.check(check::refusal(error)),
        }
    }

    fn plan(&mut self, plan: &Plan, core: &Core, memory: &[i32]) {
        for (_, number) in check::numbers(plan) {
            self.number(number);
        }
        self.check(check::lists(plan));
        for (_, check) in check::arrays(plan, core.layout(), memory) {
            self.check(check);
        }
    }
}
