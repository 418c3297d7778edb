//! Two steps in flight: planning ahead of the device, and what must wait for it.

use dsv4_core::error::Error;
use dsv4_core::ids::StepId;
use dsv4_core::limits::Limits;

use crate::driver::{Driver, counted, limits, real_geometry, sizes, tiny_geometry};

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
fn a_request_whose_next_token_is_unknown_is_left_out() {
    let mut driver = Driver::roomy(two());
    let a = driver.submit(5, 9);
    let first = driver.plan().expect("a");
    let b = driver.submit(5, 9);
    let second = driver.plan().expect("b alone");
    assert_eq!((first.request_ids.as_slice(), second.request_ids.as_slice()), (&[a][..], &[b][..]));
    driver.finish(&first, 1);
    let third = driver.plan().expect("a alone");
    assert_eq!(third.request_ids, [a]);
    driver.finish(&second, 1);
    assert_eq!(driver.plan().expect("b alone").request_ids, [b]);
}

#[test]
fn with_nothing_to_add_there_is_no_second_step() {
    let mut driver = Driver::roomy(two());
    driver.submit(5, 9);
    driver.plan().expect("the prompt");
    assert_eq!(driver.plan(), None);
    assert_eq!(driver.stat("num_steps_in_flight"), 1);
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
    let mut driver = Driver::new(tiny_geometry(), sizes(7, 30, 4), ahead);
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
    let ahead = Limits { max_steps_in_flight: 2, max_num_tokens: 20, ..limits() };
    let mut driver = Driver::new(tiny_geometry(), sizes(12, 60, 8), ahead);
    // `old` is promised 3 blocks of 8 tokens and decodes in every other step, up to position 20.
    let old = driver.submit(8, 40);
    while driver.stat("full_open") + driver.stat("full_sealed") < 3 {
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
