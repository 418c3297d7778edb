//! Requests and the prefix cache: starting behind a hit, copying state, leaving blocks behind.

use super::{Place, Row, Scheduler};
use crate::admit::Wait;
use crate::block::{Block, Open};
use crate::ids::{Group, RequestId, narrow};
use crate::metadata::StepArrays;
use crate::planted::{self, Bug};
use crate::prefix::checkpoint::Save;
use crate::prefix::find::Found;
use crate::prefix::publish::{Left, Reuse};
use crate::request::{Active, Phase};
use crate::table::Tables;

/// What came of the wish to start.
pub(super) enum Room {
    /// Everything that the request needs: what the cache has of it, and the rest promised.
    Made(Box<(Tables, Reuse)>),
    /// It is on its way back from steps in flight.
    Soon,
    /// Others hold it.
    No,
}

impl Scheduler {
    /// Room for a waiting request, after evicting what is in the way.
    pub(super) fn find_room(&mut self, place: Place) -> Room {
        let Phase::Waiting(waiting) = self.requests.at_mut(place) else { return Room::No };
        if waiting.busy_until > self.done && !planted::is(Bug::RestartsBusy) {
            return Room::No;
        }
        let request = &mut waiting.request;
        let mut found = self.prefix.find(&mut request.asked.sharing, request.tokens.all());
        let (num_tokens, output) = (request.tokens.len(), request.output_left());
        loop {
            let need = self.pools.need(num_tokens, output, found.num_hit());
            let pools = &self.pools;
            let evictable = |group| self.prefix.num_evictable(pools.of(group), group, &found);
            match self.pools.shortage(&need, evictable) {
                Ok(short) => {
                    for (group, num_blocks) in short.into_iter().filter(|&(_, short)| short > 0) {
                        self.prefix.evict(self.pools.of(group), group, num_blocks, found.node());
                    }
                    self.pools.reclaim(self.done);
                }
                // Its own checkpoint holds the slot that it needs.
                Err(Wait { group: Group::State, .. }) if found.num_hit() > 0 => {
                    self.prefix.shorten(&mut found);
                    continue;
                }
                Err(_) => return Room::No,
            }
            let Ok(reservation) = self.pools.probe_for(need) else { return Room::Soon };
            let Ok(lent) = self.prefix.lend(&found) else {
                reservation.forfeit(); // a broken block of the cache: go without
                found = Found::default();
                continue;
            };
            let stops = self.prefix.stops(&request.asked.sharing, num_tokens, &found);
            self.prefix.count(&mut request.asked.sharing, request.tokens.all(), &found);
            let Some(lent) = lent else {
                let reuse =
                    Reuse { left: Box::new(Left { stops, ..Left::default() }), ..Reuse::default() };
                return Room::Made(Box::new((reservation.commit(request.id), reuse)));
            };
            self.prefix.trie.move_user(None, found.node());
            found.node().into_iter().for_each(|node| self.prefix.trie.touch_checkpoint(node));
            let (node, restore) = (found.node(), Some(lent.slot));
            let reuse = Reuse {
                num_cached_tokens: narrow(found.num_hit() * self.geometry.block_tokens),
                num_published: narrow(found.num_hit()),
                left: Box::new(Left { node, restore, stops, ..Left::default() }),
            };
            let tables = reservation.commit_behind(request.id, lent.full, lent.window);
            return Room::Made(Box::new((tables, reuse)));
        }
    }

    /// Why a waiting request does not start; None if there is room.
    pub(crate) fn waits_for(&mut self, place: Place) -> Option<Wait> {
        let Phase::Waiting(waiting) = self.requests.at_mut(place) else { return None };
        let request = &mut waiting.request;
        let found = self.prefix.find(&mut request.asked.sharing, request.tokens.all());
        let need = self.pools.need(request.tokens.len(), request.output_left(), found.num_hit());
        let pools = &self.pools;
        let evictable = |group| self.prefix.num_evictable(pools.of(group), group, &found);
        self.pools.shortage(&need, evictable).err()
    }

    /// State that a row that starts needs before its step.
    ///
    /// The step has begun: what is given up here may be read by it.
    pub(super) fn restore_state(&mut self, row: &Row, arrays: &mut StepArrays<'_>) {
        let Some(active) = self.requests.at_mut(row.place).active_mut() else { return };
        if let Some(source) = active.reuse.left.restore.take()
            && !planted::is(Bug::RestoreSkipped)
        {
            arrays.restores.push(source.id(), active.tables.slot.id());
        }
    }

    /// State to keep after the step.
    pub(super) fn save_state(&mut self, row: &Row, arrays: &mut StepArrays<'_>) {
        // Of drafts, the first boundary is the likeliest to be reached.
        let end = match row.num_samples() {
            0 | 1 => row.end(),
            _ => (row.start() + 1).next_multiple_of(self.geometry.block_tokens).min(row.end()),
        };
        if end % self.geometry.block_tokens == 0 {
            self.save_state_at(end, row, arrays);
        }
    }

    #[inline(never)] // once in a block
    fn save_state_at(&mut self, end: usize, row: &Row, arrays: &mut StepArrays<'_>) {
        let Some(active) = self.requests.at(row.place).active() else { return };
        let is_stop = active.reuse.left.stops.has(end);
        let is_cached = self.prefix.caches(&active.request.asked.sharing);
        if !is_cached || (!is_stop && row.num_samples() == 0) {
            return;
        }
        let Some(target) = self.take_slot(row.id) else { return };
        if let Some(active) = self.requests.at_mut(row.place).active_mut() {
            arrays.saves.push(active.tables.slot.id(), target.id());
            let standing = active.reuse.left.stops.standing(end);
            active.reuse.left.saves.push(Save::new(end, target, !is_stop, standing));
        }
    }

    /// A slot for a checkpoint, in place of the least recently used one if there is no other.
    fn take_slot(&mut self, owner: RequestId) -> Option<Block<Open>> {
        if self.pools.state.counts().free == 0 {
            self.prefix.evict(&self.pools.state, Group::State, 1, None);
            self.pools.reclaim(self.done);
        }
        self.pools.state.take(owner)
    }

    /// Gives up the checkpoints that are on their way; false if there are none.
    pub(super) fn forfeit_saves(&mut self) -> bool {
        let mut num_saves = 0;
        for &(_, place) in &self.running {
            if let Some(active) = self.requests.at_mut(place).active_mut() {
                num_saves += active.reuse.left.saves.len();
                active.reuse.left.saves.clear();
            }
        }
        self.pools.reclaim(self.done);
        num_saves > 0
    }

    /// A request gives up its blocks; what it left in the cache may be evicted from now on.
    pub(super) fn leave_cache(&mut self, active: &mut Active) {
        if !planted::is(Bug::UserLeaks) {
            self.prefix.trie.move_user(active.reuse.left.node.take(), None);
        }
    }
}
