//! What every plan and every outcome must obey, kept by somebody who knows nothing of the code.
//!
//! The referee sees what any caller sees: the arrays of a step, and what `advance` says. From them
//! it keeps its own books (who owns which block, who may read it until when, which tokens it holds)
//! and refuses whatever breaks a rule.
//!
//! What a block or a slot holds is the hash of a whole prefix with its salt, whoever computed it.
//! Whatever a request reads must hold its own tokens, and if another computed them, a finite sample
//! must have followed from them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsv4_core::geometry::Geometry;
use dsv4_core::ids::{BlockId, Group, RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::metadata::{Field, StepLayout};
use dsv4_core::{Outcome, Plan};

/// A request as the one who submitted it knows it.
#[derive(Debug)]
pub struct Known {
    pub tokens: Vec<i32>,
    pub num_prompt: usize,
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stops: Vec<i32>,
    /// Smaller comes first: arrival in steps plus priority times aging, then the id.
    rank: i64,
    salt: &'static str,
    no_cache: bool,
    /// Of salt and tokens below each position.
    hashes: Vec<u64>,
    /// Tokens that steps in flight sample, as the one who plays the device has decided.
    ahead: Vec<i32>,
    /// Samples in flight, one per step; of the newest, its place and its step.
    in_flight: usize,
    sample: (usize, StepId),
    /// What the device drafted behind the next token.
    drafts: Vec<i32>,
    /// The bank that holds its state.
    bank: usize,
    /// Positions seen in plans of this life, as far as they count for sure.
    planned: usize,
    /// Starts so far; a start after the first means that it was preempted.
    lives: usize,
    full: Vec<i32>,
    swa_first: usize,
    swa: Vec<i32>,
    slot: i32,
    /// Its prompt is computed, in this life.
    decodes: bool,
    /// The step in which a later request of no smaller size first started before it.
    overtaken_since: Option<u64>,
}

/// Owner of a block in one life of a request.
type Life = (RequestId, usize);

/// A step in flight: who reads which block, and whose samples are on their way.
struct Flight {
    step: StepId,
    /// Of the groups full, swa and state, by block.
    readers: [Vec<Readers>; 3],
    writers: [Vec<Option<Life>>; 3],
    rows: Vec<Life>,
    samples: Vec<Sampled>,
    answer: Answered,
}

/// Who reads a block in a step.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    Nobody,
    One(Life),
    Several,
}

/// What the device says of one row: one token per sample, of which the first `accepted` repeat the
/// drafts, and drafts to verify next, as many as the limits allow, -1 where there are no more.
pub struct RowAnswer {
    pub tokens: Vec<i32>,
    pub broken: Vec<usize>,
    pub accepted: usize,
    pub drafts: Vec<i32>,
}

/// A row that is sampled, and what comes of it.
struct Sampled {
    life: Life,
    answer: RowAnswer,
}

/// The same of a whole step, as an event takes it.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    pub tokens: Vec<i32>,
    pub non_finite: Vec<usize>,
    pub accepted: Vec<usize>,
    pub drafts: Vec<i32>,
}

/// What a slot holds behind each position of the row that wrote it last, from `first` on.
#[derive(Clone, Debug)]
struct Kept {
    first: usize,
    hashes: Vec<u64>,
    writer: Life,
    is_private: bool,
}

/// What a block holds: the tokens of a prefix, as this life computed them.
#[derive(Clone, Copy, Debug)]
struct Content {
    hash: u64,
    end: usize,
    writer: Life,
    is_private: bool,
}

pub struct Referee {
    pub geometry: Geometry,
    pub limits: Limits,
    capacity: [usize; 3],
    pub known: BTreeMap<RequestId, Known>,
    flights: VecDeque<Flight>,
    num_steps: u64,
    contents: [Vec<Option<Content>>; 2],
    slots: Vec<Option<Kept>>,
    /// Blocks of the groups full, swa and state with rows that are not finite: nobody may have one
    /// before it was zeroed.
    unclean: BTreeSet<(usize, usize)>,
    /// Positions of each life below which a finite sample depends on everything.
    proven: BTreeMap<Life, usize>,
    pub num_hits: usize,
    pub num_swaps: usize,
    pub num_restarts: usize,
    pub num_overtakings: usize,
    pub num_forwarded: usize,
    pub num_orphans: usize,
    pub num_zeroed: usize,
    pub num_accepted: usize,
    pub num_rejected: usize,
}

