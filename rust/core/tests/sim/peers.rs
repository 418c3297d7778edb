//! What workers have to do for each other's rooms: errands, letters, checks, beats, and farewells.

use dsv4_core::transfer::ids::{Incarnation, PeerRank, RoomKey};
use dsv4_core::transfer::message::{Message, Reason, Word};
use dsv4_core::transfer::receiving::{Inspection, Tag};
use dsv4_core::{Check, Errands, Event, Posting, Reset};

use crate::cargo::{AuxRow, Share};
use crate::desk::tag_of;
use crate::faults::Fault;
use crate::flow::Process;
use crate::happening::Happening;
use crate::model::State;
use crate::plant::Bug;
use crate::worker::Worker;
use crate::world::World;

/// Between two beats of one worker's clock.
pub const TICK_US: u64 = 250_000;

/// What the core says of a request whose prompt is being looked at.
const INSPECTED: &str = "Inspecting";

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: Process,
    pub to: Process,
    pub message: Message,
}

impl World {
    pub(crate) fn incarnation_of(process: Process) -> Incarnation {
        Incarnation(u128::from(process.incarnation))
    }

    /// Which process a rank of an incarnation was.
    pub(crate) fn process_of(&self, peer: PeerRank) -> Process {
        let number = u32::try_from(peer.incarnation.0).expect("ours are small");
        let worker = self.started[number as usize - 1] + usize::from(peer.rank);
        Process { worker, incarnation: number }
    }

    /// The first rank of a process's instance, which stands for all of them.
    pub(crate) fn leader(&self, process: Process) -> Process {
        Process { worker: self.setup.leader_of(process.worker), ..process }
    }

    /// What a worker writes of every item.
    pub(crate) fn share_of(&self, worker: usize) -> Share {
        let rank = worker - self.setup.leader_of(worker);
        Share { rank, num_ranks: self.setup.instance(worker - rank).len() }
    }

    /// The worker, if it is still that process.
    pub(crate) fn process(&self, process: Process) -> Option<&Worker> {
        let worker = self.workers[process.worker].as_ref()?;
        (worker.incarnation == process.incarnation).then_some(worker)
    }

    pub(crate) fn here(&self, worker: usize) -> Process {
        let incarnation = self.workers[worker].as_ref().expect("up").incarnation;
        Process { worker, incarnation }
    }

