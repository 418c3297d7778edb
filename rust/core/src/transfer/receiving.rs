//! One room on the decode side: who may write here, and what must hold before it is believed.
//!
//! ```text
//!   Bootstrapping ──offer──▶ Ready ──▶ Transferring ──▶ Inspecting ──checks pass──▶ committed
//!        │                     │            │                │
//!        │ nothing disclosed   └────────────┴────────────────┴──▶ Aborting ──all proved──▶ closed
//!        └──────────────────────────────────────────────────────────────────────────────▶ closed
//! ```
//! 1. A rank owes a proof from the moment its Offer is sent, whether the Offer arrives or not.
//! 2. The request's own part ends at once and once: Commit or Fail. The room stays until every rank
//!    that owes a proof has given one; time gives none.
//! 3. No way leads from Aborting to Commit, however complete what lands.

use std::collections::BTreeMap;

use crate::planted::{self, Bug};
use crate::transfer::action::{Action, Ending, Oddity, Out};
use crate::transfer::ids::{Epoch, Incarnation, PeerRank, Room, RoomKey};
use crate::transfer::message::{Offer, Prompt, Reason, Refusal, Word, fold};
use crate::transfer::proof::Proof;
use crate::transfer::timing::{Repeat, Timing};

/// Where a room is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No address was told.
    Bootstrapping,
    /// Addresses were told.
    Ready,
    /// Something came.
    Transferring,
    /// All came, and is being looked at.
    Inspecting,
    /// Given up; proofs are missing.
    Aborting(Reason),
}

/// What was found in memory after everything had landed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inspection {
    /// The tag that was written last into the aux row.
    pub tag: Tag,
    /// Over what landed, for each writing rank in order.
    pub digests: Vec<u64>,
    /// The flag of the aux row.
    pub non_finite: bool,
}

/// Whose aux row it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tag {
    pub room: Room,
    pub epoch: Epoch,
    pub writer: Incarnation,
}

/// One rank that writes here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    rank: u16,
    /// Addresses were told, and no proof came since.
    owes: bool,
    wants: bool,
    /// Chunk to items and digest.
    chunks: BTreeMap<u32, (u32, u64)>,
    /// How many chunks, and the digest over all.
    last: Option<(u32, u64)>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Receiving {
    key: RoomKey,
    prompt: Prompt,
    phase: Phase,
    writers: Vec<Writer>,
    offer: Option<Offer>,
    /// The peer is gone, as far as is known: nobody is there to answer.
    gone: bool,
    repeat: Repeat,
}

