//! Every state of small worlds: the real room machines under loss, repetition, reordering, aborts,
//! errors, crashes and bytes that land late.
#![expect(clippy::cast_possible_truncation, reason = "small worlds: every count fits a byte")]

mod cell;
mod explore;
mod heal;
mod intern;
mod moves;
mod scope;
mod visited;

use explore::{Explorer, Found};
use heal::{Old, heal};
use scope::{Arm, BASE, Scope};

fn report(scope: &Scope, found: &Found) {
    println!(
        "{:24} {:>11} states {:>12} transitions depth {:>3} {:>8} cells {:>7} tables {:>3} messages {}",
        scope.name, found.states, found.transitions, found.depth, found.cells, found.rooms,
        found.messages, if found.closed { "closed" } else { "NOT CLOSED" },
    );
    if let Some((violation, depth)) = found.violation {
        println!("  {violation:?} after {depth} steps: {:#?}", found.trace);
    }
}

#[test]
fn probe() {
    for (ranks, chunks, requests) in [(1,1,1),(1,1,2),(1,2,1),(2,1,1)] {
        let scope = Scope { ranks, chunks, requests, blocks: chunks, ..BASE };
        let mut e = Explorer::new(scope, 1<<24, false);
        let f = e.run();
        println!("{ranks} {chunks} {requests}");
        report(&scope, &f);
        let (mut bad, mut shown) = (0, 0);
        for id in 0..e.cells.len() as u32 {
            let c = e.cells.get(id).clone();
            for old in [Old::Lost, Old::Arrives] {
                if let Err(what) = heal(&c, old, &scope, &mut e.parts) {
                    bad += 1;
                    if shown < 2 { println!("{old:?} {what}\n from {c:?}"); shown += 1; }
                }
            }
        }
        println!("heal failures {bad}");
    }
    for arm in [Arm::FreedAtOnce, Arm::TimeProves, Arm::DeathProves, Arm::FenceForgotten] {
        let scope = Scope { arm, fence: arm == Arm::FenceForgotten, ..BASE };
        let f = Explorer::new(scope, 1<<24, true).run();
        println!("{arm:?}");
        report(&scope, &f);
    }
}
