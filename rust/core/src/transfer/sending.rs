//! One room on one rank of the prefill side: what it may still write, and when it never will again.
//!
//! ```text
//!   Bootstrapping ──Offer──▶ Ready ──post──▶ Transferring ──Commit──▶ closed
//!        └─────────────────────┴──────────────────┴──▶ Aborting ──tickets ended──▶ closed
//! ```
//! 1. A ticket that was posted is followed to its end, whatever became of the room; only then is
//!    the source released.
//! 2. After Aborting nothing is posted. `drained` is said when no ticket is left and none failed:
//!    what failed may still be landing.

use std::collections::BTreeMap;

use crate::planted::{self, Bug};
use crate::transfer::action::{Action, Ending, Oddity, Out};
use crate::transfer::ids::{PeerRank, RoomKey, Ticket};
use crate::transfer::message::{Offer, Prompt, Reason, Refusal, Word, fold};
use crate::transfer::runs::{Chunk, Copies};
use crate::transfer::timing::{Repeat, Timing};

/// Where a room is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No address is known.
    Bootstrapping,
    /// Addresses are known.
    Ready,
    /// Something was posted.
    Transferring,
    /// Given up; tickets are under way.
    Aborting(Reason),
}

/// One chunk that was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Posted {
    items: u32,
    digest: u64,
    landed: bool,
}

/// Blocks that D may expect for a prompt, behind what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lengths {
    /// Full blocks of the whole prompt.
    pub full: usize,
    /// Window blocks of its tail.
    pub swa: usize,
    /// Tokens of a full block.
    pub block_tokens: usize,
}

