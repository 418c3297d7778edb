//! Two steps in flight: planning ahead of the device, and what must wait for it.

use dsv4_core::error::Error;
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::limits::Limits;
use dsv4_core::{Event, NewRequest, Plan};

use crate::driver::{
    Driver, counted, drafting, ends_of, int, limits, real_geometry, request, sizes, tiny_geometry,
};

fn two() -> Limits {
    Limits { max_steps_in_flight: 2, max_num_tokens: 256, ..limits() }
}

#[test]
fn a_prompt_goes_on_with_its_next_chunk_before_the_first_is_done() {
    let mut driver = Driver::roomy(two());
    driver.submit(600, 2);
    let first = driver.plan().expect("256 tokens");
    let second = driver.plan().expect("256 more");
    assert_eq!((first.max_seq_len, second.max_seq_len), (256, 512));
    assert_eq!(driver.array("state_resets")[0], 0);
    driver.finish(&first, 1);
    let third = driver.plan().expect("the rest");
    assert_eq!((third.max_seq_len, third.num_samples), (600, 1));
    driver.finish(&second, 1);
    driver.finish(&third, 1);
    driver.run(5);
    driver.assert_at_rest();
}

#[test]
fn every_request_runs_in_every_step_and_takes_its_token_from_the_step_before() {
    let mut driver = Driver::roomy(two());
    let a = driver.submit(5, 9);
    let mut flight = driver.plan().expect("the prompt of a");
    assert_eq!(driver.array("token_sources")[..5], [-1; 5]);
    let b = driver.submit(3, 9);
    for step in 0..7 {
        let next = driver.plan().expect("everybody, before the step in flight is done");
        assert_eq!(next.request_ids, [a, b]);
        let (sources, ids) = (driver.array("token_sources"), driver.array("token_ids"));
        if step == 0 {
            assert_eq!((&sources[..4], &ids[..4]), (&[0, -1, -1, -1][..], &[0, 1, 2, 3][..]));
        } else {
            assert_eq!((&sources[..2], &ids[..2]), (&[0, 1][..], &[0, 0][..]));
        }
        assert_eq!(next.num_forwarded, if step == 0 { 1 } else { 2 });
        assert_eq!(next.sample_positions, [step + 1, step]);
        assert_eq!(driver.array("positions")[0], int(5 + step));
        driver.finish(&flight, 1);
        flight = next;
    }
    assert_eq!(driver.finish(&flight, 1).request_ids, [a, b]);
    assert_eq!(driver.run(9).len(), 2);
    driver.assert_at_rest();
}

#[test]
fn a_token_that_is_known_when_the_step_is_planned_is_not_forwarded() {
    let mut driver = Driver::roomy(two());
    driver.submit(5, 9);
    driver.step();
    let plan = driver.plan().expect("its token is known");
    assert_eq!((plan.num_forwarded, driver.array("token_sources")[0]), (0, -1));
    assert_eq!(driver.array("token_ids")[0], 7);
}

#[test]
fn with_one_step_in_flight_nothing_is_forwarded() {
    let mut driver = Driver::roomy(limits());
    driver.submit(5, 9);
    while let Some((plan, _)) = driver.step() {
        assert_eq!(plan.num_forwarded, 0);
        assert!(driver.array("token_sources")[..plan.num_tokens].iter().all(|&s| s == -1));
    }
}

#[test]
fn a_last_token_that_is_being_sampled_is_not_computed() {
    let mut driver = Driver::roomy(two());
    let (short, long) = (driver.submit(5, 2), driver.submit(5, 3));
    let first = driver.plan().expect("both prompts");
    let second = driver.plan().expect("the second tokens");
    assert_eq!(second.request_ids, [short, long]);
    driver.finish(&first, 1);
    let third = driver.plan().expect("the third token of one");
    assert_eq!(third.request_ids, [long]);
    assert_eq!(ends_of(&driver.finish(&second, 1)), [(short, 2)]);
    assert_eq!(driver.plan(), None, "the other ends with what is in flight");
    assert_eq!(ends_of(&driver.finish(&third, 1)), [(long, 2)]);
    driver.assert_at_rest();
}

/// Two steps of two requests are in flight, the second with forwarded tokens.
fn two_of_two(limits: Limits) -> (Driver, [RequestId; 2], [Plan; 2]) {
    let mut driver = Driver::roomy(limits);
    let stop = NewRequest { stop_token_ids: &[9], ..request(255, 9) };
    let ids = [0, 1].map(|_| driver.try_submit(stop.clone()).expect("accepted"));
    let flights = [driver.plan(), driver.plan()].map(|plan| plan.expect("both"));
    assert_eq!(flights[1].num_forwarded, 2);
    (driver, ids, flights)
}

