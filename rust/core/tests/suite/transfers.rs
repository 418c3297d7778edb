//! Prompts computed by one core and decoded by another.

use dsv4_core::budget::PoolSizes;
use dsv4_core::error::Error;
use dsv4_core::ids::RequestId;
use dsv4_core::limits::Limits;
use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room};
use dsv4_core::transfer::message::{Message, Reason, Refusal, Word};
use dsv4_core::transfer::prealloc::Demand;
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::transfer::receiving::Inspection;
use dsv4_core::transfer::runs::Run;
use dsv4_core::{Event, NewRequest, OnFailure, Outcome, RoomSettings, Side, Transfer};

use crate::driver::{Driver, limits, real_geometry, request, sizes};
use crate::pair::{D, P, Pair, WORKERS, other_side, settings};

#[test]
fn a_prompt_is_computed_by_one_core_and_decoded_by_another() {
    for prompt in [1, 64, 127, 128, 191, 255, 256, 257, 600, 1024] {
        let mut pair = Pair::roomy(&limits());
        let [p, d] = pair.submit(5, prompt, 4);
        pair.run();
        assert_eq!(pair.tokens(D, d), [7, 7, 7, 7], "{prompt} tokens");
        assert_eq!(pair.ends(D, d), [2]);
        assert_eq!((pair.tokens(P, p), pair.ends(P, p)), (vec![7], vec![2]));
        assert_eq!(pair.num_resets, 2, "a slot and an aux row");
        pair.assert_at_rest();
    }
}

// ---- where the blocks are -----------------------------------------------------------------------

const GROUPS: [&str; 4] = ["full", "swa", "state", "aux"];

fn stats(pair: &Pair, side: usize, state: &str) -> [u64; 4] {
    GROUPS.map(|group| pair.stat(side, &format!("{group}_{state}")))
}

/// The decode side has told where to write 600 tokens, and nothing has come.
fn offered(limits: &Limits) -> (Pair, [RequestId; 2]) {
    let mut pair = Pair::roomy(limits);
    let ids = pair.submit(5, 600, 4);
    assert!(pair.deliver(P) && pair.deliver(D), "Join, Want");
    assert_eq!(pair.mail[P].len(), 1, "Offer");
    (pair, ids)
}

/// The prefill side computed the first chunk of two, and its ticket is under way.
fn transferring() -> (Pair, [RequestId; 2]) {
    let (mut pair, ids) = offered(&Limits { max_num_tokens: 512, ..limits() });
    pair.deliver(P);
    assert!(pair.step(P));
    assert_eq!(pair.postings.len(), 1);
    (pair, ids)
}

#[test]
fn what_is_disclosed_is_coming_in_exactly_the_prompt_the_tail_a_slot_and_a_row() {
    let (pair, _) = offered(&limits());
    assert_eq!(stats(&pair, D, "incoming"), [3, 3, 1, 1]);
    assert_eq!(stats(&pair, D, "open"), [3, 3, 1, 1]);
    assert_eq!(stats(&pair, D, "cached"), [0; 4]);
    assert_eq!(pair.num_resets, 2);
}

#[test]
fn a_landing_takes_what_the_arithmetic_says_for_every_length() {
    let lengths =
        [1, 63, 64, 65, 127, 128, 129, 191, 192, 255, 256, 257, 383, 384, 385, 1024, 1025];
    for num_tokens in lengths {
        let mut pair = Pair::roomy(&Limits { max_num_tokens: 2048, ..limits() });
        pair.submit(5, num_tokens, 600);
        assert!(pair.deliver(P) && pair.deliver(D), "Join, Want");
        let (num_output_tokens, num_cached_tokens, num_in_flight) = (600, 0, 1);
        let demand = Demand { num_tokens, num_output_tokens, num_cached_tokens, num_in_flight };
        let blocks = demand.blocks(&real_geometry());
        let now = [blocks.now_full as u64, blocks.now_swa as u64, 1, 1];
        assert_eq!(stats(&pair, D, "incoming"), now, "{num_tokens} tokens");
        assert!(blocks.now_swa <= blocks.need_swa);
        // Promised on top: the rest of what 512 tokens of output need.
        let reserved = real_geometry().full_blocks(num_tokens + 512) - blocks.now_full;
        assert_eq!(pair.stat(D, "full_reserved"), reserved as u64, "{num_tokens} tokens");
    }
}

#[test]
fn nothing_is_taken_before_the_other_side_is_about_to_compute() {
    let mut pair = Pair::roomy(&limits());
    let d = pair.submit_to(D, 5, request(600, 4));
    assert_eq!(stats(&pair, D, "open"), [0; 4]);
    let what = pair.sides[D].core.explain(d);
    assert!(what.contains("waits until its prompt is about to be computed"), "{what}");
    assert!(pair.sides[D].core.abort(d), "nothing to wait for");
    pair.assert_at_rest();
}

