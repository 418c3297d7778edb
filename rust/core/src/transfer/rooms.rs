//! All rooms of one worker, live and over: every message finds its machine or its tombstone.
//!
//! ```text
//!   hear(from, message) ─┬─ live ──────▶ Receiving or Sending ──▶ actions ──▶ over? a tombstone
//!                        ├─ over ──────▶ the same answer as ever
//!                        └─ unheard of ▶ too early: nothing;  an address or an end: never will be
//! ```
//! A room starts here only by a call of its own worker, never by a message. A room that was refused
//! can therefore not begin behind the back of the peer that takes the refusal for a proof.

use std::collections::{BTreeMap, VecDeque};

use crate::planted::{self, Bug};
use crate::transfer::action::{Action, Ending, Oddity, Out};
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use crate::transfer::message::{Beat, Message, Offer, Prompt, Reason, Refusal, Word};
use crate::transfer::proof::{Evidence, Proof, Transport};
use crate::transfer::receiving::{Inspection, Receiving};
use crate::transfer::runs::Chunk;
use crate::transfer::sending::{Lengths, Sending};
use crate::transfer::timing::Timing;
use crate::transfer::tombstones::Tombstones;

/// Which side of a room a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Computes prompts, and writes.
    Prefill,
    /// Is written to, and decodes.
    Decode,
}

/// A room that has not closed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Live {
    Receiving(Receiving),
    Sending(Sending),
}

/// How long a peer has been silent, and what is left until it is told of our rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Silence {
    milliseconds: u64,
    until_beat: u64,
}

/// Why a room does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// There is one of that key.
    Duplicate,
    /// It is over: given up before it was heard of here, or used before.
    Over(Ending),
    /// As many rooms are live and remembered as may be.
    Full,
    /// The peer's process is known to be gone: nobody would ever prove that it is done.
    PeerGone,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rooms {
    side: Side,
    transport: Transport,
    timing: Timing,
    /// Most rooms, live and remembered.
    capacity: usize,
    live: BTreeMap<RoomKey, Live>,
    tickets: BTreeMap<Ticket, RoomKey>,
    tombstones: Tombstones,
    peers: BTreeMap<Incarnation, Silence>,
    /// The last peers that went, oldest first.
    gone: VecDeque<Incarnation>,
    /// How often the way between this worker and a peer was cut, where it was.
    fences: BTreeMap<Incarnation, u32>,
}

/// Most of them that are remembered: process starts of peers, while this worker lives.
const MOST_GONE: usize = 256;

impl Rooms {
    /// No rooms yet.
    pub fn new(side: Side, transport: Transport, timing: Timing, capacity: usize) -> Self {
        Self {
            side,
            transport,
            timing,
            capacity,
            live: BTreeMap::new(),
            tickets: BTreeMap::new(),
            tombstones: Tombstones::default(),
            peers: BTreeMap::new(),
            gone: VecDeque::new(),
            fences: BTreeMap::new(),
        }
    }

    /// Which side this worker is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// D: a prompt will come from these ranks of `key.peer`.
    pub fn receive(
        &mut self,
        key: RoomKey,
        prompt: Prompt,
        ranks: &[u16],
    ) -> Result<Vec<Action>, Denied> {
        self.may_start(key)?;
        let mut actions = vec![];
        let out = &mut Out::new(key, &mut actions);
        let room = Receiving::start(key, prompt, ranks, &self.timing, out);
        self.begin(key, Live::Receiving(room));
        Ok(actions)
    }

    /// P: this rank computes a prompt for rank 0 of `key.peer`.
    pub fn send(&mut self, key: RoomKey, prompt: Prompt, lengths: Lengths) -> Result<(), Denied> {
        self.may_start(key)?;
        let to = PeerRank { incarnation: key.peer, rank: 0 };
        let room = Sending::start(key, to, prompt, lengths, &self.timing);
        self.begin(key, Live::Sending(room));
        Ok(())
    }

    fn may_start(&self, key: RoomKey) -> Result<(), Denied> {
        if self.live.contains_key(&key) {
            return Err(Denied::Duplicate);
        }
        if self.gone.contains(&key.peer) && !planted::is(Bug::DeadPeerTaken) {
            return Err(Denied::PeerGone);
        }
        if let Some(ending) = self.tombstones.get(key).filter(|_| !planted::is(Bug::RoomUsedTwice))
        {
            return Err(Denied::Over(ending));
        }
        if self.is_full() { Err(Denied::Full) } else { Ok(()) }
    }