#[test]
fn the_row_of_a_request_that_ended_in_the_step_before_is_nobodys() {
    let roomy = Limits { max_num_tokens: 600, prefix_cache: true, ..two() };
    for how in ["stop", "non-finite", "abort", "text"] {
        let (mut driver, [a, b], [first, second]) = two_of_two(roomy.clone());
        let (tokens, non_finite) = match how {
            "stop" => ([9, 1], vec![]),
            "non-finite" => ([0, 1], vec![0]),
            _ => ([1, 1], vec![]),
        };
        let step = first.step_id;
        let done = Event::StepDone { step, tokens: &tokens, non_finite: &non_finite };
        driver.core.advance(&[done]).expect("in flight");
        match how {
            "abort" => assert!(driver.core.abort(a)),
            "text" => assert_eq!(driver.core.advance(&[Event::Stopped(a)]).expect("").tokens, [-1]),
            _ => {}
        }
        // Its blocks are read by the second step, in which position 255 fills its first block.
        assert_eq!(driver.stat("full_retired"), 1, "{how}");
        let outcome = driver.finish(&second, 5);
        assert_eq!((outcome.request_ids, outcome.tokens), (vec![b], vec![5]), "{how}");
        assert_eq!(driver.stat("full_retired"), 0);
        assert_eq!(driver.stat("full_shared"), 1, "what the other computed is published");
        driver.run(20);
        driver.assert_at_rest();
        assert_eq!(driver.stat("full_cached"), 1, "{how}: and nothing of the one that ended");
    }
}

#[test]
fn a_forwarded_row_takes_blocks_from_nobody_and_waits_for_its_token_instead() {
    let ahead = Limits { max_steps_in_flight: 2, max_num_tokens: 20, ..limits() };
    // 4 blocks of 8 tokens are promised to each; the fifth, for position 32, is not there.
    let mut driver = Driver::new(tiny_geometry(), sizes(8, 30, 4), ahead);
    let (old, young) = (driver.submit(8, 30), driver.submit(7, 30));
    let mut flight = driver.plan().expect("both prompts");
    while let Some(next) = driver.plan() {
        let is_due = driver.array("seq_lens")[0] == 32;
        driver.finish(&flight, 1);
        flight = next;
        if is_due {
            break;
        }
    }
    // Position 31 of the old one is in flight: position 32 is left out, the young one goes on.
    assert_eq!(driver.stat("num_preemptions"), 0);
    let without = driver.plan().expect("the young one");
    assert_eq!((without.request_ids.as_slice(), driver.stat("num_preemptions")), (&[young][..], 0));
    driver.finish(&flight, 1);
    driver.plan();
    assert_eq!(driver.stat("num_preemptions"), 1, "{old} knows its token, and {young} gives way");
}

#[test]
fn a_third_step_is_refused_and_changes_nothing() {
    let mut driver = Driver::roomy(two());
    driver.submit(2000, 2);
    let first = driver.plan().expect("first").step_id;
    driver.plan().expect("second");
    let (before, memory) = (driver.core.stats(), driver.memory.clone());
    let refused = driver.core.plan(&mut driver.memory);
    assert_eq!(refused, Err(Error::TooManySteps { oldest: first, limit: 2 }));
    assert_eq!((driver.core.stats(), driver.memory), (before, memory));
}

#[test]
fn steps_complete_in_order() {
    let mut driver = Driver::roomy(two());
    driver.submit(2000, 2);
    let [first, second] = [driver.plan(), driver.plan()].map(|p| p.expect("chunks").step_id);
    let done = |step| dsv4_core::Event::StepDone { step, tokens: &[], non_finite: &[] };
    let refused = driver.core.advance(&[done(second)]);
    assert_eq!(refused, Err(Error::UnknownStep { step: second, oldest: Some(first) }));
    driver.core.advance(&[done(first), done(second)]).expect("both, in order");
    let refused = driver.core.advance(&[done(second)]);
    assert_eq!(refused, Err(Error::UnknownStep { step: second, oldest: None }));
}

