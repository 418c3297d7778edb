//! What one ticket copies: lists of blocks on both sides, merged into runs.
//!
//! ```text
//!   source   7 8 9 | 20        run: 7.. -> 40.., 3 items
//!   target  40 41 42 | 43      run: 20  -> 43,   1 item
//! ```
//! Source and target correspond by position; lists of different lengths are an error, never cut.

use crate::planted::{self, Bug};
use crate::transfer::message::{Offer, Target};

/// Neighbours on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first block here.
    pub source: u32,
    /// The first block there; blocks of a run may be in different lives.
    pub target: u32,
    /// How many.
    pub count: u32,
}

/// Lists that should correspond and do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{sources} {group} blocks are to be written to {targets}")]
#[expect(missing_docs, reason = "the message says it")]
pub struct LengthMismatch {
    pub group: &'static str,
    pub sources: usize,
    pub targets: usize,
}

/// One chunk of a prompt, where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Full blocks, in order, behind those of the chunks before it; may be none.
    pub full: Vec<u32>,
    /// With the last chunk, what goes along once.
    pub tail: Option<Tail>,
    /// Over its content.
    pub digest: u64,
}

/// What the last chunk carries on top: sent even where it has no blocks of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tail {
    /// Window blocks of the prompt's tail.
    pub swa: Vec<u32>,
    /// Slot of compressor state.
    pub state: u32,
    /// Aux row.
    pub aux: u32,
}

/// What one ticket copies, in the order in which it may be read: state and aux last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Copies {
    pub full: Vec<Run>,
    pub swa: Vec<Run>,
    pub state: Option<Run>,
    pub aux: Option<Run>,
}

impl Copies {
    /// The copies of a chunk, given how many full blocks of the offer were planned before it.
    pub fn plan(chunk: &Chunk, offer: &Offer, planned: usize) -> Result<Self, LengthMismatch> {
        let rest = offer.full.get(planned..).unwrap_or_default();
        let num_full = if chunk.tail.is_some() { rest.len() } else { chunk.full.len() };
        let targets = rest.get(..num_full).unwrap_or(rest);
        let full = merged("full", &chunk.full, targets)?;
        let Some(tail) = &chunk.tail else { return Ok(Self { full, ..Self::default() }) };
        let swa = merged("swa", &tail.swa, &offer.swa)?;
        let one = |source, to: Target| Some(Run { source, target: to.block, count: 1 });
        let (state, aux) = (one(tail.state, offer.state), one(tail.aux, offer.aux));
        Ok(Self { full, swa, state, aux })
    }

    /// Blocks, slots and rows.
    pub fn num_items(&self) -> u32 {
        let runs = self.full.iter().chain(&self.swa).chain(&self.state).chain(&self.aux);
        runs.map(|run| run.count).sum()
    }
}

impl Offer {
    /// Blocks, slots and rows that are written once all is there.
    pub fn num_items(&self) -> u32 {
        u32::try_from(self.full.len() + self.swa.len() + 2).expect("block indices fit u32")
    }
}

/// Merges what follows on both sides.
fn merged(
    group: &'static str,
    sources: &[u32],
    targets: &[Target],
) -> Result<Vec<Run>, LengthMismatch> {
    if sources.len() != targets.len() && !planted::is(Bug::ListsCut) {
        let (sources, targets) = (sources.len(), targets.len());
        return Err(LengthMismatch { group, sources, targets });
    }
    let mut runs: Vec<Run> = vec![];
    for (&source, target) in sources.iter().zip(targets) {
        match runs.last_mut() {
            Some(run)
                if run.source.checked_add(run.count) == Some(source)
                    && run.target.checked_add(run.count) == Some(target.block) =>
            {
                run.count += 1;
            }
            _ => runs.push(Run { source, target: target.block, count: 1 }),
        }
    }
    Ok(runs)
}

/// Bytes on their way to one peer, bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InFlight {
    most: u64,
    bytes: u64,
}

impl InFlight {
    /// Nothing is on its way; at most `most` bytes will be.
    pub fn new(most: u64) -> Self {
        Self { most, bytes: 0 }
    }

