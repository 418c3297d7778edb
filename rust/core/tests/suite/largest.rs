//! The largest legal step of every model fits the layout that was sized for it, and no larger one
//! can be planned: every request verifying, one prompt filling the budget, and both.

use dsv4_core::budget::{PoolSizes, plan_memory};
use dsv4_core::geometry::{DraftRoom, Geometry};
use dsv4_core::limits::Limits;
use dsv4_core::metadata::{SeedRows, StepLayout};
use dsv4_core::{Answer, Event, Plan};

use crate::driver::{Driver, limits, real_geometry};

/// Layers, streams x hidden of each model of the family; all have blocks of 256 and 64 tokens.
fn models() -> [(&'static str, Geometry); 3] {
    let of = |ratios: Vec<usize>, hidden: usize| Geometry {
        ratios,
        drafts: DraftRoom { tokens: 15, hc_mult: 4, hidden },
        ..real_geometry()
    };
    [
        ("Flash", of([vec![0, 0], [4, 128].repeat(20), vec![4, 0]].concat(), 4096)),
        ("Pro", of([vec![128, 128], [4, 128].repeat(29), vec![4, 0]].concat(), 7168)),
        ("demo", of(vec![0, 0, 4, 128, 4, 128, 0], 256)),
    ]
}

fn finish(driver: &mut Driver, plan: &Plan, width: usize) {
    let tokens = vec![7; plan.num_samples];
    let accepted: Vec<usize> = plan.sample_counts.iter().map(|&count| count - 1).collect();
    let drafts = vec![7; plan.sample_counts.len() * width];
    let answer = Answer { tokens: &tokens, non_finite: &[], accepted: &accepted, drafts: &drafts };
    driver.core.advance(&[Event::Verified { step: plan.step_id, answer }]).expect("legal");
}

/// The most tokens, samples, closing groups, saves and blocks of a row in any step until the end.
fn most_of_all_steps(driver: &mut Driver, width: usize) -> [usize; 4] {
    let mut most = [0; 4];
    while let Some(plan) = driver.plan() {
        for (most, now) in
            most.iter_mut().zip([plan.num_tokens, plan.num_samples, plan.num_c4, plan.num_c128])
        {
            *most = now.max(*most);
        }
        finish(driver, &plan, width);
    }
    driver.assert_at_rest();
    most
}

fn capacity(driver: &Driver, name: &str) -> usize {
    driver.array(name).len()
}

#[test]
fn all_requests_verify_at_once_and_fill_the_arrays_to_the_last_entry() {
    for (name, geometry) in models() {
        for width in [0, 1, 5, 15] {
            for less in [0, 1] {
                let max_num_tokens = 6 * (1 + width) - less * width.min(1);
                let bounds = Limits {
                    max_num_requests: 6,
                    max_num_tokens,
                    max_draft_tokens: width,
                    max_steps_in_flight: 2,
                    ..limits()
                };
                let pools = PoolSizes { full_blocks: 64, swa_blocks: 128, state_slots: 6 };
                let mut driver = Driver::new(geometry.clone(), pools, bounds);
                for _ in 0..6 {
                    driver.submit(1, 400);
                }
                let most = most_of_all_steps(&mut driver, width);
                assert_eq!(most[..2], [max_num_tokens; 2], "{name}, {width} drafts");
                assert_eq!(capacity(&driver, "sample_tokens"), max_num_tokens);
                assert_eq!(capacity(&driver, "token_ids"), max_num_tokens);
                assert!(most[2] <= capacity(&driver, "c4_tokens"));
                let expected = if width == 0 { 0 } else { 6 };
                assert_eq!(capacity(&driver, "draft_widths"), expected);
                assert_eq!(capacity(&driver, "token_sources"), max_num_tokens);
            }
        }
    }
}

#[test]
fn groups_that_close_all_at_once_fill_their_arrays() {
    for (name, geometry) in models() {
        // All requests reach positions 127, 255, ... in the same step, and each group of 4.
        let bounds = Limits { max_num_requests: 5, max_num_tokens: 5, ..limits() };
        let pools = PoolSizes { full_blocks: 64, swa_blocks: 128, state_slots: 5 };
        let mut driver = Driver::new(geometry, pools, bounds);
        for _ in 0..5 {
            driver.submit(1, 300);
        }
        let most = most_of_all_steps(&mut driver, 0);
        assert_eq!(most[2..], [5, 5], "{name}");
        assert_eq!([capacity(&driver, "c4_tokens"), capacity(&driver, "c128_tokens")], [5, 5]);
    }
}

#[test]
fn one_prompt_fills_the_budget_and_the_rows_of_its_tables() {
    for (name, geometry) in models() {
        for width in [0, 15] {
            for max_num_tokens in [2047, 2048, 2049] {
                let bounds = Limits {
                    max_model_len: 2049,
                    max_num_requests: 2,
                    max_num_tokens,
                    max_draft_tokens: width,
                    ..limits()
                };
                let pools = PoolSizes { full_blocks: 9, swa_blocks: 80, state_slots: 2 };
                let mut driver = Driver::new(geometry.clone(), pools, bounds);
                driver.submit(2048, 1);
                let plan = driver.plan().expect("a prompt");
                assert_eq!(plan.num_tokens, max_num_tokens.min(2048) / 128 * 128, "{name}");
                finish(&mut driver, &plan, width);
                assert!(driver.try_submit(crate::driver::request(2049, 1)).is_err(), "one more");
                let most = most_of_all_steps(&mut driver, width);
                assert!(most[0] <= max_num_tokens);
                // As long as the context: the last block of the widest row is used.
                driver.submit(1, 2048);
                while let Some(plan) = driver.plan() {
                    assert!(plan.max_seq_len <= 2048);
                    if plan.max_seq_len == 2048 {
                        assert!(driver.row("block_table_full", 0)[7] > 0);
                    }
                    finish(&mut driver, &plan, width);
                }
                driver.assert_at_rest();
            }
        }
    }
}

#[test]
fn prompts_and_verifying_requests_share_a_step_to_the_last_token() {
    for (_, geometry) in models() {
        let bounds = Limits {
            max_num_requests: 4,
            max_num_tokens: 140,
            max_draft_tokens: 3,
            max_model_len: 1024,
            ..limits()
        };
        let pools = PoolSizes { full_blocks: 64, swa_blocks: 128, state_slots: 4 };
        let mut driver = Driver::new(geometry, pools, bounds);
        for _ in 0..3 {
            driver.submit(1, 200);
        }
        let plan = driver.plan().expect("the three");
        finish(&mut driver, &plan, 3);
        driver.submit(1000, 20);
        let plan = driver.plan().expect("all");
        assert_eq!(
            (plan.num_tokens, plan.num_draft_tokens, plan.num_prefill_tokens),
            (140, 9, 128)
        );
        finish(&mut driver, &plan, 3);
        most_of_all_steps(&mut driver, 3);
    }
}

/// The limits of `config/recipes/h200.toml` over the whole context of the model, with and without
/// drafts: everybody but one verifies, and one prompt takes all that is left of the step.
#[test]
fn the_limits_that_ship_are_filled_to_the_last_chunk() {
    const REQUESTS: usize = 256;
    const TOKENS: usize = 8192;
    for (name, geometry) in models() {
        for width in [0, 1, 5] {
            for max_steps_in_flight in [1, 2] {
                let bounds = Limits {
                    max_model_len: 1 << 20,
                    max_num_requests: REQUESTS,
                    max_num_tokens: TOKENS,
                    max_queued_requests: REQUESTS,
                    max_draft_tokens: width,
                    max_steps_in_flight,
                    ..limits()
                };
                let pools = PoolSizes {
                    full_blocks: 2048,
                    swa_blocks: 6 * REQUESTS,
                    state_slots: REQUESTS,
                };
                let mut driver = Driver::new(geometry.clone(), pools, bounds.clone());
                for _ in 1..REQUESTS {
                    driver.submit(1, 300);
                }
                let plan = driver.plan().expect("all of them");
                assert_eq!(plan.num_samples, REQUESTS - 1);
                finish(&mut driver, &plan, width);
                driver.submit(20_000, 300);
                let plan = driver.plan().expect("everything at once");
                let verified = (REQUESTS - 1) * (1 + width);
                assert_eq!(plan.num_requests, REQUESTS, "{name}, {width}");
                assert_eq!(plan.num_tokens - plan.num_prefill_tokens, verified);
                assert_eq!(plan.num_samples, verified);
                assert!(TOKENS - plan.num_tokens < 128, "{name}: {} tokens", plan.num_tokens);
                assert_eq!(capacity(&driver, "token_ids"), TOKENS);
                assert_eq!(capacity(&driver, "sample_tokens"), REQUESTS * (1 + width));
                let columns = driver.row("block_table_full", 0).len();
                assert_eq!(columns, (1 << 20) / 256, "a row holds the whole context");
                let DraftRoom { hc_mult, hidden, .. } = geometry.drafts;
                let rows = if width == 0 { 0 } else { REQUESTS };
                let seeds = SeedRows { rows, values: hc_mult * hidden };
                assert_eq!(StepLayout::new(&geometry, &bounds).seeds(), seeds, "{name}");
                finish(&mut driver, &plan, width);
                most_of_all_steps(&mut driver, width);
            }
        }
    }
}

#[test]
fn a_seed_is_all_streams_of_a_position_and_never_one() {
    for (name, geometry) in models() {
        let DraftRoom { hc_mult, hidden, .. } = geometry.drafts;
        let bounds = Limits { max_draft_tokens: 1, ..limits() };
        let seeds = StepLayout::new(&geometry, &bounds).seeds();
        assert_eq!(seeds, SeedRows { rows: 8, values: 4 * hidden }, "{name}");
        assert!([16_384, 28_672, 1024].contains(&(hc_mult * hidden)));
        assert_eq!(StepLayout::new(&geometry, &limits()).seeds().rows, 0, "nothing is drafted");
    }
}

#[test]
fn the_hash_covers_drafts_seeds_and_steps_in_flight() {
    let geometry = models()[0].1.clone();
    let wider =
        Geometry { drafts: DraftRoom { hc_mult: 1, ..geometry.drafts }, ..geometry.clone() };
    let one = Limits { max_draft_tokens: 1, ..limits() };
    let hashes = [
        StepLayout::new(&geometry, &limits()).hash(),
        StepLayout::new(&geometry, &one).hash(),
        StepLayout::new(&geometry, &Limits { max_draft_tokens: 2, ..limits() }).hash(),
        StepLayout::new(&wider, &one).hash(),
        StepLayout::new(&real_geometry(), &limits()).hash(),
    ];
    let distinct: std::collections::BTreeSet<u64> = hashes.into_iter().collect();
    assert_eq!(distinct.len(), hashes.len());
}

#[test]
fn the_pools_that_are_planned_hold_the_windows_of_everybody_that_verifies() {
    for (name, geometry) in models() {
        for (width, steps, blocks) in
            [(0, 1, 3), (0, 2, 3), (1, 1, 3), (1, 2, 4), (5, 2, 4), (15, 2, 4)]
        {
            let bounds = Limits {
                max_draft_tokens: width,
                max_steps_in_flight: steps,
                max_model_len: 512,
                ..limits()
            };
            let plan = plan_memory(&geometry, &bounds, 1 << 30).expect("plenty");
            let steady = plan.sizes.swa_blocks - plan.transient_swa_blocks;
            assert_eq!((plan.sizes.state_slots, steady), (8, 8 * blocks), "{name} {width} {steps}");
            let mut driver = Driver::new(geometry.clone(), plan.sizes, bounds);
            for _ in 0..8 {
                driver.submit(100, 400);
            }
            most_of_all_steps(&mut driver, width);
            assert_eq!(driver.stat("num_preemptions"), 0);
        }
    }
}
