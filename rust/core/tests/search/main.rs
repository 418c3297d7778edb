//! Every state of small worlds: the real room machines under loss, repetition, reordering, aborts,
//! errors, crashes, fences and bytes that land late.
//!
//! - `cell`, `moves`: one request between two workers, and everything that can happen to it
//! - `explore`: breadth first over the requests that compete for blocks; exact states, no hashing
//! - `heal`: from every state, everything comes to an end once the network is whole
//!
//! Large worlds are for the night: `make search`.
#![expect(clippy::cast_possible_truncation, reason = "small worlds: every count fits a byte")]
#![expect(clippy::disallowed_methods, reason = "a test says how long it took")]
#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod cell;
mod explore;
mod heal;
mod intern;
mod moves;
mod scope;
mod visited;

use std::time::Instant;

use explore::{Explorer, Found};
use heal::{Old, heal};
use scope::{Arm, BASE, Scope};

/// Places of the set of states that a small, and that a large world may take; 16 bytes each.
const SMALL: usize = 1 << 22;
const LARGE: usize = 1 << 29;

/// Worlds that take a moment.
const SMALL_WORLDS: [Scope; 5] = [
    Scope { name: "two requests, one block", ..BASE },
    Scope { name: "a prompt of two chunks", requests: 1, chunks: 2, blocks: 2, ..BASE },
    Scope { name: "decode may die", requests: 1, decode_crash: true, ..BASE },
    Scope { name: "the way in is cut", requests: 1, fence: true, ..BASE },
    Scope { name: "three, nobody dies", requests: 3, prefill_crash: false, errors: false, ..BASE },
];

/// Worlds for the night.
const LARGE_WORLDS: [Scope; 8] = [
    Scope { name: "two, cut", fence: true, ..BASE },
    Scope { name: "two, decode may die", decode_crash: true, ..BASE },
    Scope { name: "three, nobody dies", requests: 3, prefill_crash: false, ..BASE },
    Scope { name: "three, lean", requests: 3, corrupt: false, prefill_aborts: false, ..BASE },
    Scope { name: "two of two chunks", chunks: 2, blocks: 2, ..BASE },
    Scope { name: "one, two attempts", requests: 1, attempts: 2, ..BASE },
    Scope { name: "one, two writing ranks", requests: 1, ranks: 2, ..BASE },
    Scope { name: "two, cut, decode may die", fence: true, decode_crash: true, ..BASE },
];

/// Searches a world whole: nothing is broken anywhere, and from everywhere all comes to an end.
fn search(scope: Scope, most_places: usize) -> Found {
    let since = Instant::now();
    let mut explorer = Explorer::new(scope, most_places, false);
    let found = explorer.run();
    let Found { states, transitions, depth, cells, rooms, messages, .. } = found;
    assert_eq!(found.violation, None, "{}: {:#?}", scope.name, found.trace);
    assert!(found.closed, "{}: more states than there are places for", scope.name);
    for id in 0..explorer.cells.len() as u32 {
        let cell = explorer.cells.get(id).clone();
        for old in [Old::Lost, Old::Arrives] {
            let healed = heal(&cell, old, &scope, &mut explorer.parts);
            healed.unwrap_or_else(|left| panic!("{}, {old:?}: {left}\nfrom {cell:?}", scope.name));
        }
    }
    println!(
        "{:26} {states:>11} states {transitions:>12} transitions, depth {depth:>2}, {cells:>7} cells of \
         {rooms:>5} tables and {messages:>2} messages, {:>6.1} s",
        scope.name,
        since.elapsed().as_secs_f64(),
    );
    found
}

#[test]
fn in_small_worlds_nothing_lands_in_a_reissued_block_and_all_comes_to_an_end() {
    let states: usize = SMALL_WORLDS.iter().map(|&scope| search(scope, SMALL).states).sum();
    assert!(states > 1_000_000, "{states} states");
}

/// Rules by which blocks must not be freed: each is found out.
#[test]
fn a_rule_that_is_no_proof_lets_bytes_land_in_a_reissued_block() {
    for (arm, fence, depth) in [
        (Arm::FreedAtOnce, false, 9),
        (Arm::TimeProves, false, 10),
        (Arm::DeathProves, false, 11),
        (Arm::FenceForgotten, true, 10),
    ] {
        let found = Explorer::new(Scope { fence, arm, ..BASE }, SMALL, true).run();
        let Some((violation, after)) = found.violation else { panic!("{arm:?} is sound") };
        assert_eq!(violation, cell::Violation::LandedInReissued, "{arm:?}");
        assert_eq!(after, depth, "{arm:?}: {:#?}", found.trace);
    }
}

#[test]
#[ignore = "takes minutes and gigabytes: make search"]
fn in_large_worlds_too() {
    let states: usize = LARGE_WORLDS.iter().map(|&scope| search(scope, LARGE).states).sum();
    println!("{states} states in all, closed, no violation, nothing left over");
    assert!(states >= 100_000_000);
}
