//! Nothing deadlocks, starves or goes round in circles, down to pools that admit one request.

use dsv4_core::budget::{PoolSizes, plan_memory};
use dsv4_core::geometry::Geometry;
use dsv4_core::limits::Limits;

use crate::driver::{Driver, limits, real_geometry, request, sizes, tiny_geometry};
use crate::rng::{Rng, Seed};

/// Steps that a request may take alone: each computes at least one token, and each block that
/// another request grows by can set it back once.
fn generous(driver: &Driver, lengths: &[(usize, usize)]) -> usize {
    let tokens: usize = lengths.iter().map(|(prompt, output)| prompt + output).sum();
    let blocks: usize = tokens / driver.row("block_table_full", 0).len().max(1);
    tokens * (lengths.len() + 1) + 10 * blocks
}

/// Submits requests of these lengths at once and runs them; all must end, in boundedly many steps.
fn all_end(geometry: &Geometry, pools: PoolSizes, limits: Limits, lengths: &[(usize, usize)]) {
    let mut driver = Driver::new(geometry.clone(), pools, limits);
    let mut num_accepted = 0;
    for &(prompt, output) in lengths {
        num_accepted += usize::from(driver.try_submit(request(prompt, output)).is_ok());
    }
    let most = generous(&driver, lengths);
    let ends = driver.run(most);
    assert_eq!(ends.len(), num_accepted, "{lengths:?} in {pools:?}");
    assert_eq!(driver.stat("num_stalls"), 0);
    driver.assert_at_rest();
}

#[test]
fn the_smallest_pools_that_admit_a_request_finish_it() {
    for geometry in [tiny_geometry(), real_geometry()] {
        let block = geometry.block_tokens;
        for full_blocks in 1..=4 {
            for extra_swa in 0..=2 {
                let pools = sizes(full_blocks, geometry.steady_swa_blocks(1) + extra_swa, 1);
                for total in [2, block - 1, block, full_blocks * block] {
                    for prompt in [1, total / 2, total - 1] {
                        let lengths = [(prompt.max(1), total - prompt.max(1))];
                        all_end(&geometry, pools, limits(), &lengths);
                    }
                }
            }
        }
    }
}

#[test]
fn pools_one_block_smaller_than_two_requests_serve_them_one_after_the_other_or_by_preemption() {
    let geometry = tiny_geometry();
    for full_blocks in 5..10 {
        for swa_blocks in 3..9 {
            for slots in 1..=2 {
                let pools = sizes(full_blocks, swa_blocks, slots);
                all_end(&geometry, pools, limits(), &[(8, 32), (8, 32)]);
                all_end(&geometry, pools, limits(), &[(1, 39), (39, 1), (20, 20)]);
            }
        }
    }
}

#[test]
fn random_crowds_in_small_pools_all_end() {
    let mut num_crowds = 0;
    for seed in 0..3000 {
        let _seed = Seed(seed);
        let mut rng = Rng::new(seed);
        let geometry = tiny_geometry();
        let num_requests = rng.between(1, 6);
        let pools = sizes(rng.between(1, 9), rng.between(3, 12), rng.between(1, 6));
        let bounds = Limits {
            max_num_requests: num_requests,
            max_num_tokens: num_requests + rng.below(12),
            max_steps_in_flight: 1,
            aging_steps: rng.pick(&[1, 3, 100]),
            prefix_cache: false,
            checkpoint_tokens: 0,
            max_draft_tokens: 0,
            ..limits()
        };
        let length = |rng: &mut Rng| (rng.between(1, 30), rng.between(1, 40));
        let count = rng.between(1, 12);
        let lengths: Vec<_> = (0..count).map(|_| length(&mut rng)).collect();
        all_end(&geometry, pools, bounds, &lengths);
        num_crowds += 1;
    }
    assert_eq!(num_crowds, 3000);
}

#[test]
fn two_requests_that_preempt_each_other_do_not_go_round_in_circles() {
    // Together they outgrow the pool at every length from 5 blocks on.
    let short = Limits { max_num_tokens: 40, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(6, 30, 2), short);
    driver.submit(8, 40);
    driver.submit(8, 40);
    let ends = driver.run(200);
    assert_eq!(ends.len(), 2);
    let preemptions = driver.stat("num_preemptions");
    assert!((1..=3).contains(&preemptions), "{preemptions} preemptions of one request");
}