/// One row of a step, read from the arrays.
struct Row {
    id: RequestId,
    index: usize,
    first_token: usize,
    start: usize,
    end: usize,
    /// How many of its last tokens are drafts.
    num_drafts: usize,
    /// Its last token is sampled.
    samples: bool,
    /// Positions below hold tokens that count; what is computed behind them is nobody's.
    good_end: usize,
}

impl Row {
    fn new(
        id: RequestId,
        index: usize,
        first_token: usize,
        tokens: std::ops::Range<usize>,
    ) -> Self {
        let (start, end) = (tokens.start, tokens.end);
        Self { id, index, first_token, start, end, num_drafts: 0, samples: false, good_end: end }
    }
}

impl Referee {
    pub fn new(geometry: Geometry, limits: Limits, capacity: [usize; 3]) -> Self {
        Self {
            geometry,
            limits,
            capacity,
            known: BTreeMap::new(),
            flights: VecDeque::new(),
            num_steps: 0,
            contents: [vec![None; capacity[0] + 1], vec![None; capacity[1] + 1]],
            slots: vec![None; capacity[2] + 1],
            unclean: BTreeSet::new(),
            proven: BTreeMap::new(),
            num_hits: 0,
            num_swaps: 0,
            num_restarts: 0,
            num_overtakings: 0,
            num_forwarded: 0,
            num_orphans: 0,
            num_zeroed: 0,
            num_accepted: 0,
            num_rejected: 0,
        }
    }

    pub fn submitted(&mut self, id: RequestId, known: Known) {
        assert!(self.known.insert(id, known).is_none(), "id {id} was given out twice");
    }

