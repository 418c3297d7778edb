//! The life of a request: how it starts, what ends it, and who is asked to give way.

use dsv4_core::error::Error;
use dsv4_core::ids::RequestId;
use dsv4_core::limits::Limits;
use dsv4_core::{Event, NewRequest};

use crate::driver::{
    Driver, counted, ends_of, limits, real_geometry, request, sizes, tiny_geometry,
};

const STOP: u8 = 1;
const LENGTH: u8 = 2;
const STOPPED: u8 = 3;
const NON_FINITE: u8 = 4;

#[test]
fn a_request_goes_from_prompt_to_last_token_and_gives_everything_back() {
    let mut driver = Driver::roomy(limits());
    let id = driver.submit(300, 3);
    let plan = driver.plan().expect("a prompt waits");
    assert_eq!((plan.num_tokens, plan.num_samples, plan.num_prefill_tokens), (300, 1, 300));
    assert_eq!((plan.num_c4, plan.num_c128, plan.max_seq_len), (75, 2, 300));
    assert_eq!(driver.array("state_resets")[0], 1);
    let outcome = driver.finish(&plan, 5);
    assert_eq!((outcome.tokens, outcome.finished), (vec![5], vec![0]));

    let plan = driver.plan().expect("one decodes");
    assert_eq!((plan.num_tokens, plan.num_prefill_tokens, plan.max_seq_len), (1, 0, 301));
    assert_eq!(driver.array("token_ids")[0], 5);
    assert_eq!(driver.array("positions")[0], 300);
    assert_eq!(driver.array("state_resets")[0], 0);
    assert_eq!(plan.sample_positions, [1]);
    driver.finish(&plan, 6);
    assert_eq!(driver.run(2), [(id, LENGTH)]);
    driver.assert_at_rest();
}

#[test]
fn a_long_prompt_goes_in_chunks_that_end_where_groups_close() {
    let mut driver = Driver::roomy(Limits { max_num_tokens: 130, ..limits() });
    driver.submit(400, 1);
    let mut ends = vec![];
    while let Some((plan, _)) = driver.step() {
        ends.push(plan.max_seq_len);
        assert_eq!(driver.array("state_resets")[0], i32::from(plan.max_seq_len == 128));
    }
    assert_eq!(ends, [128, 256, 384, 400]);
}

#[test]
fn a_full_block_is_sealed_when_its_last_position_is_written_and_not_before() {
    let mut driver = Driver::roomy(Limits { max_num_tokens: 255, ..limits() });
    driver.submit(255, 4);
    driver.step();
    assert_eq!((driver.stat("full_open"), driver.stat("full_sealed")), (1, 0));
    let plan = driver.plan().expect("position 255");
    assert_eq!(driver.stat("full_sealed"), 0, "planned is not written");
    driver.finish(&plan, 1);
    assert_eq!((driver.stat("full_open"), driver.stat("full_sealed")), (0, 1));
    driver.step();
    assert_eq!((driver.stat("full_open"), driver.stat("full_sealed")), (1, 1));
}

#[test]
fn decode_tokens_and_prompt_chunks_share_a_step_within_the_budget() {
    let mut driver = Driver::roomy(Limits { max_num_tokens: 64, ..limits() });
    let first = driver.submit(10, 9);
    driver.step();
    let second = driver.submit(500, 9);
    let plan = driver.plan().expect("both");
    assert_eq!(plan.request_ids, [first, second]);
    assert_eq!(plan.num_prefill_tokens, 60, "63 are left, and 60 end on a group of 4");
    assert_eq!(plan.sample_request_ids, [first]);
    assert_eq!(driver.array("query_starts")[..3], [0, 1, 61]);
}

#[test]
fn a_stop_token_ends_the_request_and_counts_only_after_min_tokens() {
    let mut driver = Driver::roomy(limits());
    let stop = NewRequest { stop_token_ids: &[7], ..request(3, 9) };
    let plain = driver.try_submit(stop.clone()).expect("accepted");
    let patient = driver.try_submit(NewRequest { min_tokens: 2, ..stop }).expect("accepted");
    let mut ends = vec![];
    for step in 1..=3 {
        let (_, outcome) = driver.step().expect("somebody runs");
        ends.extend(ends_of(&outcome).into_iter().map(|end| (step, end)));
    }
    assert_eq!(ends, [(1, (plain, STOP)), (3, (patient, STOP))]);
    driver.assert_at_rest();
}

#[test]
fn the_last_token_may_be_a_stop_token_and_is_reported_as_one() {
    let mut driver = Driver::roomy(limits());
    let id =
        driver.try_submit(NewRequest { stop_token_ids: &[7], ..request(3, 1) }).expect("accepted");
    assert_eq!(driver.run(3), [(id, STOP)]);
}

