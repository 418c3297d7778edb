//! Requests whose prompt is computed elsewhere: room for what comes, and the step into decoding.
//!
//! ```text
//!   arriving ──land──▶ landing: everything taken, disclosed ──commit──▶ seated: decodes
//!      │                  │ the room failed                         (waits while all rows are taken)
//!      └──────────────────┴──▶ recompute: back to the queue, or failed; blocks are quarantined
//! ```
//! 1. A landing takes every group and the aux row, or nothing. What it takes now is exact: the full
//!    blocks that are not cached here, the window blocks of the tail, one slot, one row.
//! 2. It leaves what those need that run here: with all others preempted, each of them can finish.
//! 3. Nothing is written, read or cached here before every writer is proved done and what came was
//!    checked. A request that falls back computes everything again in blocks of its own.

use super::Scheduler;
use super::rooms::OnFailure;
use crate::admit::Wait;
use crate::block::{Block, Incoming};
use crate::error::Violation;
use crate::ids::{Group, StepId, narrow};
use crate::planted::{self, Bug};
use crate::prefix::find::Found;
use crate::prefix::publish::{Left, Reuse};
use crate::request::Request;
use crate::table::{BlockTable, Tables};
use crate::transfer::ids::{RoomKey, WriterKey};
use crate::transfer::message::Target;

/// No Offer while more than one block in so many of a group waits for proofs.
const QUARANTINE_SHARE: usize = 10;

/// A request whose prompt comes from elsewhere.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) request: Request,
    pub(super) key: RoomKey,
    /// All that will write.
    pub(super) writers: Box<[WriterKey]>,
    pub(super) on_failure: OnFailure,
    /// Since when it does not fit.
    pub(super) blocked_since: Option<StepId>,
    /// What it waits for, when it was last looked at.
    pub(super) waits_for: Option<Wait>,
    pub(crate) landing: Option<Landing>,
    /// As the aux row has it.
    pub(super) first_token: Option<i32>,
}

/// What is taken for a prompt that comes from elsewhere. Dropping it quarantines what may still be
/// written.
#[derive(Debug)]
pub(crate) struct Landing {
    pub(crate) full: BlockTable,
    pub(crate) swa: BlockTable,
    pub(crate) slot: Block<Incoming>,
    pub(crate) aux: Block<Incoming>,
    pub(crate) reuse: Reuse,
}

/// Why a landing was not made.
#[derive(Debug)]
pub(super) enum NoLanding {
    Wait(Wait),
    Broken,
}

impl From<Wait> for NoLanding {
    fn from(wait: Wait) -> Self {
        Self::Wait(wait)
    }
}

impl From<Violation> for NoLanding {
    fn from(_: Violation) -> Self {
        Self::Broken // counted where it was found
    }
}

impl Scheduler {
    /// Takes and discloses what the prompt of `request` needs here, after evicting what is in the
    /// way. All groups or none.
    pub(super) fn land(
        &mut self,
        request: &mut Request,
        writers: &[WriterKey],
    ) -> Result<Landing, NoLanding> {
        self.may_land()?;
        let found = self.prefix.find_blocks(&mut request.asked.sharing, request.tokens.all());
        match self.land_behind(request, writers, &found) {
            // A broken block of the cache costs a hit and no request.
            Err(NoLanding::Broken) if found.num_hit() > 0 => {
                self.land_behind(request, writers, &Found::default())
            }
            landed => landed,
        }
    }

    fn land_behind(
        &mut self,
        request: &Request,
        writers: &[WriterKey],
        found: &Found,
    ) -> Result<Landing, NoLanding> {
        self.room_to_land(request, found)?;
        let num_tokens = request.tokens.len();
        let need = self.pools.need_landing(num_tokens, request.output_left(), found.num_hit());
        let reservation = self.pools.probe_for(need)?;
        let lent = self.prefix.lend_blocks(found)?;
        let Tables { mut full, mut swa, slot } =
            reservation.commit_behind(request.id, lent, vec![]);
        let aux = self.pools.aux.take(request.id).ok_or(NoLanding::Broken)?;
        let (num_full, num_swa) = (full.missing(num_tokens), swa.missing(num_tokens));
        if !full.grow(num_full, 0) || !swa.grow(num_swa, 0) {
            return Err(NoLanding::Broken);
        }
        full.disclose(writers)?;
        swa.disclose(writers)?;
        let slot = slot.disclose(writers).map_err(|refused| refused.violation)?;
        let aux = aux.disclose(writers).map_err(|refused| refused.violation)?;
        self.prefix.trie.move_user(None, found.node());
        let reuse = Reuse {
            num_cached_tokens: narrow(num_tokens),
            num_published: narrow(found.num_hit()),
            left: Box::new(Left { node: found.node(), ..Left::default() }),
        };
        Ok(Landing { full, swa, slot, aux, reuse })
    }

