//! The prefix cache, one behaviour each. Real blocks: 256 tokens, a window of 128 in blocks of 64.

use dsv4_core::error::{Code, Error};
use dsv4_core::ids::{Group, RequestId};
use dsv4_core::limits::Limits;
use dsv4_core::{Event, NewRequest};

use crate::driver::{Driver, ends_of, int, limits, real_geometry, request, sizes, tiny_geometry};

fn caching() -> Limits {
    Limits { prefix_cache: true, ..limits() }
}

fn roomy() -> Driver {
    Driver::roomy(caching())
}

/// Runs one request alone with token 7; its cached tokens, and its tokens with the answer.
fn run(driver: &mut Driver, new: NewRequest<'_>) -> (usize, Vec<i32>) {
    let mut tokens = new.prompt.clone();
    let id = driver.try_submit(new).expect("accepted");
    let mut cached = None;
    while let Some(plan) = driver.plan() {
        if let Some(place) = plan.started_request_ids.iter().position(|&other| other == id) {
            cached = Some(plan.started_cached_tokens[place]);
        }
        let outcome = driver.finish(&plan, 7);
        tokens.extend(outcome.tokens.iter().filter(|&&token| token >= 0));
    }
    driver.assert_at_rest();
    (cached.expect("it started"), tokens)
}

fn cached(driver: &mut Driver, prompt: &[i32]) -> usize {
    run(driver, NewRequest { prompt: prompt.to_vec(), ..request(1, 1) }).0
}

fn prompt(len: usize) -> Vec<i32> {
    request(len, 1).prompt
}

#[test]
fn the_same_prompt_again_starts_at_its_last_boundary_and_computes_at_least_one_token() {
    for (len, hit) in
        [(255, 0), (256, 0), (257, 256), (511, 256), (512, 256), (513, 512), (800, 768)]
    {
        let mut driver = roomy();
        assert_eq!(cached(&mut driver, &prompt(len)), 0, "{len}");
        assert_eq!(cached(&mut driver, &prompt(len)), hit, "{len}");
        assert_eq!(driver.stat("prefix_queries"), 2);
        assert_eq!(driver.stat("prefix_query_tokens"), 2 * len as u64);
        assert_eq!(driver.stat("prefix_hit_tokens"), hit as u64);
        assert_eq!(driver.stat("prefix_miss_never_seen_tokens"), (2 * len - hit) as u64);
    }
}

#[test]
fn a_hit_reads_the_blocks_of_the_first_and_restores_its_state_before_the_step() {
    let mut driver = roomy();
    driver.submit(600, 2);
    let plan = driver.plan().expect("up to the boundary");
    assert_eq!((plan.num_tokens, plan.num_saves, plan.num_restores), (512, 1, 0));
    let (full, swa) = (driver.row("block_table_full", 0), driver.row("block_table_swa", 0));
    let saved = driver.array("save_targets")[0];
    assert_eq!(driver.array("save_sources")[0], driver.array("state_slots")[0]);
    driver.finish(&plan, 7);
    driver.run(9);
    driver.submit(600, 2);
    let plan = driver.plan().expect("the rest");
    assert_eq!((plan.num_tokens, plan.num_saves, plan.num_restores), (88, 0, 1));
    assert_eq!(driver.row("block_table_full", 0)[..2], full[..2]);
    assert_eq!(driver.row("block_table_swa", 0)[..2], swa[6..8]);
    assert_eq!(driver.array("swa_first_block")[0], 6);
    assert_eq!(driver.array("restore_sources")[0], saved);
    assert_eq!(driver.array("restore_targets")[0], driver.array("state_slots")[0]);
    assert_eq!(driver.array("state_resets")[0], 0);
    assert_eq!((driver.stat("full_shared"), driver.stat("full_open")), (2, 1));
    driver.finish(&plan, 7);
    driver.run(9);
    driver.assert_at_rest();
}

#[test]
fn the_next_turn_of_a_conversation_starts_where_the_last_answer_passed_a_boundary() {
    let mut driver = roomy();
    let (_, tokens) = run(&mut driver, request(300, 700));
    assert_eq!(driver.stat("num_window_checkpoints"), 2, "end of prompt, end of generation");
    let mut next = tokens[..999].to_vec();
    next.extend([1, 2, 3]);
    assert_eq!(cached(&mut driver, &next), 768);
}

#[test]
fn window_blocks_that_are_no_checkpoint_are_never_cached() {
    let mut driver = roomy();
    run(&mut driver, request(1500, 500));
    let checkpoints = driver.stat("num_window_checkpoints");
    assert_eq!((driver.stat("swa_cached"), driver.stat("state_cached")), (4, 2));
    assert_eq!((checkpoints, driver.stat("full_cached")), (2, 7));
}