#[test]
fn the_text_layer_ends_a_request_and_the_token_in_flight_is_dropped() {
    let mut driver = Driver::roomy(limits());
    let (stopped, other) = (driver.submit(3, 9), driver.submit(3, 9));
    let plan = driver.plan().expect("both");
    let outcome = driver.core.advance(&[Event::Stopped(stopped)]).expect("known");
    assert_eq!((outcome.request_ids, outcome.tokens), (vec![stopped], vec![-1]));
    assert_eq!(outcome.finished, [STOPPED]);
    let outcome = driver.finish(&plan, 4);
    assert_eq!(outcome.request_ids, [other]);
    let outcome = driver.core.advance(&[Event::Stopped(stopped)]).expect("it was known once");
    assert!(outcome.request_ids.is_empty());
}

#[test]
fn non_finite_logits_end_their_request_and_touch_nobody_else() {
    let mut driver = Driver::roomy(limits());
    let ids = [driver.submit(3, 9), driver.submit(3, 9), driver.submit(3, 9)];
    let step = driver.plan().expect("all three").step_id;
    // The token of a non-finite sample means nothing, so it may be anything.
    let event = Event::StepDone { step, tokens: &[4, i32::MIN, 6], non_finite: &[1] };
    let outcome = driver.core.advance(&[event]).expect("in flight");
    assert_eq!(outcome.request_ids, ids);
    assert_eq!(outcome.tokens, [4, -1, 6]);
    assert_eq!(outcome.finished, [0, NON_FINITE, 0]);
    let (plan, _) = driver.step().expect("two go on");
    assert_eq!(plan.request_ids, [ids[0], ids[2]]);
}

#[test]
fn an_aborted_request_gives_its_blocks_back_when_the_step_that_reads_them_is_done() {
    let mut driver = Driver::roomy(limits());
    let id = driver.submit(300, 9);
    let plan = driver.plan().expect("a prompt");
    assert!(driver.core.abort(id));
    assert!(!driver.core.abort(id), "a second time there is nothing to end");
    assert_eq!((driver.stat("full_open"), driver.stat("full_retired")), (0, 2));
    assert_eq!(driver.stat("state_retired"), 1);
    let outcome = driver.finish(&plan, 4);
    assert!(outcome.request_ids.is_empty(), "its token is nobody's");
    driver.assert_at_rest();
}

#[test]
fn with_nothing_in_flight_an_abort_frees_everything_at_once() {
    let mut driver = Driver::roomy(limits());
    let id = driver.submit(300, 9);
    driver.step();
    assert!(driver.core.abort(id));
    driver.assert_at_rest();
}

#[test]
fn requests_start_in_order_of_priority_and_then_of_arrival() {
    let mut driver = Driver::roomy(Limits { max_num_requests: 1, max_num_tokens: 64, ..limits() });
    let late = driver.submit_at(1, 5, 1);
    let [first, second] = [driver.submit(5, 1), driver.submit(5, 1)];
    let urgent = driver.submit_at(-1, 5, 1);
    let order: Vec<RequestId> = driver.run(9).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [urgent, first, second, late]);
}

#[test]
fn who_waited_long_enough_comes_before_a_higher_priority() {
    let aging = Limits { max_num_requests: 1, aging_steps: 3, ..limits() };
    let mut driver = Driver::roomy(aging);
    driver.submit(5, 4); // runs for four steps
    let patient = driver.submit_at(1, 5, 1);
    for _ in 0..4 {
        driver.step();
    }
    let urgent = driver.submit_at(0, 5, 1);
    let order: Vec<RequestId> = driver.run(9).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [patient, urgent]);
}

/// Two requests whose growth does not fit side by side: full blocks of 8 tokens, 7 of them. Each
/// is promised 3 (8 tokens and 16 of output), and would take 5 in all.
fn crowded() -> (Driver, RequestId, RequestId) {
    let tight = sizes(7, 20, 4);
    let mut driver = Driver::new(tiny_geometry(), tight, Limits { max_num_tokens: 40, ..limits() });
    let (old, young) = (driver.submit(8, 30), driver.submit(8, 30));
    (driver, old, young)
}

#[test]
fn growth_preempts_the_youngest_and_it_finishes_later_with_the_tokens_it_had() {
    let (mut driver, old, young) = crowded();
    let mut steps = vec![];
    let mut ends = vec![];
    while let Some(plan) = driver.plan() {
        // Every request continues by counting, so a token that is lost or repeated would show.
        let tokens = counted(&plan);
        let outcome = driver.done(plan.step_id, &tokens);
        ends.extend(ends_of(&outcome));
        steps.push((plan, outcome));
    }
    assert_eq!(ends, [(old, LENGTH), (young, LENGTH)]);
    assert!(driver.stat("num_preemptions") >= 1);
    for id in [old, young] {
        let tokens: Vec<i32> = steps
            .iter()
            .flat_map(|(_, o)| o.request_ids.iter().zip(&o.tokens))
            .filter(|&(&other, _)| other == id)
            .map(|(_, &token)| token)
            .collect();
        assert_eq!(tokens, (100..130).collect::<Vec<i32>>(), "request {id}");
    }
    driver.assert_at_rest();
}

