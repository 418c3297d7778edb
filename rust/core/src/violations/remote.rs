//! Broken invariants of blocks that others may touch.

use super::{core, failed, heals, stat, step, submit};
use crate::ids::{BlockId, Group, RequestId, StepId};
use crate::pool::{Pool, SlotState, Why};
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket, WriterKey};
use crate::transfer::message::{Message, Offer, Word};
use crate::transfer::proof::Transport;
use crate::transfer::receiving::{Inspection, Tag};
use crate::transfer::timing::Timing;
use crate::{Core, Event, NewRequest, OnFailure, Outcome, RoomSettings, Side, Transfer};

fn writer(room: u64) -> WriterKey {
    let peer = PeerRank { incarnation: Incarnation(7), rank: 0 };
    WriterKey { room: Room(room), epoch: Epoch(0), peer }
}

#[test]
fn a_block_that_is_settled_while_somebody_may_write_it_is_nobodys_until_that_one_is_gone() {
    let pool = Pool::new(Group::Full, 1);
    let block = pool.take(RequestId(1)).expect("free").disclose(&[writer(1)]).expect("open");
    let refused = block.settle().expect_err("it has a writer");
    assert!(refused.violation.to_string().contains("has writers"), "{}", refused.violation);
    drop(refused.block);
    pool.repair(); // no handle is left, but the writer is
    pool.reclaim(StepId(0));
    assert_eq!((pool.counts().quarantined, pool.counts().doubted), (1, 0));
    assert_eq!(pool.discharge(&writer(1)), 1);
    pool.reclaim(StepId(0));
    assert_eq!(pool.counts().free, 1);
    pool.audit().expect("balanced");
}

#[test]
fn a_block_in_doubt_is_not_released_by_its_last_writer_but_by_repair() {
    let pool = Pool::new(Group::Full, 1);
    let block = pool.take(RequestId(1)).expect("free").disclose(&[writer(1)]).expect("open");
    pool.state().overwrite(RequestId(1), SlotState::Quarantined(Why::Doubt));
    assert_eq!(pool.discharge(&writer(1)), 1);
    assert_eq!(pool.counts().quarantined, 1);
    drop(block);
    pool.repair();
    pool.reclaim(StepId(0));
    assert_eq!(pool.counts().free, 1);
}

#[test]
fn a_disclosed_block_is_not_disclosed_again_nor_written_nor_sealed_nor_sent() {
    for attempt in 0..3 {
        let pool = Pool::new(Group::Full, 2);
        let block = pool.take(RequestId(1)).expect("free").disclose(&[writer(1)]).expect("open");
        let (id, life) = (block.id(), block.generation());
        let refused = match attempt {
            0 => pool.disclose(id, life, &[writer(2)]),
            1 => pool.seal(id, life),
            _ => pool.begin_read(id, life, Ticket(1)),
        };
        assert!(refused.is_err(), "attempt {attempt}");
        assert_eq!((pool.counts().violations, pool.counts().quarantined), (1, 1));
        pool.audit().expect("balanced");
    }
}

#[test]
fn an_audit_sees_a_block_that_is_free_while_somebody_may_write_it() {
    let pool = Pool::new(Group::Full, 1);
    let block = pool.take(RequestId(1)).expect("free").disclose(&[writer(1)]).expect("open");
    pool.audit().expect("balanced");
    pool.state().overwrite(RequestId(1), SlotState::Free);
    let found = pool.audit().expect_err("free, with a writer");
    assert!(found.to_string().contains("writers: 1"), "{found}");
    drop(block);
    pool.audit().expect("in quarantine");
    pool.discharge(&writer(1));
    pool.repair();
    pool.reclaim(StepId(0));
    assert_eq!(pool.counts().free, 1);
}

#[test]
fn a_proof_for_a_block_of_another_life_is_counted_and_changes_nothing() {
    let pool = Pool::new(Group::Full, 1);
    let block = pool.take(RequestId(1)).expect("free").disclose(&[writer(1)]).expect("open");
    drop(block);
    pool.state().begin_next_life(BlockId::at(0));
    assert_eq!(pool.discharge(&writer(1)), 1);
    assert_eq!((pool.counts().violations, pool.counts().quarantined), (1, 1));
}

