//! What the room machines say and do not say, one word at a time.

use dsv4_core::transfer::action::{Action, Oddity};
use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use dsv4_core::transfer::message::{Beat, Message, Offer, Prompt, Reason, Refusal, Target, Word};
use dsv4_core::transfer::proof::{Evidence, Transport};
use dsv4_core::transfer::rooms::{Rooms, Side};
use dsv4_core::transfer::runs::Chunk;
use dsv4_core::transfer::sending::Lengths;
use dsv4_core::transfer::timing::Timing;

const PEER: PeerRank = PeerRank { incarnation: Incarnation(7), rank: 0 };
const PROMPT: Prompt = Prompt { num_tokens: 100, hash: 9 };
const LENGTHS: Lengths = Lengths { full: 3, swa: 1, block_tokens: 64 };

fn key(room: u64, epoch: u32) -> RoomKey {
    RoomKey { room: Room(room), epoch: Epoch(epoch), peer: PEER.incarnation }
}

fn offer(first: u32) -> Offer {
    let target = |block| Target { block, generation: 0 };
    let full = (first..first + 3).map(target).collect();
    let (swa, state, aux) = (vec![target(first)], target(first), target(first));
    Offer { prompt: PROMPT, num_fences: 0, num_cached_tokens: 0, full, swa, state, aux }
}

fn rooms(side: Side, capacity: usize) -> Rooms {
    Rooms::new(side, Transport::InProcess, Timing::default(), capacity)
}

/// A decode worker with one room, epoch 1, and the actions of its beginning.
fn receiving() -> (Rooms, Vec<Action>) {
    let mut rooms = rooms(Side::Decode, 8);
    let actions = rooms.receive(key(5, 1), PROMPT, &[0]).expect("a new room");
    (rooms, actions)
}

/// A prefill worker whose room was told where to write.
fn sending() -> Rooms {
    let mut rooms = rooms(Side::Prefill, 8);
    rooms.send(key(5, 1), PROMPT, LENGTHS).expect("a new room");
    let actions = hear(&mut rooms, Word::Offer(offer(1)));
    assert_eq!(actions, [Action::Ready(key(5, 1))]);
    rooms
}

fn about(key: RoomKey, word: Word) -> Message {
    Message::About { room: key.room, epoch: key.epoch, word }
}

fn hear(rooms: &mut Rooms, word: Word) -> Vec<Action> {
    rooms.hear(PEER, &about(key(5, 1), word))
}

/// What is said about rooms.
fn said(actions: &[Action]) -> Vec<Word> {
    let word = |action: &Action| match action {
        Action::Send(_, Message::About { word, .. }) => Some(word.clone()),
        _ => None,
    };
    actions.iter().filter_map(word).collect()
}

fn chunk(block: u32) -> Chunk {
    Chunk { full: vec![block], tail: None, digest: 0 }
}

/// mori#655: one lost word, and a rank waits for good.
#[test]
fn what_waits_for_an_answer_is_said_again_in_every_phase() {
    let (mut rooms, actions) = receiving();
    assert_eq!(said(&actions), [Word::Join(PROMPT)]);
    assert_eq!(said(&rooms.elapse(250)), [Word::Join(PROMPT)]);
    let (is_told, actions) = rooms.offer(key(5, 1), offer(1));
    assert!(is_told);
    assert_eq!(said(&actions), [Word::Offer(offer(1))]);
    assert_eq!(said(&rooms.elapse(250)), [Word::Offer(offer(1))]);
    let abort = [Word::Abort(Reason::Cancelled)];
    assert_eq!(said(&rooms.abort(key(5, 1), Reason::Cancelled)), abort);
    assert_eq!(said(&rooms.elapse(250)), abort);
}

/// sgl#30233: the other side was never told, and decoded garbage.
#[test]
fn whoever_gives_a_room_up_says_so_at_once() {
    for mut rooms in [receiving().0, sending()] {
        let actions = rooms.abort(key(5, 1), Reason::PromptTooLong);
        assert!(actions.contains(&Action::Fail(key(5, 1), Reason::PromptTooLong)));
        assert_eq!(said(&actions), [Word::Abort(Reason::PromptTooLong)]);
    }
}

#[test]
fn nothing_is_posted_for_a_room_that_was_given_up() {
    let mut rooms = sending();
    let posted = rooms.post(key(5, 1), Ticket(1), &chunk(1));
    assert!(matches!(posted[..], [Action::Post { ticket: Ticket(1), .. }]), "{posted:?}");
    hear(&mut rooms, Word::Abort(Reason::Cancelled));
    assert_eq!(rooms.post(key(5, 1), Ticket(2), &chunk(2)), []);
}