    fn begin(&mut self, key: RoomKey, room: Live) {
        let until_beat = self.timing.beat;
        self.peers.entry(key.peer).or_insert(Silence { milliseconds: 0, until_beat });
        self.live.insert(key, room);
    }

    fn is_full(&self) -> bool {
        self.live.len() + self.tombstones.len() >= self.capacity
    }

    /// D: tells where to write. Best after Wanted. False: the room is over, or was told before;
    /// nothing was disclosed by this call.
    #[must_use = "what was not disclosed need not be quarantined"]
    pub fn offer(&mut self, key: RoomKey, mut offer: Offer) -> (bool, Vec<Action>) {
        let timing = self.timing;
        offer.num_fences = self.num_fences(key.peer);
        let mut actions = vec![];
        let out = &mut Out::new(key, &mut actions);
        let told = match self.live.get_mut(&key) {
            Some(Live::Receiving(room)) => room.offer(offer, &timing, out),
            _ => false,
        };
        (told, actions)
    }

    /// P: the prompt is about to be computed.
    pub fn want(&mut self, key: RoomKey) -> Vec<Action> {
        self.act(key, |room, timing, out| {
            if let Live::Sending(room) = room {
                room.want(timing, out);
            }
            None
        })
    }

    /// P: a chunk is computed. Where no Post comes out, the ticket was not used.
    pub fn post(&mut self, key: RoomKey, ticket: Ticket, chunk: &Chunk) -> Vec<Action> {
        let actions = self.act(key, |room, timing, out| match room {
            Live::Sending(room) => room.post(ticket, chunk, timing, out),
            Live::Receiving(_) => None,
        });
        if actions.iter().any(|action| matches!(action, Action::Post { .. })) {
            self.tickets.insert(ticket, key);
        }
        actions
    }

    /// P: the digest over what a ticket under way sends, where it was not known when it was posted.
    pub fn digested(&mut self, ticket: Ticket, digest: u64) {
        let room = self.tickets.get(&ticket).and_then(|key| self.live.get_mut(key));
        if let Some(Live::Sending(room)) = room {
            room.digested(ticket, digest);
        }
    }

    /// P: a ticket landed (DONE) or failed (ERR).
    pub fn ended(&mut self, ticket: Ticket, landed: bool) -> Vec<Action> {
        let Some(key) = self.tickets.remove(&ticket) else { return vec![] };
        self.act(key, |room, timing, out| match room {
            Live::Sending(room) => room.ended(ticket, landed, timing, out),
            Live::Receiving(_) => None,
        })
    }

    /// D: the answer to Inspect.
    pub fn inspected(&mut self, key: RoomKey, found: &Inspection) -> Vec<Action> {
        self.act(key, |room, timing, out| match room {
            Live::Receiving(room) => room.inspected(found, timing, out),
            Live::Sending(_) => None,
        })
    }

    /// Gives a room up. One that has not begun never will; one that is over stays as it ended.
    pub fn abort(&mut self, key: RoomKey, reason: Reason) -> Vec<Action> {
        if !self.live.contains_key(&key) && self.tombstones.get(key).is_none() && !self.is_full() {
            let ending = Ending::Aborted { reason, drained: true };
            self.tombstones.bury(key, ending, self.timing.tombstone);
        }
        self.act(key, |room, timing, out| match room {
            Live::Receiving(room) => room.abort(reason, timing, out),
            Live::Sending(room) => room.abort(reason, timing, out),
        })
    }

    /// A message came.
    pub fn hear(&mut self, from: PeerRank, message: &Message) -> Vec<Action> {
        if let Some(silence) = self.peers.get_mut(&from.incarnation) {
            let renews =
                !matches!(message, Message::Beat(_)) || !planted::is(Bug::BeatRenewsNothing);
            silence.milliseconds *= u64::from(!renews);
        }
        match message {
            Message::About { room, epoch, word } => {
                let key = RoomKey { room: *room, epoch: *epoch, peer: from.incarnation };
                let alike = |live: &&RoomKey| live.room == *room && planted::is(Bug::EpochIgnored);
                let key = self.live.keys().find(alike).copied().unwrap_or(key);
                self.hear_about(key, from, word)
            }
            Message::Beat(beat) => {
                let rooms = self.rooms_with(from);
                if Beat::over(rooms.iter().copied()) == *beat {
                    return vec![];
                }
                vec![Action::Send(from, Message::Rooms(rooms))]
            }
            Message::Rooms(theirs) => self.compare(from, theirs),
        }
    }