impl Lengths {
    /// Whether an offer has exactly one target for each block.
    fn fit(&self, offer: &Offer) -> bool {
        let cached = offer.num_cached_tokens as usize;
        planted::is(Bug::ListsCut)
            || cached % self.block_tokens == 0
                && cached / self.block_tokens + offer.full.len() == self.full
                && offer.swa.len() == self.swa
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sending {
    key: RoomKey,
    to: PeerRank,
    prompt: Prompt,
    lengths: Lengths,
    phase: Phase,
    wanting: bool,
    offer: Option<Offer>,
    /// Full blocks of the offer that are planned.
    num_planned: usize,
    /// Chunks in order.
    chunks: Vec<Posted>,
    /// The last chunk is among them.
    complete: bool,
    /// Tickets under way, with the place of their chunk.
    tickets: BTreeMap<Ticket, usize>,
    /// A ticket ended in an error: what it wrote may still be landing.
    failed: bool,
    repeat: Repeat,
}

impl Sending {
    /// A room whose prompt is computed here for `to`.
    pub fn start(
        key: RoomKey,
        to: PeerRank,
        prompt: Prompt,
        lengths: Lengths,
        timing: &Timing,
    ) -> Self {
        Self {
            key,
            to,
            prompt,
            lengths,
            phase: Phase::Bootstrapping,
            wanting: false,
            offer: None,
            num_planned: 0,
            chunks: vec![],
            complete: false,
            tickets: BTreeMap::new(),
            failed: false,
            repeat: Repeat::start(timing),
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Who decides on the other side.
    pub fn peer(&self) -> PeerRank {
        self.to
    }

    /// The addresses, once they are known.
    pub fn offered(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// Tickets under way.
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.tickets.keys().copied()
    }

    /// Its prompt is about to be computed: asks for addresses.
    pub fn want(&mut self, timing: &Timing, out: &mut Out) {
        if self.phase == Phase::Bootstrapping && !self.wanting {
            self.wanting = true;
            self.repeat = Repeat::start(timing);
            self.say_again(out);
        }
    }

    /// Posts a chunk. Nothing is posted, and the ticket not used, where the room is not (or no
    /// longer) ready, or where this gives it up because the lists do not match.
    pub fn post(
        &mut self,
        ticket: Ticket,
        chunk: &Chunk,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        let Some(offer) = &self.offer else { return None };
        let is_over =
            matches!(self.phase, Phase::Aborting(_)) && !planted::is(Bug::PostsAfterAbort);
        if is_over || self.complete {
            return None;
        }
        let Ok(copies) = Copies::plan(chunk, offer, self.num_planned) else {
            return self.abort(Reason::LengthMismatch, timing, out);
        };
        self.num_planned += chunk.full.len();
        self.complete = chunk.tail.is_some();
        self.phase = Phase::Transferring;
        self.tickets.insert(ticket, self.chunks.len());
        self.chunks.push(Posted { items: copies.num_items(), digest: chunk.digest, landed: false });
        out.push(Action::Post { key: self.key, ticket, copies });
        None
    }

    /// What was read for a ticket that is under way comes to this digest, known before it lands.
    pub fn digested(&mut self, ticket: Ticket, digest: u64) {
        if let Some(&at) = self.tickets.get(&ticket) {
            self.chunks[at].digest = digest;
        }
    }

    /// A ticket ended: landed, or in an error. None of this room's: nothing happens.
    pub fn ended(
        &mut self,
        ticket: Ticket,
        landed: bool,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        let at = self.tickets.remove(&ticket)?;
        out.push(Action::ReleaseSource(ticket));
        self.chunks[at].landed = landed;
        self.failed |= !landed && !planted::is(Bug::FailedDrained);
        if let Phase::Aborting(_) = self.phase {
            return self.drained(out);
        }
        if !landed {
            return self.abort(Reason::TransferFailed, timing, out);
        }
        self.report(at, out);
        if self.all_landed() {
            self.repeat = Repeat::start(timing);
            self.finish(out);
        }
        None
    }

    /// What D said.
    pub fn hear(
        &mut self,
        from: PeerRank,
        word: &Word,
        timing: &Timing,
        out: &mut Out,
    ) -> Option<Ending> {
        if from != self.to && !planted::is(Bug::StrangerHeard) {
            out.count(Oddity::Stranger);
            return None;
        }
        match word {
            Word::Join(prompt) => return self.joined(prompt, timing, out),
            Word::Offer(offer) => return self.offered_by(offer, timing, out),
            Word::Commit => return self.committed(timing, out),
            Word::Abort(reason) => {
                if let Phase::Aborting(_) = self.phase {
                    out.tell(self.to, Word::AbortAck { drained: false });
                    return None;
                }
                return self.stop(*reason, out);
            }
            Word::Refuse(refusal) => match self.phase {
                Phase::Aborting(_) => out.count(Oddity::Repeated),
                _ => return self.abort(Reason::Refused(*refusal), timing, out),
            },
            Word::Want | Word::ChunkDone { .. } | Word::Final { .. } | Word::AbortAck { .. } => {
                out.count(Oddity::Stranger);
            }
        }
        None
    }

    fn joined(&mut self, prompt: &Prompt, timing: &Timing, out: &mut Out) -> Option<Ending> {
        if *prompt != self.prompt {
            return self.differs(timing, out);
        }
        match self.phase {
            Phase::Bootstrapping if self.wanting => out.tell(self.to, Word::Want),
            Phase::Aborting(reason) => out.tell(self.to, Word::Abort(reason)),
            _ => {}
        }
        None
    }

    fn offered_by(&mut self, offer: &Offer, timing: &Timing, out: &mut Out) -> Option<Ending> {
        if offer.prompt != self.prompt {
            return self.differs(timing, out);
        }
        match (self.phase, &self.offer) {
            (Phase::Aborting(reason), _) => out.tell(self.to, Word::Abort(reason)),
            (Phase::Bootstrapping, _) if self.lengths.fit(offer) => {
                self.offer = Some(offer.clone());
                self.phase = Phase::Ready;
                out.push(Action::Ready(self.key));
            }
            (Phase::Bootstrapping, _) => return self.abort(Reason::LengthMismatch, timing, out),
            (_, Some(before)) if before == offer => out.count(Oddity::Repeated),
            _ if planted::is(Bug::SecondOfferTaken) => self.offer = Some(offer.clone()),
            _ => return self.abort(Reason::ItemsMismatch, timing, out),
        }
        None
    }

    /// The two sides have different prompts.
    fn differs(&mut self, timing: &Timing, out: &mut Out) -> Option<Ending> {
        let refusal = Refusal::PromptMismatch;
        out.tell(self.to, Word::Refuse(refusal));
        self.abort(Reason::Refused(refusal), timing, out)
    }

    fn committed(&mut self, timing: &Timing, out: &mut Out) -> Option<Ending> {
        match self.phase {
            Phase::Aborting(_) => {
                out.count(Oddity::Repeated);
                None
            }
            _ if self.all_landed() => {
                out.push(Action::Commit(self.key));
                Some(Ending::Committed)
            }
            _ => self.abort(Reason::ItemsMismatch, timing, out), // of what was never sent?
        }
    }

    /// Gives the room up and tells D so.
    pub fn abort(&mut self, reason: Reason, timing: &Timing, out: &mut Out) -> Option<Ending> {
        if matches!(self.phase, Phase::Aborting(_)) {
            return None;
        }
        self.repeat = Repeat::start(timing);
        out.push(Action::Fail(self.key, reason));
        self.phase = Phase::Aborting(reason);
        if !planted::is(Bug::AbortUntold) {
            out.tell(self.to, Word::Abort(reason));
        }
        self.over()
    }

    /// Gives the room up because D did: what D waits for is to hear that nothing is under way.
    fn stop(&mut self, reason: Reason, out: &mut Out) -> Option<Ending> {
        out.push(Action::Fail(self.key, reason));
        self.phase = Phase::Aborting(reason);
        if planted::is(Bug::SourceReleased) {
            self.tickets.keys().for_each(|&ticket| out.push(Action::ReleaseSource(ticket)));
        }
        if self.tickets.is_empty() || planted::is(Bug::DrainedEarly) {
            return self.drained(out);
        }
        out.tell(self.to, Word::AbortAck { drained: false });
        None
    }

    /// D is gone: nobody reads an answer, and nothing may be posted.
    pub fn peer_gone(&mut self, out: &mut Out) -> Option<Ending> {
        if !matches!(self.phase, Phase::Aborting(_)) {
            out.push(Action::Fail(self.key, Reason::PeerLost));
            self.phase = Phase::Aborting(Reason::PeerLost);
        }
        self.over()
    }

    /// After the last ticket: the answer to an abort that may have been asked for meanwhile.
    fn drained(&self, out: &mut Out) -> Option<Ending> {
        let over = self.over();
        if over.is_some() {
            out.tell(self.to, Word::AbortAck { drained: !self.failed });
        } else if planted::is(Bug::DrainedEarly) {
            out.tell(self.to, Word::AbortAck { drained: true });
        }
        over
    }

    fn over(&self) -> Option<Ending> {
        let Phase::Aborting(reason) = self.phase else { return None };
        let drained = !self.failed;
        self.tickets.is_empty().then_some(Ending::Aborted { reason, drained })
    }

    /// Time passed.
    pub fn elapse(&mut self, milliseconds: u64, timing: &Timing, out: &mut Out) {
        if self.repeat.elapse(milliseconds, timing) {
            self.say_again(out);
        }
    }

    /// Says again what waits for an answer.
    pub fn say_again(&self, out: &mut Out) {
        match self.phase {
            Phase::Bootstrapping if self.wanting => out.tell(self.to, Word::Want),
            Phase::Transferring if self.all_landed() => {
                for at in 0..self.chunks.len() {
                    self.report(at, out);
                }
                self.finish(out);
            }
            _ => {}
        }
    }

    fn all_landed(&self) -> bool {
        let landed = |chunk: &Posted| chunk.landed || planted::is(Bug::FinalEarly);
        self.complete && self.chunks.iter().all(landed)
    }

    fn report(&self, at: usize, out: &mut Out) {
        let Posted { items, digest, .. } = self.chunks[at];
        let chunk = u32::try_from(at + 1).expect("a prompt has fewer chunks than tokens");
        out.tell(self.to, Word::ChunkDone { chunk, items, digest });
    }

    fn finish(&self, out: &mut Out) {
        let chunks = u32::try_from(self.chunks.len()).expect("fewer chunks than tokens");
        let digest = fold(self.chunks.iter().map(|chunk| chunk.digest));
        out.tell(self.to, Word::Final { chunks, digest });
    }
}
