//! Two cores and a wire between them: one computes prompts, the other decodes them.
//!
//! There may be more ranks that compute: each has the rooms whose number leaves its rank. Side 0 is the
//! first of them, side 1 decodes, the other ranks follow.
//!
//! The wire is memory of the test: messages and tickets go on when a test says so, and can be lost,
//! repeated and late. What lands is compared with who owns the memory then.

use std::collections::{BTreeMap, VecDeque};

use dsv4_core::ids::RequestId;
use dsv4_core::limits::Limits;
use dsv4_core::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey};
use dsv4_core::transfer::message::{Message, Word};
use dsv4_core::transfer::placement::Placement;
use dsv4_core::transfer::proof::Transport;
use dsv4_core::transfer::receiving::{Inspection, Tag};
use dsv4_core::transfer::timing::Timing;
use dsv4_core::{
    Check, Event, NewRequest, OnFailure, Outcome, Plan, Posting, RoomSettings, Side, Transfer,
};

use crate::driver::{Driver, request};

pub const P: usize = 0;
pub const D: usize = 1;

/// The prefill and the decode worker.
pub const WORKERS: [PeerRank; 2] = [
    PeerRank { incarnation: Incarnation(0xa), rank: 0 },
    PeerRank { incarnation: Incarnation(0xb), rank: 0 },
];

/// The worker of a side.
pub fn worker(side: usize) -> PeerRank {
    let more = |side| PeerRank { incarnation: Incarnation(0x100 + side as u128), rank: 0 };
    WORKERS.get(side).copied().unwrap_or_else(|| more(side))
}

/// The side that computes the prompts of a rank.
pub fn side_of(rank: usize) -> usize {
    if rank == 0 { P } else { rank + 1 }
}

/// Who used a block of D's memory last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Room(RoomKey),
    Request(RequestId),
}

pub struct Pair {
    pub sides: Vec<Driver>,
    /// On their way to each side; those to D from its first rank.
    pub mail: Vec<VecDeque<Message>>,
    /// On their way to D from the other ranks, by their sides.
    more_mail: Vec<VecDeque<Message>>,
    pub postings: VecDeque<Posting>,
    pub checks: VecDeque<Check>,
    /// What each side told: request, token, finish.
    pub told: Vec<Vec<(RequestId, i32, u8)>>,
    /// Blocks of D by group and id.
    users: BTreeMap<(usize, u32), User>,
    /// Where each room was told to write.
    targets: BTreeMap<RoomKey, Vec<(usize, u32)>>,
    digests: BTreeMap<RoomKey, u64>,
    pub now_us: u64,
    /// Slots and rows that were reset before their addresses left.
    pub num_resets: usize,
    /// Lands in the aux row of what is inspected next.
    pub tampered: Option<fn(&mut Inspection)>,
    pub first_token: i32,
}

pub fn settings(side: Side) -> RoomSettings {
    RoomSettings {
        side,
        placement: None,
        transport: Transport::InProcess,
        timing: Timing::default(),
        max_rooms: 4096,
        max_bytes_in_flight: 1 << 40,
        deadline_ms: 300_000,
    }
}

impl Pair {
    pub fn new(mut sides: [Driver; 2]) -> Self {
        sides[P].core.open_rooms(&settings(Side::Prefill)).expect("once");
        sides[D].core.open_rooms(&settings(Side::Decode)).expect("once");
        Self::over(sides.into())
    }

    /// Side 1 decodes; each of the others is a rank that computes.
    pub fn of_ranks(mut sides: Vec<Driver>) -> Self {
        let size = u32::try_from(sides.len() - 1).expect("few");
        sides[D].core.open_rooms(&settings(Side::Decode)).expect("once");
        for rank in 0..size {
            let placement = Some(Placement { rank, size });
            let settings = RoomSettings { placement, ..settings(Side::Prefill) };
            sides[side_of(rank as usize)].core.open_rooms(&settings).expect("once");
        }
        Self::over(sides)
    }

    pub fn over(sides: Vec<Driver>) -> Self {
        let num_sides = sides.len();
        let mut pair = Self {
            sides,
            mail: vec![VecDeque::new(); num_sides],
            more_mail: vec![VecDeque::new(); num_sides],
            postings: VecDeque::new(),
            checks: VecDeque::new(),
            told: vec![vec![]; num_sides],
            users: BTreeMap::new(),
            targets: BTreeMap::new(),
            digests: BTreeMap::new(),
            now_us: 0,
            num_resets: 0,
            tampered: None,
            first_token: 7,
        };
        pair.wait(0); // from here on time is counted
        pair
    }

    pub fn num_ranks(&self) -> usize {
        self.sides.len() - 1
    }

    pub fn all_sides(&self) -> std::ops::Range<usize> {
        0..self.sides.len()
    }

    /// The side that computes the prompt of a room.
    pub fn side_of(&self, room: Room) -> usize {
        side_of(usize::try_from(room.0).expect("small") % self.num_ranks())
    }

