//! Decoding requests: one token each, and what it takes to have room for it.

use super::{Place, Row, Scheduler};
use crate::ids::Group;
use crate::request::{Decoding, Phase};

/// What came of the wish to grow.
enum Room {
    Made,
    /// Blocks are on their way back from a step in flight.
    Later,
    /// The request itself came last and was preempted.
    Preempted,
}

impl Scheduler {
    /// In order of rank, so that only requests that come later can be preempted for one.
    pub(super) fn choose_decodes(&mut self) {
        let mut index = 0;
        while let Some(&(_, place)) = self.running.get(index) {
            index += 1;
            let Phase::Decoding(Decoding { active, next: Some(_) }) = self.requests.at(place)
            else {
                continue;
            };
            let (id, start) = (active.request.id, active.planned);
            let tables = &active.tables;
            let covered = tables.full.end() > start && tables.swa.end() > start;
            let room = if covered { Room::Made } else { self.make_room(place, start) };
            match room {
                Room::Made => {
                    self.chosen.push(Row { place, id, start, len: 1, samples: true });
                }
                Room::Later => {}
                Room::Preempted => break,
            }
        }
    }

    /// Takes the blocks for one more position: from what was promised at admission, then from the
    /// free blocks, then from the cache, then from the request that comes last.
    fn make_room(&mut self, place: Place, position: usize) -> Room {
        loop {
            let Some(active) = self.requests.at_mut(place).active_mut() else {
                return Room::Preempted;
            };
            // Its token is known, so its steps are done and nothing of its own is retired.
            let tables = &mut active.tables;
            for (group, table) in [(Group::Full, &tables.full), (Group::Swa, &tables.swa)] {
                let num_short = table.short_of(table.missing(position + 1), true);
                if num_short > 0 {
                    self.prefix.evict(self.pools.of(group), group, num_short, None);
                    self.pools.reclaim(self.done);
                }
            }
            let full = tables.full.grow(tables.full.missing(position + 1), true);
            let swa = tables.swa.grow(tables.swa.missing(position + 1), true);
            if full && swa {
                return Room::Made;
            }
            let short = if full { &self.pools.swa } else { &self.pools.full };
            if short.counts().retired > 0 && !self.flights.is_empty() {
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