impl Receiving {
    /// A room whose prompt these ranks of the peer will write. Says Join.
    pub fn start(
        key: RoomKey,
        prompt: Prompt,
        ranks: &[u16],
        timing: &Timing,
        out: &mut Out,
    ) -> Self {
        let writer =
            |&rank| Writer { rank, owes: false, wants: false, chunks: BTreeMap::new(), last: None };
        let room = Self {
            key,
            prompt,
            phase: Phase::Bootstrapping,
            writers: ranks.iter().map(writer).collect(),
            offer: None,
            gone: false,
            repeat: Repeat::start(timing),
        };
        room.say_again(out);
        room
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether this rank of the peer has a part in the room.
    pub fn involves(&self, rank: u16) -> bool {
        self.writers.iter().any(|writer| writer.rank == rank)
    }

    /// The ranks that have a part in the room.
    pub fn ranks(&self) -> impl Iterator<Item = u16> {
        self.writers.iter().map(|writer| writer.rank)
    }

    /// Ranks that may still write.
    pub fn owing(&self) -> impl Iterator<Item = u16> {
        self.writers.iter().filter(|writer| writer.owes).map(|writer| writer.rank)
    }

    /// Tells every rank where to write. False, and nothing is told, unless it is the first time.
    pub fn offer(&mut self, offer: Offer, timing: &Timing, out: &mut Out) -> bool {
        if self.phase != Phase::Bootstrapping {
            return false;
        }
        self.offer = Some(offer);
        self.phase = Phase::Ready;
        for writer in &mut self.writers {
            writer.owes = !planted::is(Bug::OwesOnArrival);
        }
        self.repeat = Repeat::start(timing);
        self.say_again(out);
        true
    }

    /// What a rank of the peer said.
    pub fn hear(
        &mut self,
        rank: u16,
        word: &Word,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        let Some(at) = self.writers.iter().position(|writer| writer.rank == rank) else {
            out.count(Oddity::Stranger);
            return None;
        };
        self.gone = false; // it speaks
        match *word {
            Word::Want => self.wanted(at, out),
            Word::ChunkDone { chunk, items, digest } => {
                return self.chunk_done(at, chunk, (items, digest), timing, out);
            }
            Word::Final { chunks, digest } => {
                return self.all_done(at, (chunks, digest), timing, out);
            }
            Word::Abort(reason) => {
                let first = !matches!(self.phase, Phase::Aborting(_));
                if first {
                    return self.abort(reason, timing, out);
                }
                self.tell(at, Word::Abort(reason), out);
            }
            Word::AbortAck { drained } => {
                if drained || planted::is(Bug::AckProves) {
                    self.discharge(at, Proof::AbortAckDrained, out);
                }
                if drained && planted::is(Bug::OneAckForAll) {
                    self.discharge_all(Proof::AbortAckDrained, out);
                }
                return self.given_up(Reason::Refused(Refusal::Closed), timing, out);
            }
            Word::Refuse(refusal) => {
                let proves = matches!(refusal, Refusal::Unknown | Refusal::Closed);
                if proves || planted::is(Bug::RefusalProves) {
                    self.discharge(at, Proof::RefusedNeverStarted, out);
                }
                return self.given_up(Reason::Refused(refusal), timing, out);
            }
            Word::Join(_) | Word::Offer(_) | Word::Commit => out.count(Oddity::Stranger),
        }
        None
    }

    fn wanted(&mut self, at: usize, out: &mut Out) {
        match (self.phase, &self.offer) {
            (Phase::Bootstrapping, _) if self.writers[at].wants => out.count(Oddity::Repeated),
            (Phase::Bootstrapping, _) => {
                self.writers[at].wants = true;
                out.push(Action::Wanted(self.key));
            }
            (Phase::Aborting(reason), _) => self.tell(at, Word::Abort(reason), out),
            (_, Some(offer)) => self.tell(at, Word::Offer(offer.clone()), out),
            (_, None) => {}
        }
    }

    fn chunk_done(
        &mut self,
        at: usize,
        chunk: u32,
        landed: (u32, u64),
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        match self.phase {
            Phase::Aborting(reason) => {
                self.tell(at, Word::Abort(reason), out);
                return None;
            }
            Phase::Bootstrapping => return self.abort(Reason::ItemsMismatch, timing, out),
            _ => {}
        }
        if planted::is(Bug::ChunkProves) {
            self.discharge(at, Proof::Done, out);
        }
        match self.writers[at].chunks.insert(chunk, landed) {
            Some(before) if before != landed => self.abort(Reason::ItemsMismatch, timing, out),
            Some(_) => {
                out.count(Oddity::Repeated);
                None
            }
            None => {
                self.phase = Phase::Transferring;
                self.look(timing, out)
            }
        }
    }

    fn all_done(
        &mut self,
        at: usize,
        last: (u32, u64),
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        if self.phase == Phase::Bootstrapping {
            return self.abort(Reason::ItemsMismatch, timing, out);
        }
        self.discharge(at, Proof::Done, out);
        if let Phase::Aborting(reason) = self.phase {
            self.tell(at, Word::Abort(reason), out);
            return self.closed();
        }
        match self.writers[at].last.replace(last) {
            Some(before) if before != last => self.abort(Reason::ItemsMismatch, timing, out),
            Some(_) => {
                out.count(Oddity::Repeated);
                None
            }
            None => {
                self.phase = Phase::Transferring;
                self.look(timing, out)
            }
        }
    }

    /// Once every chunk of every rank is reported: they must be what was planned.
    fn look(&mut self, timing: &Timing, out: &mut Out) -> Option<Ending> {
        let offer = self.offer.as_ref()?;
        let planned = u64::from(offer.num_items());
        for writer in &self.writers {
            let Some((chunks, digest)) = writer.last else {
                if planted::is(Bug::OneRankEnough) {
                    continue;
                }
                return None;
            };
            if writer.chunks.keys().any(|&chunk| chunk == 0 || chunk > chunks) {
                return self.abort(Reason::ItemsMismatch, timing, out);
            }
            if writer.chunks.len() != chunks as usize {
                return None;
            }
            let items: u64 = writer.chunks.values().map(|&(items, _)| u64::from(items)).sum();
            if items != planned && !planted::is(Bug::ItemsUnchecked) {
                return self.abort(Reason::ItemsMismatch, timing, out);
            }
            if digest != fold(writer.chunks.values().map(|&(_, digest)| digest)) {
                return self.abort(Reason::DigestMismatch, timing, out);
            }
        }
        self.phase = Phase::Inspecting;
        out.push(Action::Inspect(self.key));
        None
    }

    /// What was found in memory. The last check: with it the blocks are the request's.
    pub fn inspected(
        &mut self,
        found: &Inspection,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        if self.phase != Phase::Inspecting {
            return None; // given up in the meantime
        }
        let RoomKey { room, epoch, peer } = self.key;
        let told = self.writers.iter().filter_map(|writer| writer.last.map(|(_, digest)| digest));
        let is_mine = found.tag == (Tag { room, epoch, writer: peer });
        let wrong = if !is_mine && !planted::is(Bug::TagUnchecked) {
            Some(Reason::TagMismatch)
        } else if found.non_finite && !planted::is(Bug::FlagUnchecked) {
            Some(Reason::NonFinite)
        } else if !told.eq(found.digests.iter().copied()) && !planted::is(Bug::DigestUnchecked) {
            Some(Reason::DigestMismatch)
        } else {
            None
        };
        if let Some(reason) = wrong {
            return self.abort(reason, timing, out);
        }
        out.push(Action::Commit(self.key));
        self.tell_all(&Word::Commit, out);
        Some(Ending::Committed)
    }

    /// Gives the room up, whoever says so. The request ends here and now; its blocks may not.
    pub fn abort(&mut self, reason: Reason, timing: &Timing, out: &mut Out) -> Option<Ending> {
        if matches!(self.phase, Phase::Aborting(_)) {
            return None;
        }
        self.phase = Phase::Aborting(reason);
        self.repeat = Repeat::start(timing);
        out.push(Action::Fail(self.key, reason));
        if planted::is(Bug::LeaseFrees) && reason == Reason::LeaseExpired {
            self.discharge_all(Proof::Done, out);
        }
        self.tell_all(&Word::Abort(reason), out);
        self.closed()
    }

    /// A rank gave up by itself: so does the room, unless it did before.
    fn given_up(&mut self, reason: Reason, timing: &Timing, out: &mut Out) -> Option<Ending> {
        if matches!(self.phase, Phase::Aborting(_)) {
            return self.closed();
        }
        self.abort(reason, timing, out)
    }

    /// The peer's process is gone, with or without proof that nothing of its is under way.
    pub fn peer_gone(
        &mut self,
        proof: Option<Proof>,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        self.gone = true;
        if let Some(proof) = proof {
            self.discharge_all(proof, out);
        }
        match self.phase {
            Phase::Inspecting => None, // all is here, and proved
            _ => self.given_up(Reason::PeerLost, timing, out),
        }
    }

    /// This worker cut the way in.
    pub fn fenced(&mut self, proof: Proof, timing: &Timing, out: &mut Out) -> Option<Ending> {
        self.discharge_all(proof, out);
        match self.phase {
            Phase::Inspecting => None,
            _ => self.given_up(Reason::PeerLost, timing, out),
        }
    }

    /// Time passed.
    pub fn elapse(&mut self, milliseconds: u64, timing: &Timing, out: &mut Out) {
        if self.repeat.elapse(milliseconds, timing) {
            if planted::is(Bug::TimeProves) && matches!(self.phase, Phase::Aborting(_)) {
                self.discharge_all(Proof::AbortAckDrained, out);
            }
            if !planted::is(Bug::SaidOnce) {
                self.say_again(out);
            }
        }
    }

    /// Says again what waits for an answer.
    pub fn say_again(&self, out: &mut Out) {
        if self.gone {
            return;
        }
        for (at, writer) in self.writers.iter().enumerate() {
            match (self.phase, &self.offer) {
                (Phase::Bootstrapping, _) if !writer.wants => {
                    self.tell(at, Word::Join(self.prompt), out);
                }
                // To the end, although chunks came: a rank that gave up, and whose word was lost,
                // says so again.
                (Phase::Ready | Phase::Transferring, Some(offer)) => {
                    self.tell(at, Word::Offer(offer.clone()), out);
                }
                (Phase::Aborting(reason), _) if writer.owes => {
                    self.tell(at, Word::Abort(reason), out);
                }
                _ => {}
            }
        }
    }

    fn closed(&self) -> Option<Ending> {
        let Phase::Aborting(reason) = self.phase else { return None };
        let all_proved = self.owing().next().is_none();
        all_proved.then_some(Ending::Aborted { reason, drained: true })
    }

    fn discharge(&mut self, at: usize, proof: Proof, out: &mut Out) {
        let writer = &mut self.writers[at];
        if std::mem::take(&mut writer.owes) {
            out.push(Action::Discharge(self.key.writer(writer.rank), proof));
        }
    }

    fn discharge_all(&mut self, proof: Proof, out: &mut Out) {
        for at in 0..self.writers.len() {
            self.discharge(at, proof, out);
        }
    }

    fn tell(&self, at: usize, word: Word, out: &mut Out) {
        let to = PeerRank { incarnation: self.key.peer, rank: self.writers[at].rank };
        out.tell(to, word);
    }

    fn tell_all(&self, word: &Word, out: &mut Out) {
        if !self.gone {
            for at in 0..self.writers.len() {
                self.tell(at, word.clone(), out);
            }
        }
    }
}