#[test]
fn where_a_second_continuation_leaves_a_shared_prefix_the_third_starts() {
    let mut driver = roomy();
    let question = |token: i32| {
        let mut prompt = prompt(520);
        prompt.extend(vec![token; 400]);
        prompt
    };
    assert_eq!(cached(&mut driver, &question(1)), 0);
    assert_eq!(cached(&mut driver, &question(2)), 0);
    assert_eq!(driver.stat("prefix_miss_evicted_window_tokens"), 512, "found, without a window");
    assert_eq!(cached(&mut driver, &question(3)), 512);
    assert_eq!(driver.stat("full_cached"), 2 + 3, "the shared blocks are there once");
}

#[test]
fn checkpoints_inside_a_prompt_come_every_so_many_tokens_if_asked_for() {
    let mut driver = Driver::roomy(Limits { checkpoint_tokens: 512, ..caching() });
    assert_eq!(cached(&mut driver, &prompt(1900)), 0);
    for (len, hit) in [(600, 512), (1030, 1024), (1700, 1536)] {
        let mut other = prompt(len - 1);
        other.push(999);
        assert_eq!(cached(&mut driver, &other), hit);
    }
}

#[test]
fn a_salt_separates_tenants() {
    let mut driver = roomy();
    let salted = |cache_salt| NewRequest { cache_salt, ..request(600, 1) };
    assert_eq!(run(&mut driver, salted("a")).0, 0);
    assert_eq!(run(&mut driver, salted("b")).0, 0);
    assert_eq!(run(&mut driver, salted("")).0, 0);
    assert_eq!(driver.stat("prefix_miss_salt_tokens"), 1200);
    for salt in ["a", "b", ""] {
        assert_eq!(run(&mut driver, salted(salt)).0, 512);
    }
    let long = "x".repeat(257);
    match driver.try_submit(salted(&long)) {
        Err(Error::Invalid(e)) => assert_eq!((e.param, e.code), ("cache_salt", Code::InvalidValue)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_without_cache_reads_nothing_and_leaves_nothing() {
    let mut driver = roomy();
    let private = || NewRequest { no_cache: true, ..request(600, 1) };
    run(&mut driver, private());
    assert_eq!(driver.stat("full_cached") + driver.stat("swa_cached"), 0);
    assert_eq!(cached(&mut driver, &prompt(600)), 0);
    assert_eq!(run(&mut driver, private()).0, 0);
    assert_eq!(driver.stat("prefix_queries"), 1);
}

#[test]
fn without_the_cache_every_block_is_free_at_rest() {
    let mut driver = Driver::roomy(limits());
    run(&mut driver, request(600, 1));
    assert_eq!(driver.stat("full_free"), driver.stat("full_capacity"));
    assert_eq!(run(&mut driver, request(600, 1)).0, 0);
}

#[test]
fn what_was_not_finite_is_never_cached() {
    let mut driver = roomy();
    driver.submit(600, 5);
    driver.step();
    let plan = driver.plan().expect("the last chunk");
    let event = Event::StepDone { step: plan.step_id, tokens: &[0], non_finite: &[0] };
    driver.core.advance(&[event]).expect("in flight");
    assert_eq!(driver.stat("full_cached") + driver.stat("num_window_checkpoints"), 0);
    driver.assert_at_rest();
    assert_eq!(cached(&mut driver, &prompt(600)), 0);
}

#[test]
fn what_was_not_finite_is_zeroed_before_anybody_else_may_have_it() {
    let bounds = Limits { max_steps_in_flight: 2, ..caching() };
    let mut driver = Driver::new(real_geometry(), sizes(64, 128, 8), bounds);
    driver.submit(300, 2);
    while let Some((_, outcome)) = driver.step() {
        assert_eq!(outcome.to_zero, [], "all of it is finite");
    }
    let num_free =
        |driver: &Driver| ["full", "swa", "state"].map(|g| driver.stat(&format!("{g}_free")));
    let before = num_free(&driver);

    // Starts behind the cached 256 tokens; a second step is planned before the first is known.
    let bad = driver.submit(300, 9);
    let first = driver.plan().expect("it starts");
    assert_eq!(first.started_cached_tokens, [256]);
    let lent =
        (driver.row("block_table_full", 0)[0], driver.row("block_table_swa", 0)[..2].to_vec());
    let own = (driver.row("block_table_full", 0)[1], driver.row("block_table_swa", 0)[2]);
    let slot = driver.array("state_slots")[0];
    let second = driver.plan().expect("its next token");
    let event = Event::StepDone { step: first.step_id, tokens: &[0], non_finite: &[0] };
    let outcome = driver.core.advance(&[event]).expect("in flight");
    assert_eq!((outcome.request_ids, outcome.finished), (vec![bad], vec![4]));
    assert!(outcome.to_zero.is_empty(), "the second step still writes them");
    assert_ne!(num_free(&driver), before);

    let outcome = driver.finish(&second, 7);
    let named = |group| {
        let of_group = outcome.to_zero.iter().filter(move |&&(other, _)| other == group);
        of_group.map(|(_, id)| int(id.get() as usize)).collect::<Vec<_>>()
    };
    assert_eq!(named(Group::Full), [own.0]);
    assert!(named(Group::Swa).contains(&own.1));
    assert_eq!(named(Group::State), [slot]);
    assert!(!named(Group::Full).contains(&lent.0), "others may read it");
    assert!(lent.1.iter().all(|id| !named(Group::Swa).contains(id)), "others may read them");
    assert_eq!(num_free(&driver), before);
    assert_eq!(driver.core.advance(&[]).expect("open").to_zero, [], "told once");
    driver.assert_at_rest();
}

#[test]
fn two_that_compute_the_same_at_once_end_up_reading_the_same_blocks() {
    let mut driver = roomy();
    let [a, b] = [driver.submit(257, 300), driver.submit(257, 300)];
    driver.step();
    let (plan, _) = driver.step().expect("the last tokens of both");
    assert_eq!(plan.request_ids, [a, b]);
    driver.step().expect("decode");
    let (first, second) = (driver.row("block_table_full", 0), driver.row("block_table_full", 1));
    assert_eq!(first[0], second[0]);
    assert_ne!(first[1], second[1]);
    assert_eq!((driver.stat("full_shared"), driver.stat("num_window_checkpoints")), (1, 1));
    driver.run(400);
    driver.assert_at_rest();
}

#[test]
fn a_request_that_starts_while_another_runs_shares_what_that_one_left() {
    let mut driver = roomy();
    let first = driver.submit(600, 300);
    driver.step();
    driver.step();
    let second = driver.submit(600, 1);
    let plan = driver.plan().expect("both");
    assert_eq!((plan.started_request_ids.clone(), plan.num_tokens), (vec![second], 1 + 88));
    assert_eq!(plan.started_cached_tokens, [512]);
    driver.core.abort(first);
    driver.finish(&plan, 7);
    driver.core.audit().expect("balanced");
    assert_eq!(cached(&mut driver, &prompt(600)), 512, "an abort takes nothing from others");
}

/// Prompts that have nothing in common.
fn unlike(token: i32, len: usize) -> Vec<i32> {
    vec![token; len]
}

#[test]
fn compressed_blocks_are_evicted_from_the_leaves_and_the_oldest_first() {
    let mut driver = Driver::new(real_geometry(), sizes(8, 40, 8), caching());
    cached(&mut driver, &unlike(1, 800)); // 3 blocks stay
    cached(&mut driver, &unlike(2, 800)); // 3 more
    assert_eq!(driver.stat("full_cached"), 6);
    cached(&mut driver, &unlike(1, 800)); // used again
    cached(&mut driver, &unlike(3, 1000)); // 4 blocks, 2 are free: two of the second go
    assert_eq!(driver.stat("num_evicted_blocks"), 2);
    assert_eq!(cached(&mut driver, &unlike(1, 800)), 768);
    let before = driver.stat("prefix_miss_evicted_full_tokens");
    assert_eq!(cached(&mut driver, &unlike(2, 800)), 0);
    assert_eq!(driver.stat("prefix_miss_evicted_full_tokens"), before + 800 - 256);
}

#[test]
fn a_window_checkpoint_goes_without_the_compressed_blocks_below_it() {
    // Room for one request and one checkpoint: 3 + 2 window blocks, and no chunk is longer.
    let mut driver = Driver::new(real_geometry(), sizes(32, 5, 8), caching());
    cached(&mut driver, &unlike(1, 600));
    assert_eq!((driver.stat("num_window_checkpoints"), driver.stat("full_cached")), (1, 2));
    cached(&mut driver, &unlike(2, 600));
    assert_eq!((driver.stat("num_window_checkpoints"), driver.stat("full_cached")), (1, 4));
    assert_eq!(driver.stat("num_evicted_windows"), 1);
    assert_eq!(cached(&mut driver, &unlike(1, 600)), 0);
    assert_eq!(driver.stat("prefix_miss_evicted_window_tokens"), 512);
}

#[test]
fn a_checkpoint_that_its_conversation_has_passed_goes_before_older_ones() {
    // Slots for one request and three checkpoints.
    let mut driver = Driver::new(real_geometry(), sizes(64, 40, 4), caching());
    cached(&mut driver, &unlike(1, 600));
    cached(&mut driver, &unlike(2, 600));
    assert_eq!(cached(&mut driver, &unlike(2, 1200)), 512, "the second conversation goes on");
    cached(&mut driver, &unlike(3, 600));
    assert_eq!(driver.stat("num_evicted_windows"), 1);
    assert_eq!(cached(&mut driver, &unlike(1, 600)), 512);
    assert_eq!(cached(&mut driver, &unlike(2, 1200)), 1024);
}

#[test]
fn a_checkpoint_where_prefixes_part_is_kept_although_both_passed_it() {
    let mut driver = Driver::new(real_geometry(), sizes(64, 40, 5), caching());
    let branch = |token: i32, len: usize| [unlike(1, 512), unlike(token, len)].concat();
    cached(&mut driver, &unlike(1, 600));
    assert_eq!(cached(&mut driver, &branch(5, 700)), 512);
    assert_eq!(cached(&mut driver, &branch(6, 700)), 512);
    cached(&mut driver, &unlike(8, 600));
    cached(&mut driver, &unlike(9, 600));
    assert_eq!(driver.stat("num_evicted_windows"), 1);
    assert_eq!(cached(&mut driver, &branch(7, 300)), 512);
}

#[test]
fn checkpoints_made_every_so_many_tokens_go_before_older_ones() {
    let limits = Limits { checkpoint_tokens: 512, ..caching() };
    let mut driver = Driver::new(real_geometry(), sizes(64, 40, 4), limits);
    cached(&mut driver, &unlike(5, 600));
    cached(&mut driver, &unlike(1, 900));
    assert_eq!(driver.stat("num_window_checkpoints"), 3);
    cached(&mut driver, &unlike(2, 600));
    assert_eq!(cached(&mut driver, &unlike(5, 600)), 512);
    assert_eq!(cached(&mut driver, &unlike(1, 900)), 768);
}

#[test]
fn the_smallest_pools_serve_repeated_prompts_with_nothing_but_evictions() {
    for slots in [1, 2] {
        let mut driver = Driver::new(real_geometry(), sizes(4, 3, slots), caching());
        for round in 0..6 {
            let [a, b] = [driver.submit(700, 300), driver.submit(700, 300)];
            let ends: Vec<RequestId> = driver.run(5000).into_iter().map(|(id, _)| id).collect();
            assert_eq!(ends, [a, b], "round {round}");
            driver.assert_at_rest();
        }
        assert_eq!((driver.stat("num_stalls"), driver.stat("num_preemptions")), (0, 0));
    }
}

#[test]
fn a_preempted_request_resumes_from_what_it_left_in_the_cache() {
    // Blocks of 8 tokens, 10 of them: each is promised 5, and would take 6.
    let tight = Limits { max_num_tokens: 40, ..caching() };
    let mut driver = Driver::new(tiny_geometry(), sizes(10, 30, 8), tight);
    let ids: Vec<RequestId> = (1..3)
        .map(|token| {
            let prompt = vec![token; 17];
            driver.try_submit(NewRequest { prompt, ..request(1, 30) }).expect("accepted")
        })
        .collect();
    let mut resumed: Vec<usize> = vec![];
    let mut ends = vec![];
    while let Some(plan) = driver.plan() {
        resumed.extend(plan.started_cached_tokens.iter().filter(|&&cached| cached > 0));
        ends.extend(ends_of(&driver.finish(&plan, 3)));
        driver.core.audit().expect("balanced");
    }
    assert_eq!(ends.iter().map(|&(id, _)| id).collect::<Vec<_>>(), ids);
    assert!(driver.stat("num_preemptions") >= 1);
    assert!(resumed.iter().any(|&cached| cached >= 16), "from its prompt's end: {resumed:?}");
}

#[test]
fn with_two_steps_in_flight_a_chunk_may_slide_past_a_checkpoint_on_its_way() {
    let mut driver = Driver::roomy(Limits { max_steps_in_flight: 2, ..caching() });
    driver.submit(900, 1);
    let first = driver.plan().expect("512 tokens");
    let second = driver.plan().expect("up to the boundary at 768");
    assert_eq!((first.num_tokens, second.num_tokens, second.num_saves), (512, 256, 1));
    driver.done(first.step_id, &[]);
    let third = driver.plan().expect("the rest");
    driver.core.audit().expect("balanced");
    driver.done(second.step_id, &[]);
    driver.done(third.step_id, &[7]);
    driver.assert_at_rest();
    assert_eq!(cached(&mut driver, &prompt(900)), 768);
}

#[test]
fn after_shutdown_nothing_is_cached() {
    let mut driver = roomy();
    cached(&mut driver, &prompt(600));
    driver.core.shutdown();
    for group in ["full", "swa", "state"] {
        assert_eq!(driver.stat(&format!("{group}_cached")), 0);
    }
    driver.core.audit().expect("balanced");
}