    /// The key of a room on D.
    fn key(&self, room: Room) -> RoomKey {
        RoomKey { room, epoch: Epoch(0), peer: worker(self.side_of(room)).incarnation }
    }

    /// The real geometry in roomy pools.
    pub fn roomy(limits: &Limits) -> Self {
        Self::new([Driver::roomy(limits.clone()), Driver::roomy(limits.clone())])
    }

    pub fn submit_to(&mut self, side: usize, room: u64, new: NewRequest<'_>) -> RequestId {
        let transfer = other_side(side, room);
        let new = NewRequest { transfer: Some(transfer), ..new };
        let id = self.sides[side].core.submit(new).expect("accepted");
        self.settle(side);
        id
    }

    /// The same request to both sides, D first.
    pub fn submit(&mut self, room: u64, prompt: usize, max_tokens: usize) -> [RequestId; 2] {
        let decode = self.submit_to(D, room, request(prompt, max_tokens));
        [self.submit_to(P, room, request(prompt, max_tokens)), decode]
    }

    pub fn advance(&mut self, side: usize, event: Event<'_>) -> Outcome {
        let outcome = self.sides[side].core.advance(&[event]).expect("legal");
        self.sides[side].core.audit().expect("balanced");
        self.take(side, &outcome);
        outcome
    }

    /// What a call left to be told.
    pub fn settle(&mut self, side: usize) {
        let outcome = self.sides[side].core.advance(&[]).expect("open");
        self.sides[side].core.audit().expect("balanced");
        self.take(side, &outcome);
    }

    fn take(&mut self, side: usize, outcome: &Outcome) {
        for (index, &id) in outcome.request_ids.iter().enumerate() {
            self.told[side].push((id, outcome.tokens[index], outcome.finished[index]));
        }
        let errands = &outcome.errands;
        self.num_resets += errands.resets.len();
        for (to, message) in &errands.messages {
            let receiver = self.all_sides().find(|&side| worker(side) == *to).expect("a worker");
            assert!((side == D) != (receiver == D), "{side} says something to {receiver}");
            self.note_offer(message);
            let from_others = receiver == D && side != P;
            let mail =
                if from_others { &mut self.more_mail[side] } else { &mut self.mail[receiver] };
            mail.push_back(message.clone());
        }
        self.postings.extend(errands.postings.iter().cloned());
        self.checks.extend(errands.checks.iter().copied());
    }

    /// From here on the room may be written to, whether the message arrives or not.
    fn note_offer(&mut self, message: &Message) {
        let Message::About { room, word: Word::Offer(offer), .. } = message else { return };
        let groups = [&offer.full, &offer.swa, &vec![offer.state], &vec![offer.aux]];
        let blocks = groups
            .into_iter()
            .enumerate()
            .flat_map(|(group, targets)| targets.iter().map(move |target| (group, target.block)));
        let blocks: Vec<_> = blocks.collect();
        let key = self.key(*room);
        if self.targets.insert(key, blocks.clone()).is_none() {
            for block in blocks {
                self.users.insert(block, User::Room(key));
            }
        }
    }

    pub fn deliver(&mut self, side: usize) -> bool {
        let Some(message) = self.mail[side].pop_front() else { return false };
        self.hear(side, &message);
        true
    }

    /// The mail of one connection: to a rank, or from one to D.
    pub fn mail_of(&mut self, prefill: usize, to_decode: bool) -> &mut VecDeque<Message> {
        match (prefill, to_decode) {
            (P, true) => &mut self.mail[D],
            (_, true) => &mut self.more_mail[prefill],
            (_, false) => &mut self.mail[prefill],
        }
    }

    pub fn hear(&mut self, side: usize, message: &Message) {
        let from = worker(if side == D { P } else { D });
        self.advance(side, Event::Peer { from, message });
    }

    /// D hears another rank than the first.
    pub fn hear_from(&mut self, prefill: usize, message: &Message) {
        self.advance(D, Event::Peer { from: worker(prefill), message });
    }

    fn deliver_more(&mut self) -> bool {
        let waiting = self.all_sides().find(|&side| !self.more_mail[side].is_empty());
        let Some(side) = waiting else { return false };
        let Some(message) = self.more_mail[side].pop_front() else { return false };
        self.hear_from(side, &message);
        true
    }

    /// Something that waits for a side other than the first two.
    fn deliver_to_more(&mut self) -> bool {
        (D + 1..self.sides.len()).any(|side| self.deliver(side))
    }

    /// The bytes of a ticket arrive in D's memory: nobody else may own it.
    pub fn write(&mut self, posting: &Posting) -> u64 {
        let mine = self.key(posting.key.room);
        let copies = &posting.copies;
        let runs =
            [&copies.full[..], &copies.swa[..], copies.state.as_slice(), copies.aux.as_slice()];
        let mut digest = 0_u64;
        for (group, runs) in runs.into_iter().enumerate() {
            for run in runs {
                for block in run.target..run.target + run.count {
                    let user = self.users.get(&(group, block));
                    assert_eq!(user, Some(&User::Room(mine)), "a foreign byte in {group} {block}");
                    digest = digest.wrapping_add(u64::from(block) << (16 * group));
                }
            }
        }
        digest
    }

