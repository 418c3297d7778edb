//! All random tests together, on all cores, as long as one likes: `make test-core`.
//!
//! Work comes in rounds of about 100,000 operations. A round plays some seeds of every layer:
//!
//! | layer   | an operation is                                    | compared with                     |
//! |---------|----------------------------------------------------|-----------------------------------|
//! | handles | one transition, drop, begin or reclaim of a pool   | places of a naive model           |
//! | stale   | the same, every fourth with a forged handle        | the same, and counted refusals    |
//! | broken  | the same, and in the end one handle too many       | one block lost, and healed        |
//! | tables  | one start, chunk, end or reclaim over three pools  | promises and owners               |
//! | facade  | one call of `Core`, answered or refused            | the referee: arrays and outcomes  |
//! | cache   | the same, prefixes cached in every game            | the same, contents of each block  |
//! | cramped | the same in pools of 1 to 8 blocks                 | the same, and all come to an end  |
//! | real    | the same with blocks of 256 and 64 tokens          | the same                          |
//! | storm   | one act of some cores, their wire or their callers | ends, tokens, bytes; audits       |
//! | replay  | the same as facade, recorded and replayed          | the same, and the record          |
//! | rooms   | the same as storm, recorded and replayed           | the record of every core          |
//!
//! Every operation is checked as it happens. Audits are sampled: every 64th operation or so.
//!
//! Seed s of a layer is the same run on any machine, whatever else runs. The settings are read from
//! the environment: `OPS` (at least so many operations), `HOURS` (or so long), `SEED` (the first
//! one), `LAYER` (one layer alone; with `SEEDS=1`, one run alone).

#![expect(clippy::disallowed_methods, reason = "a test is told when to stop, and by whom")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::chaos::{Stale, break_once};
use crate::conservation::Books;
use crate::driver::{drafting, real_geometry};
use crate::handles::Handles;
use crate::model::{Game, Style, tiny};
use crate::replay::play_and_replay;
use crate::rng::{Rng, Seed, at_operation};
use crate::storm::Storm;

/// One kind of run.
struct Layer {
    name: &'static str,
    seeds_per_round: u64,
    /// Plays a seed; how many operations that were.
    play: fn(Rng) -> usize,
}

const LAYERS: [Layer; 11] = [
    Layer { name: "handles", seeds_per_round: 1, play: handles },
    Layer { name: "stale", seeds_per_round: 1, play: stale },
    Layer { name: "broken", seeds_per_round: 10, play: broken },
    Layer { name: "tables", seeds_per_round: 2, play: tables },
    Layer { name: "facade", seeds_per_round: 14, play: |rng| game(rng, Style::default()) },
    Layer { name: "cache", seeds_per_round: 12, play: |rng| game(rng, CACHE) },
    Layer { name: "cramped", seeds_per_round: 8, play: |rng| game(rng, CRAMPED) },
    Layer { name: "real", seeds_per_round: 5, play: real },
    Layer { name: "storm", seeds_per_round: 4, play: storm },
    Layer { name: "replay", seeds_per_round: 1, play: play_and_replay },
    Layer { name: "rooms", seeds_per_round: 1, play: recorded_storm },
];

const CACHE: Style = Style { caches: true, is_cramped: false };
const CRAMPED: Style = Style { caches: false, is_cramped: true };

fn handles(mut rng: Rng) -> usize {
    let mut handles = Handles::new(rng.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 13, 64]));
    for number in 0..8000 {
        at_operation(number);
        handles.operate(&mut rng);
        if number % 64 == 0 {
            handles.check();
            handles.pool.audit().expect("balanced");
        }
    }
    handles.drain();
    8000
}

fn stale(rng: Rng) -> usize {
    let mut game = Stale::new(rng);
    for number in 0..8000 {
        at_operation(number);
        game.operate();
        if number % 64 == 0 {
            game.check();
        }
    }
    game.drain();
    8000
}

fn broken(mut rng: Rng) -> usize {
    let num_operations = rng.between(0, 200);
    break_once(rng, num_operations);
    num_operations + 1
}

fn tables(mut rng: Rng) -> usize {
    let mut books = Books::new(&mut rng);
    for number in 0..2500 {
        at_operation(number);
        books.operate(&mut rng);
        if number % 64 == 0 {
            books.check();
        }
    }
    books.drain();
    2500
}

fn game(mut rng: Rng, style: Style) -> usize {
    let mut game = Game::of(tiny(&mut rng), rng, style);
    game.play(2000);
    game.num_calls
}

fn real(rng: Rng) -> usize {
    let mut game = Game::new(drafting(real_geometry()), rng);
    game.play(2000);
    game.num_calls
}

fn storm(rng: Rng) -> usize {
    storm_of(rng, false).check_ends();
    1500
}

fn recorded_storm(rng: Rng) -> usize {
    1500 + storm_of(rng, true).check_replays()
}

