//! Rules of the design that no single module owns; `docs/core_rules.md` says which test shows which.

use dsv4_core::error::{Code, Error};
use dsv4_core::geometry::DraftRoom;
use dsv4_core::ids::RequestId;
use dsv4_core::limits::Limits;
use dsv4_core::validate::MAX_ENDINGS;
use dsv4_core::{Core, NewRequest};

use crate::driver::{Driver, int, limits, real_geometry, request, sizes, tiny_geometry};
use crate::referee::{Referee, RowAnswer};

/// A number of a request, and what becomes of it.
type Ask = (&'static str, fn(&mut Driver, i128) -> Result<RequestId, Error>, i128);

/// A number of the limits.
type Set = (&'static str, fn(&mut Limits, usize), usize, usize);

static ZEROS: [i128; MAX_ENDINGS + 1] = [0; MAX_ENDINGS + 1];

fn count(number: i128) -> usize {
    usize::try_from(number).expect("counts something")
}

/// Each number that a request may be as large as: one less is taken, it is taken, one more is not.
#[test]
fn every_limit_of_a_request_holds_just_under_at_and_just_over() {
    let asks: [Ask; 9] = [
        ("prompt and output", |d, n| d.try_submit(request(count(n) - 1, 1)), 2048),
        ("output", |d, n| d.try_submit(NewRequest { max_tokens: n, ..request(48, 1) }), 2000),
        ("min_tokens", |d, n| d.try_submit(NewRequest { min_tokens: n, ..request(3, 40) }), 40),
        (
            "a token",
            |d, n| d.try_submit(NewRequest { prompt: vec![int(count(n))], ..request(1, 1) }),
            999,
        ),
        (
            "a stop token",
            |d, n| d.try_submit(NewRequest { stop_token_ids: &[n], ..request(1, 1) }),
            999,
        ),
        (
            "stop tokens",
            |d, n| {
                let stop_token_ids = &ZEROS[..count(n)];
                d.try_submit(NewRequest { stop_token_ids, ..request(1, 1) })
            },
            MAX_ENDINGS as i128,
        ),
        (
            "priority",
            |d, n| d.try_submit(NewRequest { priority: n, ..request(1, 1) }),
            i128::from(i32::MAX),
        ),
        (
            "the negative of a priority",
            |d, n| d.try_submit(NewRequest { priority: -n, ..request(1, 1) }),
            -i128::from(i32::MIN),
        ),
        (
            "bytes of a salt",
            |d, n| {
                let cache_salt = &"s".repeat(count(n));
                d.try_submit(NewRequest { cache_salt, ..request(1, 1) })
            },
            256,
        ),
    ];
    for (what, ask, most) in asks {
        let mut driver = Driver::roomy(limits());
        for number in [most - 1, most] {
            let id = ask(&mut driver, number).unwrap_or_else(|e| panic!("{what} of {number}: {e}"));
            assert!(driver.core.abort(id));
        }
        let before = driver.core.stats();
        let refused = ask(&mut driver, most + 1);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{what} of {}: {refused:?}", most + 1);
        assert_eq!(driver.core.stats(), before, "{what}");
    }
}

#[test]
fn the_queue_takes_its_last_request_and_its_last_token_and_no_more() {
    for (bounds, lengths, more) in [
        (Limits { max_queued_requests: 3, ..limits() }, vec![5; 3], 1),
        (Limits { max_queued_tokens: 2048, ..limits() }, vec![2047, 1], 1),
    ] {
        let mut driver = Driver::roomy(bounds);
        for len in lengths {
            driver.submit(len, 1);
        }
        let refused = driver.try_submit(request(more, 1));
        assert!(matches!(refused, Err(Error::QueueFull { .. })), "{refused:?}");
    }
}

#[test]
fn every_number_of_the_limits_holds_just_under_at_and_just_over() {
    let geometry = dsv4_core::geometry::Geometry {
        drafts: DraftRoom { tokens: 15, hc_mult: 4, hidden: 64 },
        ..real_geometry()
    };
    let starts = |bounds: &Limits| Core::new(geometry.clone(), &sizes(8, 100, 2), bounds.clone());
    let both: [Set; 5] = [
        ("max_steps_in_flight", |l, n| l.max_steps_in_flight = n, 1, 2),
        ("max_draft_tokens", |l, n| l.max_draft_tokens = n, 0, 15),
        ("max_num_requests, as many as tokens", |l, n| l.max_num_requests = n, 1, 512),
        ("aging_steps", |l, n| l.aging_steps = n, 1, i32::MAX as usize),
        ("max_queued_requests", |l, n| l.max_queued_requests = n, 1, i32::MAX as usize),
    ];
    for (what, set, least, most) in both {
        for (number, holds) in [
            (least.wrapping_sub(1), false),
            (least, true),
            (least + 1, true),
            (most - 1, true),
            (most, true),
            (most + 1, false),
        ] {
            let mut bounds = limits();
            set(&mut bounds, number);
            assert_eq!(starts(&bounds).is_ok(), holds, "{what} of {number}");
        }
    }
    for (queued, holds) in [(2047, false), (2048, true), (2049, true)] {
        let bounds = Limits { max_queued_tokens: queued, ..limits() };
        assert_eq!(starts(&bounds).is_ok(), holds, "{queued} queued tokens of 2048");
    }
}

#[test]
fn who_waits_is_told_which_group_is_short_and_starts_when_that_one_has_room() {
    // One request of 500 and 12 tokens takes 2 full blocks, 3 window blocks, one slot.
    let one = real_geometry().steady_swa_blocks(1);
    for (group, pools) in
        [("full", sizes(3, 40, 2)), ("swa", sizes(4, 2 * one - 1, 2)), ("state", sizes(4, 40, 1))]
    {
        let mut driver = Driver::new(real_geometry(), pools, limits());
        let (first, second) = (driver.submit(500, 12), driver.submit(500, 12));
        let (plan, _) = driver.step().expect("one starts");
        assert_eq!(plan.request_ids, [first], "{group}");
        let why = driver.core.explain(second);
        assert!(why.contains(&format!(" {group} blocks")), "{group}: {why}");
        let before = driver.core.stats();
        assert_eq!(driver.core.explain(second), why, "asking changes nothing");
        assert_eq!(driver.core.stats(), before);
        assert!(driver.core.abort(first));
        let (plan, _) = driver.step().expect("the other starts");
        assert_eq!(plan.request_ids, [second], "{group}");
        assert_eq!(driver.run(100).len(), 1);
        driver.assert_at_rest();
    }
}

#[test]
fn what_a_request_found_is_held_until_it_ends_whatever_else_is_evicted() {
    let bounds = Limits { prefix_cache: true, ..limits() };
    let mut driver = Driver::new(real_geometry(), sizes(12, 40, 6), bounds);
    let other = |first: i32, len: usize| {
        let mut new = request(len, 1);
        new.prompt[0] = first;
        new
    };
    driver.submit(600, 1);
    driver.run(10);
    assert_eq!(driver.stat("full_cached"), 2);

    let reader = driver.try_submit(NewRequest { max_tokens: 100, ..request(600, 1) });
    let reader = reader.expect("accepted");
    let (plan, _) = driver.step().expect("it starts");
    assert_eq!(plan.started_cached_tokens, [512]);
    let found = driver.row("block_table_full", 0)[..2].to_vec();
    assert_eq!((driver.stat("full_cached"), driver.stat("full_shared")), (0, 2));
    let evicted = driver.stat("num_evicted_blocks");
    for first in 100..110 {
        // Takes nearly all that is left, and leaves it cached: the next one evicts that.
        let id = driver.try_submit(other(first, 1500)).expect("accepted");
        while driver.core.explain(id) != format!("request {id} has ended") {
            let (plan, _) = driver.step().expect("both run");
            let row = plan.request_ids.iter().position(|&id| id == reader).expect("it runs on");
            assert_eq!(driver.row("block_table_full", row)[..2], found, "it reads what it found");
        }
        assert!(driver.stat("full_shared") >= 2);
    }
    assert!(driver.stat("num_evicted_blocks") >= evicted + 40, "much was evicted meanwhile");
    assert!(driver.core.abort(reader));
    assert_eq!(driver.stat("full_shared"), 0);
    driver.run(10);
    driver.assert_at_rest();
}

/// Every array of every step of a prompt as long as the model takes, read by the referee.
#[test]
fn positions_up_to_a_million_obey_the_rules() {
    const MILLION: usize = 1 << 20;
    let bounds = Limits {
        max_model_len: MILLION,
        max_num_requests: 2,
        max_num_tokens: 1 << 15,
        max_queued_tokens: MILLION,
        ..limits()
    };
    let capacity = [MILLION / 256 + 1, 1 << 10, 2];
    let pools = sizes(capacity[0], capacity[1], capacity[2]);
    let mut driver = Driver::new(real_geometry(), pools, bounds.clone());
    let mut referee = Referee::new(real_geometry(), bounds, capacity);
    let new = request(MILLION - 3, 3);
    let known = referee.new_request(new.prompt.clone(), (3, 0), vec![], 0, ("", false));
    let id = driver.try_submit(new).expect("it fits to the last token");
    referee.submitted(id, known);
    let mut device =
        |_: &[i32]| RowAnswer { tokens: vec![7], broken: vec![], accepted: 0, drafts: vec![] };
    let mut furthest = 0;
    while let Some(plan) = driver.plan() {
        referee.planned(&plan, driver.core.layout(), &driver.memory, &mut device);
        furthest = plan.max_seq_len.max(furthest);
        let expected = referee.done();
        assert_eq!(driver.finish(&plan, 7), expected);
    }
    assert_eq!(furthest, MILLION - 1, "the last token is sampled and never computed");
    driver.assert_at_rest();
}

#[test]
fn the_context_may_be_as_long_as_indices_are_wide_and_no_longer() {
    let longest = i32::MAX as usize;
    for (len, holds) in [(longest, true), (longest + 1, false)] {
        let bounds = Limits { max_model_len: len, max_queued_tokens: len, ..limits() };
        assert_eq!(bounds.check().is_ok(), holds, "{len}");
    }
    // What the pools could not number is refused, with both numbers, before anything is allocated.
    let most = dsv4_core::ids::MAX_BLOCKS;
    for (blocks, holds) in [(most, true), (most + 1, false)] {
        let checked = sizes(blocks, 40, 2).check(&real_geometry(), &limits());
        assert_eq!(checked.is_ok(), holds, "{blocks}: {checked:?}");
    }
}

#[test]
fn a_refusal_names_its_field_and_both_numbers() {
    let mut driver = Driver::new(tiny_geometry(), sizes(4, 9, 2), limits());
    let Err(Error::Invalid(refusal)) = driver.try_submit(request(30, 3)) else {
        panic!("33 tokens fit in 4 blocks of 8");
    };
    assert_eq!((refusal.param, refusal.code), ("max_tokens", Code::ContextLengthExceeded));
    assert!(["30", "32", "3"].iter().all(|number| refusal.message.contains(number)), "{refusal}");
}
