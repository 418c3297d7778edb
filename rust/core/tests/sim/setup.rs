//! What a seed decides before anything runs: shapes, pools, load, and which faults there are.
//!
//! Everything is made small on purpose, so that every border comes soon: pools a few blocks above
//! the least, windows of 8 tokens, budgets of a token per request, clocks and vocabularies that
//! end where integers do.

use dsv4_core::budget::PoolSizes;
use dsv4_core::geometry::{DraftRoom, Geometry};
use dsv4_core::limits::Limits;
use dsv4_core::transfer::proof::Transport;

use crate::desk::Way;
use crate::faults::Fault;
use crate::rng::Rng;

/// Chances are given in this many parts.
pub const PARTS: usize = 10_000;

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Whole,
    Prefill,
    Decode,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub geometry: Geometry,
    pub sizes: PoolSizes,
    pub limits: Limits,
    /// One worker each: all whole, or prefill and decode workers.
    pub roles: Vec<Role>,
    /// Workers of one prefill instance: each computes, and writes its own part of what lands.
    pub num_ranks: usize,
    /// How prefill and decode workers reach each other.
    pub way: Way,
    pub num_jobs: usize,
    pub outgrows: bool,
    /// Requests are of one kind from the first to the last, so that loads can be compared.
    pub is_steady: bool,
    /// Nothing goes wrong between workers.
    pub is_calm: bool,
    /// Mean time between arrivals.
    pub gap_us: u64,
    /// Whole bursts arrive at once.
    pub burst: usize,
    pub step_us: u64,
    /// Where the clocks of the workers start.
    pub origin_us: u64,
    /// Tokens that may wait for a slow reader.
    pub output_queue: usize,
    /// Calls per audit.
    pub audit_every: u64,
    /// Chance of each fault where it could strike, in [`PARTS`].
    pub chances: [usize; Fault::ALL.len()],
}

/// V4's shapes over few layers.
pub fn real_geometry() -> Geometry {
    Geometry {
        ratios: vec![0, 4, 128],
        window: 128,
        kv_data_bytes: 576,
        kv_scale_bytes: 8,
        kv_page_multiple: 576,
        index_data_bytes: 64,
        index_scale_bytes: 4,
        c4_state_bytes: 64,
        index_state_bytes: 64,
        c128_state_bytes: 64,
        block_tokens: 256,
        swa_block_tokens: 64,
        drafts: DraftRoom::default(),
    }
}

fn small_geometry(window: usize, block_tokens: usize, swa_block_tokens: usize) -> Geometry {
    let ratios = if block_tokens % 128 == 0 { vec![0, 4, 128] } else { vec![0, 4] };
    Geometry { ratios, window, block_tokens, swa_block_tokens, ..real_geometry() }
}

