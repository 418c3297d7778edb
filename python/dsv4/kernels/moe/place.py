# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Rows of pairs in E4M3, in the places that `permute` gave them, as a copy engine brings them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import power_of_two, to_bf16
from dsv4.kernels.moe.permute import Blocks
from dsv4.kernels.moe.quantise import FP8_BLOCK, amax, e4m3_codes, fp8_scale

PAIRS = 64  # of a block


class Placed(NamedTuple):
    """values uint8 [places, C], E4M3; scales bf16 [C / 128, places]; weights float32 [places], of tokens' rows.

    Of 32 places of a row of `scales`, 8 k + 2 q and 8 k + 2 q + 1 lie together for all k: a thread's columns. What
    belongs to no pair stays as it was.
    """

    values: Tensor
    scales: Tensor
    weights: Tensor | None = None


@triton.jit
def _place(
    x_ptr, places_ptr, weights_ptr, values_ptr, scales_ptr, to_weights_ptr, places,
    C: tl.constexpr, TOP: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows, C / 128 / BLOCKS). TOKENS: a row is a token's and goes to TOP places; else a pair's, at its place."""
    row = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    source = row.to(tl.int64)
    if not TOKENS:
        source = tl.load(places_ptr + row).to(tl.int64)
        if source < 0:
            return
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    live = block < C // 128
    columns = block[:, None] * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(x_ptr + source * C + columns, mask=live[:, None], other=0.0).to(tl.float32)
    byte = fp8_scale(amax(x, 1))
    codes = e4m3_codes(x, byte[:, None])
    scale = to_bf16(power_of_two(byte))
    for j in tl.static_range(TOP):
        place = tl.load(places_ptr + row * TOP + j)
        here = block < tl.where(place >= 0, C // 128, 0)
        tl.store(values_ptr + place.to(tl.int64) * C + columns, codes, mask=here[:, None])
        at = place // 32 * 32 + place % 8 // 2 * 8 + place % 32 // 8 * 2 + place % 2
        tl.store(scales_ptr + block.to(tl.int64) * places + at, scale, mask=here)
        if TOKENS and tl.program_id(1) == 0:
            tl.store(to_weights_ptr + place, tl.load(weights_ptr + row * TOP + j), mask=place >= 0)


def place(x: Tensor, blocks: Blocks, *, weights: Tensor | None = None) -> Placed:
    """Quantises rows, one scale for 128 channels, into the places of their pairs. One launch.

    x        bf16: with weights [T, C], a row per token, quantised once for all of its pairs; without [places, C], a row
             per place, of which those of pairs are read
    blocks   of 64 pairs, with their places
    weights  float32 [T, K], of the pairs
    cost     2 C bytes per row, C per pair
    """
    C, places, of_pairs = x.shape[1], len(blocks.order), blocks.places
    expect(x.dtype is torch.bfloat16 and x.is_contiguous() and C % FP8_BLOCK == 0, f"x is {x.dtype} {tuple(x.shape)}")
    expect(blocks.size == PAIRS and of_pairs is not None, f"blocks of {blocks.size} pairs")
    values = torch.empty(places, C, dtype=torch.uint8, device=x.device)
    scales = torch.empty(C // FP8_BLOCK, places, dtype=torch.bfloat16, device=x.device)
    to_weights = None if weights is None else torch.empty(places, device=x.device)
    rows, top = (of_pairs.numel(), 1) if weights is None else weights.shape  # type: ignore[union-attr]
    pdl, given = x.is_cuda, (scales, scales) if weights is None else (weights, to_weights)
    _place[(rows, triton.cdiv(C, 1024))](
        x, of_pairs, given[0], values, scales, given[1], places,
        C=C, TOP=top, BLOCKS=8, TOKENS=weights is not None, PDL=pdl, num_warps=2, launch_pdl=pdl,
    )  # fmt: skip
    return Placed(values, scales, to_weights)
