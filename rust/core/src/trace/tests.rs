//! Traces that lie: the core inside is exchanged while it is recorded, as no caller can.

use super::{Recorded, replay};
use crate::budget::PoolSizes;
use crate::core::{Event, NewRequest, OnFailure, RoomSettings, Side, Transfer};
use crate::geometry::tests::flash;
use crate::ids::RequestId;
use crate::limits::Limits;
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use crate::transfer::message::{Beat, Message, Offer, Prompt, Reason, Refusal, Target, Word};
use crate::transfer::placement::Placement;
use crate::transfer::proof::{Evidence, Transport};
use crate::transfer::receiving::{Inspection, Tag};
use crate::transfer::timing::Timing;

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

/// A decode worker's core that has one prompt coming from elsewhere.
fn with_room(prompt: Vec<i32>) -> Recorded {
    let mut recorded = Recorded::new(flash(), &SIZES, limits(512)).expect("legal");
    recorded.record().expect("nothing was called yet");
    let settings = RoomSettings {
        side: Side::Decode,
        placement: None,
        transport: Transport::Tcp,
        timing: Timing::default(),
        max_rooms: 9,
        max_bytes_in_flight: 1,
        deadline_ms: 1000,
    };
    recorded.open_rooms(&settings).expect("once");
    recorded.open_rooms(&settings).expect_err("only once, and the refusal is recorded");
    let transfer = Transfer {
        room: Room(3),
        epoch: Epoch(1),
        peer: Incarnation(1 << 100),
        peer_ranks: vec![0, 2],
        on_failure: OnFailure::Fail,
    };
    let new = NewRequest {
        prompt,
        max_tokens: 5,
        min_tokens: 0,
        stop_token_ids: &[],
        priority: 0,
        cache_salt: "",
        no_cache: false,
        transfer: Some(transfer),
    };
    recorded.submit(new).expect("accepted");
    recorded
}

#[test]
fn an_errand_that_differs_is_a_difference() {
    for (other, differs) in [(1, false), (2, true)] {
        let mut recorded = with_room(vec![1; 30]);
        let trace = recorded.trace.take();
        recorded.core = with_room(vec![other; 30]).core;
        recorded.trace = trace;
        let outcome = recorded.advance(&[]).expect("open");
        assert_eq!(outcome.errands.messages.len(), 2, "a word to each rank, with a hash");
        let report = replay(&recorded.take_trace()).expect("whole");
        let found = report.difference.map(|difference| difference.to_string());
        assert_eq!(found.is_some(), differs, "{found:?}");
        assert!(found.is_none_or(|what| what.contains("the check of Outcome")));
    }
}

#[test]
fn every_word_comes_back_and_a_damaged_one_is_found() {
    let target = Target { block: 1 << 30, generation: u32::MAX };
    let prompt = Prompt { num_tokens: 7, hash: u128::MAX - 5 };
    let offer = Offer {
        prompt,
        num_fences: 2,
        num_cached_tokens: 256,
        full: vec![target; 3],
        swa: vec![],
        state: target,
        aux: target,
    };
    let words = [
        Word::Join(prompt),
        Word::Want,
        Word::Offer(offer),
        Word::ChunkDone { chunk: 1, items: 9, digest: u64::MAX },
        Word::Final { chunks: 3, digest: 0 },
        Word::Commit,
        Word::Abort(Reason::Refused(Refusal::PromptMismatch)),
        Word::Abort(Reason::RoomDpRankMismatch),
        Word::AbortAck { drained: true },
        Word::Refuse(Refusal::Busy),
    ];
    let about = |word| Message::About { room: Room(Room::MAX), epoch: Epoch(9), word };
    let rooms = Message::Rooms(vec![(Room(1), Epoch(0)), (Room(2), Epoch(3))]);
    let more = [Message::Beat(Beat { count: 2, xor: 77 }), rooms];
    let from = PeerRank { incarnation: Incarnation(1 << 100), rank: 2 };
    let mut recorded = with_room(vec![1; 30]);
    for message in words.into_iter().map(about).chain(more) {
        let _ = recorded.advance(&[Event::Peer { from, message: &message }]).expect("open");
    }
    let incarnation = from.incarnation;
    let key = RoomKey { room: Room(3), epoch: Epoch(1), peer: incarnation };
    let tag = Tag { room: Room(3), epoch: Epoch(1), writer: incarnation };
    let found = Inspection { tag, digests: vec![1, u64::MAX], non_finite: true };
    for event in [
        Event::TicketEnded { ticket: Ticket(1), landed: true, digest: 5 },
        Event::Inspected { key, first_token: -1, found: &found },
        Event::Reconnected { incarnation, num_fences: 1 },
        Event::Fenced { incarnation, evidence: Evidence::AgentDestroyed },
        Event::PeerGone { incarnation, evidence: Some(Evidence::ReceiverJoined) },
        Event::PeerGone { incarnation, evidence: None },
        Event::Tick(5_000_000),
    ] {
        let _ = recorded.advance(&[event]).expect("open");
    }
    recorded.shutdown();
    let trace = recorded.take_trace();
    let whole = replay(&trace).expect("whole");
    assert_eq!((whole.difference, whole.is_complete, whole.num_calls), (None, true, 23));
    for place in 0..trace.len() {
        let mut damaged = trace.clone();
        damaged[place] ^= 1 << (place % 8);
        let replayed = replay(&damaged);
        let is_found = replayed.as_ref().map_or(true, |report| report.difference.is_some());
        assert!(is_found, "byte {place} makes no difference: {replayed:?}");
    }
}

#[test]
fn rooms_that_were_opened_before_the_recording_are_in_the_trace() {
    let mut recorded = with_room(vec![1; 30]);
    let settings = RoomSettings {
        side: Side::Prefill,
        placement: Some(Placement { rank: 1, size: 2 }),
        transport: Transport::InProcess,
        timing: Timing::default(),
        max_rooms: 9,
        max_bytes_in_flight: 1,
        deadline_ms: 1000,
    };
    let mut late = Recorded::new(flash(), &SIZES, limits(512)).expect("legal");
    late.open_rooms(&settings).expect("once");
    late.record().expect("nothing was called yet");
    late.shutdown();
    recorded.shutdown();
    for mut core in [late, recorded] {
        let report = replay(&core.take_trace()).expect("whole");
        assert_eq!((report.difference, report.is_complete), (None, true));
    }
}
