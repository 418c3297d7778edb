//! The whole core under random callers, every plan and every outcome checked by the referee.

use dsv4_core::budget::PoolSizes;
use dsv4_core::error::Error;
use dsv4_core::geometry::Geometry;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::{Answer, Event, NewRequest, Outcome};

use crate::driver::{Driver, drafting, real_geometry, request, tiny_geometry};
use crate::referee::{Answered, Referee, RowAnswer};
use crate::rng::{Rng, Seed, at_operation};

/// What kind of games, beyond what the seed decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Prefixes are cached in all of them.
    pub caches: bool,
    /// From 1 to 8 full blocks.
    pub is_cramped: bool,
}

/// One core, its caller and its referee.
pub struct Game {
    pub driver: Driver,
    referee: Referee,
    rng: Rng,
    lengths: Vec<usize>,
    /// Outputs go far beyond what admission promises, so that requests outgrow the pools.
    outgrows: bool,
    /// Calls of the core whose answer was checked, refusals included.
    pub num_calls: usize,
    num_ended: usize,
    num_accepted: usize,
    now_us: u64,
    /// Tokens of earlier requests, which later ones begin with.
    history: Vec<Vec<i32>>,
}

impl Game {
    pub fn new(geometry: Geometry, rng: Rng) -> Self {
        Self::of(geometry, rng, Style::default())
    }

    pub fn of(geometry: Geometry, mut rng: Rng, style: Style) -> Self {
        let block = geometry.block_tokens;
        let outgrows = rng.once_in(3);
        let max_model_len =
            if outgrows { 10 * block } else { rng.pick(&[2 * block, 3 * block + 1, 6 * block]) };
        let max_num_requests = rng.between(1, 6);
        let limits = Limits {
            max_model_len,
            max_num_requests,
            max_num_tokens: max_num_requests + rng.pick(&[0, 1, 3, block, 2 * block]),
            max_queued_requests: rng.between(1, 8),
            max_queued_tokens: max_model_len * rng.between(1, 8),
            vocab_size: 50,
            max_steps_in_flight: rng.between(1, 2),
            aging_steps: rng.pick(&[1, 4, 50]),
            prefix_cache: rng.once_in(2) || style.caches,
            checkpoint_tokens: rng.pick(&[0, 0, block, 2 * block]),
            max_draft_tokens: rng.pick(&[0, 0, 0, 1, 2, 5, 15]),
        };
        let sizes = PoolSizes {
            full_blocks: if outgrows { rng.between(9, 20) } else { rng.between(1, 12) },
            swa_blocks: geometry.steady_swa_blocks(limits.tokens_in_flight())
                + if outgrows { 40 } else { rng.pick(&[0, 0, 1, 3, 10, 40]) },
            state_slots: rng.between(1, 6),
        };
        let full_blocks = if style.is_cramped { rng.between(1, 8) } else { sizes.full_blocks };
        let sizes = PoolSizes { full_blocks, ..sizes };
        // In some games there is room for what is cached, in the others it is always in the way.
        let is_roomy = limits.prefix_cache && rng.once_in(2) && !style.is_cramped;
        let more = if is_roomy { rng.between(1, 30) } else { 0 };
        let sizes = PoolSizes {
            full_blocks: sizes.full_blocks + more,
            swa_blocks: sizes.swa_blocks + more,
            state_slots: sizes.state_slots + more / 3,
        };
        let window = geometry.window;
        let lengths = vec![
            1,
            2,
            3,
            4,
            5,
            block - 1,
            block,
            block + 1,
            2 * block,
            4 * block + 1,
            (window - 1).max(1),
            window,
            window + 1,
            geometry.swa_block_tokens,
        ];
        let capacity = [sizes.full_blocks, sizes.swa_blocks, sizes.state_slots];
        Self {
            driver: Driver::new(geometry.clone(), sizes, limits.clone()),
            referee: Referee::new(geometry, limits, capacity),
            rng,
            lengths,
            outgrows,
            num_calls: 0,
            num_ended: 0,
            num_accepted: 0,
            now_us: 0,
            history: vec![],
        }
    }

    /// At least so many calls, then everything runs to its end.
    pub fn play(&mut self, num_calls: usize) {
        while self.num_calls < num_calls {
            self.operate();
            at_operation(self.num_calls);
            if self.rng.once_in(64) {
                self.driver.core.audit().expect("balanced");
            }
        }
        // Whatever still runs comes to its end, in a bounded number of steps.
        for _ in 0..20_000 {
            while self.referee.num_in_flight() > 0 {
                self.finish_step();
            }
            if !self.plan() {
                break;
            }
        }
        assert!(self.referee.known.is_empty(), "left over: {:?}", self.referee.known.keys());
        assert_eq!(self.num_ended, self.num_accepted, "every request ends exactly once");
        self.driver.assert_at_rest();
        assert_eq!(self.driver.stat("num_stalls"), 0);
    }

