//! Tests of the core from outside: what any caller may rely on.
//!
//! - `conservation`: pools, handles and tables against a naive model, millions of operations
//! - `model`: the whole core against a referee that knows the rules and nothing of the code
//! - `chaos`: forged handles and broken preconditions, each a loud no-op
//! - `campaign`: all of these together, many seeds on all cores, as long as one likes
//! - `progress`: pools down to the smallest; nothing deadlocks, starves or goes round in circles
//! - `replay`: a recorded run replays to the same plans, and a damaged record is found out
//! - `lifecycles`, `window`, `prefix`, `flight`, `refusals`: one behaviour each, by name
//!
//! Every random test prints its seed when it fails; a seed replays the same run.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

#[cfg(feature = "forged")]
mod campaign;
#[cfg(feature = "forged")]
mod chaos;
mod conservation;
mod driver;
mod flight;
mod lifecycles;
mod model;
mod prefix;
mod progress;
mod referee;
mod refusals;
mod replay;
mod rng;
mod window;
