//! How many blocks of each group fit, and what they serve. Pure arithmetic: needs no device.
//!
//! ```text
//!   state  = one slot per running request
//!   swa    = steady blocks per running request + one transient term per step in flight
//!   full   = the rest
//! ```
//! With a prefix cache, a part of that rest becomes window blocks and slots for checkpoints; what is
//! cached gives way to requests in every group, so nothing else is set aside.
//!
//! The transient term, window blocks of the chunks of a step before the window slides past them,
//! is counted once per step and never per request: no step has more tokens than its budget,
//! however many requests share it.

use crate::error::Error;
use crate::geometry::Geometry;
use crate::ids::MAX_BLOCKS;
use crate::limits::Limits;

/// Blocks of each group; id 0 of each, the poison block, comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PoolSizes {
    pub full_blocks: usize,
    pub swa_blocks: usize,
    pub state_slots: usize,
}

impl PoolSizes {
    /// Refuses pools in which no request could run, or whose slots would not fit int32.
    pub fn check(&self, geometry: &Geometry, limits: &Limits) -> Result<(), Error> {
        let steady = steady_swa_blocks(geometry, limits);
        for (name, value, least, rows) in [
            ("full_blocks", self.full_blocks, 1, geometry.block_tokens / 4),
            ("swa_blocks", self.swa_blocks, steady, geometry.swa_block_tokens),
            ("state_slots", self.state_slots, 1, 1),
        ] {
            let most = MAX_BLOCKS.min(i32::MAX as usize / rows.max(1) - 1);
            if !(least..=most).contains(&value) {
                return Err(Error::Config(format!(
                    "{name} is {value}; one request needs {least}, and at most {most} can be \
                     numbered"
                )));
            }
        }
        Ok(())
    }

    /// Window blocks set aside for the chunks of the steps in flight; less in a small pool, where
    /// chunks are cut to what is left instead.
    pub fn transient_swa_blocks(&self, geometry: &Geometry, limits: &Limits) -> usize {
        let wanted =
            limits.max_steps_in_flight * geometry.transient_swa_blocks(limits.max_num_tokens);
        wanted.min(self.swa_blocks.saturating_sub(steady_swa_blocks(geometry, limits)))
    }

    /// Rows of host memory for what is sent along with a prompt, one per room: twice as many as
    /// requests run, or as many as have a slot, so that some can come in, or wait for a proof, while
    /// all run.
    pub fn aux_rows(&self, limits: &Limits) -> usize {
        let running = limits.max_num_requests.min(self.state_slots);
        (2 * running).max(self.state_slots).min(MAX_BLOCKS)
    }

    /// Tokens of the longest request that fits alone.
    pub fn max_request_tokens(&self, geometry: &Geometry) -> usize {
        self.full_blocks * geometry.block_tokens
    }
}

/// Refuses what cannot work, each alone or both together: a state slot has room for so many drafts.
pub fn check(geometry: &Geometry, limits: &Limits) -> Result<(), Error> {
    geometry.check()?;
    limits.check()?;
    let (wanted, room) = (limits.max_draft_tokens, geometry.drafts.tokens);
    if wanted > room {
        return Err(Error::Config(format!(
            "max_draft_tokens is {wanted}, and a state slot of this geometry has room for {room}"
        )));
    }
    Ok(())
}

/// Outcome of [`plan_memory`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct MemoryPlan {
    pub sizes: PoolSizes,
    pub full_bytes: usize,
    pub swa_bytes: usize,
    pub state_bytes: usize,
    pub transient_swa_blocks: usize,
    pub max_request_tokens: usize,
    steady_swa_blocks: usize,
    block_tokens: usize,
    max_num_requests: usize,
}

impl MemoryPlan {
    /// Requests of `context` tokens, prompt and output, that run at once.
    pub fn capacity(&self, context: usize) -> usize {
        let full = self.sizes.full_blocks / context.max(1).div_ceil(self.block_tokens);
        let swa = (self.sizes.swa_blocks - self.transient_swa_blocks) / self.steady_swa_blocks;
        full.min(swa).min(self.max_num_requests)
    }
}

/// Tokens of the requests that concurrency is planned for, where memory is short.
const TYPICAL_TOKENS: usize = 1024;

/// One part in so many of the bytes beyond what requests need goes to window checkpoints.
const CHECKPOINT_SHARE: usize = 5;

