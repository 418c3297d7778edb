# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Where each token's window lies, computed once per step for all layers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.contract import expect

WINDOW, PAGE = 128, 64


@triton.jit
def _window_slots(positions, token_rows, block_table, table_stride, first_block, out):
    t = tl.program_id(0).to(tl.int64)
    row = tl.load(token_rows + t).to(tl.int64)
    j = tl.arange(0, 128)
    position = tl.load(positions + t) - 127 + j
    seen = position >= 0
    entry = position // 64 - tl.load(first_block + row)
    block = tl.load(block_table + row * table_stride + entry, mask=seen, other=0)
    tl.store(out + t * 128 + j, tl.where(seen, block * 64 + position % 64, -1))


def window_slots(positions: Tensor, token_rows: Tensor, block_table: Tensor, first_block: Tensor) -> Tensor:
    """Slots of the 128 positions that end at each token, in order of position; -1 before the request's start.

    positions    int32 [T]
    token_rows   int32 [T]: the request of each token
    block_table  int32 [B, S]: entry i is the block of positions 64 (first_block[b] + i) .. + 63
    first_block  int32 [B]
    out          int32 [T, 128]: block x 64 + position % 64
    cost         512 bytes per token, one launch
    """
    T = len(positions)
    expect(positions.dtype is torch.int32 and token_rows.dtype is torch.int32, "positions and token_rows are int32")
    expect(token_rows.shape == (T,) and first_block.dtype is torch.int32, f"{token_rows.shape} rows of {T} tokens")
    expect(block_table.dtype is torch.int32 and block_table.stride(1) == 1, f"table {block_table.dtype}")
    out = torch.empty((T, WINDOW), dtype=torch.int32, device=positions.device)
    if T:
        _window_slots[(T,)](positions, token_rows, block_table, block_table.stride(0), first_block, out, num_warps=4)
    return out
