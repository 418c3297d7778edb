//! What happened: events are checked all together, then applied in order.

use super::rooms::Errands;
use super::{Flight, Row, Scheduler};
use crate::error::Error;
use crate::ids::{BlockId, Group, RequestId, StepId};
use crate::planted::{self, Bug};
use crate::request::{Finish, Phase};
use crate::transfer::ids::{Incarnation, PeerRank, RoomKey, Ticket};
use crate::transfer::message::Message;
use crate::transfer::proof::Evidence;
use crate::transfer::receiving::Inspection;

/// What happened outside.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step completed; `tokens[i]` belongs to sample i of its plan.
    StepDone {
        /// The oldest step in flight.
        step: StepId,
        /// One per sample.
        tokens: &'a [i32],
        /// Samples whose logits were NaN or infinite; their tokens mean nothing.
        non_finite: &'a [usize],
    },
    /// The same of a step of a core with drafts.
    Verified {
        /// The oldest step in flight.
        step: StepId,
        /// What it came to.
        answer: Answer<'a>,
    },
    /// The text layer found a stop string.
    Stopped(RequestId),
    /// A peer said something about a room, or that it lives.
    Peer {
        /// Who.
        from: PeerRank,
        /// What.
        message: &'a Message,
    },
    /// A transfer that was posted has ended.
    TicketEnded {
        /// Which.
        ticket: Ticket,
        /// All of it has landed; otherwise it failed.
        landed: bool,
        /// Over what was read for it: a sum over its items, each with its place in the prompt.
        digest: u64,
    },
    /// An aux row was read, and what landed was looked at.
    Inspected {
        /// As in the [`Check`](super::Check).
        key: RoomKey,
        /// From the aux row.
        first_token: i32,
        /// What was found.
        found: &'a Inspection,
    },
    /// A peer process is gone.
    PeerGone {
        /// Which.
        incarnation: Incarnation,
        /// What is known of it; what proves nothing leaves quarantined what it may write.
        evidence: Option<Evidence>,
    },
    /// This worker cut a peer's way in.
    Fenced {
        /// Whose.
        incarnation: Incarnation,
        /// How.
        evidence: Evidence,
    },
    /// A peer that lives connects anew; to be told before the new connection carries anything.
    Reconnected {
        /// Which.
        incarnation: Incarnation,
        /// How often it has cut this worker's way in, as the handshake says.
        num_fences: u32,
    },
    /// Microseconds of a monotonic clock.
    Tick(u64),
}

/// What came back of a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer<'a> {
    /// One per sample.
    pub tokens: &'a [i32],
    /// Samples whose logits were NaN or infinite; their tokens mean nothing.
    pub non_finite: &'a [usize],
    /// Drafts that are right, of each request that was sampled: the first so many. Those samples
    /// repeat them, and the sample behind the last of them is the token after. Empty: none is.
    pub accepted: &'a [usize],
    /// Drafts for the next step: as many as the limits allow for each request that was sampled, -1
    /// from where there are no more. Empty: there are none.
    pub drafts: &'a [i32],
}

/// What came back for one row.
struct RowAnswer<'a> {
    /// As far as it counts: drafts that were accepted, and the token behind them.
    tokens: &'a [i32],
    /// Which of them is not finite.
    broken: Option<usize>,
    drafts: &'a [i32],
}

/// What events settled: tokens that count, and requests that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One entry per token or end.
    pub request_ids: Vec<RequestId>,
    /// The token, or -1 where a request ended without one.
    pub tokens: Vec<i32>,
    /// 0, or why the request ended ([`Finish`]).
    pub finished: Vec<u8>,
    /// Blocks to fill with zeros before the next step runs: what was in them is not finite.
    pub to_zero: Vec<(Group, BlockId)>,
    /// What there is to do for the rooms.
    pub errands: Errands,
}