#[test]
fn what_a_transfer_reads_is_not_free_before_it_ended_and_the_step_is_done() {
    for step_is_last in [false, true] {
        let pool = Pool::new(Group::Swa, 1);
        let block = pool.take(RequestId(1)).expect("free");
        block.read_by(Ticket(1)).expect("held");
        pool.begin(StepId(1));
        drop(block);
        assert_eq!((pool.counts().retired, pool.counts().read), (1, 1));
        if step_is_last {
            assert_eq!(pool.end_read(Ticket(1)), 1);
            pool.reclaim(StepId(0));
        } else {
            pool.reclaim(StepId(1));
        }
        assert_eq!(pool.counts().retired, 1);
        pool.audit().expect("balanced");
        pool.end_read(Ticket(1));
        pool.reclaim(StepId(1));
        assert_eq!((pool.counts().free, pool.counts().read), (1, 0));
    }
}

const PEER: PeerRank = PeerRank { incarnation: Incarnation(7), rank: 0 };

fn told(core: &mut Core, word: Word) -> Outcome {
    let message = Message::About { room: Room(5), epoch: Epoch(0), word };
    core.advance(&[Event::Peer { from: PEER, message: &message }]).expect("open")
}

/// A core that told its peer where to write a prompt of 600 tokens.
fn offered() -> (Core, RequestId, Offer) {
    let mut core = core();
    let settings = RoomSettings {
        side: Side::Decode,
        placement: None,
        transport: Transport::InProcess,
        timing: Timing::default(),
        max_rooms: 10,
        max_bytes_in_flight: 1,
        deadline_ms: 1000,
    };
    core.open_rooms(&settings).expect("once");
    let transfer = Transfer {
        room: Room(5),
        epoch: Epoch(0),
        peer: PEER.incarnation,
        peer_ranks: vec![0],
        on_failure: OnFailure::Recompute,
    };
    let new = NewRequest {
        prompt: vec![1; 600],
        max_tokens: 4,
        min_tokens: 0,
        stop_token_ids: &[],
        priority: 0,
        cache_salt: "",
        no_cache: false,
        transfer: Some(transfer),
    };
    let id = core.submit(new).expect("accepted");
    let outcome = told(&mut core, Word::Want);
    let said = outcome.errands.messages.into_iter().find_map(|(_, message)| match message {
        Message::About { word: Word::Offer(offer), .. } => Some(offer),
        _ => None,
    });
    (core, id, said.expect("an offer"))
}

/// Everything came and is as it should be.
fn commit(core: &mut Core, offer: &Offer) -> Outcome {
    told(core, Word::ChunkDone { chunk: 1, items: offer.num_items(), digest: 0 });
    told(core, Word::Final { chunks: 1, digest: 0 });
    let key = RoomKey { room: Room(5), epoch: Epoch(0), peer: PEER.incarnation };
    let tag = Tag { room: key.room, epoch: key.epoch, writer: key.peer };
    let found = Inspection { tag, digests: vec![0], non_finite: false };
    core.advance(&[Event::Inspected { key, first_token: 5, found: &found }]).expect("open")
}

#[test]
fn what_landed_whole_is_decoded() {
    let (mut core, id, offer) = offered();
    let outcome = commit(&mut core, &offer);
    assert_eq!((outcome.request_ids, outcome.tokens), (vec![id], vec![5]));
    heals(&mut core);
}

#[test]
fn a_broken_block_of_a_landing_fails_its_request_and_nobody_else() {
    for group in 0..4 {
        for state in [SlotState::Sealed, SlotState::Quarantined(Why::Doubt), SlotState::Free] {
            let (mut core, bad, offer) = offered();
            let good = submit(&mut core, 10);
            step(&mut core);
            let pools = &core.scheduler().pools;
            let pool = [&pools.full, &pools.swa, &pools.state, &pools.aux][group];
            pool.state().overwrite(bad, state);
            let outcome = commit(&mut core, &offer);
            assert!(failed(&outcome, bad), "group {group} {state:?}: {outcome:?}");
            assert_eq!(stat(&core, "num_violations"), 1);
            core.audit().expect("balanced again");
            assert_eq!(step(&mut core).0, Some(vec![good]));
            heals(&mut core);
            assert_eq!(stat(&core, "aux_free"), stat(&core, "aux_capacity"));
        }
    }
}

#[test]
fn a_block_in_doubt_of_a_room_that_is_given_up_goes_when_writer_and_doubt_are_gone() {
    let (mut core, bad, _) = offered();
    core.scheduler().pools.full.state().overwrite(bad, SlotState::Quarantined(Why::Doubt));
    assert!(core.abort(bad));
    assert_eq!(stat(&core, "full_quarantined"), 3);
    step(&mut core); // nothing runs: what is in doubt is repaired, and waits for its writer
    assert_eq!(stat(&core, "full_quarantined"), 3);
    told(&mut core, Word::AbortAck { drained: true });
    heals(&mut core);
}
