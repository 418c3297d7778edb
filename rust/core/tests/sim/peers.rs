//! What workers have to do for each other's rooms: errands, letters, checks, beats, and farewells.

use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey, Ticket};
use dsv4_core::transfer::message::{Message, Word};
use dsv4_core::transfer::proof::Evidence;
use dsv4_core::transfer::receiving::{Inspection, Tag};
use dsv4_core::{Check, Errands, Event, Posting, Reset};

use crate::cargo::AuxRow;
use crate::desk::{PATIENCE, tag_of};
use crate::faults::Fault;
use crate::flow::Process;
use crate::model::State;
use crate::setup::Role;
use crate::worker::{Held, Worker};
use crate::world::{Happening, World};

/// Between two beats of one worker's clock.
pub const TICK_US: u64 = 250_000;

/// After everything is well again, so much later nothing may be held any more: two leases, and what
/// clocks that run apart add to them.
const TWO_LEASES_US: u64 = 90_000_000;

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

    /// Which process an incarnation was.
    pub(crate) fn process_of(&self, incarnation: Incarnation) -> Process {
        let number = u32::try_from(incarnation.0).expect("ours are small");
        Process { worker: self.started[number as usize - 1], incarnation: number }
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
        self.deliver(worker, &outcome);
        self.called(worker);
        self.pump(worker);
    }

    /// Does what the core wants done, in its order.
    pub(crate) fn run_errands(&mut self, worker: usize, errands: &Errands) {
        for reset in &errands.resets {
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
            let delay = self.rng.micros(1, 2_000);
            self.agenda.after(delay, Happening::Check { worker, incarnation, check });
        }
    }

    fn reset(&mut self, worker: usize, reset: &Reset) {
        let device = &mut self.workers[worker].as_mut().expect("up").device;
        let place = reset.block.get() as usize;
        match reset.group {
            dsv4_core::ids::Group::State => device.states[place] = State::EMPTY,
            dsv4_core::ids::Group::Aux => device.aux[place] = AuxRow::default(),
            other => panic!("{other} blocks are not reset"),
        }
    }

    // ------------------------------------------------------------ letters

    fn send(&mut self, worker: usize, to: PeerRank, message: &Message) {
        let (from, to) = (self.here(worker), self.process_of(to.incarnation));
        if let Message::About { room, epoch, word: Word::Offer(offer) } = message {
            let key = RoomKey { room: *room, epoch: *epoch, peer: Self::incarnation_of(to) };
            let has = self.workers[worker].as_mut().expect("up");
            has.desk.offers.insert(key, offer.clone());
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
        let from = PeerRank { incarnation: Self::incarnation_of(letter.from), rank: 0 };
        self.tell(letter.to.worker, &[Event::Peer { from, message: &letter.message }]);
    }

    // ------------------------------------------------------------ writes and checks

    fn start_posting(&mut self, worker: usize, posting: &Posting) {
        let (from, to) = (self.here(worker), self.process_of(posting.key.peer));
        if let Some(aux) = posting.copies.aux {
            let has = self.workers[worker].as_mut().expect("up");
            let token = has.desk.first_tokens.get(&posting.key).copied();
            let first_token = token.expect("sampled before the last chunk leaves");
            let tag = tag_of(posting.key, Self::incarnation_of(from));
            let row = AuxRow { tag, first_token, non_finite: false };
            has.device.aux[aux.source as usize] = row;
        }
        self.post(from, to, posting);
    }

    /// Reads the aux row, and everything that landed, as the receiver's runner would.
    pub(crate) fn check(&mut self, worker: usize, incarnation: u32, check: Check) {
        let Some(has) = self.process(Process { worker, incarnation }) else { return };
        let aux = check.aux.get() as usize;
        let (first_token, found) = has.desk.inspect(check.key, aux, &has.device);
        let key = check.key;
        let sent = self.sent.get(&(key.room, key.epoch)).copied();
        let is_whole = found.tag.writer == key.peer && Some(found.digests[0]) == sent;
        let says = self.workers[worker].as_mut().expect("up").core.explain(check.request);
        if !is_whole && says.contains(INSPECTED) {
            let was_tampered = self.tampered.contains(&(key.room, key.epoch));
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

    // ------------------------------------------------------------ time and death

    pub(crate) fn tick(&mut self, worker: usize, incarnation: u32) {
        let Some(has) = self.process(Process { worker, incarnation }) else { return };
        let slowed_us = self.agenda.now_us() * has.clock_rate / 1_000;
        let told_us = self.clock_of().saturating_sub(self.agenda.now_us());
        let now_us = told_us.max(self.setup.origin_us) + slowed_us;
        self.tell(worker, &[Event::Tick(now_us)]);
        if self.strikes(Fault::StrayEvent) {
            self.stray(worker);
        }
        if !self.is_over() {
            let delay = self.rng.micros(TICK_US / 2, TICK_US * 3 / 2);
            self.agenda.after(delay, Happening::Tick { worker, incarnation });
        }
    }

    /// Events about rooms, tickets and peers that nobody has: they change nothing.
    fn stray(&mut self, worker: usize) {
        self.fired(Fault::StrayEvent, worker);
        let nobody = Incarnation(u128::MAX);
        let key = RoomKey { room: Room(Room::MAX), epoch: Epoch(u32::MAX), peer: nobody };
        let tag = Tag { room: key.room, epoch: key.epoch, writer: nobody };
        let found = Inspection { tag, digests: vec![0], non_finite: false };
        let evidence = self.setup.way.proof_of_death();
        self.tell(
            worker,
            &[
                Event::TicketEnded { ticket: Ticket(u64::MAX), landed: true, digest: 0 },
                Event::Inspected { key, first_token: 1, found: &found },
                Event::PeerGone { incarnation: nobody, evidence: Some(evidence) },
            ],
        );
    }

    /// Nothing is left to do: no job is open, and every block of every worker is back.
    fn is_over(&self) -> bool {
        if self.is_arriving() || self.num_open > 0 {
            return false;
        }
        let is_late = self.agenda.now_us() > self.heals_us + TWO_LEASES_US;
        is_late || self.workers.iter().flatten().all(Worker::is_at_rest)
    }

    /// Does a request still wait for what is written for this room?
    pub(crate) fn is_room_open(&mut self, worker: usize, key: RoomKey) -> bool {
        let Some(has) = self.workers[worker].as_mut() else { return false };
        let of_room = |held: &Held| held.key == Some(key);
        let Some((&id, _)) = has.held.iter().find(|(_, held)| of_room(held)) else { return false };
        has.core.explain(id).contains("has a place")
    }

    /// Everybody learns that a process is gone, each in its own time: first that it is silent, which
    /// proves nothing, and in the end, behind a fence, that nothing of it can land any more.
    pub(crate) fn spread_death(&mut self, gone: Process) {
        self.flows_of_gone(gone);
        for worker in 0..self.workers.len() {
            if worker == gone.worker || self.workers[worker].is_none() {
                continue;
            }
            let to = self.here(worker);
            let soon = self.rng.micros(1_000, 3_000_000);
            let late = soon + self.rng.micros(1_000, 40_000_000);
            if self.strikes(Fault::WeakEvidence) {
                let evidence = self.setup.way.hint_of_death();
                self.agenda.after(soon, Happening::Gone { to, gone, evidence });
            }
            let evidence = Some(self.setup.way.proof_of_death());
            self.agenda.after(late, Happening::Gone { to, gone, evidence });
            self.heals_us = self.heals_us.max(self.agenda.now_us() + late);
        }
    }

    pub(crate) fn learn_death(&mut self, to: Process, gone: Process, evidence: Option<Evidence>) {
        if self.process(to).is_none() {
            return;
        }
        if evidence == Some(self.setup.way.proof_of_death()) {
            self.fence(to, gone);
            self.fired(Fault::PeerGone, to.worker);
        } else {
            self.fired(Fault::WeakEvidence, to.worker);
        }
        let incarnation = Self::incarnation_of(gone);
        self.tell(to.worker, &[Event::PeerGone { incarnation, evidence }]);
    }

    // ------------------------------------------------------------ links

    /// A decode worker and a prefill worker that are up.
    fn any_pair(&self) -> Option<(Process, Process)> {
        let find = |role| {
            let mut up = self.workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.as_ref()?)));
            let (worker, found) = up.find(|(_, worker)| worker.role == role)?;
            Some(Process { worker, incarnation: found.incarnation })
        };
        Some((find(Role::Decode)?, find(Role::Prefill)?))
    }

    /// A peer cannot prove that it is done, again: in the end it is cut off.
    fn may_cut_off(&mut self, at: Process, from: Process) {
        let desk = &mut self.workers[at.worker].as_mut().expect("up").desk;
        let count = desk.num_undrained.entry(Self::incarnation_of(from)).or_default();
        *count += 1;
        if *count > PATIENCE {
            *count = 0;
            self.cut_off(at, from);
        }
    }

    /// A decode worker cuts off a prefill worker that lives, which connects anew some time later.
    pub(crate) fn cut_off(&mut self, at: Process, from: Process) {
        let Some(evidence) = self.setup.way.proof_of_fence() else { return };
        if self.process(at).is_none() || self.process(from).is_none() {
            return;
        }
        if self.fences.insert((at, from)) {
            *self.num_fences.entry((at, from)).or_default() += 1;
            self.fence(at, from);
            self.fired(Fault::Fence, at.worker);
            let incarnation = Self::incarnation_of(from);
            self.tell(at.worker, &[Event::Fenced { incarnation, evidence }]);
            let delay = self.rng.micros(1_000, 5_000_000);
            self.agenda.after(delay, Happening::Reconnect { at, from });
            self.heals_us = self.heals_us.max(self.agenda.now_us() + delay);
        }
    }

    pub(crate) fn reconnect(&mut self, at: Process, from: Process) {
        if self.process(at).is_some() && self.process(from).is_some() {
            let incarnation = Self::incarnation_of(at);
            let num_fences = self.num_fences[&(at, from)];
            self.tell(from.worker, &[Event::Reconnected { incarnation, num_fences }]);
        }
        self.fences.remove(&(at, from));
    }

    /// When the link between two workers is up again; None while it is.
    pub(crate) fn link_up_at(&self, one: usize, other: usize) -> Option<u64> {
        let key = (one.min(other), one.max(other));
        self.links_down.get(&key).copied().filter(|&until| until > self.agenda.now_us())
    }

    /// Links go down, workers stop or are cut off, now and then.
    pub(crate) fn cut_link(&mut self) {
        let now_us = self.agenda.now_us();
        let count = self.workers.len();
        let lasts = self.rng.pick(&[100_000, 1_000_000, 10_000_000, 60_000_000, 120_000_000]);
        let until = now_us + self.rng.micros(1, lasts);
        if self.strikes(Fault::Partition) {
            let (one, other) = (self.rng.below(count), self.rng.below(count));
            self.links_down.insert((one.min(other), one.max(other)), until);
            self.heals_us = self.heals_us.max(until);
        }
        if self.strikes(Fault::Stopped) {
            let worker = self.rng.below(count);
            self.stopped.insert(worker, until);
            self.heals_us = self.heals_us.max(until);
            self.fired(Fault::Stopped, worker);
        }
        if self.strikes(Fault::Fence) {
            if let Some((at, from)) = self.any_pair() {
                self.cut_off(at, from);
            }
        }
        if self.is_arriving() {
            let gap = self.rng.micros(1, 2_000_000);
            self.agenda.after(gap, Happening::CutLink);
        }
    }
}
