//! The façade: submit · plan · advance · abort · stats · explain · audit · shutdown.
//!
//! Plan out, events in. A call that is refused changes nothing. The same calls in the same order
//! give the same plans, on any machine.

use crate::audit;
use crate::budget::{self, PoolSizes};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::{self, RequestId};
use crate::limits::Limits;
use crate::metadata::{Memories, StepLayout};
use crate::pool::{MAX_REMOTE, Pool};
use crate::prefix::find::Sharing;
use crate::recipe::{Dispatch, Recipe};
use crate::request::{Asked, Next, Phase, Request};
use crate::schedule::Scheduler;
pub use crate::schedule::{
    Answer, Check, Errands, Event, OnFailure, Outcome, Plan, Posting, Reset, RoomSettings, Transfer,
};
use crate::tokens::Tokens;
use crate::transfer::ids::Room;
use crate::transfer::placement::Placement;
pub use crate::transfer::rooms::Side;
use crate::validate::{self, Capacity, Code, Invalid};

/// A request as a caller hands it in; integers of any size, checked by [`Core::submit`].
#[derive(Clone, Debug)]
pub struct NewRequest<'a> {
    /// Token ids.
    pub prompt: Vec<i32>,
    /// Most tokens to generate.
    pub max_tokens: i128,
    /// Stop tokens do not count before this many tokens.
    pub min_tokens: i128,
    /// Tokens that end the request.
    pub stop_token_ids: &'a [i128],
    /// Lower is earlier.
    pub priority: i128,
    /// Shares prefixes with requests of the same salt only; most often a tenant.
    pub cache_salt: &'a str,
    /// Reads nothing of the prefix cache and leaves nothing in it.
    pub no_cache: bool,
    /// The other side, if this core does only one of prompt and generation.
    pub transfer: Option<Transfer>,
}

/// Most ranks that write to one.
pub const MAX_PEER_RANKS: usize = 1024;
/// Bytes of the longest salt.
pub const MAX_SALT_BYTES: usize = 256;

/// Owner of all KV memory and planner of every step.
#[derive(Debug)]
pub struct Core {
    scheduler: Scheduler,
    layout: StepLayout,
    memories: Memories,
    capacity: Capacity,
    closed: bool,
}

impl Core {
    /// A core with all blocks free.
    pub fn new(geometry: Geometry, sizes: &PoolSizes, limits: Limits) -> Result<Self, Error> {
        budget::check(&geometry, &limits)?;
        sizes.check(&geometry, &limits)?;
        let divides = geometry.block_tokens % geometry.swa_block_tokens == 0;
        if limits.prefix_cache && !divides {
            return Err(Error::Config(format!(
                "block_tokens is {}, not a multiple of swa_block_tokens, {}: no prefix could be \
                 cached",
                geometry.block_tokens, geometry.swa_block_tokens
            )));
        }
        let layout = StepLayout::new(&geometry, &limits);
        let capacity = Capacity {
            max_model_len: limits.max_model_len,
            max_request_tokens: sizes.max_request_tokens(&geometry),
            vocab_size: limits.vocab_size,
            max_logprobs: 0,
        };
        let scheduler = Scheduler::new(geometry, sizes, limits)?;
        let memories = Memories::default();
        Ok(Self { scheduler, layout, memories, capacity, closed: false })
    }

    /// From now on the limits in force are those of the recipe's bands; before, they are the core's
    /// own at every concurrency.
    pub fn follow(&mut self, recipe: Recipe) -> Result<(), Error> {
        recipe.check(&self.scheduler.limits)?;
        self.scheduler.dispatch = Dispatch::new(recipe);
        Ok(())
    }

    /// From now on a broken invariant panics with the ids, as tests want it, instead of failing
    /// one request.
    pub fn panic_on_violation(&self) {
        self.scheduler.pools.for_each(Pool::panic_on_violation);
    }

    /// From now on requests may have another side, and this core is always the same one. To be called
    /// once, before the first request.
    pub fn open_rooms(&mut self, settings: &RoomSettings) -> Result<(), Error> {
        self.check_open()?;
        if self.scheduler.rooms.side().is_some() {
            return Err(Error::Config("a core is told its side once".into()));
        }
        if let Some(Placement { rank, size }) = settings.placement {
            let checked = Placement::new(rank, size);
            checked.map_err(|misplaced| Error::Config(misplaced.to_string()))?;
            if settings.side == Side::Decode {
                let what = "dp_rank is a prefill worker's; a decode worker takes any room";
                return Err(Error::Config(what.into()));
            }
        }
        if settings.deadline_ms == 0 {
            return Err(Error::Config("deadline_ms is 0; no prompt comes at once".into()));
        }
        let max_rooms = settings.max_rooms;
        if !(1..=MAX_REMOTE).contains(&max_rooms) {
            return Err(Error::Config(format!(
                "max_rooms is {max_rooms}; it must be from 1 to {MAX_REMOTE}"
            )));
        }
        self.scheduler.rooms.open(settings);
        Ok(())
    }

