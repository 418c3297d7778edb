"""Store and gather rows of paged pools.

A pool is uint8 [num_blocks, page bytes]. A page of N rows is N x data bytes, then N x scale bytes, then padding; row
`slot` is row slot % N of page slot // N. Rows are float32 [T, D] outside and one of these inside:

  kv     fp8_ds_mla  D - R E4M3 values, R bf16; one E8M0 byte per 64 values, padded with zeros to a multiple of 8 bytes
         bf16        D bf16
         float32     D float32
  index  fp4         D / 2 bytes of E2M1 pairs; one E8M0 byte per 32 values
         fp8         D E4M3 values; one float32 scale, a power of two
         float32     D float32

R is the number of rotary channels, at the end of the row. Layout: FlashMLA's MODEL1 pages (KV), DeepGEMM's (index).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.contract import expect, expect_rows, present
from dsv4.kernels.quant import reference as quant

KV_BLOCK = 64
INDEX_BLOCK = 32
Kind = Literal["fp8_ds_mla", "bf16", "float32", "fp4", "fp8"]


class Layout(NamedTuple):
    """One pool's rows: kind, values per row (D), trailing rotary channels (R, KV rows only), rows per page (N)."""

    kind: Kind
    dim: int
    rope_dim: int
    page_rows: int

    @property
    def data_bytes(self) -> int:
        """Bytes of a row's values."""
        match self.kind:
            case "fp8_ds_mla":
                return self.dim + self.rope_dim
            case "bf16":
                return 2 * self.dim
            case "float32":
                return 4 * self.dim
            case "fp4":
                return self.dim // 2
            case "fp8":
                return self.dim

    @property
    def scale_bytes(self) -> int:
        """Bytes of a row's scales, padding included."""
        match self.kind:
            case "fp8_ds_mla":
                return -(-(self.dim - self.rope_dim) // KV_BLOCK // 8) * 8
            case "fp4":
                return self.dim // INDEX_BLOCK
            case "fp8":
                return 4
            case _:
                return 0

    @property
    def page_multiple(self) -> int:
        """The page's stride is a multiple of this many bytes."""
        return self.data_bytes if self.kind == "fp8_ds_mla" else 1

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, padding included: the stride of a pool."""
        raw = self.page_rows * (self.data_bytes + self.scale_bytes)
        return -(-raw // self.page_multiple) * self.page_multiple


def pack_rows(rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """float32 [T, D] -> data bytes [T, data_bytes] and scale bytes [T, scale_bytes] (None where there are none)."""
    expect_rows(rows, "rows", layout.dim)
    match layout.kind:
        case "fp8_ds_mla":
            nope = layout.dim - layout.rope_dim
            values, scales = quant.pack_fp8(rows[:, :nope], KV_BLOCK)
            rope = rows[:, nope:].to(torch.bfloat16).contiguous().view(torch.uint8)
            padding = scales.new_zeros(len(rows), layout.scale_bytes - scales.shape[1])
            return torch.cat((values.view(torch.uint8), rope), 1), torch.cat((scales, padding), 1)
        case "bf16":
            return rows.to(torch.bfloat16).view(torch.uint8), None
        case "float32":
            return rows.contiguous().view(torch.uint8), None
        case "fp4":
            return quant.pack_fp4(rows, INDEX_BLOCK)
        case "fp8":
            values, exponents = quant.pack_fp8(rows, layout.dim)
            return values.view(torch.uint8), quant.e8m0_values(exponents).view(torch.uint8)


def unpack_rows(data: Tensor, scales: Tensor | None, layout: Layout) -> Tensor:
    """The inverse of `pack_rows`: float32 [T, D]."""
    match layout.kind:
        case "fp8_ds_mla":
            scales = present(scales, "scales")
            nope = layout.dim - layout.rope_dim
            values = data[:, :nope].view(torch.float8_e4m3fn)
            rope = data[:, nope:].contiguous().view(torch.bfloat16).float()
            return torch.cat((quant.unpack_fp8(values, scales[:, : nope // KV_BLOCK]), rope), 1)
        case "bf16":
            return data.view(torch.bfloat16).float()
        case "float32":
            return data.view(torch.float32)
        case "fp4":
            scales = present(scales, "scales")
            return quant.unpack_fp4(data, scales)
        case "fp8":
            scales = present(scales, "scales")
            return data.view(torch.float8_e4m3fn).float() * scales.contiguous().view(torch.float32)


def _regions(pool: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The pool's data as [blocks, N, data_bytes] and its scales as [blocks, N, scale_bytes]: views."""
    n, data, scale = layout.page_rows, layout.data_bytes, layout.scale_bytes
    expect(pool.dtype is torch.uint8 and pool.shape[1] >= n * (data + scale), f"pool {tuple(pool.shape)} for {layout}")
    return _rows(pool[:, : n * data], n), _rows(pool[:, n * data : n * (data + scale)], n)


def _rows(region: Tensor, n: int) -> Tensor:
    return region.view(len(region), n, region.shape[1] // n)


def store(pool: Tensor, slots: Tensor, rows: Tensor, layout: Layout) -> None:
    """Writes rows [T, D] to slots [T] (int64, distinct). Zero rows: nothing happens."""
    if not len(slots):
        return
    data, scales = _regions(pool, layout)
    block, offset = slots // layout.page_rows, slots % layout.page_rows
    packed, packed_scales = pack_rows(rows, layout)
    data[block, offset] = packed
    if packed_scales is not None:
        scales[block, offset] = packed_scales


def gather(pool: Tensor, slots: Tensor, layout: Layout) -> Tensor:
    """Rows of slots [T] (int64) as float32 [T, D]."""
    data, scales = _regions(pool, layout)
    block, offset = slots // layout.page_rows, slots % layout.page_rows
    packed_scales = scales[block, offset] if layout.scale_bytes else None
    return unpack_rows(data[block, offset], packed_scales, layout)