    fn num_fences(&self, peer: Incarnation) -> u32 {
        self.fences.get(&peer).copied().unwrap_or_default()
    }

    fn hear_about(&mut self, key: RoomKey, from: PeerRank, word: &Word) -> Vec<Action> {
        if let Word::Offer(offer) = word
            && offer.num_fences != self.num_fences(from.incarnation)
            && !planted::is(Bug::OldOfferTaken)
        {
            // From before the way in was cut: the blocks may have other owners now. Or from behind
            // it, and told again when this worker knows that it is connected anew.
            let mut actions = vec![];
            Out::new(key, &mut actions).count(Oddity::Late);
            return actions;
        }
        if self.live.contains_key(&key) {
            return self.act(key, |room, timing, out| match room {
                Live::Receiving(room) => room.hear(from.rank, word, timing, out),
                Live::Sending(room) => room.hear(from, word, timing, out),
            });
        }
        let mut actions = vec![];
        let out = &mut Out::new(key, &mut actions);
        if let Some(ending) = self.tombstones.get(key).filter(|_| !planted::is(Bug::NoTombstone)) {
            out.count(Oddity::Late);
            if let Some(answer) = answer(self.side, ending, word) {
                out.tell(from, answer);
            }
            return actions;
        }
        match (self.side, word) {
            (Side::Prefill, Word::Join(_)) | (Side::Decode, Word::Want) => out.count(Oddity::Early),
            (Side::Prefill, Word::Offer(_) | Word::Abort(_))
            | (Side::Decode, Word::ChunkDone { .. } | Word::Final { .. } | Word::Abort(_)) => {
                self.never(key, from, word, out);
            }
            _ => out.count(Oddity::Late), // an answer, to nobody
        }
        actions
    }

    /// A room that was not heard of here, and now never will be.
    fn never(&mut self, key: RoomKey, from: PeerRank, word: &Word, out: &mut Out) {
        if self.is_full() {
            out.count(Oddity::Full); // no note, no answer: an answer would be a proof
            if planted::is(Bug::AnswerWithoutNote) {
                out.tell(from, Word::Refuse(Refusal::Unknown));
            }
            return;
        }
        let ending = match (self.side, word) {
            (Side::Decode, Word::Abort(reason)) => {
                Ending::Aborted { reason: *reason, drained: true }
            }
            _ => self.tombstones.unheard_of(key),
        };
        self.tombstones.bury(key, ending, self.timing.tombstone);
        out.count(Oddity::Late);
        if let Some(answer) = answer(self.side, ending, word) {
            out.tell(from, answer);
        }
    }

    /// The peer's rooms are not ours: what is missing there is said again, what is over here is
    /// said to be.
    fn compare(&mut self, from: PeerRank, theirs: &[(Room, Epoch)]) -> Vec<Action> {
        let mut actions = vec![];
        let key = |room, epoch| RoomKey { room, epoch, peer: from.incarnation };
        for (room, epoch) in self.rooms_with(from) {
            if !theirs.contains(&(room, epoch)) {
                self.say_room_again(key(room, epoch), &mut actions);
            }
        }
        for &(room, epoch) in theirs {
            let key = key(room, epoch);
            let ending = self.tombstones.get(key).filter(|_| !self.live.contains_key(&key));
            let out = &mut Out::new(key, &mut actions);
            match ending {
                Some(Ending::Committed) if self.side == Side::Decode => {
                    out.tell(from, Word::Commit);
                }
                Some(Ending::Aborted { reason, .. }) => out.tell(from, Word::Abort(reason)),
                _ => {} // it may be about to hear of it
            }
        }
        actions
    }

    fn rooms_with(&self, from: PeerRank) -> Vec<(Room, Epoch)> {
        let with = |room: &Live| match room {
            Live::Receiving(room) => room.involves(from.rank),
            Live::Sending(room) => room.peer() == from,
        };
        let rooms =
            self.live.iter().filter(|(key, room)| key.peer == from.incarnation && with(room));
        rooms.map(|(key, _)| (key.room, key.epoch)).collect()
    }

