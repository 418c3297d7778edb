//! From tokens to blocks, rows and bytes. Derived from the checkpoint's config, for any model of
//! the family: nothing here knows how many layers there are.
//!
//! Row layouts and page sizes: a page of N rows is N times the data bytes, then N times the scale
//! bytes, padded to a multiple.

use crate::error::Error;

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
}

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

    /// Bytes of one state slot, over all layers.
    pub fn state_slot_bytes(&self) -> usize {
        self.num_layers_with(C4) * (self.c4_state_bytes + self.index_state_bytes)
            + self.num_layers_with(C128) * self.c128_state_bytes
    }

    /// Bytes that one more token of context costs.
    #[expect(clippy::cast_precision_loss, reason = "a block has far fewer than 2^52 bytes")]
    pub fn bytes_per_token(&self) -> f64 {
        self.full_block_bytes() as f64 / self.block_tokens as f64
    }

    /// Bytes that a running request costs whatever its length: window and state.
    pub fn request_fixed_bytes(&self) -> usize {
        self.steady_swa_blocks() * self.swa_block_bytes() + self.state_slot_bytes()
    }

    /// Full blocks that hold `tokens` tokens.
    pub fn full_blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Window blocks that a decoding request needs: ceil(W / 64) + 1.
    pub fn steady_swa_blocks(&self) -> usize {
        self.window.div_ceil(self.swa_block_tokens) + 1
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
        }
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
        assert_eq!(geometry.chunk_swa_blocks(1), geometry.steady_swa_blocks());
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
