//! Calls that cannot be served: refused with the numbers, and nothing is changed.

use dsv4_core::error::{Code, Error};
use dsv4_core::ids::{RequestId, StepId};
use dsv4_core::{Event, NewRequest};

use crate::driver::{Driver, limits, real_geometry, request, sizes};

/// Refused, with these words in the message, and the core is as it was.
fn refuses(driver: &mut Driver, new: NewRequest<'_>, param: &str, code: Code, words: &[&str]) {
    let before = driver.core.stats();
    match driver.try_submit(new) {
        Err(Error::Invalid(refusal)) => {
            assert_eq!((refusal.param, refusal.code), (param, code), "{refusal}");
            for word in words {
                assert!(refusal.message.contains(word), "{word:?} is not in {refusal}");
            }
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(driver.core.stats(), before);
}

#[test]
fn what_could_not_fit_alone_is_refused_with_what_it_needs_and_what_there_is() {
    let mut driver = Driver::new(real_geometry(), sizes(3, 9, 2), limits());
    let context = Code::ContextLengthExceeded;
    refuses(&mut driver, request(768, 1), "prompt", context, &["768 tokens", "at least 1"]);
    refuses(&mut driver, request(700, 69), "max_tokens", context, &["700", "69", "768", "68"]);
    refuses(&mut driver, request(3000, 1), "prompt", context, &["3000", "2048"]);
    driver.submit(700, 68);
    assert_eq!(driver.run(200).len(), 1);
}

#[test]
fn every_field_is_checked() {
    let mut driver = Driver::roomy(limits());
    let invalid = Code::InvalidValue;
    let ok = || request(3, 4);
    refuses(&mut driver, NewRequest { prompt: vec![], ..ok() }, "prompt", invalid, &["empty"]);
    for token in [-1, 1000, i32::MAX, i32::MIN] {
        let new = NewRequest { prompt: vec![1, token, 2], ..ok() };
        refuses(&mut driver, new, "prompt", invalid, &[&token.to_string(), "1000 tokens"]);
    }
    for max_tokens in [0, -1, i128::MIN] {
        let new = NewRequest { max_tokens, ..ok() };
        refuses(&mut driver, new, "max_tokens", invalid, &[&max_tokens.to_string()]);
    }
    for min_tokens in [-1, 5, i128::MAX] {
        let new = NewRequest { min_tokens, ..ok() };
        refuses(&mut driver, new, "min_tokens", invalid, &[&min_tokens.to_string(), "4"]);
    }
    for token in [-1, 1000, i128::MAX] {
        let new = NewRequest { stop_token_ids: &[token], ..ok() };
        refuses(&mut driver, new, "stop_token_ids", invalid, &[&token.to_string()]);
    }
    for priority in [i128::from(i32::MAX) + 1, i128::from(i32::MIN) - 1] {
        let new = NewRequest { priority, ..ok() };
        refuses(&mut driver, new, "priority", invalid, &[&priority.to_string()]);
    }
    for priority in [i128::from(i32::MAX), i128::from(i32::MIN)] {
        driver.submit_at(priority, 3, 4);
    }
    driver.run(20);
}

#[test]
fn events_that_do_not_fit_are_refused_together_with_those_that_do() {
    let mut driver = Driver::roomy(limits());
    driver.submit(5, 9);
    let step = driver.plan().expect("the prompt").step_id;
    let good = Event::StepDone { step, tokens: &[1], non_finite: &[] };
    let before = driver.core.stats();
    let late = Event::StepDone { step: StepId(9), tokens: &[1], non_finite: &[] };
    for (event, error) in [
        (late, Error::UnknownStep { step: StepId(9), oldest: Some(step) }),
        (
            Event::StepDone { step, tokens: &[], non_finite: &[] },
            Error::WrongSampleCount { step, samples: 1, tokens: 0 },
        ),
        (
            Event::StepDone { step, tokens: &[1000], non_finite: &[] },
            Error::NoSuchToken { step, sample: 0, token: 1000, vocab: 1000 },
        ),
        (
            Event::StepDone { step, tokens: &[-1], non_finite: &[] },
            Error::NoSuchToken { step, sample: 0, token: -1, vocab: 1000 },
        ),
        (
            Event::StepDone { step, tokens: &[1], non_finite: &[1] },
            Error::NoSuchSample { step, samples: 1, sample: 1 },
        ),
        (Event::Stopped(RequestId(2)), Error::UnknownRequest(RequestId(2))),
        (Event::Stopped(RequestId(0)), Error::UnknownRequest(RequestId(0))),
    ] {
        assert_eq!(driver.core.advance(&[Event::Tick(5), event]), Err(error));
        assert_eq!(driver.core.stats(), before);
    }
    let refused = driver.core.advance(&[good, Event::Stopped(RequestId(2))]);
    assert_eq!(refused, Err(Error::UnknownRequest(RequestId(2))));
    assert_eq!(driver.core.stats(), before);
    driver.core.advance(&[good]).expect("it is still in flight");
}

#[test]
fn after_shutdown_every_call_is_refused_and_nothing_is_held() {
    let mut driver = Driver::roomy(limits());
    let id = driver.submit(300, 9);
    driver.submit(5, 5);
    driver.plan().expect("both");
    driver.core.shutdown();
    driver.core.shutdown();
    assert_eq!(driver.try_submit(request(3, 3)), Err(Error::Closed));
    assert_eq!(driver.core.plan(&mut driver.memory), Err(Error::Closed));
    assert_eq!(driver.core.advance(&[Event::Tick(1)]), Err(Error::Closed));
    assert!(!driver.core.abort(id));
    driver.core.audit().expect("balanced");
    assert_eq!((driver.stat("num_running"), driver.stat("num_waiting")), (0, 0));
    assert_eq!(driver.stat("full_open") + driver.stat("full_sealed"), 0);
}

#[test]
fn time_only_moves_forward() {
    let mut driver = Driver::roomy(limits());
    driver.core.advance(&[Event::Tick(100)]).expect("time");
    driver.submit(5, 5);
    driver.core.advance(&[Event::Tick(130), Event::Tick(90)]).expect("time");
    assert_eq!(driver.stat("oldest_waiting_us"), 30);
    driver.step();
    assert_eq!(driver.stat("oldest_waiting_us"), 0);
}
