//! Some prefill ranks and one decode core under loss, repetition, reordering, late landing and aborts.
//!
//! A room's number says which rank computes its prompt. Some requests go to a wrong one, which
//! refuses them and tells the decode core.
//!
//! After every call both books are audited, and every byte that lands is compared with who owns the
//! memory then. In the end everything is healed: every request has ended once, every block is back.

use std::collections::VecDeque;

use dsv4_core::error::Error;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::trace::replay;
use dsv4_core::transfer::ids::Room;
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::{Event, NewRequest, OnFailure, Plan, Posting, Transfer};

use crate::driver::{Driver, limits, request, sizes, tiny_geometry};
use crate::pair::{D, P, Pair, other_side, side_of, worker};
use crate::rng::{Rng, Seed};

pub struct Storm {
    pair: Pair,
    rng: Rng,
    rooms: u64,
    /// Requests by side: id, most tokens, aborted by their owner.
    submitted: Vec<Vec<(RequestId, usize, bool)>>,
    locals: Vec<Vec<RequestId>>,
    flights: Vec<VecDeque<Plan>>,
    /// Tickets that failed, of which everything may still arrive.
    late: Vec<Posting>,
    /// How often D cut the way in, by side.
    num_fences: Vec<u32>,
    /// Shown to have happened: losses, repetitions, late writes, failures, aborts in a room,
    /// requests that went to a wrong rank.
    exposed: [usize; 6],
}

impl Storm {
    pub fn new(rng: Rng) -> Self {
        Self::of(rng, false)
    }

    /// With a trace of every core, if asked for.
    pub fn of(mut rng: Rng, is_recorded: bool) -> Self {
        let limits = Limits {
            max_num_tokens: rng.between(8, 40),
            max_steps_in_flight: rng.between(1, 2),
            prefix_cache: rng.once_in(2),
            ..limits()
        };
        let num_more = rng.below(3);
        let mut side = |full, slots| {
            let sizes = sizes(rng.between(full, 60), rng.between(30, 90), rng.between(2, slots));
            let mut driver = Driver::new(tiny_geometry(), sizes, limits.clone());
            if is_recorded {
                driver.core.record().expect("not called yet");
            }
            driver
        };
        let mut sides = vec![side(20, 8), side(20, 24)];
        for _ in 0..num_more {
            sides.push(side(20, 8));
        }
        let num_sides = sides.len();
        let flights = vec![VecDeque::new(); num_sides];
        let (late, exposed) = (vec![], [0; 6]);
        let num_fences = vec![0; num_sides];
        let (submitted, locals) = (vec![vec![]; num_sides], vec![vec![]; num_sides]);
        let pair = Pair::of_ranks(sides);
        Self { pair, rng, rooms: 0, submitted, locals, flights, late, num_fences, exposed }
    }

    fn submit(&mut self) {
        self.rooms += 1;
        let (prompt, max_tokens) = (self.rng.between(1, 60), self.rng.between(1, 12));
        let on_failure = if self.rng.once_in(4) { OnFailure::Fail } else { OnFailure::Recompute };
        let right = self.pair.side_of(Room(self.rooms));
        let is_wrong = self.pair.num_ranks() > 1 && self.rng.once_in(8);
        let asked = if is_wrong { self.another_prefill(right) } else { right };
        let first = self.rng.pick(&[asked, D]);
        for side in [first, asked + D - first] {
            let peer = worker(if side == D { asked } else { D }).incarnation;
            let transfer = Transfer { on_failure, peer, ..other_side(P, self.rooms) };
            let new = NewRequest { transfer: Some(transfer), ..request(prompt, max_tokens) };
            // Refused where the other side's abort came first.
            let submitted = self.pair.sides[side].core.submit(new);
            if is_wrong && side != D {
                self.exposed[5] += 1;
                let refused = matches!(&submitted, Err(Error::Invalid(why)) if why.param == "room");
                assert!(refused, "{submitted:?}");
            }
            if let Ok(id) = submitted {
                self.submitted[side].push((id, max_tokens, false));
            }
            self.pair.settle(side);
            self.disturb();
        }
    }

    fn prefill(&mut self) -> usize {
        side_of(self.rng.below(self.pair.num_ranks()))
    }

    fn another_prefill(&mut self, right: usize) -> usize {
        loop {
            let side = self.prefill();
            if side != right {
                return side;
            }
        }
    }

    fn either(&mut self) -> usize {
        if self.rng.once_in(2) { D } else { self.prefill() }
    }