    fn operate(&mut self) {
        match self.rng.below(400) {
            0..=79 => self.submit(),
            80..=214 => {
                self.plan();
            }
            215..=364 => self.finish_step(),
            365..=374 => self.abort(),
            375..=384 => self.stop(),
            385..=395 => {
                self.now_us += self.rng.below(100) as u64;
                self.advance(&[Event::Tick(self.now_us)], &Outcome::default());
            }
            _ => self.misbehave(),
        }
    }

    fn submit(&mut self) {
        let most = self.referee.limits.max_model_len;
        let prompt = self.rng.pick(&self.lengths).min(most - 1);
        let continues = self.referee.limits.prefix_cache && self.rng.once_in(2);
        let prompt = if continues { self.rng.between(1, most - 1) } else { prompt };
        let mut max_tokens = self.rng.pick(&self.lengths);
        if self.outgrows {
            max_tokens = self.rng.between(most / 3, most - prompt.min(most / 2));
        }
        let min_tokens = if self.rng.once_in(4) { self.rng.between(0, max_tokens) } else { 0 };
        let stops: Vec<i32> = if self.rng.once_in(3) { vec![7, 9] } else { vec![] };
        let mut tokens: Vec<i32> = (0..prompt).map(|_| self.token()).collect();
        if !self.history.is_empty() && !self.rng.once_in(4) {
            let earlier = self.rng.below(self.history.len());
            let earlier = &self.history[earlier];
            let most = earlier.len().min(prompt);
            let shared = if self.rng.once_in(3) { self.rng.between(0, most) } else { most };
            tokens[..shared].copy_from_slice(&earlier[..shared]);
        }
        let salt = self.rng.pick(&["", "", "", "", "", "", "a", "b"]);
        let no_cache = self.rng.once_in(10);
        let priority = if self.rng.once_in(4) { self.rng.pick(&[0, 1, 2]) } else { 1 };
        let wide: Vec<i128> = stops.iter().map(|&id| i128::from(id)).collect();
        self.num_calls += 1;
        let accepted = self.driver.try_submit(NewRequest {
            prompt: tokens.clone(),
            max_tokens: max_tokens as i128,
            min_tokens: min_tokens as i128,
            stop_token_ids: &wide,
            priority: i128::from(priority),
            cache_salt: salt,
            no_cache,
            transfer: None,
        });
        let most = most.min(self.driver.core.capacity().max_request_tokens);
        match accepted {
            Ok(id) => {
                assert!(prompt + max_tokens <= most, "{prompt} + {max_tokens} > {most}");
                let lengths = (max_tokens, min_tokens);
                let cache = (salt, no_cache);
                let known = self.referee.new_request(tokens, lengths, stops, priority, cache);
                self.referee.submitted(id, known);
                self.num_accepted += 1;
            }
            Err(Error::Invalid(refusal)) => {
                assert!(prompt + max_tokens > most, "{refusal}");
                assert!(refusal.message.contains(&prompt.to_string()), "{refusal}");
            }
            Err(Error::QueueFull { unit, queued, adds, limit }) => {
                let limits = &self.referee.limits;
                let is_of_tokens = unit == "tokens";
                let expected = if is_of_tokens {
                    limits.max_queued_tokens
                } else {
                    limits.max_queued_requests
                };
                assert_eq!((adds, limit), (if is_of_tokens { prompt } else { 1 }, expected));
                let waiting = self.referee.most_waiting(is_of_tokens);
                assert!(queued + adds > limit && queued <= waiting, "{queued} {unit} of {waiting}");
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn token(&mut self) -> i32 {
        i32::try_from(self.rng.below(50)).expect("small")
    }

    /// True if there was a step.
    fn plan(&mut self) -> bool {
        self.num_calls += 1;
        if self.referee.num_in_flight() == self.referee.limits.max_steps_in_flight {
            let refused = self.driver.core.plan(&mut self.driver.memory);
            assert!(matches!(refused, Err(Error::TooManySteps { .. })));
            return false;
        }
        let Driver { core, memory } = &mut self.driver;
        let Some(plan) = core.plan(memory).expect("a step may be planned") else {
            let must_move = self.referee.num_in_flight() == 0 && !self.referee.known.is_empty();
            assert!(!must_move, "nothing moves: {:?}", core.stats());
            return false;
        };
        let (rng, width) = (&mut self.rng, self.referee.limits.max_draft_tokens);
        let mut device = |drafts: &[i32]| device(rng, drafts, width);
        self.referee.planned(&plan, core.layout(), memory, &mut device);
        true
    }

    /// Some of what runs becomes what later requests begin with.
    fn note_history(&mut self) {
        let alive: Vec<RequestId> = self.referee.known.keys().copied().collect();
        if alive.is_empty() || !self.rng.once_in(3) {
            return;
        }
        let tokens = self.referee.known[&self.rng.pick(&alive)].tokens.clone();
        if self.history.len() < 4 {
            self.history.push(tokens);
        } else {
            let place = self.rng.below(4);
            self.history[place] = tokens;
        }
    }

    fn finish_step(&mut self) {
        self.note_history();
        let Some((step, answer)) = self.referee.oldest() else { return };
        let expected = self.referee.done();
        let Answered { tokens, non_finite, accepted, drafts } = &answer;
        let nothing_drafted = self.referee.limits.max_draft_tokens == 0;
        let event = if nothing_drafted && self.rng.once_in(2) {
            Event::StepDone { step, tokens, non_finite }
        } else {
            Event::Verified { step, answer: Answer { tokens, non_finite, accepted, drafts } }
        };
        self.advance(&[event], &expected);
    }

    fn advance(&mut self, events: &[Event<'_>], expected: &Outcome) {
        self.num_calls += 1;
        let mut outcome = self.driver.core.advance(events).expect("legal events");
        self.referee.zeroed(&std::mem::take(&mut outcome.to_zero));
        assert_eq!(&outcome, expected);
        self.num_ended += outcome.finished.iter().filter(|&&code| code != 0).count();
    }

    /// Any request at all, most of them alive.
    fn some_request(&mut self) -> Option<RequestId> {
        let alive: Vec<RequestId> = self.referee.known.keys().copied().collect();
        if alive.is_empty() || self.rng.once_in(8) {
            let last = self.num_accepted;
            return (last > 0).then(|| RequestId(self.rng.between(1, last) as u64));
        }
        Some(self.rng.pick(&alive))
    }

    fn abort(&mut self) {
        let Some(id) = self.some_request() else { return };
        let was_alive = self.referee.known.contains_key(&id);
        self.num_calls += 2;
        assert_eq!(self.driver.core.abort(id), was_alive);
        assert!(!self.driver.core.abort(id), "a second abort does nothing");
        self.referee.ended(id);
        self.num_ended += usize::from(was_alive);
    }

    fn stop(&mut self) {
        let Some(id) = self.some_request() else { return };
        let mut expected = Outcome::default();
        if self.referee.known.contains_key(&id) {
            let (request_ids, tokens, finished) = (vec![id], vec![-1], vec![3]);
            expected = Outcome { request_ids, tokens, finished, ..Outcome::default() };
            self.referee.ended(id);
        }
        self.advance(&[Event::Stopped(id)], &expected);
    }

    /// Calls that do not fit: a typed error each, and nothing changes.
    fn misbehave(&mut self) {
        let oldest = self.referee.oldest();
        let (step, answer) = oldest.unwrap_or((StepId(1 << 40), Answered::default()));
        let samples = answer.tokens.len();
        let before = self.driver.core.stats();
        let too_many = vec![0; samples + 1];
        let outside = vec![50; samples];
        let right = vec![0; samples];
        let beyond = [samples];
        let done = |step, tokens| Event::StepDone { step, tokens, non_finite: &[] };
        let too_many_accepted: Vec<usize> =
            answer.accepted.iter().map(|_| 1 + self.referee.limits.max_draft_tokens).collect();
        let one_too_few = answer.accepted.len().saturating_sub(1);
        let verified = |accepted, drafts| Event::Verified {
            step,
            answer: Answer { tokens: &answer.tokens, non_finite: &[], accepted, drafts },
        };
        let mut all = vec![
            vec![done(step.next(), &right)],
            vec![done(step, &too_many)],
            vec![Event::StepDone { step, tokens: &right, non_finite: &beyond }],
            vec![Event::Stopped(RequestId(u64::MAX))],
            vec![Event::Stopped(RequestId(0))],
            vec![verified(&[], &[50])],
            // The first event is right, and is not applied either.
            vec![done(step, &right), done(step, &right)],
        ];
        if samples > 0 {
            all.push(vec![done(step, &outside)]);
            all.push(vec![verified(&too_many_accepted, &[])]);
        }
        if one_too_few > 0 {
            all.push(vec![verified(&answer.accepted[..one_too_few], &[])]);
        }
        for events in &all {
            let refused = self.driver.core.advance(events);
            assert!(refused.is_err(), "{events:?}");
        }
        let short = self.driver.memory.len() - 1;
        let refused = self.driver.core.plan(&mut self.driver.memory[..short]);
        assert!(matches!(refused, Err(Error::MemoryTooSmall { .. })));
        let request = |len, max_tokens| NewRequest { max_tokens, ..request(len, 1) };
        let bad = [request(0, 1), request(1, 0), request(1, -1), request(1, i128::MAX)];
        let num_bad = bad.len();
        for new in bad {
            assert!(matches!(self.driver.try_submit(new), Err(Error::Invalid(_))));
        }
        assert!(!self.driver.core.abort(RequestId(u64::MAX)));
        assert_eq!(self.driver.core.stats(), before);
        self.num_calls += all.len() + num_bad + 2;
    }
}

/// A device that draws tokens: as many drafts are right as it likes, and it drafts what it likes.
fn device(rng: &mut Rng, drafts: &[i32], width: usize) -> RowAnswer {
    let mut token = || i32::try_from(rng.below(50)).expect("small");
    let mut tokens: Vec<i32> = (0..=drafts.len()).map(|_| token()).collect();
    let mut next: Vec<i32> = (0..width).map(|_| token()).collect();
    let accepted = rng.between(0, drafts.len());
    tokens[..accepted].copy_from_slice(&drafts[..accepted]);
    let count = if rng.once_in(3) { rng.between(0, width) } else { width };
    next[count..].fill(-1);
    let broken = if rng.once_in(100) { vec![rng.below(tokens.len())] } else { vec![] };
    RowAnswer { tokens, broken, accepted, drafts: next }
}

/// What happened in some games, so that a test can say that it saw what it is about.
#[derive(Debug, Default)]
struct Seen {
    calls: usize,
    restarts: usize,
    overtakings: usize,
    hits: usize,
    swaps: usize,
    evictions: u64,
    ends: usize,
    forwarded: usize,
    orphans: usize,
    zeroed: usize,
    accepted: usize,
    rejected: usize,
}

fn play(
    seeds: std::ops::Range<u64>,
    operations: usize,
    geometry: fn(&mut Rng) -> Geometry,
) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let _seed = Seed(seed);
        let mut rng = Rng::new(seed);
        let mut game = Game::new(geometry(&mut rng), rng);
        game.play(operations);
        seen.calls += game.num_calls;
        seen.restarts += game.referee.num_restarts;
        seen.overtakings += game.referee.num_overtakings;
        seen.hits += game.referee.num_hits;
        seen.swaps += game.referee.num_swaps;
        seen.evictions += game.driver.stat("num_evicted_blocks");
        seen.evictions += game.driver.stat("num_evicted_windows");
        seen.ends += game.num_ended;
        seen.forwarded += game.referee.num_forwarded;
        seen.orphans += game.referee.num_orphans;
        seen.zeroed += game.referee.num_zeroed;
        seen.accepted += game.referee.num_accepted;
        seen.rejected += game.referee.num_rejected;
    }
    seen
}

pub fn tiny(rng: &mut Rng) -> Geometry {
    let ratios = rng.pick(&[[0, 4], [0, 0], [4, 4]]).to_vec();
    let (window, swa_block_tokens) = rng.pick(&[(8, 4), (8, 8), (5, 4), (1, 2), (12, 4)]);
    Geometry { ratios, window, swa_block_tokens, ..drafting(tiny_geometry()) }
}

fn real(_: &mut Rng) -> Geometry {
    drafting(real_geometry())
}

/// Four million calls with tiny blocks, and enough of everything that is rare.
fn tiny_games(seeds: std::ops::Range<u64>) {
    let seen = play(seeds, 2000, tiny);
    assert!(seen.calls >= 4_000_000);
    let enough = seen.restarts > 1200 && seen.overtakings > 2000 && seen.ends > 100_000;
    let enough = enough && seen.hits > 1500 && seen.swaps > 1500 && seen.evictions > 90_000;
    let enough = enough && seen.forwarded > 50_000 && seen.orphans > 15_000;
    let enough = enough && seen.zeroed > 10_000;
    let enough = enough && seen.accepted > 150_000 && seen.rejected > 150_000;
    assert!(enough, "too little of what is rare: {seen:?}");
}

#[test]
fn four_million_random_calls_with_tiny_blocks_obey_the_rules() {
    tiny_games(0..2000);
}

#[test]
fn four_million_random_calls_of_other_seeds_obey_the_rules() {
    tiny_games(1_000_000..1_002_000);
}

#[test]
fn two_million_random_calls_with_the_real_blocks_obey_the_rules() {
    let seen = play(7000..8000, 2000, real);
    assert!(seen.calls >= 2_000_000);
    let enough = seen.overtakings > 200 && seen.ends > 50_000;
    let enough = enough && seen.forwarded > 20_000 && seen.accepted > 50_000;
    assert!(enough, "too little of what is rare: {seen:?}");
}