fn storm_of(rng: Rng, is_recorded: bool) -> Storm {
    let mut storm = Storm::of(rng, is_recorded);
    for number in 0..1500 {
        at_operation(number);
        storm.operate();
    }
    storm.heal();
    storm
}

/// When to stop, and where to begin.
struct Settings {
    operations: u64,
    time: Duration,
    seed: u64,
    seeds: u64,
    layer: Option<String>,
}

impl Settings {
    fn from_environment() -> Self {
        let number = |name: &str| -> Option<f64> {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "1e10 is meant"
        )]
        let whole = |name: &str| number(name).map(|value| value as u64);
        Self {
            operations: whole("OPS").unwrap_or(100_000_000),
            time: Duration::from_secs_f64(3600.0 * number("HOURS").unwrap_or(1e6)),
            seed: whole("SEED").unwrap_or(0),
            seeds: whole("SEEDS").unwrap_or(u64::MAX),
            layer: std::env::var("LAYER").ok(),
        }
    }
}

/// What is done so far, by layer: seeds and operations.
#[derive(Default)]
struct Totals([(AtomicU64, AtomicU64); LAYERS.len()]);

impl Totals {
    fn add(&self, layer: usize, operations: usize) {
        let (seeds, sum) = &self.0[layer];
        seeds.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(operations as u64, Ordering::Relaxed);
    }

    fn each(&self) -> impl Iterator<Item = (u64, u64)> {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        self.0.iter().map(move |(seeds, operations)| (load(seeds), load(operations)))
    }

    fn sum(&self) -> (u64, u64) {
        self.each().fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }
}

/// One campaign, shared by its threads.
struct Campaign {
    settings: Settings,
    next_round: AtomicU64,
    stop: AtomicBool,
    totals: Totals,
    since: Instant,
    printed: Mutex<Instant>,
}

const PRINTS_EVERY: Duration = Duration::from_secs(10);

impl Campaign {
    /// Plays rounds until all together have done enough.
    fn work(&self) {
        while !self.is_over() {
            let round = self.next_round.fetch_add(1, Ordering::Relaxed);
            for (index, layer) in LAYERS.iter().enumerate() {
                let seeds = round * layer.seeds_per_round..(round + 1) * layer.seeds_per_round;
                let is_meant = self.settings.layer.as_ref().is_none_or(|only| only == layer.name);
                for number in seeds.filter(|&number| is_meant && number < self.settings.seeds) {
                    self.play(index, layer, self.settings.seed + number);
                }
            }
            self.print_now_and_then();
        }
    }

    fn is_over(&self) -> bool {
        let Settings { operations, time, seeds, .. } = self.settings;
        let is_enough = self.totals.sum().1 >= operations || self.since.elapsed() >= time;
        let is_played = self.next_round.load(Ordering::Relaxed) >= seeds;
        is_enough || is_played || self.stop.load(Ordering::Relaxed)
    }

    fn play(&self, index: usize, layer: &Layer, seed: u64) {
        let _run = Run { layer: layer.name, seed, stop: &self.stop };
        let _seed = Seed(seed);
        self.totals.add(index, (layer.play)(Rng::new(seed)));
    }

    fn print_now_and_then(&self) {
        let mut printed = self.printed.lock().expect("nobody panics while printing");
        if printed.elapsed() >= PRINTS_EVERY {
            *printed = Instant::now();
            self.print();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn print(&self) {
        let (seeds, operations) = self.totals.sum();
        let seconds = self.since.elapsed().as_secs_f64();
        let rate = operations as f64 / 1e6 / seconds;
        println!("{seconds:8.1} s {operations:>14} ops {seeds:>10} seeds  {rate:.2} M ops/s");
    }
}

/// Stops the other threads when this one panics, and says how to see the run again.
struct Run<'a> {
    layer: &'static str,
    seed: u64,
    stop: &'a AtomicBool,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.store(true, Ordering::Relaxed);
            let Self { layer, seed, .. } = self;
            eprintln!("to see it again: make test-core LAYER={layer} SEED={seed} SEEDS=1");
        }
    }
}

#[test]
#[ignore = "takes two minutes on two cores: make test-core"]
fn every_operation_agrees_with_its_model() {
    let settings = Settings::from_environment();
    let known = settings.layer.as_ref().is_none_or(|only| LAYERS.iter().any(|l| l.name == only));
    assert!(known, "LAYER is none of {:?}", LAYERS.map(|layer| layer.name));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{threads} threads, seeds from {}", settings.seed);
    let now = Instant::now();
    let campaign = Campaign {
        settings,
        next_round: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        totals: Totals::default(),
        since: now,
        printed: Mutex::new(now),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| campaign.work());
        }
    });
    campaign.print();
    for (layer, (seeds, operations)) in LAYERS.iter().zip(campaign.totals.each()) {
        println!("  {:<8} {operations:>14} ops {seeds:>10} seeds, 0 divergences", layer.name);
    }
}
