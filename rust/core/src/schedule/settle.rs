//! What happened: events are checked all together, then applied in order.

use super::rooms::Errands;
use super::{Flight, Scheduler};
use crate::error::Error;
use crate::ids::{RequestId, StepId};
use crate::request::{Finish, Sampled};
use crate::transfer::ids::{Incarnation, PeerRank, RoomKey, Ticket};
use crate::transfer::message::{Message, Reason};
use crate::transfer::proof::Evidence;

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
        /// All of it has landed.
        ok: bool,
    },
    /// An aux row was read, and what landed was checked.
    Checked {
        /// As in the [`Check`](super::Check).
        key: RoomKey,
        /// The first token, or what does not hold.
        found: Result<i32, Reason>,
    },
    /// A peer process can write no more, for this reason.
    PeerGone {
        /// Which.
        incarnation: Incarnation,
        /// How that is known.
        evidence: Evidence,
    },
    /// Microseconds of a monotonic clock.
    Tick(u64),
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
        self.errands.append(&mut other.errands);
    }
}

impl Scheduler {
    /// Applies events, or refuses them all.
    pub(crate) fn advance(&mut self, events: &[Event<'_>]) -> Result<Outcome, Error> {
        self.check_events(events)?;
        let mut outcome = Outcome::default();
        for event in events {
            match *event {
                Event::StepDone { step, tokens, non_finite } => {
                    let Some(flight) = self.flights.pop_front() else { continue };
                    self.settle(&flight, tokens, non_finite, &mut outcome);
                    self.done = step;
                    let mut rows = flight.rows;
                    rows.clear();
                    self.spare_rows.push(rows);
                }
                Event::Stopped(id) => {
                    if let Some(place) = self.requests.place_of(id) {
                        self.end(place);
                        outcome.push(id, None, Some(Finish::Stopped));
                    }
                }
                Event::Tick(now_us) => {
                    self.now_us = self.now_us.max(now_us);
                    self.tick_rooms();
                }
                ref event => self.room_event(event),
            }
        }
        self.pools.reclaim(self.done);
        self.move_rooms();
        outcome.append(&mut self.untold);
        Ok(outcome)
    }

    fn check_events(&self, events: &[Event<'_>]) -> Result<(), Error> {
        let mut flights = self.flights.iter();
        for event in events {
            match *event {
                Event::StepDone { step, tokens, non_finite } => {
                    let oldest = flights.next();
                    match oldest {
                        Some(flight) if flight.step == step => {
                            self.check_samples(flight, tokens, non_finite)?;
                        }
                        _ => {
                            let oldest = oldest.map(|flight| flight.step);
                            return Err(Error::UnknownStep { step, oldest });
                        }
                    }
                }
                Event::Stopped(id) if !self.knows(id) => return Err(Error::UnknownRequest(id)),
                Event::Checked { key, found: Ok(token) } => self.check_first(key, token)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_samples(
        &self,
        flight: &Flight,
        tokens: &[i32],
        non_finite: &[usize],
    ) -> Result<(), Error> {
        let (step, samples, vocab) = (flight.step, flight.num_samples, self.limits.vocab_size);
        if tokens.len() != samples {
            return Err(Error::WrongSampleCount { step, samples, tokens: tokens.len() });
        }
        if let Some(&sample) = non_finite.iter().find(|&&sample| sample >= samples) {
            return Err(Error::NoSuchSample { step, samples, sample });
        }
        let is_token = |&token: &i32| usize::try_from(token).is_ok_and(|token| token < vocab);
        let mut outside = tokens.iter().enumerate().filter(|(_, token)| !is_token(token));
        match outside.find(|(sample, _)| !non_finite.contains(sample)) {
            Some((sample, &token)) => Err(Error::NoSuchToken { step, sample, token, vocab }),
            None => Ok(()),
        }
    }

    /// The rows of a step that is done: blocks that are full are sealed, samples become tokens, and
    /// what a finite sample depends on is left to the prefix cache.
    /// Rows of requests that have ended since are passed over.
    fn settle(
        &mut self,
        flight: &Flight,
        tokens: &[i32],
        non_finite: &[usize],
        outcome: &mut Outcome,
    ) {
        outcome.reserve(flight.num_samples);
        let mut num_samples = 0;
        for row in &flight.rows {
            let sample = row.samples.then_some(num_samples);
            num_samples += usize::from(row.samples);
            let Some(phase) = self.requests.still_at(row.place, row.id) else { continue };
            if let Some(active) = phase.active_mut() {
                let written = row.start + row.len;
                let sealed = active.tables.full.seal_written(written);
                if sealed.and_then(|()| active.tables.swa.seal_written(written)).is_err() {
                    self.end(row.place);
                    outcome.push(row.id, None, Some(Finish::Violation));
                    continue;
                }
            }
            let Some(sample) = sample else {
                if self.send_chunk(row, row.start + row.len).is_err() {
                    self.end(row.place);
                    outcome.push(row.id, None, Some(Finish::Violation));
                }
                continue;
            };
            if non_finite.contains(&sample) {
                self.give_up_room(row.id, Reason::NonFinite);
                self.end(row.place);
                outcome.push(row.id, None, Some(Finish::NonFinite));
                continue;
            }
            if let Some(active) = phase.active_mut() {
                let written = row.start + row.len;
                if self.prefix.publish(active.computed(), written, &self.geometry).is_err() {
                    self.end(row.place);
                    outcome.push(row.id, None, Some(Finish::Violation));
                    continue;
                }
            }
            let was_waiting = phase.active().is_none();
            if was_waiting && self.rooms.departs(row.id) {
                continue; // what the other side needs is gone: it computes it again
            }
            let Some(sampled) = phase.sampled(tokens[sample]) else { continue };
            if was_waiting {
                self.queue.one_more_token();
            }
            match sampled {
                Sampled::GoesOn => outcome.push(row.id, Some(tokens[sample]), None),
                Sampled::Ends(finish) => {
                    let finish = self.send_last(row.place, row.id, finish);
                    self.end(row.place);
                    outcome.push(row.id, Some(tokens[sample]), finish);
                }
            }
        }
    }
}
