//! A panic inside the core ends the core, not the process.
//!
//! The file under test is included by path: the crate itself is a Python extension, which no
//! Rust program can link.

#![expect(clippy::disallowed_methods, reason = "threads are what a lock is tested with")]

#[path = "../src/guarded.rs"]
mod guarded;

use std::sync::Arc;
use std::thread;

use guarded::{Guarded, Lost};

#[test]
fn calls_see_the_value_one_after_another() {
    let total = Arc::new(Guarded::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let total = Arc::clone(&total);
            thread::spawn(move || (0..1000).try_for_each(|_| total.with(|n| *n += 1)))
        })
        .collect();
    for worker in workers {
        assert_eq!(worker.join().expect("no panic here"), Ok(()));
    }
    assert_eq!(total.with(|n| *n), Ok(4000));
}

#[test]
fn a_panic_is_reported_once_and_the_value_is_gone_afterwards() {
    let guarded = Guarded::new(vec![1]);
    let first: Result<(), Lost> = guarded.with(|_| panic!("block {} is in two places", 7));
    assert_eq!(first, Err(Lost::Panicked("block 7 is in two places".to_owned())));
    for _ in 0..3 {
        assert_eq!(guarded.with(|values| values.len()), Err(Lost::Closed));
    }
}

#[test]
fn a_panic_while_others_wait_leaves_nobody_hanging() {
    let guarded = Arc::new(Guarded::new(0u8));
    let workers: Vec<_> = (0..8)
        .map(|index| {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || guarded.with(|_| assert!(index != 3, "worker 3")))
        })
        .collect();
    let outcomes: Vec<_> =
        workers.into_iter().map(|worker| worker.join().expect("caught inside")).collect();
    let panicked = outcomes.iter().filter(|o| matches!(o, Err(Lost::Panicked(_)))).count();
    assert_eq!(panicked, 1, "{outcomes:?}");
    assert_eq!(guarded.with(|_| ()), Err(Lost::Closed));
}

#[test]
fn the_destructor_of_a_value_in_doubt_does_not_run() {
    struct Doubtful;
    impl Drop for Doubtful {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let guarded = Guarded::new(Doubtful);
    assert_eq!(guarded.with(|_| panic!("first")), Err::<(), _>(Lost::Panicked("first".into())));
}
