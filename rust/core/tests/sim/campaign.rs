//! Many seeds: a few on every change, or as many as fit in the hours given.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults::Fault;
use crate::model::mix;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::trace;
use crate::world::{Tally, World};

/// Why a lock is never poisoned.
const UNPANICKED: &str = "runs that panic are caught before";

/// Seeds of every change, and how many fresh ones come on top.
const FIXED: u64 = 120;
const FRESH: u64 = 30;

/// What a seed decides: every other one has prefill and decode workers.
pub fn setup_of(seed: u64) -> Setup {
    let rng = &mut Rng::new(mix(seed, 0));
    let setup = Setup::random(rng);
    if seed % 2 == 0 { setup } else { setup.paired(rng) }
}

/// One seed, from its setup to its tally.
pub fn simulate(seed: u64, audit_every: u64) -> Tally {
    let setup = Setup { audit_every, ..setup_of(seed) };
    World::new(setup, seed, Plant::none()).run()
}

/// Fixed seeds, then fresh ones, whose first is printed.
pub fn smoke() -> bool {
    let fresh = started_us();
    println!("fresh seeds from {fresh}");
    let mut report = Report::default();
    for seed in (0..FIXED).chain(fresh..fresh + FRESH) {
        report.add(seed, trace::caught(false, || simulate(seed, 1)));
    }
    report.finish(started_us() - fresh)
}

/// The same seed twice.
pub fn replays() -> bool {
    (0..10).all(|seed| {
        let [one, two] = [simulate(seed, 7), simulate(seed, 7)];
        let key = |t: &Tally| (t.virtual_us, t.num_steps, t.num_tokens, t.exposure.total());
        key(&one) == key(&two)
    })
}

/// So many seeds meet every kind of fault.
const MEETS_ALL: u64 = 2_000;

/// `--seeds A..B` (both run) or `--hours H` of wall time from seed A; `--jobs N` threads;
/// `--first`: until one fails.
pub fn run(args: &[String]) -> bool {
    let value = |name: &str| {
        let place = args.iter().position(|arg| arg == name)?;
        Some(args.get(place + 1).unwrap_or_else(|| panic!("{name} takes a value")).as_str())
    };
    let whole = |text: &str| text.parse::<u64>().expect("a whole number");
    let (first, last) = match value("--seeds").and_then(|seeds| seeds.split_once("..")) {
        Some((first, last)) => (whole(first), whole(last)),
        None => (value("--from").map_or(1_000_000, whole), u64::MAX - 1),
    };
    let hours = value("--hours").map_or(f64::INFINITY, |text| text.parse().expect("hours"));
    let num_threads = value("--jobs").map_or(1, whole);
    let is_first = args.iter().any(|arg| arg == "--first");
    let began = started_us();
    let next = AtomicU64::new(first);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let has_failed = || !report.lock().expect(UNPANICKED).failed.is_empty();
                    if seed > last || hours_since(began) > hours || is_first && has_failed() {
                        return;
                    }
                    let audit_every = if last == first { 1 } else { 61 };
                    let tally = trace::caught(false, || simulate(seed, audit_every));
                    report.lock().expect(UNPANICKED).add(seed, tally);
                }
            });
        }
    });
    let report = report.into_inner().expect(UNPANICKED);
    report.finish(started_us() - began)
}

#[expect(clippy::disallowed_methods, reason = "wall time of a campaign; no run sees it")]
fn started_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_micros()).expect("before the year 500000")
}

#[expect(clippy::cast_precision_loss, reason = "hours, for people")]
fn hours(micros: u64) -> f64 {
    micros as f64 / 3.6e9
}

fn hours_since(began_us: u64) -> f64 {
    hours(started_us() - began_us)
}

/// Sums over seeds.
#[derive(Default)]
pub struct Report {
    num_seeds: u64,
    failed: Vec<u64>,
    all: Tally,
}

impl Report {
    pub fn add(&mut self, seed: u64, tally: Option<Tally>) {
        self.num_seeds += 1;
        let Some(tally) = tally else { return self.failed.push(seed) };
        let all = &mut self.all;
        all.exposure.absorb(&tally.exposure);
        for (name, count) in tally.ends {
            *all.ends.entry(name).or_default() += count;
        }
        for (mine, theirs) in [
            (&mut all.num_jobs, tally.num_jobs),
            (&mut all.num_steps, tally.num_steps),
            (&mut all.num_tokens, tally.num_tokens),
            (&mut all.num_preemptions, tally.num_preemptions),
            (&mut all.num_stalls, tally.num_stalls),
            (&mut all.num_hit_tokens, tally.num_hit_tokens),
            (&mut all.num_audits, tally.num_audits),
            (&mut all.num_rooms, tally.num_rooms),
            (&mut all.num_arrived, tally.num_arrived),
            (&mut all.virtual_us, tally.virtual_us),
        ] {
            *mine += theirs;
        }
    }

    /// Prints the table; true if nothing failed.
    pub fn finish(&self, wall_us: u64) -> bool {
        let all = &self.all;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "  {name:<44} {value:>16}").expect("a string grows");
        };
        line("seeds", self.num_seeds.to_string());
        line("violations", self.failed.len().to_string());
        line("wall time (s)", format!("{:.1}", hours(wall_us) * 3600.0));
        line("simulated hours", format!("{:.3}", hours(all.virtual_us)));
        line("jobs", all.num_jobs.to_string());
        line("steps", all.num_steps.to_string());
        line("tokens checked", all.num_tokens.to_string());
        line("tokens from the prefix cache", all.num_hit_tokens.to_string());
        line("preemptions", all.num_preemptions.to_string());
        line("rooms written to", all.num_rooms.to_string());
        line("prompts that arrived whole", all.num_arrived.to_string());
        line("stalls", all.num_stalls.to_string());
        line("audits", all.num_audits.to_string());
        for (name, count) in &all.ends {
            line(&format!("ended: {name}"), count.to_string());
        }
        let kinds = Fault::ALL.iter().filter(|&&fault| all.exposure.of(fault) > 0).count();
        line("kinds of faults that fired", format!("{kinds} of {}", Fault::ALL.len()));
        line("faults", all.exposure.total().to_string());
        for &fault in Fault::ALL {
            line(&format!("fault: {}", fault.name()), all.exposure.of(fault).to_string());
        }
        println!("{text}");
        if !self.failed.is_empty() {
            println!("failed seeds: {:?}", self.failed);
        }
        let never: Vec<_> = Fault::ALL.iter().filter(|&&f| all.exposure.of(f) == 0).collect();
        let is_blind = self.num_seeds >= MEETS_ALL && !never.is_empty();
        if is_blind {
            println!("never happened: {never:?}");
        }
        self.failed.is_empty() && !is_blind
    }
}