    /// A peer's process is gone. Without evidence, or with such as proves nothing on this
    /// transport, what it may write stays quarantined; evidence may come later.
    pub fn peer_gone(
        &mut self,
        incarnation: Incarnation,
        evidence: Option<Evidence>,
    ) -> Vec<Action> {
        let counts = |&evidence: &Evidence| self.transport.proves_writer_gone(evidence);
        let proof = evidence.filter(counts).map(Proof::WriterGone);
        self.tombstones.peer_gone(incarnation);
        if evidence.is_some_and(Evidence::ends_process) && !self.gone.contains(&incarnation) {
            self.gone.push_back(incarnation);
            while self.gone.len() > MOST_GONE {
                self.gone.pop_front();
            }
        }
        self.act_with(incarnation, |room, timing, out| match room {
            Live::Receiving(room) => room.peer_gone(proof, timing, out),
            Live::Sending(room) => room.peer_gone(out),
        })
    }

    /// D: this worker cut a peer's way in. Nothing happens on evidence that proves nothing.
    pub fn fenced(&mut self, incarnation: Incarnation, evidence: Evidence) -> Vec<Action> {
        if !self.transport.proves_fence(evidence) {
            return vec![];
        }
        *self.fences.entry(incarnation).or_default() += 1;
        self.act_with(incarnation, |room, timing, out| match room {
            Live::Receiving(room) => room.fenced(Proof::LocalFence(evidence), timing, out),
            Live::Sending(_) => None,
        })
    }

    /// P: a peer that lives connects anew, after it or this worker lost or cut the connection. The
    /// addresses it told before may have other owners now: rooms from before are given up, and this
    /// must be called before the new connection carries anything. `num_fences`: how often the peer
    /// has cut this worker's way in, as the handshake of the new connection says; offers from before
    /// are not good any more, however late they come.
    pub fn reconnected(&mut self, incarnation: Incarnation, num_fences: u32) -> Vec<Action> {
        self.fences.insert(incarnation, num_fences);
        self.act_with(incarnation, |room, timing, out| match room {
            Live::Receiving(_) => None,
            Live::Sending(room) => room.abort(Reason::PeerLost, timing, out),
        })
    }

    /// A peer was silent for a whole lease: its rooms are given up. That proves nothing.
    pub fn lease_expired(&mut self, incarnation: Incarnation) -> Vec<Action> {
        self.act_with(incarnation, |room, timing, out| match room {
            Live::Receiving(room) => room.abort(Reason::LeaseExpired, timing, out),
            Live::Sending(room) => room.abort(Reason::LeaseExpired, timing, out),
        })
    }

    /// Time passed. Needs to be told often, and needs no work to arrive.
    pub fn elapse(&mut self, milliseconds: u64) -> Vec<Action> {
        let timing = self.timing;
        let mut actions = vec![];
        self.tombstones.elapse(milliseconds);
        for (&key, room) in &mut self.live {
            let out = &mut Out::new(key, &mut actions);
            match room {
                Live::Receiving(room) => room.elapse(milliseconds, &timing, out),
                Live::Sending(room) => room.elapse(milliseconds, &timing, out),
            }
        }
        let (mut due, mut expired) = (vec![], vec![]);
        for (&incarnation, silence) in &mut self.peers {
            silence.milliseconds = silence.milliseconds.saturating_add(milliseconds);
            if silence.milliseconds >= timing.lease {
                expired.push(incarnation);
            }
            silence.until_beat = silence.until_beat.saturating_sub(milliseconds);
            if silence.until_beat == 0 {
                silence.until_beat = timing.beat;
                due.push(incarnation);
            }
        }
        for incarnation in due {
            self.beat(incarnation, &mut actions);
        }
        for incarnation in expired {
            actions.extend(self.lease_expired(incarnation));
        }
        actions
    }

