"""The device memory that a model reads and writes: packed, paged rows and per-request compressor state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.cache.reference import Layout
from dsv4.model.numerics import Numerics

BLOCK_TOKENS = 256
SWA_BLOCK_TOKENS = 64
C4_ROWS = 8
"""Rows of a C4 group: its own four, and the four before."""
POISON = 0xFF
"""What block 0 of every pool holds: NaN in every format of a row (E8M0 255, bf16 and float32 all ones)."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's pools; a pool that the layer's compression ratio does not need is None.

    swa          [num_swa_blocks + 1, page bytes of 64 rows] uint8
    c4           [num_full_blocks + 1, page bytes of 64 rows] uint8
    index        [num_full_blocks + 1, page bytes of 64 index rows] uint8
    c128         [num_full_blocks + 1, page bytes of 2 rows] uint8
    c4_state     [num_slots + 1, ring, 2, 2 D] float32: row = position % ring; [0] kv, [1] score with ape added
    index_state  [num_slots + 1, ring, 2, 2 x index head dim] float32, likewise
    c128_state   [num_slots + 1, banks, 3, D] float32: running maximum, sum and weighted value of the open group
    """

    swa: Tensor
    c4: Tensor | None = None
    index: Tensor | None = None
    c128: Tensor | None = None
    c4_state: Tensor | None = None
    index_state: Tensor | None = None
    c128_state: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layouts:
    """How rows lie in the pages of each kind of pool, and states in a slot.

    draft_tokens  drafts of one request that a step may verify. The rows of a ring are the 7 that a group may still need
                  of earlier tokens, one for the next token and one per draft, in whole groups of 8: a draft that is
                  wrong has overwritten nothing. Of an online state there is a bank behind the next token and behind
                  each draft.
    """

    swa: Layout
    c4: Layout
    index: Layout
    c128: Layout
    draft_tokens: int = 0

    @property
    def c4_ring(self) -> int:
        """Rows of a C4 or index state."""
        return -(-(C4_ROWS + self.draft_tokens) // C4_ROWS) * C4_ROWS

    @property
    def c128_banks(self) -> int:
        """Copies of a C128 state."""
        return 1 + self.draft_tokens

    @classmethod
    def of(cls, config: ModelConfig, numerics: Numerics, draft_tokens: int = 0) -> Layouts:
        """The layouts that a model of this shape reads and writes."""

        def kv(page_rows: int) -> Layout:
            return Layout(numerics.kv, config.head_dim, config.qk_rope_head_dim, page_rows)

        index = Layout(numerics.index, config.index_head_dim, 0, BLOCK_TOKENS // 4)
        return cls(kv(SWA_BLOCK_TOKENS), kv(BLOCK_TOKENS // 4), index, kv(BLOCK_TOKENS // 128), draft_tokens)


@dataclass(frozen=True, slots=True)
class Caches:
    """All layers' pools (draft layers after the main ones) and the layouts of their rows."""

    layers: tuple[LayerCache, ...]
    layouts: Layouts


def layer_ratios(config: ModelConfig, num_draft_layers: int = 0) -> tuple[int, ...]:
    """The compression ratio of each layer that has a cache; draft layers have a window only."""
    return (*config.compress_ratios[: config.num_hidden_layers], *(0,) * num_draft_layers)


def allocate(
    config: ModelConfig,
    numerics: Numerics,
    *,
    num_full_blocks: int,
    num_swa_blocks: int,
    num_slots: int,
    device: torch.device | str = "cpu",
    num_draft_layers: int = 0,
    draft_tokens: int = 0,
) -> Caches:
    """Pools for this many blocks and slots, plus the poison block 0 of each group. Counts exclude block 0.

    Block 0 is poisoned, the others are zero. State needs no clearing between requests: what a request has not written
    is never read (see reads.py and compress.py).
    """
    layouts = Layouts.of(config, numerics, draft_tokens)

    def pages(layout: Layout, num_blocks: int) -> Tensor:
        pool = torch.zeros(num_blocks + 1, layout.page_bytes, dtype=torch.uint8, device=device)
        pool[0] = POISON
        return pool

    def state(*shape: int) -> Tensor:
        slots = torch.zeros(num_slots + 1, *shape, device=device)
        slots[0] = torch.nan
        return slots

    def layer(ratio: int) -> LayerCache:
        swa = pages(layouts.swa, num_swa_blocks)
        if ratio == 4:
            return LayerCache(
                swa,
                c4=pages(layouts.c4, num_full_blocks),
                index=pages(layouts.index, num_full_blocks),
                c4_state=state(layouts.c4_ring, 2, 2 * config.head_dim),
                index_state=state(layouts.c4_ring, 2, 2 * config.index_head_dim),
            )
        if ratio == 128:
            c128 = pages(layouts.c128, num_full_blocks)
            return LayerCache(swa, c128=c128, c128_state=state(layouts.c128_banks, 3, config.head_dim))
        return LayerCache(swa)

    return Caches(tuple(layer(ratio) for ratio in layer_ratios(config, num_draft_layers)), layouts)


@dataclass(frozen=True, slots=True)
class GeometryNumbers:
    """The arguments of the Rust core's `Geometry`, by its names; the core decides block counts from them."""

    ratios: tuple[int, ...]
    window: int
    kv_data_bytes: int
    kv_scale_bytes: int
    kv_page_multiple: int
    index_data_bytes: int
    index_scale_bytes: int
    c4_state_bytes: int
    index_state_bytes: int
    c128_state_bytes: int
    block_tokens: int = BLOCK_TOKENS
    swa_block_tokens: int = SWA_BLOCK_TOKENS
    draft_tokens: int = 0
    hc_mult: int = 0
    hidden_size: int = 0


def geometry_numbers(
    config: ModelConfig, numerics: Numerics, num_draft_layers: int = 0, draft_tokens: int = 0
) -> GeometryNumbers:
    """What `allocate` allocates per block, per slot and per layer: `Geometry(**dataclasses.asdict(...))`."""
    layouts = Layouts.of(config, numerics)
    float_bytes = 4
    return GeometryNumbers(
        ratios=layer_ratios(config, num_draft_layers),
        window=config.sliding_window,
        kv_data_bytes=layouts.swa.data_bytes,
        kv_scale_bytes=layouts.swa.scale_bytes,
        kv_page_multiple=layouts.swa.page_multiple,
        index_data_bytes=layouts.index.data_bytes,
        index_scale_bytes=layouts.index.scale_bytes,
        c4_state_bytes=C4_ROWS * 2 * 2 * config.head_dim * float_bytes,
        index_state_bytes=C4_ROWS * 2 * 2 * config.index_head_dim * float_bytes,
        c128_state_bytes=3 * config.head_dim * float_bytes,
        draft_tokens=draft_tokens,
        hc_mult=config.hc_mult if draft_tokens else 0,
        hidden_size=config.hidden_size if draft_tokens else 0,
    )
