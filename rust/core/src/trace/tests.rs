//! Traces that lie: the core inside is exchanged while it is recorded, as no caller can.

use super::{Recorded, replay};
use crate::budget::PoolSizes;
use crate::core::NewRequest;
use crate::geometry::tests::flash;
use crate::ids::RequestId;
use crate::limits::Limits;

const SIZES: PoolSizes = PoolSizes { full_blocks: 16, swa_blocks: 60, state_slots: 4 };

fn limits(max_num_tokens: usize) -> Limits {
    Limits {
        max_model_len: 2048,
        max_num_requests: 4,
        max_num_tokens,
        max_queued_requests: 16,
        max_queued_tokens: 65_536,
        vocab_size: 1000,
        max_steps_in_flight: 1,
        aging_steps: 256,
        prefix_cache: false,
        checkpoint_tokens: 0,
        max_draft_tokens: 0,
    }
}

fn submit(recorded: &mut Recorded, prompt: Vec<i32>) -> RequestId {
    let new = NewRequest {
        prompt,
        max_tokens: 5,
        min_tokens: 0,
        stop_token_ids: &[],
        priority: 0,
        cache_salt: "",
        no_cache: false,
        transfer: None,
    };
    recorded.submit(new).expect("accepted")
}

/// Submits 600 tokens, lets `exchange` happen, plans; what the replay says is different.
fn difference(exchange: impl FnOnce(&mut Recorded)) -> Option<String> {
    let mut recorded = Recorded::new(flash(), &SIZES, limits(512)).expect("legal");
    recorded.record().expect("nothing was called yet");
    submit(&mut recorded, vec![1; 600]);
    let trace = recorded.trace.take();
    exchange(&mut recorded);
    recorded.trace = trace;
    let mut memory = vec![0; 100_000];
    recorded.plan(&mut memory).expect("open");
    let report = replay(&recorded.take_trace()).expect("whole");
    report.difference.map(|difference| difference.to_string())
}

fn exchanged(recorded: &mut Recorded, max_num_tokens: usize, prompt: Vec<i32>) {
    let mut other = Recorded::new(flash(), &SIZES, limits(max_num_tokens)).expect("legal");
    submit(&mut other, prompt);
    recorded.core = other.core;
}

#[test]
fn the_first_answer_that_differs_is_named() {
    assert_eq!(difference(|_| ()), None);
    let shorter = difference(|recorded| exchanged(recorded, 256, vec![1; 600]));
    let expected = "call 1, after step 0: num_tokens is 512, and was 256";
    assert_eq!(shorter.as_deref(), Some(expected));
    let other = difference(|recorded| exchanged(recorded, 512, vec![2; 600]));
    assert!(other.is_some_and(|what| what.contains("the check of token_ids is")));
    let gone = difference(|recorded| assert!(recorded.core.abort(RequestId(1))));
    assert!(gone.is_some_and(|what| what.contains("is planned, and was not")));
    let closed = difference(|recorded| exchanged(recorded, 512, vec![1; 600]));
    assert_eq!(closed, None);
}

#[test]
fn a_trace_begins_with_the_first_call() {
    let mut recorded = Recorded::new(flash(), &SIZES, limits(512)).expect("legal");
    submit(&mut recorded, vec![1; 3]);
    assert!(recorded.record().is_err());
    assert_eq!(recorded.take_trace(), []);
}
