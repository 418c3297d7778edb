"""The device memory that a model reads and writes: packed, paged rows and per-request compressor state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How one row is laid out in a page of N rows: N x data bytes, then N x scale bytes, padded to the stride.

    kind         "fp8_ds_mla" | "bf16" | "float32" for KV rows, "fp4" | "fp8" | "float32" for index rows
    """

    kind: str
    data_bytes: int
    scale_bytes: int
    page_multiple: int

    def page_bytes(self, rows: int) -> int:
        """Bytes of a page of `rows` rows, padding included."""
        raw = rows * (self.data_bytes + self.scale_bytes)
        return -(-raw // self.page_multiple) * self.page_multiple


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's pools; a pool that the layer's compression ratio does not need is None.

    swa          [num_swa_blocks + 1, page bytes of 64 rows] uint8
    c4           [num_full_blocks + 1, page bytes of 64 rows] uint8
    index        [num_full_blocks + 1, page bytes of 64 index rows] uint8
    c128         [num_full_blocks + 1, page bytes of 2 rows] uint8
    c4_state     [num_slots + 1, 8, 2, 2 D] float32: ring row = position % 8; [0] kv, [1] score with ape added
    index_state  [num_slots + 1, 8, 2, 2 x index head dim] float32, likewise
    c128_state   [num_slots + 1, 3, D] float32: running maximum, sum and weighted value of the open group
    """

    swa: Tensor
    c4: Tensor | None = None
    index: Tensor | None = None
    c128: Tensor | None = None
    c4_state: Tensor | None = None
    index_state: Tensor | None = None
    c128_state: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Caches:
    """All layers' pools (draft layers after the main ones) and the formats of their rows."""

    layers: tuple[LayerCache, ...]
    kv_format: RowFormat
    index_format: RowFormat
