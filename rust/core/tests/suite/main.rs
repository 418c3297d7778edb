//! Tests of the core from outside: what any caller may rely on.
//!
//! - `handles`, `conservation`: pools, handles and tables against naive models, millions of operations
//! - `model`: the whole core against a referee that knows the rules and nothing of the code
//! - `chaos`: forged handles and broken preconditions, each a loud no-op
//! - `campaign`: all of these together, many seeds on all cores, as long as one likes
//! - `progress`: pools down to the smallest; nothing deadlocks, starves or goes round in circles
//! - `replay`: a recorded run replays to the same plans, and a damaged record is found out
//! - `lifecycles`, `window`, `prefix`, `flight`, `drafts`, `recipes`, `refusals`: one behaviour each, by name
//! - `transfers`: prompts computed by one core and decoded by another, over the wire of `pair`;
//!   `storm`: the same under loss, repetition, reordering, late landing and aborts
//! - `words`: what the room machines say, and to whom they do not listen
//! - `largest`: the largest legal step of every model fits its layout
//!
//! Every random test prints its seed when it fails; a seed replays the same run.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

#[cfg(feature = "forged")]
mod campaign;
#[cfg(feature = "forged")]
mod chaos;
mod conservation;
mod drafts;
mod driver;
mod flight;
mod handles;
mod largest;
mod lifecycles;
mod model;
mod pair;
mod prefix;
mod progress;
mod recipes;
mod referee;
mod refusals;
mod replay;
mod rng;
mod storm;
mod transfers;
mod window;
mod words;
