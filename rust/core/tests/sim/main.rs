//! `dsv4-sim`: whole workers under every fault we can think of, in virtual time.
//!
//! ```text
//!   seed ──▶ Setup ──▶ World: clients ─▶ cores ─▶ step arrays ─▶ fake device ─▶ tokens ─▶ oracle
//!                        └── faults: clients, device, processes, calls that nobody should make
//!
//!   every other seed:  router ─▶ prefill cores ══ parts of blocks, late ══▶ decode core ─▶ tokens
//!   (room % ranks)                    ╰──── messages: lost, repeated, overtaken ────╯
//! ```
//! 1. Each job's tokens are the function of its prompt that they must be (`oracle`), computed from
//!    what the arrays made the device read (`device`, `model`).
//! 2. Each job that was accepted ends exactly once; none is lost (`world`).
//! 3. At rest every block is back, and the books balance after every call.
//! 4. With nothing in flight and something to do, a step can be planned.
//! 5. What is written from elsewhere lands in memory whoever owns it then, even after its writer
//!    died; only what the transport counts as proof ends that (`transport`, `desk`, `links`).
//! 6. It lands only in blocks that nobody else was given since (`ledger`); no step writes what a
//!    transfer has yet to read (`steps`); what is committed is not written any more (`peers`).
//! 7. Two leases after the world is well, no block is held for a peer any more. Nobody waits for
//!    the other side beyond the deadline; no lease expires without a reason; where nothing goes
//!    wrong, prompts arrive (`worker`, `peers`, `room_log`).
//! 8. The simulator sees bugs: `planted` proves it with some that stand for the core's and its
//!    caller's, `scripts/planted.py` with those of the core.
//!
//! `cargo test --release --test sim` runs the planted bugs, fixed and fresh seeds, and overload.
//! A campaign: `cargo test --release --test sim -- --hours 10 --jobs 2` or `--seeds 0..9999`;
//! of 2,000 seeds and more it fails if a kind of fault never happens. A seed and a commit replay a
//! run.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod agenda;
mod arrays;
mod campaign;
mod cargo;
mod clients;
mod desk;
mod device;
mod faults;
mod flight;
mod flow;
mod happening;
mod job;
mod jobs;
mod ledger;
mod links;
mod mischief;
mod model;
mod oracle;
mod overload;
mod pairs;
mod peers;
mod phases;
mod plant;
mod planted;
mod rng;
mod room_log;
mod router;
mod setup;
mod steps;
mod trace;
mod transport;
mod worker;
mod world;

use std::process::ExitCode;

type Test = fn() -> bool;

/// What `cargo test` and nextest may ask for by name.
const TESTS: [(&str, Test); 4] = [
    ("every_planted_bug_is_caught", planted::run),
    ("a_seed_replays_the_same_run", campaign::replays),
    ("seeds_lose_nothing", campaign::smoke),
    ("overload_stays_useful", overload::run),
];

fn main() -> ExitCode {
    trace::install();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    if has("--list") {
        let tests = if has("--ignored") { &[][..] } else { &TESTS[..] };
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if ["--seeds", "--hours"].iter().any(|name| has(name)) {
        return verdict(campaign::run(&args));
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let mut is_good = true;
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        let passed = test();
        println!("{name}: {}", if passed { "ok" } else { "FAILED" });
        is_good &= passed;
    }
    verdict(is_good)
}

fn verdict(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