    /// A request of one side alone.
    fn submit_local(&mut self) {
        let side = self.either();
        let (prompt, max_tokens) = (self.rng.between(1, 60), self.rng.between(1, 12));
        if let Ok(id) = self.pair.sides[side].try_submit(request(prompt, max_tokens)) {
            self.submitted[side].push((id, max_tokens, false));
            self.locals[side].push(id);
        }
    }

    fn disturb(&mut self) {
        if self.rng.once_in(3) {
            let to_decode = self.rng.once_in(2);
            self.deliver(to_decode);
        }
    }

    /// One message of one connection, any of those on their way.
    fn deliver(&mut self, to_decode: bool) {
        let prefill = self.prefill();
        let len = self.pair.mail_of(prefill, to_decode).len();
        if len == 0 {
            return;
        }
        let place = self.rng.below(len);
        let message = self.pair.mail_of(prefill, to_decode).remove(place).expect("in range");
        match self.rng.below(10) {
            0 => {
                self.exposed[0] += 1;
                return;
            }
            1 => {
                self.exposed[1] += 1;
                self.pair.mail_of(prefill, to_decode).push_back(message.clone());
            }
            _ => {}
        }
        if to_decode {
            self.pair.hear_from(prefill, &message);
        } else {
            self.pair.hear(prefill, &message);
        }
    }

    fn land(&mut self) {
        let len = self.pair.postings.len();
        if len == 0 {
            return;
        }
        let posting = self.pair.postings.remove(self.rng.below(len)).expect("in range");
        if self.rng.once_in(15) {
            self.exposed[3] += 1;
            self.pair.end(&posting, false);
            self.late.push(posting);
        } else {
            self.pair.end(&posting, true);
            if self.rng.once_in(10) {
                let (ticket, digest) = (posting.ticket, 0);
                let side = self.pair.side_of(posting.key.room);
                self.pair.advance(side, Event::TicketEnded { ticket, landed: false, digest });
            }
        }
    }

    fn abort(&mut self, side: usize) {
        let len = self.submitted[side].len();
        if len == 0 {
            return;
        }
        let index = self.rng.below(len).max(len.saturating_sub(6));
        let (id, _, aborted) = &mut self.submitted[side][index];
        if self.pair.sides[side].core.abort(*id) {
            *aborted = true;
            self.exposed[4] += 1;
        }
        self.pair.settle(side);
    }

    fn plan(&mut self, side: usize) {
        if self.flights[side].len() < 2 {
            let limit = self.pair.sides[side].core.layout().num_words();
            assert!(limit > 0);
            let mut memory = std::mem::take(&mut self.pair.sides[side].memory);
            let planned = self.pair.sides[side].core.plan(&mut memory);
            self.pair.sides[side].memory = memory;
            if let Ok(Some(plan)) = planned {
                self.pair.note(side, &plan);
                self.flights[side].push_back(plan);
            }
        }
    }

    fn finish(&mut self, side: usize) {
        if let Some(plan) = self.flights[side].pop_front() {
            let tokens = vec![7; plan.num_samples];
            let broken = plan.num_samples > 0 && side != D && self.rng.once_in(40);
            let non_finite: &[usize] = if broken { &[0] } else { &[] };
            let step: StepId = plan.step_id;
            self.pair.advance(side, Event::StepDone { step, tokens: &tokens, non_finite });
        }
    }

    pub fn operate(&mut self) {
        let prefill = self.prefill();
        match self.rng.below(40) {
            0 if self.rng.once_in(3) => self.submit_local(),
            0..=2 => self.submit(),
            3..=9 => self.deliver(false),
            10..=16 => self.deliver(true),
            17..=19 => self.land(),
            20..=22 => {
                let wrong = self.rng.once_in(20);
                self.pair.tampered = wrong.then_some(|found| found.digests[0] ^= 1);
                self.pair.inspect();
            }
            23..=26 => self.plan(prefill),
            27..=29 => self.finish(prefill),
            30..=33 => self.plan(D),
            34..=36 => self.finish(D),
            37 if self.rng.once_in(3) => {
                let side = self.either();
                self.abort(side);
            }
            38 => {
                let milliseconds = self.rng.pick(&[1, 100, 300, 1000]);
                self.pair.wait(milliseconds);
            }
            _ => match self.late.pop() {
                Some(posting) => {
                    self.exposed[2] += 1;
                    self.pair.write(&posting);
                }
                None if self.pair.postings.is_empty() => self.reconnect(prefill),
                None => {}
            },
        }
    }

