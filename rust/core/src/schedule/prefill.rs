//! Chunks of prompts, and requests that start.

use super::reuse::Room;
use super::{Place, Row, Scheduler};
use crate::ids::{Group, StepId};
use crate::planted::{self, Bug};
use crate::prefix::publish::Reuse;
use crate::request::Phase;
use crate::table::Tables;

/// How many waiting requests may be looked at behind those that do not fit. A bound, so that a
/// step costs the same however many wait.
const LOOK_AHEAD: usize = 8;

/// A chunk is cut back to a compression boundary if that gives up at most one part in so many.
const ALIGN_COST: usize = 16;

impl Scheduler {
    /// A chunk for every prefilling request, in order of rank; returns the budget that is left.
    pub(super) fn choose_chunks(&mut self, mut budget: usize) -> usize {
        let prefilling = std::mem::take(&mut self.prefilling);
        for &place in &prefilling {
            if budget == 0 {
                break;
            }
            budget -= self.choose_chunk(place, budget);
        }
        self.prefilling = prefilling;
        self.prefilling.clear();
        budget
    }

    /// Waiting requests in order of rank, each with its first chunk.
    ///
    /// One that does not fit may be overtaken for `aging_steps` steps; then everybody behind
    /// waits with it, the pools drain, and it fits.
    pub(super) fn choose_starts(&mut self, mut budget: usize) {
        let now = self.newest;
        let mut after = None;
        let mut num_blocked = 0;
        while budget > 0
            && num_blocked <= LOOK_AHEAD
            && self.running.len() < self.dispatch.band().max_num_requests
        {
            let Some((rank, place)) = self.queue.next_after(after) else { return };
            if self.rooms.is_held_back(rank) {
                return;
            }
            after = Some(rank);
            match self.find_room(place) {
                Room::Made(room) => {
                    let (tables, reuse) = *room;
                    self.start(place, tables, reuse);
                    self.send_cached(place);
                    budget -= self.choose_chunk(place, budget);
                }
                Room::Soon => return, // what comes back is for this one
                Room::No => {
                    num_blocked += 1;
                    if self.is_past_overtaking(place, now) {
                        return;
                    }
                }
            }
        }
    }

    /// Moves a request from waiting to prefilling.
    fn start(&mut self, place: Place, tables: Tables, reuse: Reuse) {
        let Phase::Waiting(waiting) = self.requests.at(place) else { return };
        let (rank, num_tokens) = (waiting.request.asked.rank, waiting.request.tokens.len());
        if let Phase::Waiting(waiting) = self.requests.take(place) {
            self.requests.put(place, Phase::Prefilling(waiting.start(tables, reuse)));
        }
        self.queue.remove(rank, num_tokens);
        let index = self.running.partition_point(|&(other, _)| other < rank);
        self.running.insert(index, (rank, place));
    }

    fn is_past_overtaking(&mut self, place: Place, now: StepId) -> bool {
        let aging_steps = self.limits.aging_steps as u64;
        let Phase::Waiting(waiting) = self.requests.at_mut(place) else { return false };
        let since = *waiting.blocked_since.get_or_insert(now);
        now.0 - since.0 >= aging_steps && !planted::is(Bug::OvertakenForever)
    }

    /// As long a chunk as budget and window blocks allow, up to the next place where a checkpoint
    /// is wanted; returns its tokens.
    fn choose_chunk(&mut self, place: Place, budget: usize) -> usize {
        let Phase::Prefilling(prefilling) = self.requests.at_mut(place) else { return 0 };
        let active = &mut prefilling.0;
        let retired = active.num_retired(self.done);
        let start = active.planned();
        let left = active.request.tokens.len() - start;
        let stop = active.reuse.left.stops.next_after(start).map_or(left, |stop| stop - start);
        let swa = &active.tables.swa;
        let wanted = start + left.min(budget).min(stop);
        let num_short = swa.short_of(swa.missing(wanted), retired);
        if num_short > 0 {
            self.prefix.evict(&self.pools.swa, Group::Swa, num_short, None);
            self.pools.reclaim(self.done);
        }
        let reach = swa.end() + swa.takeable(retired) * swa.block_tokens() - start;
        let most = left.min(budget).min(reach).min(stop);
        let len = if most < left.min(stop) { aligned(start, most, &self.ratios) } else { most };
        if len == 0 {
            return 0;
        }
        let tables = &mut active.tables;
        // Nothing of the full group retires while a request runs: its promise is always good.
        let full = tables.full.grow(tables.full.missing(start + len), 0);
        if !full || !tables.swa.grow(tables.swa.missing(start + len), retired) {
            return 0;
        }
        active.measure();
        let id = active.request.id;
        let num_samples = usize::from(len == left);
        self.chosen.push(Row::new(place, id, start..start + len, num_samples, None));
        len
    }
}

/// Cuts a chunk that is not the last back to where groups close, if that costs next to nothing:
/// a group that is open between two chunks has to be carried in the request's state.
fn aligned(start: usize, len: usize, ratios: &[usize]) -> usize {
    let end = start + len;
    ratios
        .iter()
        .map(|ratio| end % ratio)
        .find(|&over| over * ALIGN_COST <= len)
        .map_or(len, |over| len - over)
}

#[cfg(test)]
mod tests {
    use super::aligned;

    #[test]
    fn chunks_end_where_groups_close_unless_that_costs_more_than_one_part_in_16() {
        let ratios = [128, 4];
        assert_eq!(aligned(0, 512, &ratios), 512);
        assert_eq!(aligned(0, 520, &ratios), 512);
        assert_eq!(aligned(100, 512, &ratios), 512); // 612 = 4 * 153: cutting to 512 costs 100
        assert_eq!(aligned(0, 511, &ratios), 508);
        assert_eq!(aligned(512, 511, &ratios), 508);
        assert_eq!(aligned(0, 7, &ratios), 7); // cutting 3 of 7 is too much
        assert_eq!(aligned(1, 3, &ratios), 3);
        assert_eq!(aligned(0, 511, &[]), 511);
        assert_eq!(aligned(5, 0, &ratios), 0);
    }
}