    /// A ticket ends. What failed wrote nothing, and may yet.
    pub fn end(&mut self, posting: &Posting, landed: bool) {
        let digest = if landed { self.write(posting) } else { 0 };
        let (key, side) = (self.key(posting.key.room), self.side_of(posting.key.room));
        *self.digests.entry(key).or_default() += digest;
        self.advance(side, Event::TicketEnded { ticket: posting.ticket, landed, digest });
    }

    pub fn land(&mut self) -> bool {
        let Some(posting) = self.postings.pop_front() else { return false };
        self.end(&posting, true);
        true
    }

    pub fn inspect(&mut self) -> bool {
        let Some(Check { key, .. }) = self.checks.pop_front() else { return false };
        let tag = Tag { room: key.room, epoch: key.epoch, writer: key.peer };
        let digests = vec![self.digests.get(&key).copied().unwrap_or_default()];
        let mut found = Inspection { tag, digests, non_finite: false };
        if let Some(tamper) = self.tampered {
            tamper(&mut found);
        }
        let first_token = self.first_token;
        self.advance(D, Event::Inspected { key, first_token, found: &found });
        true
    }

    /// Everything that is under way arrives, in order.
    pub fn pump(&mut self) {
        while self.deliver(P)
            || self.deliver(D)
            || self.deliver_more()
            || self.deliver_to_more()
            || self.land()
            || self.inspect()
        {}
    }

    pub fn plan(&mut self, side: usize) -> Option<Plan> {
        let plan = self.sides[side].plan()?;
        self.note(side, &plan);
        Some(plan)
    }

    /// A step of this side was planned.
    pub fn note(&mut self, side: usize, plan: &Plan) {
        if side == D {
            self.note_tables(plan);
        }
    }

    /// Does nobody wait for anything?
    pub fn is_quiet(&self) -> bool {
        let waits = ["num_rooms", "num_arriving", "num_departing", "num_running", "num_waiting"];
        self.all_sides().all(|side| waits.iter().all(|name| self.stat(side, name) == 0))
    }

    /// D's step reads and writes these blocks for its requests.
    fn note_tables(&mut self, plan: &Plan) {
        for (row, &id) in plan.request_ids.iter().enumerate() {
            let user = User::Request(id);
            for (group, name) in [(0, "block_table_full"), (1, "block_table_swa")] {
                for block in self.sides[D].row(name, row).into_iter().filter(|&block| block > 0) {
                    self.users.insert((group, block.unsigned_abs()), user);
                }
            }
            let slot = self.sides[D].array("state_slots")[row].unsigned_abs();
            self.users.insert((2, slot), user);
        }
    }

    pub fn finish(&mut self, side: usize, plan: &Plan) -> Outcome {
        let tokens = vec![7; plan.num_samples];
        let done = Event::StepDone { step: plan.step_id, tokens: &tokens, non_finite: &[] };
        self.advance(side, done)
    }

    /// One step of one side; false if there was nothing to do.
    pub fn step(&mut self, side: usize) -> bool {
        let Some(plan) = self.plan(side) else {
            self.settle(side);
            return false;
        };
        self.finish(side, &plan);
        true
    }

    /// Until nothing moves.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            self.pump();
            let moved = [self.step(P), self.step(D)];
            if moved == [false, false] && self.mail.iter().all(VecDeque::is_empty) {
                return;
            }
        }
        panic!("still busy");
    }

    pub fn wait(&mut self, milliseconds: u64) {
        self.now_us += milliseconds * 1000;
        for side in self.all_sides() {
            self.advance(side, Event::Tick(self.now_us));
        }
    }

    pub fn stat(&self, side: usize, name: &str) -> u64 {
        self.sides[side].stat(name)
    }

    /// Every end of a request that a side told.
    pub fn ends(&self, side: usize, id: RequestId) -> Vec<u8> {
        let told = self.told[side].iter();
        told.filter(|&&(other, _, code)| other == id && code > 0)
            .map(|&(_, _, code)| code)
            .collect()
    }

    pub fn tokens(&self, side: usize, id: RequestId) -> Vec<i32> {
        let told = self.told[side].iter();
        told.filter(|&&(other, token, _)| other == id && token >= 0).map(|&(_, t, _)| t).collect()
    }

    /// Nothing is held anywhere.
    pub fn assert_at_rest(&mut self) {
        for side in self.all_sides() {
            self.settle(side);
            self.sides[side].assert_at_rest();
            assert_eq!(self.stat(side, "aux_free"), self.stat(side, "aux_capacity"));
            for name in ["num_arriving", "num_departing", "num_seated", "num_tickets_posted"] {
                assert_eq!(self.stat(side, name), 0, "{name} of side {side}");
            }
        }
    }
}

pub fn other_side(side: usize, room: u64) -> Transfer {
    Transfer {
        room: Room(room),
        epoch: Epoch(0),
        peer: WORKERS[1 - side].incarnation,
        peer_ranks: vec![0],
        on_failure: OnFailure::Recompute,
    }
}