    /// Nothing is under way: the connection is cut and made anew, which proves it.
    fn reconnect(&mut self, prefill: usize) {
        self.cut_mail(prefill);
        let incarnation = worker(D).incarnation;
        self.num_fences[prefill] += 1;
        let num_fences = self.num_fences[prefill];
        self.pair.advance(prefill, Event::Reconnected { incarnation, num_fences });
        let incarnation = worker(prefill).incarnation;
        self.pair.advance(D, Event::Fenced { incarnation, evidence: Evidence::TaskJoined });
        self.cut_mail(prefill);
    }

    fn cut_mail(&mut self, prefill: usize) {
        for to_decode in [false, true] {
            self.pair.mail_of(prefill, to_decode).clear();
        }
    }

    /// Nothing is lost any more; what failed lands for the last time, and is proved to be over.
    pub fn heal(&mut self) {
        self.pair.tampered = None;
        for _ in 0..400 {
            for side in self.pair.all_sides() {
                while !self.flights[side].is_empty() {
                    self.finish(side);
                }
            }
            self.pair.pump();
            self.pair.wait(1000);
            for side in self.pair.all_sides() {
                for _ in 0..8 {
                    self.plan(side);
                    self.finish(side);
                }
            }
            if self.pair.is_quiet() && self.late.is_empty() {
                break;
            }
            for posting in std::mem::take(&mut self.late) {
                self.pair.write(&posting);
            }
            for rank in 0..self.pair.num_ranks() {
                if self.pair.postings.is_empty() {
                    self.reconnect(side_of(rank));
                }
            }
        }
        self.pair.assert_at_rest();
    }

    /// Shuts all cores down; each trace replays to the same plans and outcomes. Calls that were made
    /// again.
    pub fn check_replays(mut self) -> usize {
        let mut num_calls = 0;
        for side in &mut self.pair.sides {
            side.core.shutdown();
            let report = replay(&side.core.take_trace()).expect("a whole trace");
            assert_eq!(report.difference, None);
            assert!(report.is_complete);
            num_calls += report.num_calls;
        }
        num_calls
    }

    pub fn check_ends(&self) {
        for side in self.pair.all_sides() {
            for &(id, max_tokens, aborted) in &self.submitted[side] {
                let (ends, tokens) = (self.pair.ends(side, id), self.pair.tokens(side, id));
                assert_eq!(ends.len(), usize::from(!aborted), "request {id} of side {side}");
                assert!(tokens.iter().all(|&token| token == 7));
                let decodes = side == D || self.locals[side].contains(&id);
                if decodes && ends == [2] {
                    assert_eq!(tokens.len(), max_tokens, "request {id}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_lost_and_no_foreign_byte_lands_in_a_hundred_storms() {
    let mut exposed = [0; 6];
    let mut num_done = 0;
    for seed in 0..100 {
        let _seed = Seed(seed);
        let mut storm = Storm::new(Rng::new(seed));
        for _ in 0..1500 {
            storm.operate();
        }
        storm.heal();
        storm.check_ends();
        exposed.iter_mut().zip(storm.exposed).for_each(|(sum, count)| *sum += count);
        num_done += storm.pair.told[D].iter().filter(|told| told.2 == 2).count();
    }
    assert!(exposed.iter().all(|&count| count > 50), "losses, repetitions, ...: {exposed:?}");
    assert!(num_done > 1000, "{num_done} requests decoded to their end");
}

/// The same with a trace of every core: rooms, their messages and transfers replay like the rest.
#[test]
fn what_happens_in_rooms_replays_to_the_same_plans_and_errands() {
    let mut num_calls = 0;
    for seed in 500..540 {
        let _seed = Seed(seed);
        let mut storm = Storm::of(Rng::new(seed), true);
        for _ in 0..1500 {
            storm.operate();
        }
        storm.heal();
        num_calls += storm.check_replays();
    }
    assert!(num_calls > 40_000, "{num_calls}");
}

/// What the quarantine is for: with a proof that is none, the same storm writes into blocks of others.
#[test]
#[should_panic(expected = "a foreign byte")]
fn a_false_proof_lets_foreign_bytes_in() {
    for seed in 0..60 {
        let mut storm = Storm::new(Rng::new(seed));
        for operation in 0..1500 {
            storm.operate();
            if operation % 20 == 0 {
                storm.reconnect(P); // whatever is under way, which lands all the same
            }
        }
    }
}
