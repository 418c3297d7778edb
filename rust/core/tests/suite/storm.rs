//! One prefill and one decode core under loss, repetition, reordering, late landing and aborts.
//!
//! After every call both books are audited, and every byte that lands is compared with who owns the
//! memory then. In the end everything is healed: every request has ended once, every block is back.

use std::collections::VecDeque;

use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::{Event, NewRequest, OnFailure, Plan, Posting, Transfer};

use crate::driver::{Driver, limits, request, sizes, tiny_geometry};
use crate::pair::{D, P, Pair, WORKERS, other_side};
use crate::rng::{Rng, Seed};

pub struct Storm {
    pair: Pair,
    rng: Rng,
    rooms: u64,
    /// Requests by side: id, most tokens, aborted by their owner.
    submitted: [Vec<(RequestId, usize, bool)>; 2],
    locals: [Vec<RequestId>; 2],
    flights: [VecDeque<Plan>; 2],
    /// Tickets that failed, of which everything may still arrive.
    late: Vec<Posting>,
    /// How often D cut the way in.
    num_fences: u32,
    /// Shown to have happened: losses, repetitions, late writes, failures, aborts in a room.
    exposed: [usize; 5],
}

impl Storm {
    pub fn new(mut rng: Rng) -> Self {
        let limits = Limits {
            max_num_tokens: rng.between(8, 40),
            max_steps_in_flight: rng.between(1, 2),
            prefix_cache: rng.once_in(2),
            ..limits()
        };
        let mut side = |full, slots| {
            let sizes = sizes(rng.between(full, 60), rng.between(30, 90), rng.between(2, slots));
            Driver::new(tiny_geometry(), sizes, limits.clone())
        };
        let pair = Pair::new([side(20, 8), side(20, 24)]);
        let flights = [VecDeque::new(), VecDeque::new()];
        let submitted = [vec![], vec![]];
        let locals = [vec![], vec![]];
        let (late, exposed) = (vec![], [0; 5]);
        let (rooms, num_fences) = (0, 0);
        Self { pair, rng, rooms, submitted, locals, flights, late, num_fences, exposed }
    }

    fn submit(&mut self) {
        self.rooms += 1;
        let (prompt, max_tokens) = (self.rng.between(1, 60), self.rng.between(1, 12));
        let on_failure = if self.rng.once_in(4) { OnFailure::Fail } else { OnFailure::Recompute };
        let first = self.rng.pick(&[P, D]);
        for side in [first, 1 - first] {
            let transfer = Transfer { on_failure, ..other_side(side, self.rooms) };
            let new = NewRequest { transfer: Some(transfer), ..request(prompt, max_tokens) };
            // Refused where the other side's abort came first.
            if let Ok(id) = self.pair.sides[side].core.submit(new) {
                self.submitted[side].push((id, max_tokens, false));
            }
            self.pair.settle(side);
            self.disturb();
        }
    }

    /// A request of one side alone.
    fn submit_local(&mut self) {
        let side = self.rng.pick(&[P, D]);
        let (prompt, max_tokens) = (self.rng.between(1, 60), self.rng.between(1, 12));
        if let Ok(id) = self.pair.sides[side].try_submit(request(prompt, max_tokens)) {
            self.submitted[side].push((id, max_tokens, false));
            self.locals[side].push(id);
        }
    }

    fn disturb(&mut self) {
        if self.rng.once_in(3) {
            let side = self.rng.pick(&[P, D]);
            self.deliver(side);
        }
    }

    fn deliver(&mut self, side: usize) {
        let len = self.pair.mail[side].len();
        if len == 0 {
            return;
        }
        let message = self.pair.mail[side].remove(self.rng.below(len)).expect("in range");
        match self.rng.below(10) {
            0 => self.exposed[0] += 1,
            1 => {
                self.exposed[1] += 1;
                self.pair.mail[side].push_back(message.clone());
                self.pair.hear(side, &message);
            }
            _ => self.pair.hear(side, &message),
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
                self.pair.advance(P, Event::TicketEnded { ticket, landed: false, digest });
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
            let broken = plan.num_samples > 0 && side == P && self.rng.once_in(40);
            let non_finite: &[usize] = if broken { &[0] } else { &[] };
            let step: StepId = plan.step_id;
            self.pair.advance(side, Event::StepDone { step, tokens: &tokens, non_finite });
        }
    }

    pub fn operate(&mut self) {
        match self.rng.below(40) {
            0 if self.rng.once_in(3) => self.submit_local(),
            0..=2 => self.submit(),
            3..=9 => self.deliver(P),
            10..=16 => self.deliver(D),
            17..=19 => self.land(),
            20..=22 => {
                let wrong = self.rng.once_in(20);
                self.pair.tampered = wrong.then_some(|found| found.digests[0] ^= 1);
                self.pair.inspect();
            }
            23..=26 => self.plan(P),
            27..=29 => self.finish(P),
            30..=33 => self.plan(D),
            34..=36 => self.finish(D),
            37 if self.rng.once_in(3) => {
                let side = self.rng.pick(&[P, D]);
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
                None if self.pair.postings.is_empty() => self.reconnect(),
                None => {}
            },
        }
    }

    /// Nothing is under way: the connection is cut and made anew, which proves it.
    fn reconnect(&mut self) {
        self.pair.mail.iter_mut().for_each(VecDeque::clear);
        let incarnation = WORKERS[D].incarnation;
        self.num_fences += 1;
        let num_fences = self.num_fences;
        self.pair.advance(P, Event::Reconnected { incarnation, num_fences });
        let incarnation = WORKERS[P].incarnation;
        self.pair.advance(D, Event::Fenced { incarnation, evidence: Evidence::TaskJoined });
        self.pair.mail.iter_mut().for_each(VecDeque::clear);
    }

    /// Nothing is lost any more; what failed lands for the last time, and is proved to be over.
    pub fn heal(&mut self) {
        self.pair.tampered = None;
        for _ in 0..400 {
            for side in [P, D] {
                while !self.flights[side].is_empty() {
                    self.finish(side);
                }
            }
            self.pair.pump();
            self.pair.wait(1000);
            for side in [P, D] {
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
            if self.pair.postings.is_empty() {
                self.reconnect();
            }
        }
        self.pair.assert_at_rest();
    }

    pub fn check_ends(&self) {
        for side in [P, D] {
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
    let mut exposed = [0; 5];
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

/// What the quarantine is for: with a proof that is none, the same storm writes into blocks of others.
#[test]
#[should_panic(expected = "a foreign byte")]
fn a_false_proof_lets_foreign_bytes_in() {
    for seed in 0..60 {
        let mut storm = Storm::new(Rng::new(seed));
        for operation in 0..1500 {
            storm.operate();
            if operation % 20 == 0 {
                storm.reconnect(); // whatever is under way, which lands all the same
            }
        }
    }
}
