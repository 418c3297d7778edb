//! Bands of a recipe through the whole core: what is in force shapes the very next step.

use dsv4_core::Event;
use dsv4_core::recipe::{Band, Recipe};

use crate::driver::{Driver, limits};

fn band(name: &str, min_requests: usize, max_num_requests: usize, tokens: usize) -> Band {
    let (name, max_num_tokens) = (name.into(), tokens);
    Band { name, min_requests, max_num_requests, max_num_tokens, max_draft_tokens: 0 }
}

/// Few requests get long chunks; from three on at most four run, with short chunks.
fn two_bands() -> Recipe {
    Recipe {
        name: "two".into(),
        bands: vec![band("few", 1, 8, 512), band("many", 3, 4, 64)],
        dwell_steps: 4,
        margin_percent: 0,
    }
}

fn driver() -> Driver {
    let mut driver = Driver::roomy(limits());
    driver.core.follow(two_bands()).expect("inside the limits");
    driver
}

#[test]
fn a_step_keeps_to_the_band_of_the_load_at_that_moment() {
    let mut driver = driver();
    driver.submit(1024, 4);
    let (plan, _) = driver.step().expect("busy");
    assert_eq!((plan.num_tokens, plan.band), (512, 0));
    driver.submit(1024, 4);
    driver.submit(1024, 4);
    let (plan, _) = driver.step().expect("busy");
    assert_eq!((plan.num_tokens, plan.band), (64, 1), "three are here: up at once");
    assert_eq!((driver.stat("recipe_band"), driver.stat("num_recipe_switches")), (1, 1));
    assert!(driver.core.explain_recipe().contains("band many (3 requests or more)"));
    driver.run(200);
    driver.assert_at_rest();
}

#[test]
fn a_band_that_lets_fewer_run_starts_no_more_and_preempts_nobody() {
    let mut driver = driver();
    let mut recipe = two_bands();
    recipe.bands[1].min_requests = 8;
    driver.core.follow(recipe).expect("inside the limits");
    for _ in 0..7 {
        driver.submit(8, 40);
    }
    driver.step().expect("busy");
    assert_eq!(driver.stat("num_running"), 7);
    driver.submit(8, 40);
    let (plan, _) = driver.step().expect("busy");
    assert_eq!((plan.band, plan.num_requests), (1, 7), "seven decode, the eighth waits");
    driver.run(400);
    assert_eq!(driver.stat("num_preemptions"), 0);
    driver.assert_at_rest();
}

#[test]
fn load_that_falls_comes_back_to_the_lower_band_after_the_dwell() {
    let mut driver = driver();
    let first = driver.submit(8, 100);
    let others = [driver.submit(8, 100), driver.submit(8, 100)];
    driver.step().expect("busy");
    for id in others {
        assert!(driver.core.abort(id));
    }
    let bands: Vec<usize> = (0..5).map(|_| driver.step().expect("busy").0.band).collect();
    assert_eq!(bands, [1, 1, 1, 0, 0], "four steps in a row with one request");
    driver.core.advance(&[Event::Stopped(first)]).expect("it runs");
    driver.assert_at_rest();
}

#[test]
fn a_recipe_beyond_the_limits_is_refused_and_the_old_one_stays() {
    let mut driver = driver();
    let before = driver.core.explain_recipe();
    let mut recipe = two_bands();
    recipe.bands[0].max_num_tokens = 513;
    let refused = driver.core.follow(recipe).expect_err("beyond the limits").to_string();
    assert!(refused.contains("max_num_tokens 513; from 1 to the engine's 512"), "{refused}");
    assert_eq!(driver.core.explain_recipe(), before);
}