impl Outcome {
    pub(super) fn push(&mut self, id: RequestId, token: Option<i32>, finish: Option<Finish>) {
        self.request_ids.push(id);
        self.tokens.push(token.unwrap_or(-1));
        self.finished.push(finish.map_or(0, |finish| finish as u8));
    }

    fn reserve(&mut self, num_entries: usize) {
        self.request_ids.reserve(num_entries);
        self.tokens.reserve(num_entries);
        self.finished.reserve(num_entries);
    }

    fn append(&mut self, other: &mut Self) {
        self.request_ids.append(&mut other.request_ids);
        self.tokens.append(&mut other.tokens);
        self.finished.append(&mut other.finished);
        self.to_zero.append(&mut other.to_zero);
        self.errands.append(&mut other.errands);
    }
}

impl<'a> Event<'a> {
    /// The step that is done, and what came of it.
    fn answer(&self) -> Option<(StepId, Answer<'a>)> {
        match *self {
            Self::StepDone { step, tokens, non_finite } => {
                Some((step, Answer { tokens, non_finite, ..Answer::default() }))
            }
            Self::Verified { step, answer } => Some((step, answer)),
            _ => None,
        }
    }
}

impl<'a> Answer<'a> {
    /// The part of one row, of whose samples these count.
    fn of_row(&self, samples: std::ops::Range<usize>, drafts: &'a [i32]) -> RowAnswer<'a> {
        let broken = self.non_finite.iter().filter(|&sample| samples.contains(sample)).min();
        let broken = broken.map(|sample| sample - samples.start);
        RowAnswer { tokens: &self.tokens[samples], broken, drafts }
    }
}

impl Scheduler {
    /// Applies events, or refuses them all.
    pub(crate) fn advance(&mut self, events: &[Event<'_>]) -> Result<Outcome, Error> {
        self.check_events(events)?;
        let mut outcome = Outcome::default();
        for event in events {
            match *event {
                Event::StepDone { .. } | Event::Verified { .. } => {
                    let Some((step, answer)) = event.answer() else { continue };
                    let Some(flight) = self.flights.pop_front() else { continue };
                    self.settle(&flight, &answer, &mut outcome);
                    self.done = step;
                    let mut rows = flight.rows;
                    rows.clear();
                    self.spare_rows.push(rows);
                }
                Event::Stopped(id) => {
                    let is_here = match self.requests.place_of(id) {
                        Some(place) => self.end(place) == id,
                        None => self.leave_seat(id),
                    };
                    if is_here {
                        outcome.push(id, None, Some(Finish::Stopped));
                    }
                }
                Event::Tick(now_us) => {
                    self.now_us = self.now_us.max(now_us);
                    self.room_event(event);
                }
                _ => self.room_event(event),
            }
        }
        self.pools.reclaim(self.done);
        self.pools.wash(&mut outcome.to_zero);
        self.move_rooms();
        outcome.append(&mut self.untold);
        Ok(outcome)
    }

    fn check_events(&self, events: &[Event<'_>]) -> Result<(), Error> {
        let mut flights = self.flights.iter();
        let num_checked = if planted::is(Bug::HalfApplied) { 1 } else { usize::MAX };
        for event in events.iter().take(num_checked) {
            if let Some((step, answer)) = event.answer() {
                let oldest = flights.next();
                match oldest {
                    Some(flight) if flight.step == step => self.check_answer(flight, &answer)?,
                    _ => {
                        let oldest = oldest.map(|flight| flight.step);
                        return Err(Error::UnknownStep { step, oldest });
                    }
                }
            }
            match *event {
                Event::Stopped(id) if !self.knows(id) => return Err(Error::UnknownRequest(id)),
                _ => {}
            }
        }
        Ok(())
    }

    fn check_answer(&self, flight: &Flight, answer: &Answer<'_>) -> Result<(), Error> {
        let Answer { tokens, non_finite, .. } = *answer;
        let (step, samples, vocab) = (flight.step, flight.num_samples, self.limits.vocab_size);
        if tokens.len() != samples {
            return Err(Error::WrongSampleCount { step, samples, tokens: tokens.len() });
        }
        if let Some(&sample) = non_finite.iter().find(|&&sample| sample >= samples) {
            return Err(Error::NoSuchSample { step, samples, sample });
        }
        let is_token = |&token: &i32| usize::try_from(token).is_ok_and(|token| token < vocab);
        let mut outside = tokens.iter().enumerate().filter(|(_, token)| !is_token(token));
        if let Some((sample, &token)) = outside.find(|(sample, _)| !non_finite.contains(sample)) {
            return Err(Error::NoSuchToken { step, sample, token, vocab });
        }
        self.check_drafts(flight, answer)
    }

    /// As many accepted counts and next drafts as there are requests, and what is accepted was
    /// brought.
    fn check_drafts(&self, flight: &Flight, answer: &Answer<'_>) -> Result<(), Error> {
        let (step, vocab, width) =
            (flight.step, self.limits.vocab_size, self.limits.max_draft_tokens);
        for (what, has, needs) in [
            ("accepted counts", answer.accepted.len(), flight.num_answers),
            ("drafts", answer.drafts.len(), flight.num_answers * width),
        ] {
            if has != 0 && has != needs {
                return Err(Error::WrongDraftCount { step, what, needs, has });
            }
        }
        let is_draft =
            |&draft: &i32| draft == -1 || usize::try_from(draft).is_ok_and(|d| d < vocab);
        if let Some(&draft) = answer.drafts.iter().find(|&draft| !is_draft(draft)) {
            return Err(Error::NoSuchDraft { step, draft, vocab });
        }
        if answer.accepted.iter().all(|&count| count == 0) {
            return Ok(());
        }
        let mut first = 0;
        let asked = flight.rows.iter().filter(|row| row.num_samples() > 0);
        for (row, &accepted) in asked.zip(answer.accepted) {
            let drafted = row.num_drafts();
            if accepted > drafted {
                return Err(Error::TooManyAccepted { step, request: row.id, accepted, drafted });
            }
            if let Some(Phase::Decoding(decoding)) = self.requests.seen_at(row.place, row.id) {
                let pairs = decoding.drafts()[..accepted].iter().zip(&answer.tokens[first..]);
                if let Some((&draft, &token)) = pairs.into_iter().find(|(a, b)| a != b) {
                    return Err(Error::NotTheDraft { step, request: row.id, draft, token });
                }
            }
            first += row.num_samples();
        }
        Ok(())
    }

    /// The rows of a step that is done: samples become tokens, blocks that are full are sealed, and
    /// what a finite sample depends on is left to the prefix cache.
    /// Rows of requests that have ended since are passed over.
    fn settle(&mut self, flight: &Flight, answer: &Answer<'_>, outcome: &mut Outcome) {
        outcome.reserve(flight.num_samples);
        let mut accepted = answer.accepted.iter();
        let mut drafts = answer.drafts.chunks_exact(self.limits.max_draft_tokens.max(1));
        let mut first = 0;
        for row in &flight.rows {
            if row.num_samples() == 0 {
                self.settle_chunk(row, outcome);
                continue;
            }
            let num_accepted = accepted.next().copied().unwrap_or_default();
            let drafts = drafts.next().unwrap_or_default();
            let of_row = answer.of_row(first..first + num_accepted + 1, drafts);
            self.settle_samples(row, &of_row, outcome);
            first += row.num_samples();
        }
        for (place, id) in self.to_gather.drain(..) {
            if let Some(phase) = self.requests.still_at(place, id) {
                phase.request_mut().tokens.gather();
            }
        }
    }

    /// A chunk in the middle of a prompt is computed.
    fn settle_chunk(&mut self, row: &Row, outcome: &mut Outcome) {
        let Some(phase) = self.requests.still_at(row.place, row.id) else { return };
        let sealed = phase.active_mut().map_or(Ok(()), |active| active.seal(row.end()));
        if sealed.is_err() || self.send_chunk(row).is_err() {
            self.end_broken(row, outcome);
        }
    }

    /// The tokens of a row, one after the other until one ends the request.
    ///
    /// What was computed of drafts that are wrong is nobody's: positions count up to the last token
    /// that does, and the next step writes the others again.
    fn settle_samples(&mut self, row: &Row, answer: &RowAnswer<'_>, outcome: &mut Outcome) {
        let Some(phase) = self.requests.still_at(row.place, row.id) else { return };
        let is_waiting = phase.active().is_none();
        if is_waiting && self.rooms.departs(row.id) {
            return; // what the other side needs is gone: it computes it again
        }
        if is_waiting && planted::is(Bug::TokenLost) {
            return;
        }
        let request = phase.request_mut();
        let num_finite = answer.broken.unwrap_or(answer.tokens.len());
        let taken = planted::is(Bug::NonFiniteTaken);
        let num_finite = if taken { answer.tokens.len() } else { num_finite };
        let (mut count, mut finish) = (0, None);
        for &token in &answer.tokens[..num_finite] {
            count += 1;
            finish = request.generate(token);
            if finish.is_some() && !planted::is(Bug::StopOverrun) {
                break;
            }
        }
        if request.tokens.is_to_gather() {
            self.to_gather.push((row.place, row.id));
        }
        let tokens = &answer.tokens[..count];
        if is_waiting {
            self.queue.more_tokens(count);
        }
        if count > 0
            && let Some(active) = phase.active_mut()
        {
            let written = row.num_sure() + count;
            if row.num_samples() > 1 && !planted::is(Bug::RejectedSaved) {
                let saves = &mut active.reuse.left.saves;
                saves.retain(|s| s.boundary <= written || s.boundary > row.end());
            }
            let written = written + usize::from(planted::is(Bug::UncomputedPublished));
            let full = if planted::is(Bug::RejectedSealed) { row.end() } else { written };
            let sealed = active.seal(full);
            let publish = |()| self.prefix.publish(active.computed(), written, &self.geometry);
            if sealed.and_then(publish).is_err() {
                self.end_broken(row, outcome);
                return;
            }
        }
        if finish.is_none()
            && count > 0
            && let Phase::Decoding(decoding) = phase
        {
            decoding.accept(tokens, answer.drafts);
            if count > 1 {
                let start = self.geometry.window_start(decoding.active.planned());
                decoding.active.slide(start, self.newest, &self.geometry);
            }
        }
        if finish.is_none() && answer.broken.is_some() && !planted::is(Bug::NonFiniteTaken) {
            finish = Some(Finish::NonFinite);
        }
        if answer.broken.is_some()
            && planted::is(Bug::NonFiniteCached)
            && let Some(active) = phase.active_mut()
        {
            let _ = active.seal(row.end());
            let _ = self.prefix.publish(active.computed(), row.end(), &self.geometry);
        }
        let ends = finish.is_some();
        finish = finish.and_then(|finish| self.send_last(row.place, row.id, finish));
        let is_broken = finish == Some(Finish::NonFinite);
        if let Some((&last, before)) = tokens.split_last() {
            for &token in before {
                outcome.push(row.id, Some(token), None);
            }
            outcome.push(row.id, Some(last), finish.filter(|_| !is_broken));
        }
        if is_broken {
            outcome.push(row.id, None, finish);
        }
        if ends {
            self.end(row.place);
        }
        if is_broken && !planted::is(Bug::NonFiniteReused) {
            self.pools.for_each(|pool| pool.taint(row.id)); // all that it gave up just now
        }
    }

    fn end_broken(&mut self, row: &Row, outcome: &mut Outcome) {
        self.end(row.place);
        outcome.push(row.id, None, Some(Finish::Violation));
    }
}