    /// Where every array of a step lies.
    pub fn layout(&self) -> &StepLayout {
        &self.layout
    }

    /// What a request may ask for.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Validates and enqueues. What has to be said to the other side, the next `advance` tells.
    pub fn submit(&mut self, new: NewRequest<'_>) -> Result<RequestId, Error> {
        self.check_open()?;
        let has = &self.capacity;
        let num_prompt_tokens = new.prompt.len();
        let max_tokens =
            validate::check_lengths(num_prompt_tokens, Some(new.max_tokens), new.min_tokens, has)?;
        validate::check_prompt(&new.prompt, has.vocab_size)?;
        validate::check_stop_tokens(new.stop_token_ids, validate::MAX_ENDINGS, has.vocab_size)?;
        let range = i128::from(i32::MIN)..=i128::from(i32::MAX);
        validate::check_whole("priority", new.priority, range, |_| "lower is earlier".into())?;
        validate::check_count("cache_salt", new.cache_salt.len(), MAX_SALT_BYTES)?;
        self.check_queue(num_prompt_tokens)?;
        let submitted_us = self.scheduler.now_us;
        let narrow = "checked against a smaller range";
        let priority = i32::try_from(new.priority).expect(narrow);
        if let Some(other) = &new.transfer {
            let side = self.scheduler.rooms.side().ok_or(Error::NoRooms)?;
            check_transfer(other, side)?;
        }
        let side = new.transfer.as_ref().and(self.scheduler.rooms.side());
        let is_sent = side == Some(Side::Prefill);
        let make = |id, rank| Request {
            id,
            num_prompt_tokens: ids::narrow(num_prompt_tokens),
            max_tokens: if is_sent { 1 } else { max_tokens },
            min_tokens: u32::try_from(new.min_tokens).expect(narrow),
            tokens: Tokens::new(new.prompt),
            stop_token_ids: new
                .stop_token_ids
                .iter()
                .map(|&id| i32::try_from(id).expect(narrow))
                .collect(),
            asked: Box::new(Asked {
                rank,
                submitted_us,
                sharing: Sharing {
                    salt: new.cache_salt.into(),
                    is_off: new.no_cache,
                    ..Sharing::default()
                },
            }),
        };
        match &new.transfer {
            Some(transfer) => self.scheduler.submit_transfer(priority, transfer, make),
            None => Ok(self.scheduler.submit(priority, make)),
        }
    }

    fn check_queue(&self, num_tokens: usize) -> Result<(), Error> {
        let (queue, limits) = (&self.scheduler.queue, &self.scheduler.limits);
        let elsewhere = self.scheduler.rooms.waiting();
        let (num_queued, num_queued_tokens) =
            (queue.len() + elsewhere.0, queue.num_tokens() + elsewhere.1);
        for (unit, queued, adds, limit) in [
            ("requests", num_queued, 1, limits.max_queued_requests),
            ("tokens", num_queued_tokens, num_tokens, limits.max_queued_tokens),
        ] {
            if queued + adds > limit {
                return Err(Error::QueueFull { unit, queued, adds, limit });
            }
        }
        Ok(())
    }

    /// Decides the next step and fills `memory`; None if there is nothing to do now. What `plan`
    /// had to end, the next `advance` tells.
    pub fn plan(&mut self, memory: &mut [i32]) -> Result<Option<Plan>, Error> {
        self.check_open()?;
        let (has, needs) = (memory.len(), self.layout.num_words());
        if has < needs {
            return Err(Error::MemoryTooSmall { has, needs });
        }
        let limit = self.scheduler.limits.max_steps_in_flight;
        let flights = &self.scheduler.flights;
        match flights.front() {
            Some(flight) if flights.len() >= limit => {
                return Err(Error::TooManySteps { oldest: flight.step, limit });
            }
            _ => {}
        }
        Ok(self.scheduler.plan(&self.layout, memory, &mut self.memories))
    }

    /// What happened. All events are checked before any is applied.
    pub fn advance(&mut self, events: &[Event<'_>]) -> Result<Outcome, Error> {
        self.check_open()?;
        self.scheduler.advance(events)
    }

    /// Ends a request; its other side, if it has one, is told by what the next `advance` returns.
    /// False if there is none of that id any more, or never was.
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.scheduler.abort(id)
    }

