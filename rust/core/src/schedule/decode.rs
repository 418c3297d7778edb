//! Decoding requests: one token each, with drafts a few, and what it takes to have room for them.

use super::{Place, Row, Scheduler};
use crate::ids::Group;
use crate::planted::{self, Bug};
use crate::request::{Next, Phase};

/// What came of the wish to grow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Made,
    /// Blocks are on their way back from a step in flight.
    Later,
    /// The request itself came last and was preempted.
    Preempted,
}

impl Scheduler {
    /// In order of rank, so that only requests that come later can be preempted for one. Returns
    /// the budget that is left.
    ///
    /// Drafts take what is left when every running request has had a token.
    pub(super) fn choose_decodes(&mut self) -> usize {
        let max_num_tokens = self.dispatch.band().max_num_tokens;
        let mut drafts_left = max_num_tokens.saturating_sub(self.running.len());
        let mut budget = max_num_tokens;
        let mut index = 0;
        while let Some(&(_, place)) = self.running.get(index) {
            index += 1;
            let Phase::Decoding(decoding) = self.requests.at(place) else {
                self.prefilling.push(place);
                continue;
            };
            let source = match decoding.next() {
                Next::Known => None,
                Next::Sampled(sample) if self.limits.forwards() => Some(sample),
                Next::Sampled(_) | Next::None => continue,
            };
            let (id, start) = (decoding.active.request.id, decoding.active.planned());
            let room = match (decoding.active.covered() > start, source) {
                (true, _) => Room::Made,
                (false, None) => self.make_room(place, start),
                (false, Some(_)) => self.find_room_ahead(place, start + 1),
            };
            match room {
                Room::Made => {
                    let num_drafts = self.choose_drafts(place, start, drafts_left);
                    let (len, num_samples) = (1 + num_drafts, 1 + num_drafts);
                    (drafts_left, budget) = (drafts_left - num_drafts, budget.saturating_sub(len));
                    self.chosen.push(Row::new(place, id, start..start + len, num_samples, source));
                }
                Room::Later => {}
                Room::Preempted => break,
            }
        }
        budget
    }

    /// How many drafts a request brings: no more than it has output left for, and than there is
    /// room for without taking it from anybody.
    fn choose_drafts(&mut self, place: Place, start: usize, drafts_left: usize) -> usize {
        if self.limits.max_draft_tokens == 0 {
            return 0;
        }
        let Phase::Decoding(decoding) = self.requests.at(place) else { return 0 };
        let output = decoding.active.request.output_left();
        let max_draft_tokens = self.dispatch.band().max_draft_tokens;
        let most = decoding.drafts().len().min(max_draft_tokens).min(drafts_left);
        let wanted = most.min(output.saturating_sub(1));
        let wanted = if planted::is(Bug::DraftsPastEnd) { most } else { wanted };
        if wanted == 0 || self.find_room_ahead(place, start + 1 + wanted) == Room::Made {
            return wanted;
        }
        let Some(active) = self.requests.at(place).active() else { return 0 };
        active.covered() - start - 1
    }

    /// Room below `end` for positions that may come to nothing: from what was promised, from the
    /// free blocks and from the cache, but from no other request.
    fn find_room_ahead(&mut self, place: Place, end: usize) -> Room {
        if self.grow(place, end).is_none() || planted::is(Bug::DraftsUncovered) {
            Room::Made
        } else {
            Room::Later
        }
    }

    /// Grows both tables to cover positions below `end`; the group that is short, if one is.
    fn grow(&mut self, place: Place, end: usize) -> Option<Group> {
        let active = self.requests.at_mut(place).active_mut()?;
        // Nothing of the full group retires while a request runs: its promise is always good.
        let retired = active.num_retired(self.done);
        let tables = &mut active.tables;
        for (group, table, retired) in
            [(Group::Full, &tables.full, 0), (Group::Swa, &tables.swa, retired)]
        {
            let num_short = table.short_of(table.missing(end), retired);
            if num_short > 0 {
                self.prefix.evict(self.pools.of(group), group, num_short, None);
                self.pools.reclaim(self.done);
            }
        }
        let full = tables.full.grow(tables.full.missing(end), 0);
        let swa = tables.swa.grow(tables.swa.missing(end), retired);
        active.measure();
        match (full, swa) {
            (true, true) => None,
            (true, false) => Some(Group::Swa),
            (false, _) => Some(Group::Full),
        }
    }

    /// Takes the blocks for one more position: from what was promised at admission, then from the
    /// free blocks, then from the cache, then from the request that comes last.
    fn make_room(&mut self, place: Place, position: usize) -> Room {
        loop {
            if self.requests.at(place).active().is_none() {
                return Room::Preempted;
            }
            let Some(short) = self.grow(place, position + 1) else { return Room::Made };
            if self.pools.of(short).counts().retired > 0 && !self.flights.is_empty() {
                return Room::Later;
            }
            if self.forfeit_saves() {
                continue;
            }
            if self.running.len() == 1 {
                return Room::Later; // alone: `choose` sees that nothing moves
            }
            self.preempt_last();
        }
    }
}