#[test]
fn blocks_are_the_requests_own_when_the_last_writer_is_done_and_the_checks_pass() {
    let (mut pair, [_, d]) = offered(&limits());
    while pair.checks.is_empty() {
        if !(pair.deliver(P) || pair.deliver(D) || pair.land()) {
            pair.step(P);
        }
    }
    assert_eq!(stats(&pair, D, "incoming"), [3, 3, 1, 1], "landed, and not checked");
    assert!(pair.inspect());
    assert_eq!(stats(&pair, D, "incoming"), [0; 4]);
    assert_eq!((pair.stat(D, "full_open"), pair.stat(D, "full_sealed")), (1, 2));
    assert_eq!(pair.tokens(D, d), [7]);
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn an_abort_after_the_offer_quarantines_until_the_other_side_acknowledged() {
    let (mut pair, [p, d]) = offered(&limits());
    assert!(pair.sides[D].core.abort(d));
    pair.settle(D);
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    pair.wait(1_000_000);
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1], "time proves nothing");
    assert_eq!(pair.ends(D, d), [0; 0]);
    pair.pump();
    assert_eq!(stats(&pair, D, "quarantined"), [0; 4]);
    assert_eq!(pair.ends(P, p), [6]);
    pair.assert_at_rest();
}

#[test]
fn an_offer_that_is_lost_may_still_arrive_so_its_blocks_wait_for_a_proof() {
    let (mut pair, [_, d]) = offered(&limits());
    pair.mail[P].clear();
    assert!(pair.sides[D].core.abort(d));
    pair.settle(D);
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn an_abort_in_mid_transfer_waits_for_the_ticket_that_is_under_way() {
    let (mut pair, [p, d]) = transferring();
    assert!(pair.sides[D].core.abort(d));
    pair.settle(D);
    let posting = pair.postings.pop_front().expect("under way");
    pair.pump();
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1], "the ticket may still land");
    assert_eq!(pair.ends(P, p), [6], "the prefill side computes no more");
    assert_eq!(pair.stat(P, "full_read"), 2, "its source is read to the end");
    assert_eq!(pair.stat(P, "full_retired"), 2);
    pair.end(&posting, true);
    pair.pump();
    assert_eq!(stats(&pair, D, "quarantined"), [0; 4]);
    pair.assert_at_rest();
}

#[test]
fn an_abort_while_decoding_is_local() {
    let (mut pair, [_, d]) = offered(&limits());
    while pair.tokens(D, d).is_empty() {
        pair.pump();
        pair.step(P);
    }
    let plan = pair.plan(D).expect("decodes");
    assert!(pair.sides[D].core.abort(d));
    assert_eq!(stats(&pair, D, "quarantined"), [0; 4]);
    pair.finish(D, &plan);
    pair.run();
    assert_eq!(pair.ends(D, d), [0; 0]);
    pair.assert_at_rest();
}

#[test]
fn the_prefill_side_aborts_in_every_phase_and_the_decode_side_computes_for_itself() {
    for phase in 0..4 {
        let (mut pair, [p, d]) = if phase == 3 { transferring() } else { offered(&limits()) };
        match phase {
            0 => pair.mail[P].clear(), // the offer is lost
            1 => assert!(pair.deliver(P)),
            2 => {
                pair.deliver(P);
                pair.plan(P).map(|plan| assert_eq!(plan.num_requests, 1)).expect("computes");
            }
            _ => {}
        }
        assert!(pair.sides[P].core.abort(p), "phase {phase}");
        pair.settle(P);
        if phase == 2 {
            let step = dsv4_core::ids::StepId(1);
            pair.advance(P, Event::StepDone { step, tokens: &[], non_finite: &[] });
        }
        pair.wait(300);
        pair.run();
        assert_eq!((pair.ends(P, p), pair.ends(D, d)), (vec![], vec![2]), "phase {phase}");
        assert_eq!(pair.tokens(D, d), [7; 4]);
        assert_eq!(pair.stat(D, "num_recomputed"), 1);
        pair.assert_at_rest();
    }
}

#[test]
fn a_request_that_may_not_fall_back_ends_once() {
    let mut pair = Pair::roomy(&limits());
    let transfer = Some(Transfer { on_failure: OnFailure::Fail, ..other_side(D, 5) });
    let new = NewRequest { transfer, ..request(600, 4) };
    let d = pair.sides[D].core.submit(new).expect("accepted");
    pair.settle(D);
    let p = pair.submit_to(P, 5, request(600, 4));
    pair.deliver(P);
    pair.deliver(D);
    assert!(pair.sides[P].core.abort(p));
    pair.settle(P);
    pair.run();
    assert_eq!(pair.told[D], [(d, -1, 6)]);
    pair.assert_at_rest();
}