#[test]
fn a_preempted_request_starts_again_at_position_0_with_a_reset_slot() {
    let (mut driver, old, young) = crowded();
    let mut restarts = vec![];
    let mut last_end = 0;
    while let Some(plan) = driver.plan() {
        if let Some(row) = plan.request_ids.iter().position(|&id| id == young) {
            let end = driver.array("seq_lens")[row];
            let starts = &driver.array("query_starts")[row..];
            let position = end - (starts[1] - starts[0]);
            assert_eq!(driver.array("state_resets")[row], i32::from(position == 0));
            if position == 0 {
                restarts.push(end);
            }
            last_end = end;
        }
        driver.finish(&plan, 3);
    }
    assert_eq!(restarts.len(), 2, "once, and once again: {restarts:?}");
    assert_eq!(restarts[0], 8);
    assert!(restarts[1] > 8, "prompt and generated tokens, in one chunk");
    assert_eq!(last_end, 37);
    assert!(old < young);
}

#[test]
fn the_lowest_priority_is_preempted_even_if_it_came_first() {
    let tight = sizes(7, 20, 4);
    let mut driver = Driver::new(tiny_geometry(), tight, Limits { max_num_tokens: 40, ..limits() });
    let humble = driver.submit_at(1, 8, 30);
    let noble = driver.submit_at(0, 8, 30);
    let ends = driver.run(200);
    assert_eq!(ends, [(noble, LENGTH), (humble, LENGTH)]);
    assert!(driver.stat("num_preemptions") >= 1);
}

#[test]
fn what_was_promised_at_admission_is_never_preempted_for() {
    // Two requests of 3 blocks each in 6: both promises hold, and no output beyond them.
    let mut driver =
        Driver::new(tiny_geometry(), sizes(6, 20, 4), Limits { max_num_tokens: 40, ..limits() });
    let (a, b) = (driver.submit(8, 16), driver.submit(8, 16));
    assert_eq!(driver.run(100), [(a, LENGTH), (b, LENGTH)]);
    assert_eq!(driver.stat("num_preemptions"), 0);
}

#[test]
fn a_small_request_overtakes_one_that_does_not_fit_but_not_for_ever() {
    let aging = Limits { aging_steps: 20, max_num_tokens: 64, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(8, 40, 8), aging);
    driver.submit(16, 8);
    let large = driver.submit(48, 8);
    let mut small = vec![];
    let mut started_at = None;
    for step in 0..200 {
        small.push(driver.submit(2, 4)); // always another small one at the door
        let plan = driver.plan().expect("somebody runs");
        if plan.request_ids.contains(&large) {
            started_at = Some(step);
            break;
        }
        driver.finish(&plan, 3);
    }
    let started_at = started_at.expect("the large request starves");
    assert!(started_at >= 20, "small ones used the room meanwhile");
    assert!(started_at <= 40, "started after {started_at} steps");
}

#[test]
fn the_queue_is_bounded_in_requests_and_in_tokens() {
    let narrow = Limits { max_queued_requests: 3, max_queued_tokens: 2048, ..limits() };
    let mut driver = Driver::roomy(narrow);
    driver.submit(1000, 1);
    driver.submit(1000, 1);
    let refusal = driver.try_submit(request(49, 1)).expect_err("2000 + 49 tokens");
    assert_eq!(refusal, Error::QueueFull { unit: "tokens", queued: 2000, adds: 49, limit: 2048 });
    driver.submit(48, 1);
    let refusal = driver.try_submit(request(1, 1)).expect_err("three wait");
    assert_eq!(refusal, Error::QueueFull { unit: "requests", queued: 3, adds: 1, limit: 3 });
    driver.run(20);
    driver.submit(1, 1);
}

#[test]
fn the_same_calls_give_the_same_plans() {
    let run = || {
        let mut driver =
            Driver::new(tiny_geometry(), sizes(7, 14, 4), Limits { max_num_tokens: 9, ..limits() });
        let mut steps = vec![];
        for length in [30, 4, 9, 17, 8, 1, 33] {
            driver.submit(length, 20);
        }
        while let Some((plan, outcome)) = driver.step() {
            steps.push((plan, outcome, driver.memory.clone()));
        }
        steps
    };
    assert_eq!(run(), run());
}

#[test]
fn stats_and_explain_say_what_a_request_does() {
    let mut driver = Driver::new(real_geometry(), sizes(4, 40, 4), limits());
    let (runs, waits) = (driver.submit(700, 2), driver.submit(600, 2));
    assert!(driver.core.explain(waits).contains("waits behind 1 others"));
    driver.step();
    assert_eq!(driver.core.explain(runs), "request 1 is prefilling: 512 of 700 tokens planned");
    let why = driver.core.explain(waits);
    assert!(why.contains("needs 3 full blocks, 1 are free"), "{why}");
    assert_eq!((driver.stat("num_running"), driver.stat("num_waiting")), (1, 1));
    assert_eq!(driver.stat("num_queued_tokens"), 600);
    driver.step();
    let decoding = "request 1 is decoding: 1 of at most 2 tokens; it is ready";
    assert_eq!(driver.core.explain(runs), decoding);
    driver.run(9);
    assert_eq!(driver.core.explain(runs), "request 1 has ended");
    assert_eq!(driver.core.explain(RequestId(99)), "request 99 was never submitted");
}
