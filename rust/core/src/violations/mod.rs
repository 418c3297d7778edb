//! Broken invariants, planted from inside: each costs one request and one block, and heals.
//!
//! Nothing outside this crate can bring such a state about; here the slot tables are overwritten.

mod remote;

use crate::budget::PoolSizes;
use crate::geometry::tests::flash;
use crate::ids::{BlockId, RequestId, StepId};
use crate::limits::Limits;
use crate::pool::{Pool, SlotState, Why};
use crate::{Core, Event, Finish, NewRequest, Outcome};

const SIZES: PoolSizes = PoolSizes { full_blocks: 16, swa_blocks: 60, state_slots: 4 };

fn core() -> Core {
    core_with(false)
}

fn core_with(prefix_cache: bool) -> Core {
    Core::new(flash(), &SIZES, Limits { prefix_cache, ..limits() }).expect("legal")
}

fn limits() -> Limits {
    Limits {
        max_model_len: 2048,
        max_num_requests: 4,
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

/// Runs as many requests at once as are checked in several goes.
fn wide_core() -> Core {
    let (max_num_requests, max_num_tokens) = (WIDE, 10 * WIDE);
    let limits = Limits { max_num_requests, max_num_tokens, max_queued_requests: WIDE, ..limits() };
    let sizes = PoolSizes { full_blocks: 16 + WIDE, swa_blocks: 60 + 4 * WIDE, state_slots: WIDE };
    Core::new(flash(), &sizes, limits).expect("legal")
}

const WIDE: usize = 300;

fn submit(core: &mut Core, prompt: usize) -> RequestId {
    let prompt = vec![1; prompt];
    let new = NewRequest {
        prompt,
        max_tokens: 200,
        min_tokens: 0,
        stop_token_ids: &[],
        priority: 0,
        cache_salt: "",
        no_cache: false,
        transfer: None,
    };
    core.submit(new).expect("accepted")
}

/// One step with token 5; None if there was nothing to do, and then what `advance` had to tell.
fn step(core: &mut Core) -> (Option<Vec<RequestId>>, Outcome) {
    let mut memory = vec![0; core.layout().num_words()];
    let Some(plan) = core.plan(&mut memory).expect("open") else {
        return (None, core.advance(&[]).expect("open"));
    };
    let tokens = vec![5; plan.num_samples];
    let done = Event::StepDone { step: plan.step_id, tokens: &tokens, non_finite: &[] };
    let outcome = core.advance(&[done]).expect("in flight");
    (Some(plan.request_ids), outcome)
}

fn stat(core: &Core, name: &str) -> u64 {
    core.stats().into_iter().find(|(each, _)| each == name).expect("a stat").1
}

/// Overwrites the state of one block of `owner`.
fn break_block(pool: &Pool, owner: RequestId, state: SlotState) -> BlockId {
    pool.state().overwrite(owner, state)
}

fn failed(outcome: &Outcome, id: RequestId) -> bool {
    let place = outcome.request_ids.iter().position(|&other| other == id);
    place.is_some_and(|place| {
        outcome.finished[place] == Finish::Violation as u8 && outcome.tokens[place] == -1
    })
}

/// Runs a request to its end and expects all blocks of all groups to be free.
fn heals(core: &mut Core) {
    for _ in 0..1000 {
        if step(core).0.is_none() {
            break;
        }
    }
    submit(core, 2000 - 200); // as large as it gets: needs what was quarantined as well
    for _ in 0..1000 {
        if step(core).0.is_none() {
            break;
        }
    }
    core.audit().expect("balanced");
    for group in ["full", "swa", "state"] {
        let capacity = stat(core, &format!("{group}_capacity"));
        assert_eq!(stat(core, &format!("{group}_free")), capacity, "{group}");
    }
}

#[test]
fn a_write_to_a_block_that_is_not_open_fails_its_request_and_nobody_else() {
    for group in 0..3 {
        for state in [SlotState::Sealed, SlotState::Quarantined(Why::Doubt)] {
            let mut core = core();
            let (bad, good) = (submit(&mut core, 10), submit(&mut core, 10));
            step(&mut core);
            let pools = &core.scheduler().pools;
            let pool = [&pools.full, &pools.swa, &pools.state][group];
            break_block(pool, bad, state);
            let (rows, outcome) = step(&mut core);
            assert_eq!(rows, Some(vec![good]), "group {group} {state:?}");
            assert!(failed(&outcome, bad), "{outcome:?}");
            assert_eq!(stat(&core, "num_violations"), 1);
            core.audit().expect("balanced again");
            heals(&mut core);
        }
    }
}

#[test]
fn whoever_fails_in_a_wide_step_is_left_out_and_nobody_else() {
    for bad in [0..1, 299..300, 0..130, 120..290, 1..299, 5..6] {
        let mut core = wide_core();
        let mut all: Vec<RequestId> = (0..WIDE).map(|_| submit(&mut core, 10)).collect();
        assert_eq!(step(&mut core).0.as_ref(), Some(&all));
        let bad: Vec<RequestId> = all.drain(bad).collect();
        for &bad in &bad {
            break_block(&core.scheduler().pools.swa, bad, SlotState::Sealed);
        }
        let (rows, outcome) = step(&mut core);
        assert_eq!(rows, Some(all));
        assert!(bad.iter().all(|&bad| failed(&outcome, bad)), "{outcome:?}");
        assert_eq!(outcome.tokens.iter().filter(|&&token| token == 5).count(), WIDE - bad.len());
        assert_eq!(stat(&core, "num_violations"), bad.len() as u64);
        core.audit().expect("balanced again");
        heals(&mut core);
    }
}

#[test]
fn a_wide_step_whose_requests_all_fail_does_not_begin() {
    let mut core = wide_core();
    let all: Vec<RequestId> = (0..WIDE).map(|_| submit(&mut core, 10)).collect();
    step(&mut core);
    for &bad in &all {
        break_block(&core.scheduler().pools.full, bad, SlotState::Quarantined(Why::Doubt));
    }
    let mut memory = vec![7; core.layout().num_words()];
    assert!(core.plan(&mut memory).expect("open").is_none());
    assert!(memory.iter().all(|&word| word == 7), "nothing is written");
    let outcome = core.advance(&[]).expect("open");
    assert!(all.iter().all(|&bad| failed(&outcome, bad)), "{outcome:?}");
    heals(&mut core);
}

#[test]
fn a_violation_that_leaves_nothing_to_plan_is_told_by_the_next_advance() {
    let mut core = core();
    let bad = submit(&mut core, 10);
    step(&mut core);
    break_block(&core.scheduler().pools.swa, bad, SlotState::Sealed);
    let (rows, outcome) = step(&mut core);
    assert_eq!(rows, None);
    assert!(failed(&outcome, bad), "{outcome:?}");
    heals(&mut core);
}

#[test]
fn who_waits_behind_a_request_that_fails_starts_in_the_same_plan() {
    let mut core = core();
    let all: Vec<RequestId> = (0..5).map(|_| submit(&mut core, 10)).collect();
    step(&mut core); // four run; there is no fifth slot
    for &bad in &all[..4] {
        break_block(&core.scheduler().pools.swa, bad, SlotState::Sealed);
    }
    let (rows, outcome) = step(&mut core);
    assert_eq!(rows, Some(vec![all[4]]));
    assert!(all[..4].iter().all(|&bad| failed(&outcome, bad)), "{outcome:?}");
    heals(&mut core);
}

#[test]
fn a_block_that_cannot_be_sealed_fails_its_request_when_the_step_is_done() {
    let mut core = core();
    let (bad, good) = (submit(&mut core, 256), submit(&mut core, 10));
    let mut memory = vec![0; core.layout().num_words()];
    let plan = core.plan(&mut memory).expect("open").expect("both");
    break_block(&core.scheduler().pools.full, bad, SlotState::Sealed);
    let done = Event::StepDone { step: plan.step_id, tokens: &[5, 5], non_finite: &[] };
    let outcome = core.advance(&[done]).expect("in flight");
    assert!(failed(&outcome, bad), "{outcome:?}");
    assert_eq!(outcome.request_ids, [bad, good]);
    assert_eq!(stat(&core, "full_quarantined"), 1);
    core.audit().expect("balanced again");
    heals(&mut core);
}

#[test]
fn a_handle_of_a_block_that_is_free_or_retired_quarantines_it_when_dropped() {
    for state in [SlotState::Free, SlotState::Retired(StepId(0))] {
        let mut core = core();
        let bad = submit(&mut core, 10);
        step(&mut core);
        break_block(&core.scheduler().pools.full, bad, state);
        assert!(core.abort(bad));
        assert_eq!(stat(&core, "num_violations"), 1);
        assert_eq!(stat(&core, "full_quarantined"), 1, "{state:?}");
        core.audit().expect("balanced again");
        heals(&mut core);
    }
}

#[test]
fn a_handle_of_an_earlier_life_is_counted_and_changes_nothing() {
    let pool = Pool::new(crate::ids::Group::Full, 2);
    let block = pool.take(RequestId(1)).expect("free");
    pool.state().begin_next_life(block.id());
    let before = pool.counts();
    drop(block);
    let after = pool.counts();
    assert_eq!((after.violations, after.quarantined), (1, 0));
    assert_eq!((after.free, after.open, after.retired), (before.free, before.open, before.retired));
}

#[test]
fn a_block_in_doubt_stays_so_while_a_handle_of_its_pool_is_left() {
    let pool = Pool::new(crate::ids::Group::Full, 2);
    let held = pool.take(RequestId(1)).expect("free");
    let broken = pool.take(RequestId(2)).expect("free");
    break_block(&pool, RequestId(2), SlotState::Free);
    drop(broken);
    pool.repair();
    assert_eq!(pool.counts().quarantined, 1);
    drop(held);
    pool.repair();
    assert_eq!((pool.counts().quarantined, pool.counts().retired), (0, 2));
}

#[test]
fn a_broken_block_of_the_cache_costs_a_hit_and_no_request_and_goes_when_nothing_runs() {
    for group in 0..3 {
        let mut core = core_with(true);
        let run = |core: &mut Core| {
            let id = submit(core, 520); // one checkpoint, at 512
            while let (Some(_), outcome) = step(core) {
                assert!(!failed(&outcome, id), "group {group}: {outcome:?}");
            }
            stat(core, "prefix_hit_tokens")
        };
        run(&mut core);
        assert_eq!(run(&mut core), 512, "group {group}");
        submit(&mut core, 10); // so that something runs meanwhile
        step(&mut core);
        let pools = &core.scheduler().pools;
        [&pools.full, &pools.swa, &pools.state][group].state().overwrite_cached();
        assert_eq!(run(&mut core), 512, "group {group}: no hit on what is broken");
        assert!(stat(&core, "num_violations") >= 1);
        run(&mut core);
        assert_eq!(run(&mut core), 1024, "group {group}: cached again");
        core.audit().expect("balanced again");
        for name in ["full", "swa", "state"] {
            assert_eq!(stat(&core, &format!("{name}_quarantined")), 0);
        }
    }
}

#[test]
fn a_cached_block_in_another_life_is_a_miss() {
    for group in 0..3 {
        let mut core = core_with(true);
        let run = |core: &mut Core| {
            let id = submit(core, 520); // one checkpoint, at 512
            while let (Some(_), outcome) = step(core) {
                assert!(!failed(&outcome, id), "group {group}: {outcome:?}");
            }
            stat(core, "prefix_hit_tokens")
        };
        run(&mut core);
        assert_eq!(run(&mut core), 512, "group {group}");
        let pools = &core.scheduler().pools;
        [&pools.full, &pools.swa, &pools.state][group].state().age_cached();
        assert_eq!(run(&mut core), 512, "group {group}: what is found is not what was cached");
        assert!(stat(&core, "num_violations") >= 1, "group {group}");
    }
}

#[test]
fn books_that_do_not_balance_are_counted_once_and_nobody_fails() {
    for group in 0..3 {
        for break_books in [super::pool::State::lose_free, super::pool::State::miscount] {
            let mut core = core();
            let id = submit(&mut core, 10);
            step(&mut core);
            assert_eq!(stat(&core, "num_violations"), 0);
            let pools = &core.scheduler().pools;
            break_books(&mut [&pools.full, &pools.swa, &pools.state][group].state());
            for _ in 0..5 {
                let (rows, outcome) = step(&mut core);
                assert_eq!((rows, failed(&outcome, id)), (Some(vec![id]), false));
            }
            assert_eq!(stat(&core, "num_violations"), 1, "group {group}");
            core.audit().expect_err("the audit says what is wrong");
        }
    }
}

#[test]
#[should_panic(expected = "is not open")]
fn in_tests_a_violation_panics_with_the_ids() {
    let mut core = core();
    core.panic_on_violation();
    let bad = submit(&mut core, 10);
    step(&mut core);
    break_block(&core.scheduler().pools.full, bad, SlotState::Sealed);
    step(&mut core);
}

#[test]
fn an_audit_sees_a_block_in_two_places() {
    let mut core = core();
    let id = submit(&mut core, 10);
    step(&mut core);
    core.audit().expect("balanced");
    break_block(&core.scheduler().pools.swa, id, SlotState::Free);
    let found = core.audit().expect_err("a block is free and held");
    assert!(found.to_string().contains("swa"), "{found}");
}

#[test]
fn ten_thousand_violations_cost_a_request_each_and_never_the_process() {
    let mut core = core();
    let mut num_failed = 0;
    for round in 0..10_000 {
        let id = submit(&mut core, 10 + round % 50); // one block per group
        step(&mut core);
        let pools = &core.scheduler().pools;
        let pool = [&pools.full, &pools.swa, &pools.state][round % 3];
        if round % 2 == 0 {
            break_block(pool, id, SlotState::Sealed);
        } else {
            break_block(pool, id, SlotState::Free);
        }
        let (_, outcome) = step(&mut core);
        num_failed += usize::from(failed(&outcome, id));
        core.audit().expect("balanced again");
    }
    assert_eq!((num_failed, stat(&core, "num_running")), (10_000, 0));
    assert_eq!(stat(&core, "num_violations"), 10_000);
    heals(&mut core);
}
