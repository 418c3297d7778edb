//! From tokens to blocks, rows and bytes. Derived from the checkpoint's config, for any model of
//! the family: nothing here knows how many layers there are.
//!
//! Row layouts and page sizes: a page of N rows is N times the data bytes, then N times the scale
//! bytes, padded to a multiple.

use crate::error::Error;
use crate::ids::MOST_DRAFT_TOKENS;

/// What one model needs per block, per slot and per request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Compression ratio per layer, main layers first, then draft layers: 0, 4 or 128.
    pub ratios: Vec<usize>,
    /// Tokens of sliding window (W).
    pub window: usize,
    /// Data bytes of a KV row.
    pub kv_data_bytes: usize,
    /// Scale bytes of a KV row.
    pub kv_scale_bytes: usize,
    /// KV pages are padded to a multiple of this.
    pub kv_page_multiple: usize,
    /// Data bytes of an index row.
    pub index_data_bytes: usize,
    /// Scale bytes of an index row.
    pub index_scale_bytes: usize,
    /// C4 state of one slot in one layer.
    pub c4_state_bytes: usize,
    /// Indexer state of one slot in one layer.
    pub index_state_bytes: usize,
    /// C128 state of one slot in one layer.
    pub c128_state_bytes: usize,
    /// Tokens of a full block.
    pub block_tokens: usize,
    /// Tokens of a window block.
    pub swa_block_tokens: usize,
    /// What state slots and seeds have room for when tokens are drafted.
    pub drafts: DraftRoom,
}

/// Room for draft tokens; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftRoom {
    /// Most draft tokens of one request in one step.
    pub tokens: usize,
    /// Residual streams (N) of the model.
    pub hc_mult: usize,
    /// Values of one stream.
    pub hidden: usize,
}

/// Positions whose C4 rows the state of a request holds at least; `c4_state_bytes` and
/// `index_state_bytes` are for so many.
pub const C4_RING: usize = 8;

/// Ratio of the layers that also have an indexer.
pub const C4: usize = 4;
/// Ratio of the heavily compressed layers.
pub const C128: usize = 128;