#[test]
fn what_is_computed_again_never_touches_what_may_still_be_written() {
    let (mut pair, [p, d]) = transferring();
    let posting = pair.postings.pop_front().expect("under way");
    assert!(pair.sides[P].core.abort(p));
    pair.settle(P);
    pair.run(); // D decodes in blocks of its own, while the ticket is under way
    assert_eq!(pair.ends(D, d), [2]);
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    pair.end(&posting, true); // asserts that nobody used them
    pair.wait(300);
    pair.run();
    pair.assert_at_rest();
}

// ---- proofs -------------------------------------------------------------------------------------

#[test]
fn a_ticket_that_failed_proves_nothing_and_evidence_of_the_writers_end_does() {
    let (mut pair, [_, d]) = transferring();
    let posting = pair.postings.pop_front().expect("under way");
    pair.end(&posting, false);
    pair.wait(10_000);
    pair.run();
    assert_eq!(pair.ends(D, d), [2]);
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    let incarnation = WORKERS[P].incarnation;
    for evidence in [None, Some(Evidence::ProcessExit)] {
        pair.advance(D, Event::PeerGone { incarnation, evidence });
        assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1], "{evidence:?}");
    }
    let evidence = Some(Evidence::TaskJoined);
    pair.advance(D, Event::PeerGone { incarnation, evidence });
    pair.assert_at_rest();
}

/// A decode core with a room that two ranks of the peer write, and what it said to them.
struct TwoRanks {
    decode: Driver,
    id: RequestId,
    items: u32,
}

impl TwoRanks {
    fn offered() -> Self {
        let mut decode = Driver::roomy(limits());
        decode.core.open_rooms(&settings(Side::Decode)).expect("once");
        let transfer = Some(Transfer { peer_ranks: vec![0, 3], ..other_side(D, 5) });
        let new = NewRequest { transfer, ..request(600, 4) };
        let id = decode.core.submit(new).expect("accepted");
        let mut room = Self { decode, id, items: 0 };
        let said = room.hear(3, Word::Want).errands.messages;
        let offers: Vec<u16> = said
            .iter()
            .filter_map(|(to, message)| match message {
                Message::About { word: Word::Offer(offer), .. } => {
                    room.items = offer.num_items();
                    Some(to.rank)
                }
                _ => None,
            })
            .collect();
        assert_eq!(offers, [0, 3]);
        room
    }

    fn hear(&mut self, rank: u16, word: Word) -> Outcome {
        let from = PeerRank { rank, ..WORKERS[P] };
        let message = Message::About { room: Room(5), epoch: Epoch(0), word };
        let events = [Event::Peer { from, message: &message }];
        let outcome = self.decode.core.advance(&events).expect("legal");
        self.decode.core.audit().expect("balanced");
        outcome
    }
}

#[test]
fn ranks_that_write_one_prompt_are_obligations_of_their_own() {
    let mut room = TwoRanks::offered();
    assert!(room.decode.core.abort(room.id));
    for (rank, drained, left) in [(0, true, 3), (0, true, 3), (3, false, 3), (3, true, 0)] {
        room.hear(rank, Word::AbortAck { drained });
        assert_eq!(room.decode.stat("full_quarantined"), left, "rank {rank}, drained {drained}");
    }
    room.decode.assert_at_rest();
}

#[test]
fn a_refusal_is_a_proof_only_where_nothing_will_ever_be_written() {
    let refusals = [
        (Refusal::Busy, 3),
        (Refusal::PromptMismatch, 3),
        (Refusal::Unknown, 0),
        (Refusal::Closed, 0),
    ];
    for (refusal, left) in refusals {
        let mut room = TwoRanks::offered();
        room.hear(0, Word::Refuse(refusal));
        room.hear(3, Word::Refuse(refusal));
        assert_eq!(room.decode.stat("full_quarantined"), left, "{refusal:?}");
        room.hear(0, Word::AbortAck { drained: true });
        room.hear(3, Word::AbortAck { drained: true });
        room.decode.run(100);
        room.decode.assert_at_rest();
    }
}

#[test]
fn what_was_written_must_be_what_was_planned() {
    let mut room = TwoRanks::offered();
    let items = room.items - 1;
    for rank in [0, 3] {
        room.hear(rank, Word::ChunkDone { chunk: 1, items, digest: 1 });
        let outcome = room.hear(rank, Word::Final { chunks: 1, digest: 1 });
        assert!(outcome.errands.checks.is_empty(), "nobody looks at what is not whole");
    }
    assert_eq!(room.decode.stat("num_recomputed"), 1);
    room.decode.run(100);
    room.decode.assert_at_rest();
}