#[test]
fn a_block_is_reused_only_after_the_newest_step_that_may_read_it() {
    let mut driver = Driver::new(real_geometry(), sizes(4, 40, 4), two());
    let a = driver.submit(600, 100); // 3 blocks of 4
    let first = driver.plan().expect("256 tokens of a");
    let second = driver.plan().expect("256 more");
    assert!(driver.core.abort(a));
    driver.submit(600, 100);
    driver.finish(&first, 1);
    assert_eq!(driver.stat("full_retired"), 2, "the second step still reads them");
    assert_eq!(driver.plan(), None, "no room yet, and nothing else to do");
    driver.finish(&second, 1);
    assert_eq!(driver.stat("full_free"), 4);
    assert_eq!(driver.plan().expect("now it fits").max_seq_len, 256);
}

#[test]
fn the_token_of_a_preempted_request_still_counts() {
    let ahead = Limits { max_steps_in_flight: 2, max_num_tokens: 8, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(9, 30, 4), ahead);
    let (old, young) = (driver.submit(8, 30), driver.submit(8, 30));
    let mut told = vec![vec![], vec![]];
    let mut flights = std::collections::VecDeque::new();
    for _ in 0..1000 {
        while flights.len() < 2 {
            let Some(plan) = driver.plan() else { break };
            flights.push_back(plan);
        }
        let Some(plan) = flights.pop_front() else { break };
        let tokens = counted(&plan);
        let outcome = driver.done(plan.step_id, &tokens);
        for (id, token) in outcome.request_ids.iter().zip(outcome.tokens) {
            told[usize::from(*id == young)].push(token);
        }
    }
    let all: Vec<i32> = (100..130).collect();
    assert_eq!(told, [all.clone(), all], "{old} and {young}");
    assert!(driver.stat("num_preemptions") > 0);
    driver.assert_at_rest();
}

#[test]
fn a_preempted_request_does_not_start_again_while_its_sample_is_in_flight() {
    // With drafts nothing is forwarded, even where the device drafts nothing.
    let ahead =
        Limits { max_steps_in_flight: 2, max_num_tokens: 20, max_draft_tokens: 1, ..limits() };
    let mut driver = Driver::new(drafting(tiny_geometry()), sizes(13, 60, 8), ahead);
    // `old` is promised 4 blocks of 8 tokens and decodes in every other step.
    let old = driver.submit(8, 40);
    while driver.stat("full_open") + driver.stat("full_sealed") < 4 {
        driver.step().expect("it decodes");
    }
    let mut flights = std::collections::VecDeque::from([driver.plan().expect("old alone")]);
    // Then three others, each promised 3 blocks, decode in the steps between.
    let others = [driver.submit(1, 16), driver.submit(1, 16)];
    let young = driver.submit(16, 8);
    let mut told = vec![];
    while let Some(plan) = driver.plan() {
        flights.push_back(plan);
        let plan = flights.pop_front().expect("two");
        told.push(driver.done(plan.step_id, &counted(&plan)));
    }
    // `old` could not grow, so `young` gave way, though its sample is still in flight.
    assert_eq!(driver.stat("num_preemptions"), 1);
    assert_eq!(flights.len(), 1);
    assert!(flights[0].sample_request_ids.contains(&young));
    for other in others {
        assert!(driver.core.abort(other));
    }
    // Now both fit, by what the others had been promised; but only `old` may run.
    flights.push_back(driver.plan().expect("old grows"));
    assert_eq!(flights[1].request_ids, [old]);
    for plan in flights {
        told.push(driver.done(plan.step_id, &counted(&plan)));
    }
    while let Some(plan) = driver.plan() {
        told.push(driver.done(plan.step_id, &counted(&plan)));
    }
    let of_young = |outcome: dsv4_core::Outcome| {
        let tokens = outcome.request_ids.into_iter().zip(outcome.tokens);
        tokens.filter(|&(id, _)| id == young).map(|(_, token)| token).collect::<Vec<i32>>()
    };
    let tokens: Vec<i32> = told.into_iter().flat_map(of_young).collect();
    assert_eq!(tokens, (100..108).collect::<Vec<i32>>());
    driver.assert_at_rest();
}

#[test]
fn step_ids_grow_by_one_and_a_plan_that_is_none_takes_no_number() {
    let mut driver = Driver::roomy(limits());
    driver.submit(5, 2);
    let (first, _) = driver.step().expect("prompt");
    driver.step();
    assert_eq!(driver.plan(), None);
    driver.submit(5, 1);
    let (third, _) = driver.step().expect("prompt");
    assert_eq!((first.step_id, third.step_id), (StepId(1), StepId(3)));
}