#[test]
fn other_addresses_than_the_first_are_not_taken() {
    let mut rooms = sending();
    assert_eq!(
        hear(&mut rooms, Word::Offer(offer(1))),
        [Action::Count(Oddity::Repeated)],
        "it may come twice"
    );
    let actions = hear(&mut rooms, Word::Offer(offer(4)));
    assert!(actions.contains(&Action::Fail(key(5, 1), Reason::ItemsMismatch)), "{actions:?}");
}

#[test]
fn another_rank_of_the_peer_has_no_say() {
    let abort = about(key(5, 1), Word::Abort(Reason::Cancelled));
    let stranger = PeerRank { rank: 1, ..PEER };
    for mut rooms in [receiving().0, sending()] {
        assert_eq!(rooms.hear(stranger, &abort), [Action::Count(Oddity::Stranger)]);
        assert_eq!(rooms.num_live(), 1);
    }
}

#[test]
fn another_attempt_of_the_room_has_no_say() {
    let abort = about(key(5, 0), Word::Abort(Reason::Cancelled));
    for mut rooms in [receiving().0, sending()] {
        rooms.hear(PEER, &abort);
        assert_eq!((rooms.num_live(), rooms.ending(key(5, 1))), (1, None));
    }
}

/// sgl#38961: the abort of a room that was cleared got no answer, and blocks waited for it.
#[test]
fn an_abort_of_a_room_that_is_over_is_answered_as_often_as_it_comes() {
    let mut rooms = sending();
    let abort = Word::Abort(Reason::Cancelled);
    for _ in 0..3 {
        let answer = said(&hear(&mut rooms, abort.clone()));
        assert_eq!(answer, [Word::AbortAck { drained: true }]);
        assert_eq!(rooms.num_live(), 0);
    }
    let never = rooms.hear(PEER, &about(key(6, 0), abort));
    assert_eq!(said(&never), [Word::Refuse(Refusal::Unknown)]);
}

/// That a room is unknown is a proof, so it needs a note that it will stay so.
#[test]
fn who_cannot_remember_a_room_does_not_say_that_it_is_unknown() {
    let mut rooms = rooms(Side::Prefill, 1);
    rooms.send(key(5, 1), PROMPT, LENGTHS).expect("a new room");
    let actions = rooms.hear(PEER, &about(key(6, 0), Word::Abort(Reason::Cancelled)));
    assert_eq!(actions, [Action::Count(Oddity::Full)]);
}

#[test]
fn a_room_that_may_still_be_landing_never_becomes_unknown_while_its_peer_lives() {
    let mut rooms = sending();
    rooms.post(key(5, 1), Ticket(1), &chunk(1));
    rooms.ended(Ticket(1), false);
    assert_eq!(rooms.num_live(), 0);
    rooms.elapse(Timing::default().tombstone + 1);
    assert_eq!(rooms.ending(key(5, 1)), None, "forgotten");
    let abort = Word::Abort(Reason::Cancelled);
    assert_eq!(said(&hear(&mut rooms, abort.clone())), [Word::AbortAck { drained: false }]);
    rooms.peer_gone(PEER.incarnation, Some(Evidence::TaskJoined));
    let other = rooms.hear(PEER, &about(key(6, 1), abort));
    assert_eq!(said(&other), [Word::Refuse(Refusal::Unknown)], "nobody is left to be told");
}

/// vllm#53244: heartbeats that renewed nothing.
#[test]
fn a_beat_renews_every_room_of_the_peer() {
    let mut rooms = rooms(Side::Decode, 8);
    for room in [5, 6] {
        rooms.receive(key(room, 1), PROMPT, &[0]).expect("a new room");
    }
    let beat = Beat::over([(Room(5), Epoch(1)), (Room(6), Epoch(1))].into_iter());
    let fails = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Fail(..)));
    for _ in 0..60 {
        assert!(!fails(&rooms.elapse(1_000)), "a lease expired");
        assert_eq!(rooms.hear(PEER, &Message::Beat(beat)), [], "both sides have the same rooms");
    }
    assert!(fails(&rooms.elapse(Timing::default().lease)));
    assert_eq!(rooms.num_live(), 0, "nothing was told, so nothing is owed");
}