    /// Events for a worker, and everything that follows from them.
    pub(crate) fn tell(&mut self, worker: usize, events: &[Event<'_>]) {
        let has = self.workers[worker].as_mut().expect("up");
        let outcome = has.core.advance(events).expect("events of peers are never refused");
        for event in events {
            if let Event::Tick(now_us) = event {
                has.is_told(*now_us);
            }
        }
        self.deliver(worker, &outcome);
        self.called(worker);
        self.pump(worker);
    }

    /// Does what the core wants done, in its order.
    pub(crate) fn run_errands(&mut self, worker: usize, errands: &Errands) {
        for &reset in &errands.resets {
            self.reset(worker, reset);
        }
        for (to, message) in &errands.messages {
            self.send(worker, *to, message);
        }
        for posting in &errands.postings {
            self.start_posting(worker, posting);
        }
        let incarnation = self.workers[worker].as_ref().expect("up").incarnation;
        for &check in &errands.checks {
            let mut delay = self.rng.micros(1, 2_000);
            if self.strikes(Fault::LateCheck) {
                self.fired(Fault::LateCheck, worker);
                delay += self.rng.micros(0, 10_000_000);
            }
            self.agenda.after(delay, Happening::Check { worker, incarnation, check });
        }
    }

    fn reset(&mut self, worker: usize, reset: Reset) {
        let device = &mut self.workers[worker].as_mut().expect("up").device;
        let place = reset.block.get() as usize;
        match reset.group {
            dsv4_core::ids::Group::State => device.states[place] = State::EMPTY,
            dsv4_core::ids::Group::Aux => device.aux[place] = AuxRow::default(),
            other => panic!("{other} blocks are not reset"),
        }
    }

    /// Was there a reason for anybody to be silent for a whole lease?
    fn was_silence(&self) -> bool {
        let reasons = [
            Fault::Partition,
            Fault::Stopped,
            Fault::Crash,
            Fault::DiesAtWork,
            Fault::Shutdown,
            Fault::ClockJump,
        ];
        reasons.iter().any(|&reason| self.tally.exposure.of(reason) > 0)
    }

    /// What a worker says about a room must be so, and what it gives up is counted.
    fn check_word(&mut self, from: Process, key: RoomKey, word: &Word) {
        let place = (key.room, key.epoch);
        match word {
            Word::Commit => {
                assert!(!self.may_still_land(from, key), "{key:?} is committed and still written");
                assert!(
                    !self.rooms.flagged.contains(&place),
                    "{key:?} is committed and not finite"
                );
            }
            Word::Abort(Reason::Deadline) => {
                self.fired_once(Fault::RoomDeadline, from.worker, key);
            }
            Word::Abort(Reason::LeaseExpired) => {
                assert!(self.was_silence(), "a lease expires while everybody speaks");
                self.fired_once(Fault::LeaseExpired, from.worker, key);
            }
            _ => {}
        }
    }

    // ------------------------------------------------------------ letters

    fn send(&mut self, worker: usize, to: PeerRank, message: &Message) {
        let (from, to) = (self.here(worker), self.process_of(to));
        if let Message::About { room, epoch, word: Word::Offer(offer) } = message {
            let key = RoomKey { room: *room, epoch: *epoch, peer: Self::incarnation_of(to) };
            let has = self.workers[worker].as_mut().expect("up");
            if has.desk.offers.insert(key, offer.clone()).is_none() {
                has.ledger.offered(key, offer);
            }
        }
        if let Message::About { room, epoch, word } = message {
            let key = RoomKey { room: *room, epoch: *epoch, peer: Self::incarnation_of(to) };
            self.check_word(from, key, word);
        }
        let is_beat = matches!(message, Message::Beat(_));
        if self.link_up_at(from.worker, to.worker).is_some() {
            return self.fired(Fault::Partition, to.worker);
        }
        if is_beat && self.strikes(Fault::LostBeat) {
            return self.fired(Fault::LostBeat, to.worker);
        }
        if !is_beat && self.strikes(Fault::LostLetter) {
            return self.fired(Fault::LostLetter, to.worker);
        }
        let copies = if self.strikes(Fault::RepeatedLetter) { 2 } else { 1 };
        if copies > 1 {
            self.fired(Fault::RepeatedLetter, to.worker);
        }
        for copy in 0..copies {
            let mut delay = self.rng.micros(50, 3_000);
            if copy > 0 {
                delay += self.rng.micros(0, 50_000_000);
            } else if self.strikes(Fault::LateLetter) {
                self.fired(Fault::LateLetter, to.worker);
                delay += self.rng.micros(0, 20_000_000);
            }
            let letter = Letter { from, to, message: message.clone() };
            self.agenda.after(delay, Happening::Letter(Box::new(letter)));
        }
    }

    pub(crate) fn receive_letter(&mut self, letter: &Letter) {
        if self.process(letter.to).is_none() {
            return self.fired(Fault::LetterToGone, letter.to.worker);
        }
        if let Message::About { word: Word::AbortAck { drained: false }, .. } = letter.message {
            self.may_cut_off(letter.to, letter.from);
        }
        let rank = self.share_of(letter.from.worker).rank;
        let rank = u16::try_from(rank).expect("few");
        let from = PeerRank { incarnation: Self::incarnation_of(letter.from), rank };
        let mut message = letter.message.clone();
        if let Message::About { word: Word::AbortAck { drained }, .. } = &mut message
            && !*drained
        {
            *drained = self.plant.strikes(Bug::FalseAck);
        }
        self.tell(letter.to.worker, &[Event::Peer { from, message: &message }]);
    }

    // ------------------------------------------------------------ writes and checks

    fn start_posting(&mut self, worker: usize, posting: &Posting) {
        let to = PeerRank { incarnation: posting.key.peer, rank: 0 };
        let (from, to) = (self.here(worker), self.process_of(to));
        if let Some(aux) = posting.copies.aux {
            let has = self.workers[worker].as_mut().expect("up");
            let token = has.desk.first_tokens.get(&posting.key).copied();
            let first_token = token.expect("sampled before the last chunk leaves");
            let tag = tag_of(posting.key, Self::incarnation_of(from));
            let mut first_token = first_token + i32::from(self.plant.strikes(Bug::WrongFirstToken));
            let Share { rank, num_ranks } = self.share_of(worker);
            let non_finite = rank + 1 == num_ranks && self.strikes(Fault::FlaggedRow);
            if non_finite {
                self.fired(Fault::FlaggedRow, worker);
                self.rooms.flagged.insert((posting.key.room, posting.key.epoch));
            }
            if rank + 1 == num_ranks && self.strikes(Fault::WildFirstToken) {
                self.fired(Fault::WildFirstToken, worker);
                first_token = -7;
            }
            let row = AuxRow { tag, first_token, non_finite };
            let has = self.workers[worker].as_mut().expect("up");
            has.device.aux[aux.source as usize] = row;
        }
        let mut posting = posting.clone();
        self.plant.misdirect(&mut posting);
        self.post(from, to, &posting);
    }

    /// Reads the aux row, and everything that landed, as the receiver's runner would.
    pub(crate) fn check(&mut self, worker: usize, incarnation: u32, check: Check) {
        let Some(has) = self.process(Process { worker, incarnation }) else { return };
        let aux = check.aux.get() as usize;
        let key = check.key;
        let num_ranks = self.setup.num_ranks;
        let (first_token, mut found) = has.desk.inspect(key, aux, &has.device, num_ranks);
        let sent = |rank| self.rooms.sent.get(&(key.room, key.epoch, rank)).copied();
        let sent: Vec<u64> = (0..num_ranks).filter_map(sent).collect();
        if self.plant.strikes(Bug::UncheckedDigest) {
            let tag = Tag { writer: key.peer, ..found.tag };
            found = Inspection { tag, digests: sent.clone(), ..found };
        }
        let is_whole = found.tag.writer == key.peer && found.digests == sent;
        let says = self.workers[worker].as_mut().expect("up").core.explain(check.request);
        self.tally.num_arrived += u64::from(is_whole && says.contains(INSPECTED));
        if !is_whole && says.contains(INSPECTED) {
            let was_tampered = self.rooms.tampered.contains(&(key.room, key.epoch));
            assert!(was_tampered, "what landed for {key:?} is not what was sent: {found:?}");
            self.fired(Fault::DigestCaught, worker);
        }
        let event = Event::Inspected { key, first_token, found: &found };
        if self.strikes(Fault::RepeatedCheck) {
            self.fired(Fault::RepeatedCheck, worker);
            self.tell(worker, &[event, event]);
        } else {
            self.tell(worker, &[event]);
        }
    }
}
