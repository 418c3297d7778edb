//! What becomes of a request whose prompt comes from elsewhere: it decodes, computes for itself, or
//! ends.

use super::Scheduler;
use super::receive::{Arriving, NoLanding};
use super::rooms::OnFailure;
use crate::ids::{RequestId, StepId};
use crate::planted::{self, Bug};
use crate::request::{Decoding, Finish, Phase, Rank, Waiting};

/// How many requests may be looked at behind those that cannot land.
const LOOK_AHEAD: usize = 8;

impl Scheduler {
    /// Requests that the other side is about to compute land, in order of rank, while there is room.
    ///
    /// As with requests that start, one that does not fit may be overtaken for `aging_steps` steps;
    /// then everybody behind waits, those in the queue as well.
    pub(super) fn land_waiting(&mut self) {
        let overdue = self.overdue_in_queue();
        self.rooms.overdue = None;
        let mut after = None;
        let mut num_blocked = 0;
        while num_blocked <= LOOK_AHEAD && self.rooms.overdue.is_none() {
            let Some((rank, id)) = self.rooms.wanted_after(after) else { return };
            if overdue.is_some_and(|first| first < rank) {
                return;
            }
            after = Some(rank);
            if !self.try_to_land(rank, id) {
                num_blocked += 1;
            }
        }
    }

    fn try_to_land(&mut self, rank: Rank, id: RequestId) -> bool {
        let Some(mut arriving) = self.rooms.arriving.remove(&id) else { return false };
        let landed = self.land(&mut arriving.request, &arriving.writers);
        let is_landed = landed.is_ok();
        match landed {
            Ok(landing) => {
                arriving.landing = Some(landing);
                self.rooms.wanted.remove(&rank);
            }
            Err(refused) => {
                if let NoLanding::Wait(wait) = refused {
                    arriving.waits_for = Some(wait);
                }
                let since = *arriving.blocked_since.get_or_insert(self.newest);
                if self.is_overdue(since) && !planted::is(Bug::ArrivalsStarve) {
                    self.rooms.overdue = Some(rank);
                }
            }
        }
        self.rooms.arriving.insert(id, arriving);
        if is_landed {
            self.offer(id);
        }
        is_landed
    }

    fn is_overdue(&self, since: StepId) -> bool {
        self.newest.0 - since.0 >= self.limits.aging_steps as u64
    }

    /// The first in the queue, if it may not be overtaken any more.
    fn overdue_in_queue(&self) -> Option<Rank> {
        let (rank, place) = self.queue.next_after(None)?;
        let Phase::Waiting(waiting) = self.requests.at(place) else { return None };
        waiting.blocked_since.filter(|&since| self.is_overdue(since)).map(|_| rank)
    }

    /// The prompt is here, whole and checked: the request goes on with its first token.
    pub(super) fn commit(&mut self, id: RequestId) {
        let Some(arriving) = self.rooms.take_arriving(id) else { return };
        let Arriving { mut request, landing, first_token, .. } = arriving;
        let (Some(landing), Some(first_token)) = (landing, first_token) else { return };
        let num_tokens = request.tokens.len();
        let Ok((tables, reuse)) = self.settle_landing(landing, num_tokens) else {
            self.untold.push(id, None, Some(Finish::Violation));
            return;
        };
        let rank = request.asked.rank;
        let finish = request.generate(first_token);
        let mut decoding = Decoding::arrived(request, tables, reuse);
        let start = self.geometry.window_start(num_tokens);
        decoding.active.slide(start, self.newest, &self.geometry);
        let computed = decoding.active.computed();
        if self.prefix.publish(computed, num_tokens, &self.geometry).is_err() {
            self.leave_cache(&mut decoding.active);
            self.untold.push(id, None, Some(Finish::Violation));
            return;
        }
        self.untold.push(id, Some(first_token), finish);
        if finish.is_some() {
            self.leave_cache(&mut decoding.active);
        } else {
            self.rooms.seats.insert(rank, decoding);
        }
    }

    /// Requests whose prompt is here run as soon as a step has a row for them.
    pub(super) fn seat(&mut self) {
        while self.running.len() < self.limits.max_num_requests {
            let Some((rank, decoding)) = self.rooms.seats.pop_first() else { return };
            let place = self.requests.insert(Phase::Decoding(decoding));
            let index = self.running.partition_point(|&(other, _)| other < rank);
            self.running.insert(index, (rank, place));
        }
    }

    /// Ends a request that waits for a row; false if there is none of that id.
    pub(super) fn leave_seat(&mut self, id: RequestId) -> bool {
        let mut seats = self.rooms.seats.iter();
        let rank = seats.find(|(_, seated)| seated.active.request.id == id).map(|(&rank, _)| rank);
        let Some(mut seated) = rank.and_then(|rank| self.rooms.seats.remove(&rank)) else {
            return false;
        };
        self.leave_cache(&mut seated.active);
        drop(seated);
        self.pools.reclaim(self.done);
        true
    }

    /// The room failed: the request computes its prompt here, or ends. What it held stays
    /// quarantined until its writers are proved gone.
    pub(super) fn fall_back(&mut self, id: RequestId) {
        let Some(arriving) = self.rooms.take_arriving(id) else { return };
        let Arriving { request, landing, on_failure, .. } = arriving;
        if let Some(landing) = landing {
            self.drop_landing(landing);
        }
        if on_failure == OnFailure::Recompute && !planted::is(Bug::NeverRecomputed) {
            let (rank, num_tokens) = (request.asked.rank, request.tokens.len());
            let place = self.requests.insert(Phase::Waiting(Waiting::new(request)));
            self.queue.insert(rank, place, num_tokens);
            self.rooms.num_recomputed += 1;
        } else {
            self.untold.push(id, None, Some(Finish::Transfer));
        }
    }
}