    pub fn new_request(
        &self,
        tokens: Vec<i32>,
        (max_tokens, min_tokens): (usize, usize),
        stops: Vec<i32>,
        priority: i64,
        (salt, no_cache): (&'static str, bool),
    ) -> Known {
        let arrived = i64::try_from(self.num_steps).expect("few");
        let aging = i64::try_from(self.limits.aging_steps).expect("few");
        Known {
            num_prompt: tokens.len(),
            tokens,
            max_tokens,
            min_tokens,
            stops,
            rank: arrived + priority * aging,
            salt,
            no_cache,
            hashes: vec![],
            ahead: vec![],
            in_flight: 0,
            sample: (0, StepId(0)),
            drafts: vec![],
            bank: 0,
            planned: 0,
            lives: 0,
            full: vec![],
            swa_first: 0,
            swa: vec![],
            slot: 0,
            decodes: false,
            overtaken_since: None,
        }
    }

    pub fn ended(&mut self, id: RequestId) {
        self.known.remove(&id);
    }

    /// Requests, or their tokens, of which some may run.
    pub fn most_waiting(&self, tokens: bool) -> usize {
        let count = |known: &Known| if tokens { known.tokens.len() } else { 1 };
        self.known.values().map(count).sum()
    }

    pub fn num_in_flight(&self) -> usize {
        self.flights.len()
    }

    /// The oldest step in flight, and what its samples are going to be.
    pub fn oldest(&self) -> Option<(StepId, Answered)> {
        self.flights.front().map(|flight| (flight.step, flight.answer.clone()))
    }

    /// Reads a whole plan; panics if it breaks a rule. `device` samples a row with these drafts.
    pub fn planned(
        &mut self,
        plan: &Plan,
        layout: &StepLayout,
        memory: &[i32],
        device: &mut dyn FnMut(&[i32]) -> RowAnswer,
    ) {
        let arrays = Arrays { layout, memory };
        self.num_steps += 1;
        assert!(self.flights.len() < self.limits.max_steps_in_flight);
        assert!((1..=self.limits.max_num_requests).contains(&plan.num_requests));
        assert!((1..=self.limits.max_num_tokens).contains(&plan.num_tokens));
        assert_eq!(plan.request_ids.len(), plan.num_requests);
        let distinct: BTreeSet<_> = plan.request_ids.iter().collect();
        assert_eq!(distinct.len(), plan.num_requests, "a request is in one step twice");

        let mut flight = Flight {
            step: plan.step_id,
            readers: self.capacity.map(|most| vec![Readers::Nobody; most + 1]),
            writers: self.capacity.map(|most| vec![None; most + 1]),
            rows: vec![],
            samples: vec![],
            answer: Answered::default(),
        };
        let mut closing = [vec![], vec![], vec![], vec![]];
        let mut positions = vec![];
        let (mut sampled, mut counts) = (vec![], vec![]);
        let (mut num_forwarded, mut num_drafts_in_step) = (0, 0);
        let mut num_prefill = 0;
        let mut longest = 0;
        let starts = arrays.get("query_starts");
        assert_eq!(starts[0], 0);
        let started = plan.started_request_ids.iter().copied();
        let started: BTreeMap<RequestId, usize> =
            started.zip(plan.started_cached_tokens.iter().copied()).collect();
        assert_eq!(started.len(), plan.started_cached_tokens.len());
        self.copy("restore", plan.num_restores, &arrays);
        for (index, &id) in plan.request_ids.iter().enumerate() {
            let (first, last) = (at(starts[index]), at(starts[index + 1]));
            assert!(first < last, "row {index} has no tokens");
            let start = at(arrays.get("positions")[first]);
            let end = start + last - first;
            let mut row = Row::new(id, index, first, start..end);
            if let Some(&cached) = started.get(&id) {
                assert_eq!(row.start, cached, "{id} starts where the cache ends");
                self.starts(&row);
            }
            let was_decoding = self.known.get(&id).is_some_and(|known| known.decodes);
            self.check_tokens(&mut row, &arrays, &mut num_forwarded);
            let first_sample = flight.answer.tokens.len();
            if row.samples {
                for (sample, end) in (first_sample..).zip(end - row.num_drafts..=end) {
                    positions.push(end - self.known[&id].num_prompt);
                    sampled.push(id);
                    assert_eq!(at(arrays.get("sample_tokens")[sample]), last - 1 - (row.end - end));
                }
                counts.push(1 + row.num_drafts);
                self.sample(&mut row, plan.step_id, device, &mut flight);
            }
            self.check_tables(&row, &arrays, &mut flight);
            self.check_draft_arrays(&row, &arrays, first_sample..flight.answer.tokens.len());
            self.check_closing(&row, &mut closing);
            longest = longest.max(row.end);
            num_drafts_in_step += row.num_drafts;
            num_prefill += if was_decoding { 0 } else { row.end - row.start };
            let life = (id, self.known[&id].lives);
            flight.rows.push(life);
            self.keep_state(&row, life, arrays.get("state_slots")[index]);
        }
        self.copy("save", plan.num_saves, &arrays);
        assert_eq!(at(starts[plan.num_requests]), plan.num_tokens);
        assert_eq!(plan.sample_request_ids, sampled);
        assert_eq!(plan.sample_positions, positions);
        assert_eq!(plan.sample_counts, counts);
        assert_eq!(
            (plan.num_forwarded, plan.num_draft_tokens),
            (num_forwarded, num_drafts_in_step)
        );
        self.num_forwarded += num_forwarded;
        assert_eq!((plan.num_samples, plan.max_seq_len), (sampled.len(), longest));
        assert_eq!(plan.num_prefill_tokens, num_prefill);
        let [c4_tokens, c4_slots, c128_tokens, c128_slots] = closing;
        assert_eq!((plan.num_c4, plan.num_c128), (c4_tokens.len(), c128_tokens.len()));
        assert_eq!(arrays.get("c4_tokens")[..plan.num_c4], c4_tokens);
        assert_eq!(arrays.get("c4_slots")[..plan.num_c4], c4_slots);
        assert_eq!(arrays.get("c128_tokens")[..plan.num_c128], c128_tokens);
        assert_eq!(arrays.get("c128_slots")[..plan.num_c128], c128_slots);
        self.flights.push_back(flight);
    }

    /// State is copied from slot to slot.
    fn copy(&mut self, what: &str, count: usize, arrays: &Arrays<'_>) {
        if count == 0 {
            return;
        }
        let sources = &arrays.get(&format!("{what}_sources"))[..count];
        let targets = &arrays.get(&format!("{what}_targets"))[..count];
        for (source, target) in sources.iter().zip(targets) {
            let kept = self.slots[at(*source)].clone().expect("a slot that was written");
            assert!((1..=self.capacity[2]).contains(&at(*target)));
            for flight in &self.flights {
                assert_eq!(flight.writers[2][at(*target)], None, "slot {target} is in use");
            }
            self.slots[at(*target)] = Some(kept);
        }
    }

    /// A request begins, or begins again: only behind those that came first and fit as well.
    fn starts(&mut self, row: &Row) {
        let busy = |id| self.flights.iter().any(|f| f.rows.iter().any(|&(other, _)| other == id));
        let ahead = self.limits.tokens_in_flight() - 1;
        let size = |known: &Known, geometry: &Geometry| {
            let left = known.max_tokens - (known.tokens.len() - known.num_prompt);
            geometry.full_blocks(known.tokens.len() + left.min(2 * geometry.block_tokens + ahead))
        };
        let known = &self.known[&row.id];
        assert!(!known.no_cache || row.start == 0);
        assert!(row.start % self.geometry.block_tokens == 0);
        assert!(row.start < known.tokens.len(), "a token is left to compute");
        self.num_hits += usize::from(row.start > 0);
        let (mine, my_size) = ((known.rank, row.id), size(known, &self.geometry));
        assert!(!busy(row.id) || known.lives == 0, "{} started before its steps were done", row.id);
        let overtaken: Vec<RequestId> = self
            .known
            .iter()
            .filter(|&(&id, other)| other.waits() && (other.rank, id) < mine && !busy(id))
            .map(|(&id, _)| id)
            .collect();
        for id in overtaken {
            let other = self.known.get_mut(&id).expect("listed");
            // Preempted ones are not seen to wait until they start again, so all these are new.
            assert!(
                row.start > 0 || size(other, &self.geometry) > my_size,
                "{} overtook {id}, which came first and is no larger",
                row.id
            );
            let since = *other.overtaken_since.get_or_insert(self.num_steps);
            let passed = self.num_steps - since;
            let most = self.limits.aging_steps as u64;
            assert!(passed <= most, "{id} is overtaken after {passed} steps of at most {most}");
            self.num_overtakings += 1;
        }
        let known = self.known.get_mut(&row.id).expect("known");
        if known.lives > 0 {
            self.num_restarts += 1;
        }
        known.lives += 1;
        known.planned = row.start;
        known.overtaken_since = None;
        known.full.clear();
        known.swa.clear();
        known.swa_first = self.geometry.window_start(row.start) / self.geometry.swa_block_tokens;
        assert_eq!((known.in_flight, known.ahead.len()), (0, 0));
        known.drafts.clear();
        known.bank = 0;
        known.decodes = false;
    }

    /// Tokens that are known, the sample of the step before, or one that is known and drafts.
    fn check_tokens(&self, row: &mut Row, arrays: &Arrays<'_>, num_forwarded: &mut usize) {
        let known = self.known.get(&row.id).unwrap_or_else(|| panic!("{} has ended", row.id));
        assert_eq!(row.start, known.planned, "{} skips or repeats positions", row.id);
        let tokens = row.first_token..row.first_token + row.end - row.start;
        let ids = &arrays.get("token_ids")[tokens.clone()];
        let sources = &arrays.get("token_sources")[tokens.clone()];
        let num_known = known.tokens.len();
        row.samples = row.end >= num_known;
        if row.start == num_known {
            let newest = self.flights.back().expect("somebody samples its token");
            assert_eq!((row.end - row.start, known.in_flight), (1, 1), "{}", row.id);
            assert_eq!((at(sources[0]), newest.step), known.sample, "{}", row.id);
            let generated = num_known - known.num_prompt;
            assert!(generated + 1 < known.max_tokens, "{} ends with the token before", row.id);
            assert_eq!(self.limits.max_draft_tokens, 0);
            *num_forwarded += 1;
        } else {
            assert_eq!(known.in_flight, 0, "{} runs before its sample is known", row.id);
            assert!(sources.iter().all(|&source| source == -1));
            row.num_drafts = row.end.saturating_sub(num_known);
            let sure = row.end - row.num_drafts;
            let (sure, drafts) = ids.split_at(sure - row.start);
            assert_eq!(*sure, known.tokens[row.start..row.end.min(num_known)]);
            assert!(known.drafts.starts_with(drafts), "{drafts:?} of {:?}", known.drafts);
            assert!(drafts.is_empty() || sure.len() == 1, "drafts behind a prompt");
            assert!(num_known - known.num_prompt + drafts.len() < known.max_tokens);
        }
        let positions = &arrays.get("positions")[tokens.clone()];
        assert!(positions.iter().enumerate().all(|(i, &p)| at(p) == row.start + i));
        assert!(arrays.get("token_rows")[tokens].iter().all(|&r| at(r) == row.index));
        assert_eq!(at(arrays.get("seq_lens")[row.index]), row.end);
        assert_eq!(arrays.get("state_resets")[row.index], i32::from(row.start == 0));
    }

    /// The device samples a row; what is computed of drafts that it refuses is nobody's.
    fn sample(
        &mut self,
        row: &mut Row,
        step: StepId,
        device: &mut dyn FnMut(&[i32]) -> RowAnswer,
        flight: &mut Flight,
    ) {
        let known = self.known.get_mut(&row.id).expect("checked before");
        let answer = device(&known.drafts[..row.num_drafts]);
        assert_eq!(answer.tokens.len(), 1 + row.num_drafts);
        let first = flight.answer.tokens.len();
        known.sample = (first, step);
        known.in_flight += 1;
        known.decodes = true;
        known.planned = row.end - row.num_drafts;
        known.ahead.extend(&answer.tokens[..=answer.accepted]);
        row.good_end = row.end - row.num_drafts + answer.accepted;
        self.num_accepted += answer.accepted;
        self.num_rejected += row.num_drafts - answer.accepted;
        let all = &mut flight.answer;
        all.tokens.extend(&answer.tokens);
        all.non_finite.extend(answer.broken.iter().map(|sample| first + sample));
        all.accepted.push(answer.accepted);
        all.drafts.extend(&answer.drafts);
        flight.samples.push(Sampled { life: (row.id, known.lives), answer });
    }

    /// What the state slot holds behind each position that the row may turn out to end with.
    fn keep_state(&mut self, row: &Row, writer: Life, slot: i32) {
        let known = self.known.get_mut(&row.id).expect("checked before");
        if !row.samples {
            known.planned = row.end;
        }
        let first = row.end - row.num_drafts;
        let hashes = (first..=row.end).map(|end| known.hash_in(row, end)).collect();
        let is_private = known.no_cache;
        self.slots[at(slot)] = Some(Kept { first, hashes, writer, is_private });
    }

    /// Which banks are read and written, which samples are whose, and what comes next.
    fn check_draft_arrays(&self, row: &Row, arrays: &Arrays<'_>, samples: std::ops::Range<usize>) {
        if self.limits.max_draft_tokens == 0 {
            assert!(arrays.get("bank_writes").is_empty());
            return;
        }
        let known = &self.known[&row.id];
        let starts = &arrays.get("sample_starts")[row.index..];
        assert_eq!(at(starts[0])..at(starts[1]), samples);
        assert_eq!(at(arrays.get("draft_widths")[row.index]), row.num_drafts);
        assert_eq!(at(arrays.get("state_banks")[row.index]), known.bank);
        let next = known.tokens.get(row.end).copied().unwrap_or(-1);
        assert_eq!(arrays.get("next_tokens")[row.index], next);
        let writes = &arrays.get("bank_writes")[row.first_token..][..row.end - row.start];
        let sure = row.end - row.start - row.num_drafts;
        for (token, &bank) in writes.iter().enumerate() {
            let expected = if token + 1 < sure { -1 } else { int(token + 1 - sure) };
            assert_eq!(bank, expected);
        }
    }

    /// Tables cover what is read and written, keep what they had, and share only what is full.
    fn check_tables(&mut self, row: &Row, arrays: &Arrays<'_>, flight: &mut Flight) {
        let geometry = &self.geometry;
        let known = self.known.get_mut(&row.id).expect("checked before");

        let full = arrays.row("block_table_full", row.index);
        let (full, rest) = full.split_at(geometry.full_blocks(row.end));
        // Where drafts were refused, blocks that they were to fill lie ahead.
        let ahead = rest.iter().take_while(|&&id| id > 0).count();
        assert!(rest[ahead..].iter().all(|&id| id == 0), "{full:?} then {rest:?}");
        assert!(ahead == 0 || self.limits.max_draft_tokens > 0);
        assert!(full.len() + ahead >= known.full.len());
        // A block may give way to another that holds the same, once it is full.
        let swapped = known.full.iter().zip(full).rposition(|(before, now)| before != now);
        if let Some(last) = swapped {
            assert!((last + 1) * geometry.block_tokens <= row.start, "{:?} {full:?}", known.full);
            self.num_swaps += 1;
        }
        known.full = arrays.row("block_table_full", row.index)[..full.len() + ahead].to_vec();

        let first = geometry.window_start(row.start) / geometry.swa_block_tokens;
        let count = (row.end - 1) / geometry.swa_block_tokens + 1 - first;
        assert_eq!(at(arrays.get("swa_first_block")[row.index]), first);
        let held = arrays.row("block_table_swa", row.index);
        let (swa, rest) = held.split_at(count);
        let ahead = rest.iter().take_while(|&&id| id > 0).count();
        assert!(rest[ahead..].iter().all(|&id| id == 0), "{swa:?} then {rest:?}");
        assert!(ahead == 0 || self.limits.max_draft_tokens > 0);
        let held = &held[..count + ahead];
        let kept = &known.swa[(first - known.swa_first).min(known.swa.len())..];
        assert!(held.starts_with(kept), "{:?} became {held:?}", known.swa);
        (known.swa_first, known.swa) = (first, held.to_vec());
        let slots = &arrays.get("swa_slots")[row.first_token..];
        for (&found, position) in slots.iter().zip(row.start..row.end) {
            let block = swa[position / geometry.swa_block_tokens - first];
            let slot = at(block) * geometry.swa_block_tokens + position % geometry.swa_block_tokens;
            assert_eq!(at(found), slot);
        }

        let (full_tokens, swa_tokens) = (geometry.block_tokens, geometry.swa_block_tokens);
        self.check_blocks(row, 0, (full, 0, full_tokens), flight);
        self.check_blocks(row, 1, (swa, first, swa_tokens), flight);
        self.check_slot(row, arrays.get("state_slots")[row.index], flight);
    }

    /// What is read holds this request's tokens; what is written is read by nobody else.
    fn check_blocks(
        &mut self,
        row: &Row,
        group: usize,
        (ids, first, tokens): (&[i32], usize, usize),
        flight: &mut Flight,
    ) {
        let life = (row.id, self.known[&row.id].lives);
        let is_twice = (1..ids.len()).any(|index| ids[..index].contains(&ids[index]));
        assert!(!is_twice, "a table names a block twice: {ids:?}");
        for (index, &id) in (first..).zip(ids) {
            assert!((1..=self.capacity[group]).contains(&at(id)), "block {id} is in no pool");
            let end = (index + 1) * tokens;
            let is_written = end > row.start;
            let known = self.known.get_mut(&row.id).expect("known");
            let is_private = known.no_cache;
            assert!(!self.unclean.contains(&(group, at(id))), "block {id} was not zeroed");
            // Were it taken from another that still holds it, that one would find it changed.
            if is_written {
                let end = end.min(row.end);
                let hash = known.hash_in(row, end);
                let content = Content { hash, end, writer: life, is_private };
                self.contents[group][at(id)] = Some(content);
                for other in self.flights.iter().chain([&*flight]) {
                    let readers = other.readers[group][at(id)];
                    let only_me = readers == Readers::Nobody || readers == Readers::One(life);
                    assert!(only_me, "block {id} is written, and read in step {}", other.step);
                }
                flight.writers[group][at(id)] = Some(life);
            } else {
                let content = &self.contents[group][at(id)].expect("a block that was written");
                assert_eq!((content.hash, content.end), (known.hash(end), end), "block {id}");
                self.check_lent(life, content.writer, content.end, content.is_private);
                for other in self.flights.iter().chain([&*flight]) {
                    let writer = other.writers[group][at(id)].unwrap_or(life);
                    let is_over = !std::ptr::eq(other, &raw const *flight);
                    let mine = writer == life || (is_over && writer == content.writer);
                    assert!(mine, "block {id} is written in step {}", other.step);
                }
            }
            let readers = &mut flight.readers[group][at(id)];
            *readers = match *readers {
                Readers::Nobody => Readers::One(life),
                Readers::One(other) if other == life => Readers::One(life),
                _ => Readers::Several,
            };
        }
    }

    fn check_lent(&self, life: Life, writer: Life, end: usize, is_private: bool) {
        if writer == life {
            return;
        }
        assert!(!is_private, "{life:?} reads what {writer:?} kept for itself");
        let proven = self.proven.get(&writer).copied().unwrap_or(0);
        assert!(end <= proven, "{life:?} reads what may not be finite: {end} of {writer:?}");
    }

    fn check_slot(&mut self, row: &Row, slot: i32, flight: &mut Flight) {
        assert!((1..=self.capacity[2]).contains(&at(slot)));
        assert!(!self.unclean.contains(&(2, at(slot))), "slot {slot} was not zeroed");
        let known = self.known.get_mut(&row.id).expect("known");
        known.slot = slot;
        let life = (row.id, known.lives);
        if row.start > 0 {
            let hash = known.hash(row.start);
            let kept = self.slots[at(slot)].as_ref().expect("a slot that was written");
            let bank = row.start.checked_sub(kept.first).expect("a state that is not too new");
            assert_eq!(kept.hashes.get(bank), Some(&hash), "slot {slot} at {}", row.start);
            self.check_lent(life, kept.writer, row.start, kept.is_private);
        }
        for other in self.flights.iter().chain([&*flight]) {
            let writer = other.writers[2][at(slot)].unwrap_or(life);
            assert_eq!(writer, life, "slot {slot} is still used in step {}", other.step);
        }
        flight.writers[2][at(slot)] = Some(life);
    }

    fn check_closing(&self, row: &Row, closing: &mut [Vec<i32>; 4]) {
        let full = &self.known[&row.id].full;
        for (place, ratio) in [(0, 4), (2, 128)] {
            if !self.geometry.ratios.contains(&ratio) {
                continue;
            }
            for position in (row.start..row.end).filter(|position| (position + 1) % ratio == 0) {
                let rows = self.geometry.block_tokens / ratio;
                let block = at(full[position / self.geometry.block_tokens]);
                closing[place].push(int(row.first_token + position - row.start));
                closing[place + 1].push(int(block * rows + position / ratio % rows));
            }
        }
    }

    /// A sample of this life was not finite: what nothing finite followed from is in doubt.
    fn soil(&mut self, life: Life) {
        let known = &self.known[&life.0];
        let proven = self.proven.get(&life).copied().unwrap_or(0);
        for (group, ids) in [(0, &known.full), (1, &known.swa)] {
            for &id in ids {
                let content = self.contents[group][at(id)];
                if content.is_some_and(|its| its.writer == life && its.end > proven) {
                    self.unclean.insert((group, at(id)));
                }
            }
        }
        self.unclean.insert((2, at(known.slot)));
    }

    /// Blocks that whoever runs the steps fills with zeros now; nobody may hold them.
    pub fn zeroed(&mut self, blocks: &[(Group, BlockId)]) {
        self.num_zeroed += blocks.len();
        for &(group, id) in blocks {
            let place = id.get() as usize;
            let group = match group {
                Group::Full => 0,
                Group::Swa => 1,
                Group::State => 2,
                Group::Aux => panic!("row {id} holds nothing of a step"),
            };
            for flight in &self.flights {
                let is_read = flight.readers[group][place] != Readers::Nobody;
                let is_used = is_read || flight.writers[group][place].is_some();
                assert!(!is_used, "block {id} is zeroed, and used in step {}", flight.step);
            }
            match group {
                2 => self.slots[place] = None,
                _ => self.contents[group][place] = None,
            }
            self.unclean.remove(&(group, place));
        }
    }

    /// What `advance` must say of the oldest step, and say it in the books.
    pub fn done(&mut self) -> Outcome {
        let flight = self.flights.pop_front().expect("in flight");
        let mut outcome = Outcome::default();
        for Sampled { life, answer } in flight.samples {
            self.settle(life, &answer, &mut outcome);
        }
        outcome
    }

    /// One token after the other, until one ends the request or is not finite.
    fn settle(&mut self, life: Life, answer: &RowAnswer, outcome: &mut Outcome) {
        let id = life.0;
        let Some(known) = self.known.get_mut(&id) else {
            self.num_orphans += 1;
            return;
        };
        assert_eq!(known.lives, life.1, "{id} began again while its sample was in flight");
        known.in_flight -= 1;
        known.ahead.drain(..=answer.accepted);
        for (sample, &token) in answer.tokens[..=answer.accepted].iter().enumerate() {
            let generated = known.tokens.len() - known.num_prompt;
            let finish = if answer.broken.contains(&sample) {
                4
            } else {
                self.proven.insert(life, known.tokens.len());
                known.tokens.push(token);
                match () {
                    () if generated >= known.min_tokens && known.stops.contains(&token) => 1,
                    () if generated + 1 == known.max_tokens => 2,
                    () => 0,
                }
            };
            outcome.request_ids.push(id);
            outcome.tokens.push(if finish == 4 { -1 } else { token });
            outcome.finished.push(finish);
            if finish != 0 {
                if finish == 4 {
                    self.soil(life);
                }
                self.ended(id);
                return;
            }
        }
        known.planned += answer.accepted;
        known.bank = answer.accepted;
        known.drafts = answer.drafts.iter().copied().take_while(|&draft| draft >= 0).collect();
    }
}

impl Known {
    /// Of the salt and the tokens below a position (FNV-1a).
    fn hash(&mut self, position: usize) -> u64 {
        let step = |hash: u64, byte: u64| (hash ^ byte).wrapping_mul(0x0000_0100_0000_01b3);
        if self.hashes.is_empty() {
            let root = 0xcbf2_9ce4_8422_2325;
            self.hashes.push(self.salt.bytes().map(u64::from).fold(root, step));
        }
        while self.hashes.len() <= position {
            let place = self.hashes.len() - 1;
            let ahead = |place: usize| self.ahead[place - self.tokens.len()];
            let token = self.tokens.get(place).copied().unwrap_or_else(|| ahead(place));
            let last = self.hashes[self.hashes.len() - 1];
            self.hashes.push(step(last, u64::try_from(token).expect("a token") + 1));
        }
        self.hashes[position]
    }

    /// The same as far as a row computes what counts; behind that, what nobody expects.
    fn hash_in(&mut self, row: &Row, position: usize) -> u64 {
        if position <= row.good_end { self.hash(position) } else { !self.hash(row.good_end) }
    }

    fn waits(&self) -> bool {
        self.lives == 0
    }
}

/// The arrays of one step.
struct Arrays<'a> {
    layout: &'a StepLayout,
    memory: &'a [i32],
}

impl<'a> Arrays<'a> {
    fn get(&self, name: &str) -> &'a [i32] {
        let field = self.field(name);
        let start = field.offset_bytes / 4;
        &self.memory[start..start + field.shape.iter().product::<usize>()]
    }

    fn row(&self, name: &str, index: usize) -> &'a [i32] {
        let field = self.field(name);
        let (start, columns) = (field.offset_bytes / 4, field.shape[1]);
        &self.memory[start..][index * columns..(index + 1) * columns]
    }

    fn field(&self, name: &str) -> &'a Field {
        self.layout.fields().iter().find(|field| field.name == name).expect("a field")
    }
}

fn at(value: i32) -> usize {
    usize::try_from(value).expect("no negative index in a step")
}

fn int(value: usize) -> i32 {
    i32::try_from(value).expect("small")
}
