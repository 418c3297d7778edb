//! How far a request with two sides is, in the core's own words: whoever leaves or dies then is
//! counted by it, so that a campaign says which phases it struck in.

use crate::faults::Fault;
use crate::setup::Role;
use crate::worker::Worker;

/// What the core says on the decode side, what a cancel is then, and what a death.
const DECODE: [(&str, Fault, Fault); 5] = [
    ("is Bootstrapping", Fault::CancelBootstrapping, Fault::DiesBootstrapping),
    ("is Ready", Fault::CancelReady, Fault::DiesReady),
    ("is Transferring", Fault::CancelTransferring, Fault::DiesTransferring),
    ("is Inspecting", Fault::CancelInspecting, Fault::DiesInspecting),
    ("waits for a row", Fault::CancelSeated, Fault::DiesDecoding),
];

/// What it says of a prompt that is computed here, and what a cancel is then.
const HERE: [(&str, Fault); 3] = [
    ("waits behind", Fault::CancelQueued),
    ("prefilling", Fault::CancelPrefilling),
    ("decoding", Fault::CancelDecoding),
];

/// What it says on the prefill side, and what a death is then.
const PREFILL: [(&str, Fault); 5] = [
    ("waits for its turn", Fault::DiesParked),
    ("has asked for a place", Fault::DiesWanting),
    ("waits behind", Fault::DiesComputing),
    ("prefilling", Fault::DiesComputing),
    ("last chunks", Fault::DiesSending),
];

/// What the core says of a request that has no place for its prompt.
pub const NO_PLACE: &str = "waits for a place for its prompt";

/// What a cancel is; None if there is nothing to say.
pub fn cancel_of(says: &str) -> Option<Fault> {
    let found = HERE.iter().find(|(words, _)| says.contains(words)).map(|&(_, cancel)| cancel);
    let elsewhere = DECODE.iter().find(|(words, ..)| says.contains(words));
    found.or(elsewhere.map(|&(_, cancel, _)| cancel))
}

/// Everything that dies with a worker, by how far it is.
pub fn deaths_with(worker: &mut Worker) -> Vec<Fault> {
    let ids: Vec<_> = worker.held.keys().copied().collect();
    let mut deaths = vec![];
    for id in ids {
        let says = worker.core.explain(id);
        deaths.push(match worker.role {
            Role::Whole => continue,
            Role::Decode => {
                let found = DECODE.iter().find(|(words, ..)| says.contains(words));
                found.map_or(Fault::DiesDecoding, |&(.., death)| death)
            }
            Role::Prefill => match PREFILL.iter().find(|(words, _)| says.contains(words)) {
                Some(&(_, death)) => death,
                None => continue, // it has ended, and that is not yet told
            },
        });
    }
    let left_behind = match worker.role {
        Role::Whole => return deaths,
        Role::Decode => ("num_arriving", Fault::DiesInDoubt),
        Role::Prefill => ("num_departing", Fault::DiesDraining),
    };
    // Rooms whose request is gone: proofs are missing, or transfers have not ended.
    if worker.stat("num_rooms") > worker.stat(left_behind.0) {
        deaths.push(left_behind.1);
    }
    deaths
}
