//! A recorded run replays to the same plans and outcomes; a damaged trace is found out.

use dsv4_core::NewRequest;
use dsv4_core::trace::{Report, TraceError, replay};

use crate::driver::{Driver, limits, real_geometry, request};
use crate::model::{Game, Style, tiny};
use crate::rng::{Rng, Seed};

/// Plays a game while it is recorded, and replays it; the calls that were checked.
pub fn play_and_replay(mut rng: Rng) -> usize {
    let mut game = Game::of(tiny(&mut rng), rng, Style::default());
    game.driver.core.record().expect("not called yet");
    game.play(2000);
    game.driver.core.shutdown();
    let trace = game.driver.core.take_trace();
    let report = replay(&trace).expect("a whole trace");
    assert_eq!(report.difference, None);
    assert!(report.is_complete && report.num_calls > game.num_calls, "{report:?}");
    game.num_calls + report.num_calls
}

#[test]
fn random_games_replay_to_the_same_plans_and_outcomes() {
    for seed in 0..200 {
        let _seed = Seed(seed);
        play_and_replay(Rng::new(seed));
    }
}

#[test]
fn the_real_blocks_replay_and_a_step_costs_some_hundred_bytes() {
    let mut game = Game::new(real_geometry(), Rng::new(7));
    game.driver.core.record().expect("not called yet");
    game.play(5000);
    let report = replay(&game.driver.core.take_trace()).expect("a whole trace");
    assert!(report.difference.is_none() && !report.is_complete);

    let mut driver = Driver::roomy(limits());
    driver.core.record().expect("not called yet");
    for _ in 0..8 {
        driver.submit(300, 500);
    }
    driver.step();
    let before = driver.core.take_trace().len();
    assert!(before > 8 * 300 * 4, "prompts are kept: {before}");
    for _ in 0..100 {
        driver.step();
    }
    let per_step = driver.core.take_trace().len() / 100;
    assert!((150..200 + 8 * 4).contains(&per_step), "{per_step} bytes per step with 8 tokens");
}

/// Two requests and all kinds of calls, refused ones among them.
fn short_trace() -> Vec<u8> {
    let mut driver = Driver::roomy(limits());
    driver.core.record().expect("not called yet");
    driver.submit(300, 3);
    let salted = NewRequest { cache_salt: "tenant", priority: -1, ..request(5, 2) };
    let other = driver.try_submit(salted).expect("accepted");
    assert!(driver.try_submit(request(0, 1)).is_err());
    let endless = NewRequest { max_tokens: i128::MAX, ..request(1, 1) };
    assert!(driver.try_submit(endless).is_err());
    driver.step();
    assert!(driver.core.abort(other));
    assert!(driver.core.plan(&mut []).is_err());
    driver.run(9);
    driver.core.shutdown();
    assert!(driver.core.plan(&mut driver.memory).is_err());
    driver.core.shutdown();
    driver.core.take_trace()
}

#[test]
fn one_flipped_bit_anywhere_is_found_out() {
    let trace = short_trace();
    let whole = replay(&trace).expect("whole");
    assert!(whole.is_complete && whole.difference.is_none(), "{whole:?}");
    for place in 0..trace.len() {
        for bit in 0..8 {
            let mut damaged = trace.clone();
            damaged[place] ^= 1 << bit;
            let found = replay(&damaged);
            let is_found = found.as_ref().map_or(true, |report| report.difference.is_some());
            assert!(is_found, "bit {bit} of byte {place} makes no difference: {found:?}");
        }
    }
}

#[test]
fn a_trace_that_ends_early_is_truncated_or_incomplete() {
    let trace = short_trace();
    let mut num_between = 0;
    for len in 0..trace.len() {
        match replay(&trace[..len]) {
            Ok(Report { is_complete, difference: None, .. }) => {
                // The last two calls are made when the core is closed.
                num_between += 1;
                assert!(!is_complete || len > trace.len() - 20, "cut at {len}");
            }
            Err(TraceError::Truncated { at, .. }) => assert!(at <= len),
            Err(TraceError::NotATrace(has)) => assert!(has == len && len < 9),
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    assert!((8..30).contains(&num_between), "{num_between} places between calls");
}

#[test]
fn what_is_no_trace_of_ours_says_so() {
    assert_eq!(replay(b"GIF89a"), Err(TraceError::NotATrace(6)));
    let mut newer = short_trace();
    newer[9] = 4;
    assert_eq!(replay(&newer), Err(TraceError::Version { has: 4 }));
    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        let mut bytes = b"dsv4trace\x03".to_vec();
        bytes.extend((0..rng.below(200)).map(|_| u8::try_from(rng.below(256)).expect("a byte")));
        assert!(replay(&bytes).is_err());
    }
}