    /// Evicts what is in the way of a landing; changes nothing else.
    fn room_to_land(&mut self, request: &Request, found: &Found) -> Result<(), Wait> {
        self.check_lives(request, found.num_hit())?;
        let (num_tokens, output) = (request.tokens.len(), request.output_left());
        let need = self.pools.need_landing(num_tokens, output, found.num_hit());
        let (pools, none) = (&self.pools, Found::default());
        // Its window and its slot come from elsewhere: only the full blocks of the hit are kept.
        let kept = |group| if group == Group::Full { found } else { &none };
        let evictable = |group| self.prefix.num_evictable(pools.of(group), group, kept(group));
        for (group, num_blocks) in pools.shortage(&need, evictable)? {
            if num_blocks > 0 {
                self.prefix.evict(pools.of(group), group, num_blocks, kept(group).node());
            }
        }
        self.pools.reclaim(self.done);
        Ok(())
    }

    /// May anything land now? Not while too much waits for proofs, nor without a slot and a row.
    fn may_land(&self) -> Result<(), Wait> {
        for (group, pool) in self.pools.each() {
            let counts = pool.counts();
            let most = counts.capacity / QUARANTINE_SHARE;
            if counts.quarantined > most && !planted::is(Bug::OffersUnbounded) {
                return Err(Wait { group, needs: counts.quarantined, has: most });
            }
            let is_one = matches!(group, Group::State | Group::Aux);
            if is_one && counts.free + counts.cached == 0 {
                return Err(Wait { group, needs: 1, has: 0 });
            }
        }
        Ok(())
    }

    /// With all others preempted, can each that runs still finish beside all that land?
    fn check_lives(&self, request: &Request, num_hit: usize) -> Result<(), Wait> {
        let (num_tokens, output) = (request.tokens.len(), request.output_left());
        let need = self.pools.need_landing(num_tokens, output, num_hit).num_full();
        let life = |request: &Request| {
            self.geometry.full_blocks((request.num_prompt_tokens + request.max_tokens) as usize)
        };
        let counts = self.pools.full.counts();
        let has = counts.capacity - counts.quarantined;
        let landing = self.rooms.landings().map(|(_, landing)| landing.full.entitled());
        let all = need + landing.sum::<usize>();
        let running = self.running.iter().map(|&(_, place)| self.requests.at(place).request());
        let beside = running.map(|other| life(other) + all);
        let mine = std::iter::once(life(request) + all - need);
        let landing = self.rooms.landings();
        let landing = landing.map(|(other, held)| life(other) + all - held.full.entitled());
        match beside.chain(mine).chain(landing).find(|&needs| needs > has) {
            Some(needs) if !planted::is(Bug::LandsOnLives) => {
                Err(Wait { group: Group::Full, needs, has })
            }
            _ => Ok(()),
        }
    }

    /// Everything is here and checked, and nobody may write it any more: it is the request's own.
    pub(super) fn settle_landing(
        &mut self,
        landing: Landing,
        num_tokens: usize,
    ) -> Result<(Tables, Reuse), Violation> {
        let Landing { mut full, mut swa, slot, aux, reuse } = landing;
        let settled = (|| {
            full.settle()?;
            swa.settle()?;
            drop(aux.settle().map_err(|refused| refused.violation)?);
            let slot = slot.settle().map_err(|refused| refused.violation)?;
            full.seal_written(num_tokens)?;
            swa.seal_written(num_tokens)?;
            Ok(Tables { full, swa, slot })
        })();
        match settled {
            Ok(tables) => Ok((tables, reuse)),
            Err(violation) => {
                self.prefix.trie.move_user(reuse.left.node, None);
                Err(violation)
            }
        }
    }

    /// A landing is given up: what may still be written is quarantined.
    pub(super) fn drop_landing(&mut self, landing: Landing) {
        if !planted::is(Bug::LandingLeaks) {
            self.prefix.trie.move_user(landing.reuse.left.node, None);
        }
        drop(landing);
        self.pools.reclaim(self.done);
    }
}

impl Arriving {
    pub(super) fn new(
        request: Request,
        key: RoomKey,
        writers: Box<[WriterKey]>,
        on_failure: OnFailure,
    ) -> Self {
        let (blocked_since, waits_for, landing, first_token) = (None, None, None, None);
        Self { request, key, writers, on_failure, blocked_since, waits_for, landing, first_token }
    }
}

impl Landing {
    /// Full blocks that are not cached here, and window blocks, in order.
    pub(super) fn targets(&self) -> (Vec<Target>, Vec<Target>) {
        (self.full.targets(), self.swa.targets())
    }

    /// Tokens of the prompt that are cached here.
    pub(super) fn num_cached_tokens(&self, block_tokens: usize) -> u32 {
        let num_tokens = self.reuse.num_published as usize * block_tokens;
        u32::try_from(num_tokens).expect("limits are checked to fit int32")
    }
}