/// How many blocks of each group fit in `total_bytes`, poison blocks included.
///
/// As many running requests as the limits ask for, unless their windows and state would leave
/// less than one longest request, or less than a typical context for each; then fewer. In the end
/// one at a time, in chunks that are cut to the window blocks there are.
pub fn plan_memory(
    geometry: &Geometry,
    limits: &Limits,
    total_bytes: usize,
) -> Result<MemoryPlan, Error> {
    check(geometry, limits)?;
    let steady = steady_swa_blocks(geometry, limits);
    let bytes = Bytes::of(geometry);
    let transient =
        limits.max_steps_in_flight * geometry.transient_swa_blocks(limits.max_num_tokens);
    let longest = geometry.full_blocks(limits.max_model_len);
    let typical = geometry.full_blocks(limits.max_model_len.min(TYPICAL_TOKENS));
    let fit = |requests: usize, transient: usize| -> Option<PoolSizes> {
        let swa_blocks = requests * steady + transient;
        let fixed = bytes.of_groups(0, swa_blocks, requests);
        let left = total_bytes.checked_sub(fixed)?;
        // A model of window layers alone needs no bytes there: as many as could ever be used.
        let full_blocks = left.checked_div(bytes.full_block).unwrap_or(requests * longest);
        Some(PoolSizes {
            full_blocks: full_blocks.min(MAX_BLOCKS),
            swa_blocks,
            state_slots: requests,
        })
    };
    // Bytes that no request needs to run go to the prefix cache: some of them to checkpoints.
    let with_checkpoints = |sizes: PoolSizes, least: usize| -> PoolSizes {
        let window = geometry.checkpoint_swa_blocks();
        let each = window * bytes.swa_block + bytes.state_slot;
        let spare = sizes.full_blocks.saturating_sub(least) * bytes.full_block;
        // Where every running request could be as long as may be, that stays so.
        let beyond = sizes.full_blocks.checked_sub(sizes.state_slots * longest);
        let most = beyond.map_or(usize::MAX, |blocks| blocks * bytes.full_block);
        let numbered = MAX_BLOCKS.saturating_sub(sizes.swa_blocks) / window.max(1);
        let allotted = (spare / CHECKPOINT_SHARE).min(most);
        let count = allotted.checked_div(each).unwrap_or(0).min(numbered);
        if !limits.prefix_cache || count == 0 {
            return sizes;
        }
        let swa_blocks = sizes.swa_blocks + count * window;
        let state_slots = sizes.state_slots + count;
        let left = total_bytes - bytes.of_groups(0, swa_blocks, state_slots);
        let full_blocks = (left / bytes.full_block).min(sizes.full_blocks);
        PoolSizes { full_blocks, swa_blocks, state_slots }
    };
    let most = limits.max_num_requests.min(MAX_BLOCKS / steady);
    let largest = |least: &dyn Fn(usize) -> usize| {
        let fits = |n| fit(n, transient).filter(|sizes| sizes.full_blocks >= least(n));
        (1..=most).rev().find_map(fits)
    };
    let one_at_a_time = || {
        let fits = |transient| fit(1, transient).filter(|sizes| sizes.full_blocks >= 1);
        (0..transient).rev().find_map(fits)
    };
    let usual = |n: usize| longest.max(n * typical);
    let sizes = largest(&usual)
        .map(|sizes| with_checkpoints(sizes, usual(sizes.state_slots)))
        .or_else(|| largest(&|n| n))
        .or_else(one_at_a_time)
        .ok_or_else(|| {
            let least = bytes.of_groups(1, steady, 1);
            Error::Config(format!(
                "{total_bytes} bytes of KV memory are too few; the smallest pools that run one \
                 request take {least}, and one longest request ({} tokens) with a step of {} \
                 tokens takes {}",
                limits.max_model_len,
                limits.max_num_tokens,
                bytes.of_groups(longest, steady + transient, 1),
            ))
        })?;
    sizes.check(geometry, limits)?;
    Ok(MemoryPlan {
        sizes,
        full_bytes: (sizes.full_blocks + 1) * bytes.full_block,
        swa_bytes: (sizes.swa_blocks + 1) * bytes.swa_block,
        state_bytes: (sizes.state_slots + 1) * bytes.state_slot,
        transient_swa_blocks: sizes.transient_swa_blocks(geometry, limits),
        max_request_tokens: sizes.max_request_tokens(geometry),
        steady_swa_blocks: steady,
        block_tokens: geometry.block_tokens,
        max_num_requests: limits.max_num_requests.min(sizes.state_slots),
    })
}

/// Window blocks that every running request is promised: with drafts they cover those as well.
fn steady_swa_blocks(geometry: &Geometry, limits: &Limits) -> usize {
    geometry.steady_swa_blocks(limits.tokens_in_flight())
}

/// Bytes per block of each group.
struct Bytes {
    full_block: usize,
    swa_block: usize,
    state_slot: usize,
}

impl Bytes {
    fn of(geometry: &Geometry) -> Self {
        Self {
            full_block: geometry.full_block_bytes(),
            swa_block: geometry.swa_block_bytes(),
            state_slot: geometry.state_slot_bytes(),
        }
    }

