//! Ten times more than a worker can do: what it does then must be worth as much as at its best,
//! and nobody may wait for ever.

use crate::model::mix;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::trace;
use crate::world::{Tally, World};

/// How long jobs arrive, in virtual time.
const LASTS_US: u64 = 60_000_000;

/// Tokens per virtual second of jobs that came to their proper end.
fn goodput(tally: &Tally) -> u64 {
    tally.num_useful_tokens * 1_000_000 / tally.virtual_us
}

/// Open loop: a job every so often, whatever becomes of those before.
fn load(seed: u64, gap_us: u64) -> Option<Tally> {
    let num_jobs = usize::try_from(LASTS_US / gap_us).expect("few");
    let setup = Setup::random(&mut Rng::new(mix(seed, 0))).for_load(gap_us, num_jobs);
    trace::caught(false, || World::new(setup, seed, Plant::none()).run())
}

/// Goodput at rising loads, and at ten times the one beyond which it hardly rises.
pub fn run() -> bool {
    (0..1).all(|seed| {
        let mut num_steps = 0;
        let mut curve = vec![];
        for gap_us in [24_000, 16_000, 12_000, 8_000, 6_000, 4_000, 3_000, 2_000] {
            let Some(tally) = load(seed, gap_us) else { return false };
            num_steps += tally.num_steps;
            curve.push((goodput(&tally), gap_us));
        }
        let peak = curve.iter().map(|&(good, _)| good).max().expect("some loads");
        let filling = curve.iter().find(|&&(good, _)| good * 100 >= peak * 95);
        let gap_us = filling.expect("the peak itself").1;
        let Some(over) = load(seed, gap_us / 10) else { return false };
        let share = goodput(&over) * 100 / peak;
        println!(
            "  seed {seed}: peak {peak} tokens/s, 95 % of it from a job per {gap_us} us on; at 10 \
             times that load {} tokens/s, {share} %; {} steps, {} jobs refused at once",
            goodput(&over),
            num_steps + over.num_steps,
            over.exposure.of(crate::faults::Fault::QueueOverflow),
        );
        share >= 95
    })
}