#[test]
fn a_prompt_is_there_when_every_rank_said_so() {
    let mut room = TwoRanks::offered();
    let items = room.items;
    for rank in [3, 0] {
        assert_eq!(room.decode.stat("full_incoming"), 3);
        room.hear(rank, Word::ChunkDone { chunk: 1, items, digest: 1 });
        let outcome = room.hear(rank, Word::Final { chunks: 1, digest: 1 });
        assert_eq!(outcome.errands.checks.len(), usize::from(rank == 0), "rank {rank}");
    }
    let outcome = room.hear(3, Word::Abort(Reason::Cancelled)); // too late to be written, not to fail
    assert!(outcome.request_ids.is_empty());
    assert_eq!(room.decode.stat("num_recomputed"), 1);
    assert_eq!(room.decode.stat("full_quarantined"), 0, "both were done");
    room.decode.run(100);
    room.decode.assert_at_rest();
}

#[test]
fn a_lease_that_expires_fails_the_room_and_frees_nothing() {
    let (mut pair, [_, d]) = transferring();
    for _ in 0..40 {
        pair.now_us += 1_000_000;
        pair.advance(D, Event::Tick(pair.now_us));
        pair.mail[P].clear();
    }
    while pair.step(D) {}
    assert_eq!(pair.ends(D, d), [2], "computed here");
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    let incarnation = WORKERS[P].incarnation;
    pair.advance(D, Event::Fenced { incarnation, evidence: Evidence::TaskJoined });
    pair.settle(D);
    pair.sides[D].assert_at_rest();
}

#[test]
fn nobody_waits_for_ever_for_a_side_that_lives_and_never_comes() {
    let mut pair = Pair::roomy(&limits());
    let [alone, both] =
        [pair.submit_to(D, 1, request(600, 4)), pair.submit_to(D, 2, request(600, 4))];
    let other = pair.submit_to(P, 2, request(600, 4));
    pair.run();
    let lonely = pair.submit_to(P, 3, request(600, 4));
    for _ in 0..301 {
        pair.wait(1000);
        pair.pump(); // beats go to and fro
    }
    pair.run();
    assert_eq!((pair.ends(D, alone), pair.tokens(D, alone).len()), (vec![2], 4));
    assert_eq!(pair.told[P], [(other, 7, 0), (other, -1, 2), (lonely, -1, 6)]);
    assert_eq!((pair.ends(D, both), pair.stat(D, "num_recomputed")), (vec![2], 1));
    pair.assert_at_rest();
}

#[test]
fn a_clock_that_starts_late_expires_nothing() {
    let mut decode = Driver::roomy(limits());
    decode.core.open_rooms(&settings(Side::Decode)).expect("once");
    let transfer = Some(other_side(D, 5));
    decode.core.submit(NewRequest { transfer, ..request(600, 4) }).expect("accepted");
    decode.core.advance(&[Event::Tick(1 << 50)]).expect("open");
    assert_eq!(decode.stat("num_arriving"), 1);
    decode.core.advance(&[Event::Tick((1 << 50) + 300_000_001)]).expect("open");
    assert_eq!((decode.stat("num_arriving"), decode.stat("num_waiting")), (0, 1));
}

#[test]
fn every_message_may_come_twice_and_late() {
    let mut pair = Pair::roomy(&limits());
    let [p, d] = pair.submit(5, 600, 4);
    let mut said: Vec<(usize, Message)> = vec![];
    for _ in 0..200 {
        for side in [P, D] {
            if let Some(message) = pair.mail[side].pop_front() {
                said.push((side, message.clone()));
                pair.hear(side, &message);
                pair.hear(side, &message);
            }
        }
        if !pair.land() && !pair.inspect() {
            pair.step(P);
            pair.step(D);
        }
    }
    for (side, message) in said {
        pair.hear(side, &message);
    }
    pair.run();
    assert_eq!((pair.ends(P, p), pair.ends(D, d)), (vec![2], vec![2]));
    assert!(pair.stat(D, "num_late_messages") > 0);
    assert_eq!(pair.stat(D, "num_stale_proofs"), 0);
    pair.assert_at_rest();
}