impl Setup {
    pub fn random(rng: &mut Rng) -> Self {
        let (geometry, num_jobs) = match rng.below(10) {
            0..=5 => (small_geometry(8, 8, 4), rng.between(40, 240)),
            6 => (small_geometry(rng.pick(&[5, 16, 33]), 16, 8), rng.between(40, 160)),
            7 | 8 => (small_geometry(32, 128, 16), rng.between(20, 80)),
            _ => (real_geometry(), rng.between(10, 40)),
        };
        let max_draft_tokens = if rng.once_in(3) { rng.pick(&[1, 2, 3, 5, 15]) } else { 0 };
        let room = if max_draft_tokens > 0 { max_draft_tokens.max(rng.between(1, 15)) } else { 0 };
        let drafts = DraftRoom { tokens: room, hc_mult: 4, hidden: 64 };
        let geometry = Geometry { drafts, ..geometry };
        let block = geometry.block_tokens;
        let is_roomy = rng.once_in(3);
        // Outputs far beyond what admission promises: requests outgrow the pools.
        let outgrows = rng.once_in(3);
        let lengths = [2 * block, 3 * block + 1, 6 * block, 12 * block];
        let max_model_len = if outgrows { 10 * block } else { rng.pick(&lengths) };
        let max_num_requests = rng.between(if outgrows { 3 } else { 1 }, 12);
        let limits = Limits {
            max_model_len,
            max_num_requests,
            max_num_tokens: max_num_requests + rng.pick(&[0, 1, 3, block, 2 * block, 4 * block]),
            max_queued_requests: rng.pick(&[1, 8, 64, 64]),
            max_queued_tokens: max_model_len * rng.pick(&[1, 4, 64]),
            vocab_size: rng.pick(&[50_000, 1 << 20, i32::MAX as usize]),
            max_steps_in_flight: rng.pick(&[1, 2, 2]),
            aging_steps: rng.pick(&[1, 4, 50, 256]),
            prefix_cache: !rng.once_in(3),
            checkpoint_tokens: rng.pick(&[0, 0, block, 2 * block]),
            max_draft_tokens,
        };
        let longest = geometry.full_blocks(max_model_len);
        let extra = if is_roomy { rng.between(8, 60) } else { rng.between(0, 8) };
        let sizes = PoolSizes {
            full_blocks: if !outgrows && rng.once_in(4) { rng.between(1, 8) } else { longest }
                + extra,
            swa_blocks: geometry.steady_swa_blocks(limits.tokens_in_flight())
                + if outgrows { 60 } else { extra * rng.between(0, 3) },
            state_slots: 1 + if is_roomy || outgrows { 8 } else { rng.between(0, 8) },
        };
        let step_us = rng.micros(1_000, 20_000);
        Self {
            geometry,
            sizes,
            limits,
            roles: vec![Role::Whole; rng.pick(&[1, 1, 2, 3])],
            num_ranks: 1,
            way: Way(Transport::InProcess),
            num_jobs,
            outgrows,
            is_steady: false,
            is_calm: false,
            gap_us: step_us * rng.pick(&[1, 4, 16, 64, 1024]) / 4,
            burst: rng.pick(&[1, 1, 1, 4, 16]),
            step_us,
            origin_us: rng.pick(&[0, 0, 1 << 40, u64::MAX - (1 << 52)]),
            output_queue: rng.pick(&[4, 16, 256]),
            audit_every: 1,
            chances: chances(rng),
        }
    }

    /// The same with nothing going wrong but what clients do.
    pub fn only_clients(mut self) -> Self {
        let kept = [Fault::CancelDecoding, Fault::CancelStorm, Fault::Crash].map(|f| f as usize);
        for (kind, chance) in self.chances.iter_mut().enumerate() {
            *chance = if kept.contains(&kind) { 200 } else { 0 };
        }
        self
    }

    /// One worker of middling size, nothing going wrong, and this much to do.
    pub fn for_load(mut self, gap_us: u64, num_jobs: usize) -> Self {
        self.chances = [0; Fault::ALL.len()];
        self.geometry = small_geometry(8, 8, 4);
        self.sizes = PoolSizes { full_blocks: 120, swa_blocks: 120, state_slots: 24 };
        self.limits = Limits {
            max_model_len: 96,
            max_num_requests: 16,
            max_num_tokens: 64,
            max_queued_requests: 64,
            max_queued_tokens: 4096,
            max_draft_tokens: 0,
            ..self.limits
        };
        Self {
            gap_us,
            num_jobs,
            roles: vec![Role::Whole],
            burst: 1,
            audit_every: 997,
            step_us: 5_000,
            is_steady: true,
            outgrows: false,
            ..self
        }
    }

    pub fn chance(&self, fault: Fault) -> usize {
        self.chances[fault as usize]
    }
}

/// Half of all kinds, each rare, sometimes or often.
fn chances(rng: &mut Rng) -> [usize; Fault::ALL.len()] {
    std::array::from_fn(
        |_| if rng.once_in(2) { rng.pick(&[5, 20, 100, 100, 500, 2_000]) } else { 0 },
    )
}
