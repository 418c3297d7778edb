//! Tests of the core from outside: what any caller may rely on.
//!
//! - `conservation`: pools, handles and tables against a naive model, millions of operations
//! - `model`: the whole core against a referee that knows the rules and nothing of the code
//! - `progress`: pools down to the smallest; nothing deadlocks, starves or goes round in circles
//! - `lifecycles`, `window`, `prefix`, `flight`, `recipes`, `refusals`: one behaviour each, by name
//!
//! Every random test prints its seed when it fails; a seed replays the same run.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod conservation;
mod driver;
mod flight;
mod lifecycles;
mod model;
mod prefix;
mod progress;
mod recipes;
mod referee;
mod refusals;
mod rng;
mod window;