#[test]
fn a_wrong_tag_digest_or_flag_or_token_is_never_served() {
    let tampers: [fn(&mut Inspection); 3] = [
        |found| found.tag.room.0 += 1,
        |found| found.digests[0] ^= 1,
        |found| found.non_finite = true,
    ];
    for case in 0..4 {
        let mut pair = Pair::roomy(&Limits { prefix_cache: true, ..limits() });
        pair.tampered = tampers.get(case).copied();
        pair.first_token = if case == 3 { 1000 } else { 7 };
        let [_, d] = pair.submit(5, 600, 4);
        for _ in 0..20 {
            pair.pump();
            pair.step(P);
        }
        assert_eq!(pair.stat(D, "num_recomputed"), 1, "case {case}");
        assert_eq!(pair.tokens(D, d), [0; 0], "case {case}");
        assert_eq!(pair.stat(D, "full_cached"), 0, "what was not believed is not shared");
        pair.run();
        assert_eq!((pair.tokens(D, d), pair.ends(D, d)), (vec![7; 4], vec![2]));
        assert_eq!(pair.stat(D, "prefix_hit_tokens"), 0);
        pair.assert_at_rest();
    }
}

// ---- what is computed and sent ------------------------------------------------------------------

#[test]
fn chunks_leave_as_they_are_done_and_the_last_takes_the_rest_along() {
    let (mut pair, _) = transferring();
    let sizes = |pair: &Pair| {
        let copies = &pair.postings.back().expect("posted").copies;
        let count = |runs: &[Run]| runs.iter().map(|run| run.count).sum::<u32>();
        (count(&copies.full), count(&copies.swa), copies.state.is_some(), copies.aux.is_some())
    };
    assert_eq!(sizes(&pair), (2, 0, false, false));
    assert!(pair.step(P));
    assert_eq!(sizes(&pair), (1, 3, true, true));
    assert_eq!(pair.stat(P, "num_running"), 0, "the tickets hold what they read");
    assert_eq!(stats(&pair, P, "read"), [3, 3, 1, 1]);
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn the_last_chunk_is_sent_even_without_blocks_of_its_own() {
    let limits = Limits { prefix_cache: true, ..limits() };
    let mut pair = Pair::roomy(&limits);
    pair.submit(5, 512, 4);
    pair.run();
    pair.submit(6, 512, 4); // D has both blocks
    assert!(pair.deliver(P) && pair.deliver(D));
    assert_eq!(stats(&pair, D, "incoming"), [0, 2, 1, 1]);
    pair.deliver(P);
    while pair.step(P) {}
    assert_eq!(pair.postings.len(), 1);
    assert_eq!(pair.postings[0].copies.num_items(), 4, "two window blocks, slot and row");
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn what_the_cache_had_of_a_prompt_leaves_before_anything_is_computed() {
    let limits = Limits { prefix_cache: true, ..limits() };
    let mut pair = Pair::roomy(&limits);
    let warm = pair.sides[P].submit(600, 1);
    pair.run();
    assert_eq!(pair.ends(P, warm), [2]);
    pair.submit(5, 600, 4);
    assert!(pair.deliver(P) && pair.deliver(D) && pair.deliver(P));
    let plan = pair.plan(P).expect("starts behind the hit");
    assert_eq!(plan.started_cached_tokens, [512]);
    pair.settle(P);
    assert_eq!(pair.postings.len(), 1, "in flight before the step is done");
    assert_eq!(pair.postings[0].copies.num_items(), 2);
    pair.finish(P, &plan);
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn what_is_not_finite_is_not_sent() {
    let (mut pair, [p, d]) = offered(&Limits { max_num_tokens: 1024, ..limits() });
    pair.deliver(P);
    let plan = pair.plan(P).expect("computes");
    let done = Event::StepDone { step: plan.step_id, tokens: &[0], non_finite: &[0] };
    pair.advance(P, done);
    assert_eq!(pair.told[P], [(p, -1, 4)]);
    assert!(pair.postings.is_empty());
    pair.run();
    assert_eq!(pair.ends(D, d), [2]);
    assert_eq!(pair.stat(D, "num_recomputed"), 1);
    pair.assert_at_rest();
}

#[test]
fn a_first_token_that_ends_the_request_ends_it_without_a_step() {
    for (max_tokens, stop_token_ids, code) in [(1, &[][..], 2), (9, &[7][..], 1)] {
        let mut pair = Pair::roomy(&limits());
        let new = || NewRequest { stop_token_ids, ..request(600, max_tokens) };
        let d = pair.submit_to(D, 5, new());
        pair.submit_to(P, 5, new());
        while pair.told[D].is_empty() {
            pair.pump();
            pair.step(P);
        }
        assert_eq!(pair.told[D], [(d, 7, code)]);
        assert!(!pair.step(D), "nothing to decode");
        pair.run();
        pair.assert_at_rest();
    }
}

#[test]
fn bytes_in_flight_are_bounded_and_what_waits_is_held() {
    let mut sides = [Driver::roomy(limits()), Driver::roomy(limits())];
    let narrow = RoomSettings { max_bytes_in_flight: 1, ..settings(Side::Prefill) };
    sides[P].core.open_rooms(&narrow).expect("once");
    sides[D].core.open_rooms(&settings(Side::Decode)).expect("once");
    let mut pair = Pair::over(sides);
    let [p, d] = pair.submit(5, 1200, 2);
    assert!(pair.deliver(P) && pair.deliver(D) && pair.deliver(P));
    while pair.step(P) {}
    assert_eq!(pair.postings.len(), 1, "one ticket goes alone");
    assert_eq!(pair.stat(P, "num_tickets_waiting"), 2);
    assert_eq!(pair.stat(P, "full_read"), 5);
    let posting = pair.postings.pop_front().expect("one");
    pair.end(&posting, true);
    assert_eq!(pair.postings.len(), 1);
    assert!(pair.sides[D].core.abort(d)); // what waits is never posted
    pair.settle(D);
    let posting = pair.postings.pop_front().expect("one");
    pair.pump();
    assert_eq!((pair.stat(P, "num_tickets_waiting"), pair.ends(P, p)), (0, vec![6]));
    assert_eq!(pair.stat(D, "full_quarantined"), 5, "the ticket under way may still land");
    pair.end(&posting, true);
    pair.run();
    pair.assert_at_rest();
}

// ---- back-pressure ------------------------------------------------------------------------------

/// Two sides of which D has these pools.
fn narrow(sizes: PoolSizes, limits: &Limits) -> Pair {
    let decode = Driver::new(real_geometry(), sizes, limits.clone());
    Pair::new([Driver::roomy(limits.clone()), decode])
}

/// Lands as many of `rooms` requests as there is room for; returns how many.
fn landed(pair: &mut Pair, rooms: u64) -> u64 {
    for room in 0..rooms {
        pair.submit(room, 600, 4);
    }
    while pair.deliver(P) || pair.deliver(D) {}
    pair.stat(D, "num_landing")
}

#[test]
fn a_landing_takes_all_groups_or_none() {
    for (full, swa, slots, most) in [(64, 128, 2, 2), (7, 128, 8, 2), (64, 24, 8, 2)] {
        let limits = Limits { max_num_tokens: 1024, ..limits() };
        let mut pair = narrow(sizes(full, swa, slots), &limits);
        assert_eq!(landed(&mut pair, 5), most, "{full} {swa} {slots}");
        let held = stats(&pair, D, "incoming");
        assert_eq!(held, [3, 3, 1, 1].map(|each| each * most));
        let waits = pair.sides[D].core.explain(RequestId(3));
        assert!(waits.contains("blocks, "), "{waits}");
        pair.run();
        assert_eq!(pair.stat(D, "num_recomputed"), 0, "they wait, and nothing fails");
        for id in 1..=5 {
            assert_eq!(pair.ends(D, RequestId(id)), [2], "request {id}");
        }
        pair.assert_at_rest();
    }
}

#[test]
fn no_row_no_landing() {
    let limits = Limits { max_num_requests: 1, ..limits() };
    let mut pair = narrow(sizes(64, 128, 2), &limits); // two slots, two rows
    pair.submit(1, 600, 4);
    pair.submit(2, 600, 4);
    while pair.deliver(P) || pair.deliver(D) {}
    assert_eq!(pair.stat(D, "aux_free"), 0);
    pair.submit(3, 600, 4);
    pair.run();
    for id in 1..=3 {
        assert_eq!(pair.ends(D, RequestId(id)), [2]);
    }
    pair.assert_at_rest();
}

#[test]
fn what_waits_for_proofs_holds_offers_back_and_a_proof_brings_them() {
    let (mut pair, [_, d]) = offered(&Limits { max_num_tokens: 2048, ..limits() });
    pair.mail[P].clear();
    assert!(pair.sides[D].core.abort(d)); // 1 of 8 slots is quarantined: more than one in ten
    pair.settle(D);
    pair.mail.iter_mut().for_each(std::collections::VecDeque::clear); // the abort is lost as well
    let [_, next] = pair.submit(6, 600, 4);
    while pair.deliver(P) || pair.deliver(D) {}
    assert_eq!(pair.stat(D, "num_landing"), 0);
    let waits = pair.sides[D].core.explain(next);
    assert!(waits.contains("state blocks"), "{waits}");
    pair.wait(300); // said again
    pair.run();
    assert_eq!(pair.ends(D, next), [2]);
    pair.assert_at_rest();
}

#[test]
fn a_prompt_that_landed_waits_for_a_row_and_then_decodes() {
    let limits = Limits { max_num_requests: 1, ..limits() };
    let mut pair = narrow(sizes(64, 128, 3), &limits);
    let [[_, first], [_, second]] = [pair.submit(1, 600, 40), pair.submit(2, 600, 4)];
    while pair.stat(D, "num_seated") == 0 || pair.stat(D, "num_running") == 0 {
        pair.pump();
        pair.step(P);
        pair.step(D);
    }
    assert_eq!(pair.tokens(D, second), [7], "told at once");
    let what = pair.sides[D].core.explain(second);
    assert!(what.contains("waits for a row"), "{what}");
    pair.run();
    assert_eq!((pair.ends(D, first), pair.ends(D, second)), (vec![2], vec![2]));
    pair.assert_at_rest();
}

#[test]
fn a_request_that_waits_for_a_row_can_be_stopped_and_aborted() {
    for stops in [true, false] {
        let limits = Limits { max_num_requests: 1, ..limits() };
        let mut pair = narrow(sizes(64, 128, 3), &limits);
        let [[_, first], [_, second]] = [pair.submit(1, 600, 40), pair.submit(2, 600, 4)];
        while pair.stat(D, "num_seated") == 0 || pair.stat(D, "num_running") == 0 {
            pair.pump();
            pair.step(P);
            pair.step(D);
        }
        if stops {
            pair.advance(D, Event::Stopped(second));
        } else {
            assert!(pair.sides[D].core.abort(second));
        }
        assert_eq!(pair.stat(D, "num_seated"), 0);
        pair.run();
        let code = if stops { vec![3] } else { vec![] };
        assert_eq!((pair.ends(D, first), pair.ends(D, second)), (vec![2], code));
        pair.assert_at_rest();
    }
}

/// A stream of short requests of its own keeps the pools of D busy; the long arrival is overtaken for
/// so many steps and no more.
#[test]
fn an_arrival_that_waited_long_enough_holds_the_queue_back() {
    let limits = Limits { aging_steps: 20, max_num_requests: 4, ..limits() };
    let mut pair = narrow(sizes(8, 60, 8), &limits);
    for _ in 0..4 {
        pair.sides[D].submit(300, 30);
    }
    pair.step(D);
    let [_, long] = pair.submit(1, 1800, 4);
    let mut num_steps = 0;
    while pair.tokens(D, long).is_empty() {
        pair.pump();
        pair.step(P);
        if pair.sides[D].stat("num_waiting") == 0 {
            pair.sides[D].submit(300, 30);
        }
        pair.step(D);
        num_steps += 1;
        assert!(num_steps < 200, "{}", pair.sides[D].core.explain(long));
    }
    assert!(num_steps > 20, "it was overtaken first");
    pair.run();
    pair.assert_at_rest();
}

#[test]
fn a_landing_leaves_what_those_that_run_need_to_finish() {
    // Whoever runs may grow to 8 blocks of 8, of which it was promised 5: a landing of 2 would fit
    // now, and take what it needs in the end.
    let mut pair = narrow(sizes(8, 128, 8), &limits());
    let local = pair.sides[D].submit(600, 1400);
    assert!(pair.step(D));
    assert_eq!(pair.stat(D, "full_free") - pair.stat(D, "full_reserved"), 3);
    pair.submit(1, 300, 100);
    while pair.deliver(P) || pair.deliver(D) {}
    assert_eq!(pair.stat(D, "num_landing"), 0);
    pair.run();
    assert_eq!((pair.ends(D, local), pair.ends(D, RequestId(2))), (vec![2], vec![2]));
    assert_eq!(pair.stat(D, "num_preemptions"), 0);
    pair.assert_at_rest();
}

#[test]
fn places_are_asked_for_two_steps_ahead() {
    let mut pair = Pair::roomy(&Limits { max_num_tokens: 512, ..limits() });
    for room in 0..5 {
        pair.submit_to(P, room, request(400, 4));
    }
    let asked = pair.mail[D].len();
    assert_eq!(asked, 2, "two of 400 tokens fit two steps of 512");
    for room in 0..5 {
        pair.submit_to(D, room, request(400, 4));
    }
    pair.wait(300);
    pair.run();
    assert_eq!(pair.told[D].iter().filter(|told| told.2 == 2).count(), 5);
    pair.assert_at_rest();
}

#[test]
fn a_peer_that_has_no_place_does_not_hold_up_prompts_for_another() {
    let mut pair = Pair::roomy(&Limits { max_num_tokens: 512, ..limits() });
    for room in 0..5 {
        pair.submit_to(P, room, request(400, 4));
    }
    let other = PeerRank { incarnation: Incarnation(0xc), rank: 0 };
    let transfer = Transfer { peer: other.incarnation, ..other_side(P, 9) };
    let new = NewRequest { transfer: Some(transfer), ..request(400, 4) };
    pair.sides[P].core.submit(new).expect("accepted");
    let outcome = pair.sides[P].core.advance(&[]).expect("open");
    assert!(matches!(&outcome.errands.messages[..], [(to, _)] if *to == other));
}

// ---- refusals -----------------------------------------------------------------------------------

#[test]
fn a_room_is_used_once_and_only_by_a_core_that_has_rooms() {
    let mut alone = Driver::roomy(limits());
    let new = |room| NewRequest { transfer: Some(other_side(D, room)), ..request(10, 4) };
    assert_eq!(alone.try_submit(new(5)), Err(Error::NoRooms));
    let mut pair = Pair::roomy(&limits());
    pair.submit(5, 600, 4);
    let core = &mut pair.sides[D].core;
    assert_eq!(core.submit(new(5)), Err(Error::RoomTaken { room: 5, what: "is in use" }));
    pair.run();
    let core = &mut pair.sides[D].core;
    assert_eq!(core.submit(new(5)), Err(Error::RoomTaken { room: 5, what: "is over" }));
    assert!(core.submit(new(1 << 63)).is_err(), "2^63 - 1 is the last room");
    for peer_ranks in [vec![], vec![1, 1]] {
        let transfer = Some(Transfer { peer_ranks, ..other_side(D, 8) });
        assert!(core.submit(NewRequest { transfer, ..request(10, 4) }).is_err());
    }
    assert!(core.open_rooms(&settings(Side::Decode)).is_err(), "told its side once");
    pair.assert_at_rest();
}

#[test]
fn requests_that_wait_for_the_other_side_count_as_queued() {
    let mut pair = Pair::roomy(&Limits { max_queued_requests: 2, ..limits() });
    pair.submit_to(D, 1, request(10, 4));
    pair.submit_to(D, 2, request(10, 4));
    let third = NewRequest { transfer: Some(other_side(D, 3)), ..request(10, 4) };
    assert!(matches!(pair.sides[D].core.submit(third), Err(Error::QueueFull { .. })));
}

#[test]
fn a_shutdown_quarantines_what_may_still_be_written() {
    let (mut pair, _) = transferring();
    pair.sides[D].core.shutdown();
    assert_eq!(stats(&pair, D, "quarantined"), [3, 3, 1, 1]);
    pair.sides[D].core.audit().expect("balanced");
    pair.sides[P].core.shutdown();
    assert_eq!(stats(&pair, P, "read"), [2, 0, 0, 0]);
    pair.sides[P].core.audit().expect("balanced");
}

#[test]
fn a_prompt_that_differs_is_refused_by_the_prefill_side() {
    let mut pair = Pair::roomy(&limits());
    let d = pair.submit_to(D, 5, request(600, 4));
    let p = pair.submit_to(P, 5, request(601, 4));
    pair.run();
    pair.wait(300);
    pair.run();
    assert_eq!((pair.ends(P, p), pair.ends(D, d)), (vec![6], vec![2]));
    pair.assert_at_rest();
}

// ---- found by the exhaustive search (tests/search) ---------------------------------------------

#[test]
fn a_room_with_a_peer_that_is_known_to_be_dead_does_not_start() {
    let mut pair = Pair::roomy(&limits());
    let incarnation = WORKERS[P].incarnation;
    let evidence = Some(Evidence::TaskJoined);
    pair.advance(D, Event::PeerGone { incarnation, evidence });
    let new = NewRequest { transfer: Some(other_side(D, 5)), ..request(600, 4) };
    let gone = Err(Error::RoomTaken { room: 5, what: "names a peer that is gone" });
    assert_eq!(pair.sides[D].core.submit(new), gone, "nobody would ever prove that it is done");
    pair.assert_at_rest();
}

#[test]
fn an_offer_from_before_the_way_in_was_cut_is_not_taken_behind_it() {
    let (mut pair, [_, d]) = offered(&limits());
    let stale = pair.mail[P].pop_front().expect("the offer");
    let incarnation = WORKERS[P].incarnation;
    pair.advance(D, Event::Fenced { incarnation, evidence: Evidence::TaskJoined });
    assert_eq!(stats(&pair, D, "quarantined"), [0; 4], "the fence is a proof");
    let incarnation = WORKERS[D].incarnation;
    pair.advance(P, Event::Reconnected { incarnation, num_fences: 1 });
    let second = pair.submit(6, 600, 4); // may get the same blocks
    pair.hear(P, &stale);
    pair.run();
    assert_eq!(pair.tokens(D, second[D]), [7; 4]);
    assert_eq!(pair.ends(D, d), [2], "it computed for itself");
    pair.assert_at_rest();
}