#[test]
fn the_first_in_rank_is_never_set_back() {
    let short = Limits { max_num_tokens: 40, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(8, 40, 6), short);
    let first = driver.submit(8, 50);
    let mut last_len = 0;
    let mut num_others = 0;
    for _ in 0..60 {
        driver.submit(8, 40);
        num_others += 1;
        let Some(plan) = driver.plan() else { break };
        if let Some(row) = plan.request_ids.iter().position(|&id| id == first) {
            let len = driver.array("seq_lens")[row];
            assert!(len > last_len, "from {last_len} to {len}");
            last_len = len;
        } else {
            assert_eq!(last_len, 57, "left out before its end");
        }
        driver.finish(&plan, 3);
    }
    assert!(num_others > 50);
    assert_eq!(last_len, 57);
}

#[test]
fn a_stream_of_urgent_requests_does_not_starve_a_humble_one() {
    let bounds = Limits { max_num_requests: 2, max_num_tokens: 40, aging_steps: 10, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(6, 30, 2), bounds);
    let humble = driver.submit_at(3, 8, 30);
    let mut ended_after = None;
    for step in 0..2000 {
        while driver.stat("num_waiting") < 4 {
            driver.submit_at(0, 8, 6);
        }
        let (_, outcome) = driver.step().expect("always busy");
        if crate::driver::ends_of(&outcome).iter().any(|&(id, _)| id == humble) {
            ended_after = Some(step);
            break;
        }
    }
    let steps = ended_after.expect("it starves");
    assert!((30..400).contains(&steps), "{steps} steps");
}

#[test]
fn a_broken_step_budget_cannot_be_configured() {
    for bad in [
        Limits { max_num_requests: 9, max_num_tokens: 8, ..limits() },
        Limits { max_steps_in_flight: 3, ..limits() },
        Limits { max_steps_in_flight: 0, ..limits() },
        Limits { max_queued_tokens: 2047, ..limits() },
        Limits { aging_steps: 0, ..limits() },
        Limits { vocab_size: 0, ..limits() },
        Limits { max_model_len: 1, ..limits() },
    ] {
        assert!(dsv4_core::Core::new(real_geometry(), &sizes(4, 9, 2), bad.clone()).is_err());
    }
    for bad in [sizes(0, 9, 2), sizes(4, 2, 2), sizes(4, 9, 0), sizes(usize::MAX, 9, 2)] {
        let refused = dsv4_core::Core::new(real_geometry(), &bad, limits());
        assert!(refused.is_err(), "{bad:?}");
    }
}

#[test]
fn what_plan_memory_promises_is_what_runs_at_once() {
    let geometry = real_geometry();
    let mut seen = std::collections::BTreeSet::new();
    for mib in [1, 2, 3, 4, 6, 9] {
        for context in [256, 512, 768, 1024, 2048] {
            for steps in [1, 2] {
                let bounds = Limits { max_steps_in_flight: steps, ..limits() };
                let Ok(plan) = plan_memory(&geometry, &bounds, mib << 20) else { continue };
                let mut driver = Driver::new(geometry.clone(), plan.sizes, bounds);
                let capacity = plan.capacity(context);
                for _ in 0..capacity + 2 {
                    let accepted = driver.try_submit(request(context - 40, 40)).is_ok();
                    assert_eq!(accepted, context <= plan.max_request_tokens, "{plan:?}");
                }
                let mut most = 0;
                for _ in 0..10_000 {
                    let Some(_) = driver.step() else { break };
                    most = most.max(usize::try_from(driver.stat("num_running")).expect("few"));
                }
                // Chunks of long prompts take turns, so all may never run at one moment; but never
                // more do than were promised, and short ones all do.
                assert!(most <= capacity, "{most} of {capacity} at {context} in {plan:?}");
                if context == 256 {
                    assert_eq!(most, capacity, "{plan:?}");
                }
                assert_eq!(driver.stat("num_preemptions"), 0);
                driver.assert_at_rest();
                seen.insert(capacity);
            }
        }
    }
    assert!(seen.len() > 4, "{seen:?}");
}
