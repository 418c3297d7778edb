//! What a prompt that is computed elsewhere takes here: exact, in blocks, of every group.
//!
//! ```text
//!   now    taken when its addresses are told: the prompt, without what is cached here
//!   need   promised on admission: that, and a reserve of output
//!   life   most that it can ever hold: with it, it finishes
//!   swa    the window of the prompt's tail now; ever after no more than S, whatever is generated
//! ```

use crate::geometry::Geometry;
use crate::planted::{self, Bug};

/// Output tokens that admission reserves for one request.
pub const RESERVED_OUTPUT_TOKENS: usize = 512;

/// One request, seen from where its prompt will be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Tokens that hold KV: the prompt when its addresses are told.
    pub num_tokens: usize,
    /// Tokens that may still be generated.
    pub num_output_tokens: usize,
    /// Tokens of the prompt that are cached here, a multiple of a full block.
    pub num_cached_tokens: usize,
    /// Tokens that steps in flight may write beyond those: steps times tokens of one step.
    pub num_in_flight: usize,
}

/// Blocks of a request, in every group. One state slot and one aux row come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the module says it")]
pub struct Blocks {
    pub now_full: usize,
    pub need_full: usize,
    pub life_full: usize,
    pub now_swa: usize,
    pub need_swa: usize,
}

impl Geometry {
    /// Tokens from the window block that a prompt's window begins in to its end.
    pub fn tail_tokens(&self, num_tokens: usize) -> usize {
        let start = num_tokens.saturating_sub(self.window);
        let short = start > 0 && start % self.swa_block_tokens == 0 && planted::is(Bug::TailShort);
        let start = if short { start + self.swa_block_tokens } else { start };
        num_tokens - start / self.swa_block_tokens * self.swa_block_tokens
    }

    /// Window blocks that are sent along with a prompt.
    pub fn tail_swa_blocks(&self, num_tokens: usize) -> usize {
        self.tail_tokens(num_tokens).div_ceil(self.swa_block_tokens)
    }

    /// S: most window blocks that a decoding request can touch which writes up to `num_in_flight`
    /// (at least 1) tokens before the oldest of them is done: `W + num_in_flight - 1` positions,
    /// however they lie.
    pub fn live_swa_blocks(&self, num_in_flight: usize) -> usize {
        (self.window + num_in_flight + self.swa_block_tokens - 3) / self.swa_block_tokens + 1
    }
}

impl Demand {
    /// The exact counts.
    pub fn blocks(&self, geometry: &Geometry) -> Blocks {
        let Self { num_tokens, num_output_tokens: output, num_in_flight, .. } = *self;
        let cached = self.num_cached_tokens / geometry.block_tokens;
        let reserved = output.min(RESERVED_OUTPUT_TOKENS);
        Blocks {
            now_full: geometry.full_blocks(num_tokens) - cached,
            need_full: geometry.full_blocks(num_tokens + reserved + num_in_flight) - cached,
            life_full: geometry.full_blocks(num_tokens + output + num_in_flight),
            now_swa: geometry.tail_swa_blocks(num_tokens),
            need_swa: geometry.live_swa_blocks(num_in_flight),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::geometry::tests::flash;

    const LENGTHS: [usize; 19] =
        [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 255, 256, 257, 383, 384, 385, 8191, 8192, 8193];

    fn geometries() -> [Geometry; 3] {
        [64, 128, 256].map(|swa_block_tokens| Geometry { swa_block_tokens, ..flash() })
    }

    fn random_lengths() -> impl Iterator<Item = usize> {
        let mut state: usize = 24;
        (0..200).map(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
            (state >> 33) % 100_000
        })
    }

    /// Blocks of `size` tokens that hold a position of the range.
    fn touched(positions: std::ops::Range<usize>, size: usize) -> usize {
        positions.map(|position| position / size).collect::<BTreeSet<_>>().len()
    }

    #[test]
    fn the_tail_is_what_the_first_decoded_token_sees() {
        for geometry in geometries() {
            for tokens in LENGTHS.into_iter().chain(random_lengths()) {
                let window = tokens.saturating_sub(geometry.window)..tokens;
                let blocks = touched(window.clone(), geometry.swa_block_tokens);
                assert_eq!(geometry.tail_swa_blocks(tokens), blocks, "{tokens} tokens");
                let first = window.start / geometry.swa_block_tokens * geometry.swa_block_tokens;
                assert_eq!(geometry.tail_tokens(tokens), (first..tokens).count(), "{tokens}");
            }
        }
    }

    #[test]
    fn a_tail_is_three_blocks_of_64_or_two() {
        let geometry = flash();
        for tokens in 128..2_000 {
            assert!((128..=191).contains(&geometry.tail_tokens(tokens)));
            let blocks = if tokens % 64 == 0 { 2 } else { 3 };
            assert_eq!(geometry.tail_swa_blocks(tokens), blocks, "{tokens} tokens");
        }
    }

    /// S against every way in which a live span can lie.
    #[test]
    fn no_live_span_touches_more_window_blocks_and_some_touches_as_many() {
        for geometry in geometries() {
            let size = geometry.swa_block_tokens;
            for in_flight in 1..=131 {
                let span = geometry.window + in_flight - 1;
                let most = (0..size).map(|start| touched(start..start + span, size)).max();
                assert_eq!(most, Some(geometry.live_swa_blocks(in_flight)), "{in_flight}");
            }
        }
        let [small, _, large] = geometries();
        assert_eq!([1, 2, 3, 66, 67].map(|q| small.live_swa_blocks(q)), [3, 3, 4, 4, 5]);
        assert_eq!([1, 130, 131].map(|q| large.live_swa_blocks(q)), [2, 2, 3]);
    }

    /// Decode from the last position of the prompt on, and count what is touched.
    #[test]
    fn counts_equal_those_of_a_walk_through_the_whole_life() {
        for geometry in geometries() {
            let (block, size) = (geometry.block_tokens, geometry.swa_block_tokens);
            for num_tokens in LENGTHS.into_iter().chain(random_lengths().take(20)) {
                for (output, in_flight) in [(0, 1), (1, 1), (300, 2), (513, 6), (700, 131)] {
                    let cached = num_tokens / 2 / block * block;
                    let demand = Demand {
                        num_tokens,
                        num_output_tokens: output,
                        num_cached_tokens: cached,
                        num_in_flight: in_flight,
                    };
                    let blocks = demand.blocks(&geometry);
                    let full = |end: usize| touched(0..end, block);
                    assert_eq!(blocks.now_full, touched(cached..num_tokens, block));
                    let reserved = output.min(RESERVED_OUTPUT_TOKENS);
                    assert_eq!(
                        blocks.need_full,
                        touched(cached..num_tokens + reserved + in_flight, block)
                    );
                    assert_eq!(blocks.life_full, full(num_tokens + output + in_flight));
                    assert!(blocks.now_swa <= blocks.need_swa, "{demand:?}");
                    for position in num_tokens..=num_tokens + output {
                        let live = geometry.window_start(position)..position + in_flight;
                        assert!(touched(live, size) <= blocks.need_swa, "{demand:?} at {position}");
                    }
                }
            }
        }
    }
}