    /// Counters and gauges by name.
    pub fn stats(&self) -> Vec<(String, u64)> {
        let scheduler = &self.scheduler;
        let (queue, running) = (&scheduler.queue, &scheduler.running);
        let lookups = &scheduler.prefix.lookups;
        let is_prefilling = |place| matches!(scheduler.requests.at(place), Phase::Prefilling(_));
        let num_prefilling = running.iter().filter(|&&(_, place)| is_prefilling(place)).count();
        let submitted =
            queue.places().map(|p| scheduler.requests.at(p).request().asked.submitted_us);
        let waited_us = submitted.min().map_or(0, |oldest| scheduler.now_us - oldest);
        let mut stats: Vec<(String, u64)> = [
            ("num_running", running.len()),
            ("num_prefilling", num_prefilling),
            ("num_waiting", queue.len()),
            ("num_queued_tokens", queue.num_tokens()),
            ("num_steps_in_flight", scheduler.flights.len()),
            ("num_preemptions", scheduler.num_preemptions),
            ("num_stalls", scheduler.num_stalls),
            ("recipe_band", scheduler.dispatch.index()),
            ("num_recipe_switches", scheduler.dispatch.num_switches),
            ("prefix_queries", lookups.requests),
            ("prefix_query_tokens", lookups.tokens),
            ("prefix_hit_tokens", lookups.hits),
            ("prefix_miss_never_seen_tokens", lookups.never_seen),
            ("prefix_miss_evicted_full_tokens", lookups.evicted_full),
            ("prefix_miss_evicted_window_tokens", lookups.evicted_window),
            ("prefix_miss_salt_tokens", lookups.salt),
            ("num_window_checkpoints", scheduler.prefix.trie.num_checkpoints()),
            ("num_evicted_blocks", scheduler.prefix.num_evicted_blocks),
            ("num_evicted_windows", scheduler.prefix.num_evicted_windows),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value as u64))
        .collect();
        stats.push(("oldest_waiting_us".to_owned(), waited_us));
        let mut num_violations = 0;
        for (group, pool) in scheduler.pools.each() {
            let counts = pool.counts();
            num_violations += counts.violations;
            for (state, value) in [
                ("capacity", counts.capacity),
                ("free", counts.free),
                ("open", counts.open),
                ("sealed", counts.sealed),
                ("shared", counts.shared),
                ("cached", counts.cached),
                ("retired", counts.retired),
                ("quarantined", counts.quarantined),
                ("reserved", counts.reserved),
                ("incoming", counts.incoming),
                ("read", counts.read),
            ] {
                stats.push((format!("{group}_{state}"), value as u64));
            }
        }
        for (name, value) in scheduler.rooms.stats() {
            stats.push((name.to_owned(), value as u64));
        }
        stats.push(("num_violations".to_owned(), num_violations as u64));
        stats
    }

    /// What a request is doing and, if it waits, for what.
    pub fn explain(&mut self, id: RequestId) -> String {
        let scheduler = &mut self.scheduler;
        let Some(place) = scheduler.requests.place_of(id) else {
            if let Some(what) = scheduler.rooms.explain(id) {
                return format!("request {id} {what}");
            }
            let what = if scheduler.knows(id) { "has ended" } else { "was never submitted" };
            return format!("request {id} {what}");
        };
        match scheduler.requests.at(place) {
            Phase::Waiting(waiting) => {
                let before = scheduler.queue.num_before(waiting.request.asked.rank);
                let why = match scheduler.waits_for(place) {
                    None => "it fits, and starts when the step has tokens and rows to spare".into(),
                    Some(wait) => format!("it {wait}"),
                };
                format!("request {id} waits behind {before} others; {why}")
            }
            Phase::Prefilling(prefilling) => {
                let (done, all) = (prefilling.0.planned(), prefilling.0.request.tokens.len());
                format!("request {id} is prefilling: {done} of {all} tokens planned")
            }
            Phase::Decoding(decoding) => {
                let request = &decoding.active.request;
                let (made, most) = (request.num_generated(), request.max_tokens);
                let is_ready = matches!(decoding.next(), Next::Known);
                let now = if is_ready { "is ready" } else { "waits for its sample" };
                format!("request {id} is decoding: {made} of at most {most} tokens; it {now}")
            }
        }
    }

    /// Which band of the recipe is in force, why, and when it changes: a sentence for people.
    pub fn explain_recipe(&self) -> String {
        self.scheduler.dispatch.to_string()
    }

    /// Checks that every block is in exactly one place and every request on exactly one list.
    pub fn audit(&self) -> Result<(), Error> {
        audit::audit(&self.scheduler)
    }

    /// Ends every request; from now on `submit`, `plan` and `advance` are refused. Idempotent.
    pub fn shutdown(&mut self) {
        self.closed = true;
        self.scheduler.clear();
    }

    /// What tests look into and break.
    #[cfg(test)]
    pub(crate) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed { Err(Error::Closed) } else { Ok(()) }
    }
}

/// A room that others can name, and writers of which each is meant once.
fn check_transfer(other: &Transfer, side: Side) -> Result<(), Error> {
    let rooms = 0..=i128::from(Room::MAX);
    validate::check_whole("room", i128::from(other.room.0), rooms, |_| "draw another".into())?;
    validate::check_count("peer_ranks", other.peer_ranks.len(), MAX_PEER_RANKS)?;
    let mut ranks = other.peer_ranks.clone();
    ranks.sort_unstable();
    ranks.dedup();
    let is_decode = side == Side::Decode;
    if ranks.len() != other.peer_ranks.len() || (is_decode && ranks.is_empty()) {
        let message = format!(
            "peer_ranks is {:?}; a decode worker needs at least one, each named once",
            other.peer_ranks
        );
        let invalid = Invalid { param: "peer_ranks", code: Code::InvalidValue, message };
        return Err(Error::Invalid(invalid));
    }
    Ok(())
}