    fn beat(&self, incarnation: Incarnation, actions: &mut Vec<Action>) {
        let mut ranks: Vec<u16> = vec![];
        for (_, room) in self.live.iter().filter(|(key, _)| key.peer == incarnation) {
            match room {
                Live::Receiving(room) => ranks.extend(room.ranks()),
                Live::Sending(room) => ranks.push(room.peer().rank),
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        for rank in ranks {
            let to = PeerRank { incarnation, rank };
            let beat = Beat::over(self.rooms_with(to).into_iter());
            actions.push(Action::Send(to, Message::Beat(beat)));
        }
    }

    /// Says again whatever waits for an answer: after a connection was lost and made again.
    pub fn say_again(&self) -> Vec<Action> {
        let mut actions = vec![];
        for &key in self.live.keys() {
            self.say_room_again(key, &mut actions);
        }
        actions
    }

    fn say_room_again(&self, key: RoomKey, actions: &mut Vec<Action>) {
        let out = &mut Out::new(key, actions);
        match self.live.get(&key) {
            Some(Live::Receiving(room)) => room.say_again(out),
            Some(Live::Sending(room)) => room.say_again(out),
            None => {}
        }
    }

    /// Whether a peer has been silent for long enough to be suspected. Proves nothing.
    pub fn is_suspect(&self, incarnation: Incarnation) -> bool {
        let silent = self.peers.get(&incarnation).map_or(0, |silence| silence.milliseconds);
        silent >= self.timing.suspect
    }

    /// D's room, while it is live.
    pub fn receiving(&self, key: RoomKey) -> Option<&Receiving> {
        match self.live.get(&key)? {
            Live::Receiving(room) => Some(room),
            Live::Sending(_) => None,
        }
    }

    /// P's room, while it is live.
    pub fn sending(&self, key: RoomKey) -> Option<&Sending> {
        match self.live.get(&key)? {
            Live::Sending(room) => Some(room),
            Live::Receiving(_) => None,
        }
    }

    /// How a room ended, as long as it is remembered.
    pub fn ending(&self, key: RoomKey) -> Option<Ending> {
        self.tombstones.get(key)
    }

    /// Rooms that have not closed.
    pub fn num_live(&self) -> usize {
        self.live.len()
    }

    /// Lets one live room act, and buries it where that was its end.
    fn act(
        &mut self,
        key: RoomKey,
        act: impl FnOnce(&mut Live, &Timing, &mut Out) -> Option<Ending>,
    ) -> Vec<Action> {
        let mut actions = vec![];
        if let Some(room) = self.live.get_mut(&key) {
            let ending = act(room, &self.timing, &mut Out::new(key, &mut actions));
            if let Some(ending) = ending {
                self.live.remove(&key);
                self.tombstones.bury(key, ending, self.timing.tombstone);
                if !self.live.keys().any(|other| other.peer == key.peer) {
                    self.peers.remove(&key.peer);
                }
            }
        }
        actions
    }

    /// Lets every live room with a peer act.
    fn act_with(
        &mut self,
        incarnation: Incarnation,
        act: impl Fn(&mut Live, &Timing, &mut Out) -> Option<Ending>,
    ) -> Vec<Action> {
        let keys = self.live.keys().copied().filter(|key| key.peer == incarnation);
        let keys: Vec<RoomKey> = keys.collect();
        keys.into_iter().flat_map(|key| self.act(key, &act)).collect()
    }
}

/// What a worker says about a room that is over. Answers are not answered: no two tombstones keep
/// each other talking.
fn answer(side: Side, ending: Ending, word: &Word) -> Option<Word> {
    let asks = match side {
        Side::Prefill => matches!(word, Word::Join(_) | Word::Offer(_) | Word::Abort(_)),
        Side::Decode => matches!(
            word,
            Word::Want | Word::ChunkDone { .. } | Word::Final { .. } | Word::Abort(_)
        ),
    };
    if !asks {
        return None;
    }
    let aborts = matches!(word, Word::Abort(_));
    if aborts && planted::is(Bug::AbortUnanswered) {
        return None;
    }
    Some(match (side, ending) {
        (Side::Prefill, Ending::Aborted { drained, .. }) if aborts => Word::AbortAck { drained },
        (_, Ending::Aborted { reason, .. }) if !aborts => Word::Abort(reason),
        (Side::Decode, Ending::Committed) if !aborts => Word::Commit,
        (_, Ending::Unknown) => Word::Refuse(Refusal::Unknown),
        (_, Ending::Committed | Ending::Aborted { .. }) => Word::Refuse(Refusal::Closed),
    })
}