    /// Takes `bytes` on board, or says that they have to wait. Alone, a ticket always goes.
    pub fn admit(&mut self, bytes: u64) -> bool {
        let fits = self.bytes == 0 || self.bytes.saturating_add(bytes) <= self.most;
        let fits = fits || planted::is(Bug::BytesUnbounded);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// A ticket of so many bytes has ended.
    pub fn ended(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::message::Prompt;

    fn targets(blocks: &[u32]) -> Vec<Target> {
        blocks.iter().map(|&block| Target { block, generation: block % 3 }).collect()
    }

    fn offer(full: &[u32], swa: &[u32]) -> Offer {
        Offer {
            prompt: Prompt { num_tokens: 1, hash: 0 },
            num_fences: 0,
            num_cached_tokens: 0,
            full: targets(full),
            swa: targets(swa),
            state: Target { block: 5, generation: 0 },
            aux: Target { block: 6, generation: 0 },
        }
    }

    fn run(source: u32, target: u32, count: u32) -> Run {
        Run { source, target, count }
    }

    fn last(full: &[u32], swa: &[u32]) -> Chunk {
        let tail = Some(Tail { swa: swa.to_vec(), state: 1, aux: 2 });
        Chunk { full: full.to_vec(), tail, digest: 0 }
    }

    #[test]
    fn neighbours_on_both_sides_are_one_run() {
        let plan = |source: &[u32], target: &[u32]| {
            merged("full", source, &targets(target)).expect("the same length")
        };
        assert_eq!(plan(&[7, 8, 9, 20], &[40, 41, 42, 43]), [run(7, 40, 3), run(20, 43, 1)]);
        assert_eq!(plan(&[7, 8], &[41, 40]), [run(7, 41, 1), run(8, 40, 1)]);
        assert_eq!(plan(&[u32::MAX, 0], &[1, 2]), [run(u32::MAX, 1, 1), run(0, 2, 1)]);
        assert_eq!(plan(&[], &[]), []);
    }

    #[test]
    fn chunks_divide_the_offer_and_the_last_carries_the_rest() {
        let offer = offer(&[10, 11, 12], &[30, 31]);
        let first = Chunk { full: vec![1, 2], tail: None, digest: 0 };
        let copies = Copies::plan(&first, &offer, 0).expect("it fits");
        assert_eq!(copies, Copies { full: vec![run(1, 10, 2)], ..Copies::default() });
        let copies = Copies::plan(&last(&[9], &[4, 5]), &offer, 2).expect("it fits");
        assert_eq!(
            (copies.full.as_slice(), copies.swa.as_slice()),
            (&[run(9, 12, 1)][..], &[run(4, 30, 2)][..])
        );
        assert_eq!((copies.state, copies.aux), (Some(run(1, 5, 1)), Some(run(2, 6, 1))));
        assert_eq!((copies.num_items(), offer.num_items()), (5, 7));
    }

    #[test]
    fn a_last_chunk_without_blocks_is_sent() {
        let copies = Copies::plan(&last(&[], &[4]), &offer(&[10], &[30]), 1).expect("it fits");
        assert_eq!((copies.full.len(), copies.num_items()), (0, 3));
    }

    #[test]
    fn lists_of_different_lengths_are_an_error() {
        let offer = offer(&[10, 11], &[30]);
        let mismatch = |group, sources, targets| Err(LengthMismatch { group, sources, targets });
        let too_many = Chunk { full: vec![1, 2, 3], tail: None, digest: 0 };
        assert_eq!(Copies::plan(&too_many, &offer, 0), mismatch("full", 3, 2));
        assert_eq!(Copies::plan(&too_many, &offer, 9), mismatch("full", 3, 0));
        assert_eq!(Copies::plan(&last(&[1], &[4]), &offer, 0), mismatch("full", 1, 2));
        assert_eq!(Copies::plan(&last(&[1, 2], &[]), &offer, 0), mismatch("swa", 0, 1));
    }

    /// Every pair of lists of up to five blocks out of three: what the runs say is what was asked.
    #[test]
    fn runs_say_what_the_lists_say() {
        for length in 0..=5_u32 {
            for code in 0..9_u32.pow(length) {
                let digit = |place: u32| code / 9_u32.pow(place) % 9;
                let sources: Vec<u32> = (0..length).map(|place| digit(place) % 3).collect();
                let to: Vec<u32> = (0..length).map(|place| digit(place) / 3).collect();
                let runs = merged("full", &sources, &targets(&to)).expect("the same length");
                let unrolled: Vec<(u32, u32)> = runs
                    .iter()
                    .flat_map(|run| (0..run.count).map(|i| (run.source + i, run.target + i)))
                    .collect();
                assert_eq!(unrolled, sources.into_iter().zip(to).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn bytes_in_flight_are_bounded_and_a_large_ticket_goes_alone() {
        let mut in_flight = InFlight::new(100);
        assert!(in_flight.admit(60) && in_flight.admit(40) && !in_flight.admit(1));
        in_flight.ended(60);
        assert!(!in_flight.admit(61) && in_flight.admit(60));
        in_flight.ended(60);
        in_flight.ended(40);
        assert!(in_flight.admit(u64::MAX) && !in_flight.admit(1));
    }
}
