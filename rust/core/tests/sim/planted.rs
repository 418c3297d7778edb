//! The simulator itself under test: every planted bug must be caught, and none is seen without.

use crate::model::mix;
use crate::plant::{Bug, Plant};
use crate::rng::Rng;
use crate::setup::Setup;
use crate::trace;
use crate::world::World;

/// Seeds that a bug may hide from.
const MOST_SEEDS: u64 = 300;

/// Seeds that are run without any bug, and must pass.
const CONTROLS: u64 = 12;

fn world(is_paired: bool, seed: u64, plant: Plant) -> World {
    let rng = &mut Rng::new(mix(seed, 0));
    let setup = Setup::random(rng).only_clients();
    let setup = if is_paired { setup.paired(rng).with_late_writes() } else { setup };
    World::new(setup, seed, plant)
}

/// True if a run under `bug` was stopped by an oracle; None if the bug never struck.
fn is_caught(bug: Bug, seed: u64) -> Option<bool> {
    let plant = Plant::of(bug, mix(seed, 2));
    match trace::caught(true, || world(Bug::PAIRED.contains(&bug), seed, plant).run()) {
        None => Some(true),
        Some(tally) => (tally.num_struck > 0).then_some(false),
    }
}

/// How many seeds each bug took, of those in which it struck; without one, the seeds pass.
pub fn run() -> bool {
    let passes = |is_paired, seed| {
        trace::caught(false, || world(is_paired, seed, Plant::none()).run()).is_some()
    };
    let mut all_caught = (0..CONTROLS).all(|seed| passes(seed % 2 == 1, seed));
    for bug in Bug::ALONE.into_iter().chain(Bug::PAIRED) {
        let mut num_struck = 0;
        let found = (0..MOST_SEEDS).find(|&seed| {
            let caught = is_caught(bug, seed);
            num_struck += usize::from(caught.is_some());
            caught == Some(true)
        });
        match found {
            Some(_) => {
                let said = trace::SAID.take();
                let said = said.lines().next().unwrap_or("");
                println!("  {bug:?}: caught in seed {num_struck} of those it struck in: {said}");
            }
            None => println!("  {bug:?}: NOT CAUGHT, though it struck in {num_struck} seeds"),
        }
        all_caught &= found.is_some();
    }
    all_caught
}