    /// All three groups, each with its poison block.
    fn of_groups(&self, full_blocks: usize, swa_blocks: usize, state_slots: usize) -> usize {
        (full_blocks + 1) * self.full_block
            + (swa_blocks + 1) * self.swa_block
            + (state_slots + 1) * self.state_slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::flash;

    fn limits() -> Limits {
        Limits {
            max_model_len: 4096,
            max_num_requests: 16,
            max_num_tokens: 512,
            max_queued_requests: 16,
            max_queued_tokens: 65_536,
            vocab_size: 1000,
            max_steps_in_flight: 1,
            aging_steps: 256,
            prefix_cache: false,
            checkpoint_tokens: 0,
            max_draft_tokens: 0,
        }
    }

    #[test]
    fn a_plan_uses_its_bytes_to_the_last_full_block() {
        for mib in [10, 20, 30, 50, 80, 200, 1000] {
            let total = mib << 20;
            let Ok(plan) = plan_memory(&flash(), &limits(), total) else { continue };
            let used = plan.full_bytes + plan.swa_bytes + plan.state_bytes;
            assert!(used <= total, "{mib} MiB: {used} bytes of {total}");
            assert!(
                total - used < flash().full_block_bytes(),
                "{mib} MiB: {} unused",
                total - used
            );
            assert_eq!(plan.max_request_tokens, plan.sizes.full_blocks * 256);
        }
    }

    #[test]
    fn the_least_that_a_refusal_names_is_enough_and_one_byte_less_is_not() {
        let geometry = flash();
        let least = Bytes::of(&geometry).of_groups(1, geometry.steady_swa_blocks(1), 1);
        let plan = plan_memory(&geometry, &limits(), least).expect("the least");
        assert_eq!(plan.sizes, PoolSizes { full_blocks: 1, swa_blocks: 3, state_slots: 1 });
        assert_eq!((plan.transient_swa_blocks, plan.capacity(256), plan.capacity(257)), (0, 1, 0));
        let refusal = plan_memory(&geometry, &limits(), least - 1).expect_err("too few");
        for number in [least, least - 1] {
            assert!(refusal.to_string().contains(&number.to_string()), "{refusal}");
        }
    }

    #[test]
    fn more_memory_never_serves_less() {
        let mut before = (0, 0);
        for mib in 4..400 {
            let Ok(plan) = plan_memory(&flash(), &limits(), mib << 20) else { continue };
            let now = (plan.capacity(1024), plan.max_request_tokens.min(4096));
            assert!(now.0 >= before.0 && now.1 >= before.1, "{mib} MiB: {now:?} after {before:?}");
            before = now;
        }
        assert_eq!(before, (16, 4096));
    }

    #[test]
    fn the_transient_term_is_one_per_step_in_flight_however_many_requests_run() {
        let transient = |max_num_requests, max_steps_in_flight| {
            let limits = Limits { max_num_requests, max_steps_in_flight, ..limits() };
            let plan = plan_memory(&flash(), &limits, 1 << 30).expect("plenty");
            let steady = flash().steady_swa_blocks(max_steps_in_flight) * plan.sizes.state_slots;
            assert_eq!(plan.sizes.swa_blocks, steady + plan.transient_swa_blocks);
            plan.transient_swa_blocks
        };
        assert_eq!((transient(1, 1), transient(16, 1), transient(16, 2)), (9, 9, 18));
    }

    #[test]
    fn with_a_prefix_cache_spare_bytes_hold_checkpoints_and_nobody_has_less_room() {
        let caching = Limits { prefix_cache: true, ..limits() };
        for mib in [5, 20, 30, 60, 200, 1000] {
            let Ok(without) = plan_memory(&flash(), &limits(), mib << 20) else { continue };
            let plan = plan_memory(&flash(), &caching, mib << 20).expect("as before");
            let used = plan.full_bytes + plan.swa_bytes + plan.state_bytes;
            assert!(used <= mib << 20 && used + (1 << 20) > mib << 20, "{mib} MiB: {used}");
            let (more, slots) = (plan.sizes.swa_blocks, plan.sizes.state_slots);
            let checkpoints = slots - without.sizes.state_slots;
            assert_eq!(more - without.sizes.swa_blocks, 2 * checkpoints, "{mib} MiB");
            assert_eq!(plan.capacity(1024), without.capacity(1024), "{mib} MiB");
            assert!(plan.max_request_tokens.min(4096) == without.max_request_tokens.min(4096));
            assert!(mib < 200 || checkpoints > 16, "{mib} MiB: {checkpoints}");
        }
    }

    #[test]
    fn a_model_of_window_layers_alone_can_be_planned() {
        let geometry = Geometry { ratios: vec![0, 0, 0], ..flash() };
        let plan = plan_memory(&geometry, &limits(), 1 << 30).expect("plenty");
        assert_eq!((plan.full_bytes, plan.capacity(4096)), (0, 16));
    }
}