impl Geometry {
    /// Refuses what no checkpoint of the family can have.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Config(what));
        if self.ratios.is_empty() {
            return refuse("ratios is empty; a model has at least one layer".into());
        }
        for (layer, &ratio) in self.ratios.iter().enumerate() {
            if ![0, C4, C128].contains(&ratio) {
                return refuse(format!("layer {layer} has compression ratio {ratio}; 0, 4 or 128"));
            }
            if ratio != 0 && self.block_tokens % ratio != 0 {
                return refuse(format!(
                    "block_tokens is {}, not a multiple of compression ratio {ratio}",
                    self.block_tokens
                ));
            }
        }
        for (name, value) in [
            ("window", self.window),
            ("kv_data_bytes", self.kv_data_bytes),
            ("kv_page_multiple", self.kv_page_multiple),
            ("block_tokens", self.block_tokens),
            ("swa_block_tokens", self.swa_block_tokens),
        ] {
            if value == 0 {
                return refuse(format!("{name} is 0"));
            }
        }
        self.check_drafts()?;
        let most = 1 << 30;
        for (name, value) in [
            ("number of layers", self.ratios.len()),
            ("window", self.window),
            ("kv_data_bytes", self.kv_data_bytes),
            ("kv_scale_bytes", self.kv_scale_bytes),
            ("kv_page_multiple", self.kv_page_multiple),
            ("index_data_bytes", self.index_data_bytes),
            ("index_scale_bytes", self.index_scale_bytes),
            ("c4_state_bytes", self.c4_state_bytes),
            ("index_state_bytes", self.index_state_bytes),
            ("c128_state_bytes", self.c128_state_bytes),
            ("block_tokens", self.block_tokens),
            ("swa_block_tokens", self.swa_block_tokens),
        ] {
            if value > most {
                return refuse(format!("{name} is {value}, more than {most}"));
            }
        }
        Ok(())
    }

    fn check_drafts(&self) -> Result<(), Error> {
        let DraftRoom { tokens, hc_mult, hidden } = self.drafts;
        let seed = hc_mult.checked_mul(hidden).filter(|values| (1..=1 << 30).contains(values));
        if tokens > MOST_DRAFT_TOKENS || (tokens > 0 && seed.is_none()) {
            return Err(Error::Config(format!(
                "room for {tokens} draft tokens with seeds of {hc_mult} x {hidden} values; at most \
                 {MOST_DRAFT_TOKENS} tokens, and a seed has at least one value"
            )));
        }
        let rings = [self.c4_state_bytes, self.index_state_bytes];
        if tokens > 0 && rings.iter().any(|bytes| bytes % C4_RING != 0) {
            return Err(Error::Config(format!(
                "c4 and index state of {rings:?} bytes are not {C4_RING} rows"
            )));
        }
        Ok(())
    }

    /// Layers with this compression ratio.
    pub fn num_layers_with(&self, ratio: usize) -> usize {
        self.ratios.iter().filter(|&&each| each == ratio).count()
    }

    /// The compression ratios that occur, largest first.
    pub fn ratios_in_use(&self) -> Vec<usize> {
        [C128, C4].into_iter().filter(|&ratio| self.num_layers_with(ratio) > 0).collect()
    }

    fn kv_page_bytes(&self, rows: usize) -> usize {
        (rows * (self.kv_data_bytes + self.kv_scale_bytes)).next_multiple_of(self.kv_page_multiple)
    }

    /// Bytes of one layer's page of window rows.
    pub fn swa_page_bytes(&self) -> usize {
        self.kv_page_bytes(self.swa_block_tokens)
    }

    /// Bytes of one layer's page of C4 rows.
    pub fn c4_page_bytes(&self) -> usize {
        self.kv_page_bytes(self.block_tokens / C4)
    }

    /// Bytes of one layer's page of C128 rows.
    pub fn c128_page_bytes(&self) -> usize {
        self.kv_page_bytes(self.block_tokens / C128)
    }

    /// Bytes of one layer's page of index rows.
    pub fn index_page_bytes(&self) -> usize {
        self.block_tokens / C4 * (self.index_data_bytes + self.index_scale_bytes)
    }

    /// Bytes of one full block, over all layers.
    pub fn full_block_bytes(&self) -> usize {
        self.num_layers_with(C4) * (self.c4_page_bytes() + self.index_page_bytes())
            + self.num_layers_with(C128) * self.c128_page_bytes()
    }

    /// Bytes of one window block, over all layers.
    pub fn swa_block_bytes(&self) -> usize {
        self.ratios.len() * self.swa_page_bytes()
    }

    /// Rows of the C4 rings: a step may write `1 + drafts` rows and still read the 7 before them.
    pub fn c4_ring(&self) -> usize {
        (C4_RING - 1 + 1 + self.drafts.tokens).next_multiple_of(C4_RING)
    }

    /// Copies of the C128 state: one that is committed, and one per draft token.
    pub fn c128_banks(&self) -> usize {
        1 + self.drafts.tokens
    }

    /// Bytes of one state slot, over all layers.
    pub fn state_slot_bytes(&self) -> usize {
        let ring_bytes = (self.c4_state_bytes + self.index_state_bytes) * self.c4_ring() / C4_RING;
        self.num_layers_with(C4) * ring_bytes
            + self.num_layers_with(C128) * self.c128_state_bytes * self.c128_banks()
    }

    /// Bytes that one more token of context costs.
    #[expect(clippy::cast_precision_loss, reason = "a block has far fewer than 2^52 bytes")]
    pub fn bytes_per_token(&self) -> f64 {
        self.full_block_bytes() as f64 / self.block_tokens as f64
    }

    /// Bytes that a running request costs whatever its length: window and state.
    pub fn request_fixed_bytes(&self) -> usize {
        let in_flight = 1 + self.drafts.tokens;
        self.steady_swa_blocks(in_flight) * self.swa_block_bytes() + self.state_slot_bytes()
    }

    /// Full blocks that hold `tokens` tokens.
    pub fn full_blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Window blocks that a decoding request needs with so many tokens in flight: the most that a
    /// span of `W + in_flight - 1` positions touches, however it lies.
    pub fn steady_swa_blocks(&self, in_flight: usize) -> usize {
        (self.window + in_flight + self.swa_block_tokens - 3) / self.swa_block_tokens + 1
    }

    /// Window blocks of one checkpoint.
    pub fn checkpoint_swa_blocks(&self) -> usize {
        (self.window - 1).div_ceil(self.swa_block_tokens)
    }

    /// Most window blocks that one chunk of `tokens` tokens touches, window before it included:
    /// `tokens + W - 1` positions, however they lie.
    pub fn chunk_swa_blocks(&self, tokens: usize) -> usize {
        (tokens + self.window - 2).div_ceil(self.swa_block_tokens) + 1
    }

    /// Window blocks that all chunks of one step may need beyond the steady ones.
    pub fn transient_swa_blocks(&self, step_tokens: usize) -> usize {
        step_tokens.div_ceil(self.swa_block_tokens) + 1
    }

    /// The first position that a token at `position` still sees in its window.
    pub fn window_start(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// V4-Flash's row sizes over a few layers.
    pub(crate) fn flash() -> Geometry {
        Geometry {
            ratios: vec![0, 0, 4, 128, 4, 128, 4],
            window: 128,
            kv_data_bytes: 576,
            kv_scale_bytes: 8,
            kv_page_multiple: 576,
            index_data_bytes: 64,
            index_scale_bytes: 4,
            c4_state_bytes: 8 * 2 * 2 * 512 * 4,
            index_state_bytes: 8 * 2 * 2 * 128 * 4,
            c128_state_bytes: 3 * 512 * 4,
            block_tokens: 256,
            swa_block_tokens: 64,
            drafts: DraftRoom::default(),
        }
    }

    /// The same with room for so many draft tokens.
    pub(crate) fn drafting(tokens: usize) -> Geometry {
        Geometry { drafts: DraftRoom { tokens, hc_mult: 4, hidden: 4096 }, ..flash() }
    }

    #[test]
    fn every_span_of_the_window_fits_the_blocks_counted_for_it() {
        let geometry = flash();
        for tokens in 1..=300 {
            let most = (0..400)
                .map(|start| (start + tokens - 1) / 64 - geometry.window_start(start) / 64 + 1)
                .max();
            assert_eq!(most, Some(geometry.chunk_swa_blocks(tokens)), "{tokens} tokens");
        }
        assert_eq!(geometry.chunk_swa_blocks(1), geometry.steady_swa_blocks(1));
    }

    #[test]
    fn the_steady_need_is_what_a_span_of_window_and_tokens_in_flight_touches() {
        for (window, block) in [(128, 64), (128, 256), (8, 4), (5, 4), (12, 4), (1, 2), (1, 1)] {
            let geometry = Geometry { window, swa_block_tokens: block, ..flash() };
            for in_flight in 1..=131 {
                let span = window + in_flight - 1;
                let most = (0..block).map(|start| (start + span - 1) / block + 1).max();
                let said = geometry.steady_swa_blocks(in_flight);
                assert_eq!(Some(said), most, "W {window}, blocks of {block}, {in_flight}");
            }
        }
        let real = flash();
        let counts = [1, 2, 3, 12, 66, 67].map(|in_flight| real.steady_swa_blocks(in_flight));
        assert_eq!(counts, [3, 3, 4, 4, 4, 5]);
    }

    #[test]
    fn rings_and_banks_grow_with_the_draft_tokens() {
        let rings = [0, 1, 5, 8, 9, 15].map(|tokens| drafting(tokens).c4_ring());
        assert_eq!(rings, [8, 16, 16, 16, 24, 24]);
        for tokens in 0..=MOST_DRAFT_TOKENS {
            assert!(drafting(tokens).c4_ring() >= 7 + 1 + tokens);
            assert!(drafting(tokens).check().is_ok());
        }
        // Two layers of C128 and three of C4; the same slot, with 5 drafts.
        let (c4, c128) = (8 * 2 * 2 * (512 + 128) * 4, 3 * 512 * 4);
        assert_eq!(flash().state_slot_bytes(), 3 * c4 + 2 * c128);
        assert_eq!(drafting(5).state_slot_bytes(), 3 * 2 * c4 + 2 * 6 * c128);
        for bad in [
            drafting(16),
            Geometry { drafts: DraftRoom { hidden: 0, ..drafting(1).drafts }, ..flash() },
            Geometry { drafts: DraftRoom { hc_mult: usize::MAX, ..drafting(1).drafts }, ..flash() },
            Geometry { c4_state_bytes: 12, ..drafting(1) },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_window_holds_the_token_itself_and_those_before_it() {
        let geometry = flash();
        assert_eq!(geometry.window_start(0), 0);
        assert_eq!(geometry.window_start(127), 0);
        assert_eq!(geometry.window_start(128), 1);
    }

    #[test]
    fn ratios_come_from_the_config_and_others_are_refused() {
        let only_window = Geometry { ratios: vec![0, 0], ..flash() };
        assert!(only_window.check().is_ok());
        assert!(only_window.ratios_in_use().is_empty());
        assert_eq!(only_window.full_block_bytes(), 0);
        assert_eq!(flash().ratios_in_use(), [128, 4]);
        for bad in [
            Geometry { ratios: vec![7], ..flash() },
            Geometry { ratios: vec![], ..flash() },
            Geometry { block_tokens: 192, ..flash() },
            Geometry { window: 0, ..flash() },
            Geometry { swa_block_tokens: 0, ..flash() },
            Geometry { kv_data_bytes: usize::MAX, ..flash() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
