# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Rows of pairs in E4M3, in the order of `permute`'s blocks, as a copy engine brings them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import power_of_two
from dsv4.kernels.moe.permute import Blocks
from dsv4.kernels.moe.quantise import FP8_BLOCK, amax, e4m3_codes, fp8_scale

PAIRS = 128  # of a block


class Gathered(NamedTuple):
    """values uint8 [places, C], E4M3; numbers float32 [C / 128 + 1, places]: scales, then a number of the pair.

    Of 16 places of a row of `numbers`, 2 q, 2 q + 1, 8 + 2 q and 9 + 2 q lie together (a thread's columns of two pieces
    of a product), in the order that a copy's swizzle undoes. Values and scales of no pair stay as they were.
    """

    values: Tensor
    numbers: Tensor


@triton.jit
def _gather(
    x_ptr, order_ptr, expert_ptr, weights_ptr, values_ptr, numbers_ptr, places,
    C: tl.constexpr, TOP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, UP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (places, C / 128 / BLOCKS). UP: x has a row per token, numbers are weights; else per place and pairs."""
    place = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if tl.load(expert_ptr + place // BLOCK) < 0:
        return
    pair = tl.load(order_ptr + place)
    chunk = place % 8 // 2 ^ place // 32 % 4
    at = place // 16 * 16 + chunk * 4 + place % 16 // 8 * 2 + place % 2
    last = numbers_ptr + places.to(tl.int64) * (C // 128) + at
    if tl.program_id(1) == 0:
        if UP:
            tl.store(last, tl.load(weights_ptr + pair, mask=pair >= 0, other=0.0).to(tl.int32, bitcast=True))
        else:
            tl.store(last, pair)
    if pair < 0:
        return
    row = tl.cast(pair // TOP if UP else place, tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    live = block < C // 128
    columns = block[:, None] * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(x_ptr + row * C + columns, mask=live[:, None], other=0.0).to(tl.float32)
    byte = fp8_scale(amax(x, 1))
    tl.store(values_ptr + tl.cast(place, tl.int64) * C + columns, e4m3_codes(x, byte[:, None]), mask=live[:, None])
    scale = power_of_two(byte).to(tl.int32, bitcast=True)
    tl.store(numbers_ptr + block.to(tl.int64) * places + at, scale, mask=live)


def gather(x: Tensor, blocks: Blocks, *, weights: Tensor | None = None) -> Gathered:
    """Quantises rows of pairs, one scale for 128 channels, into their places. One launch.

    x        bf16: with weights [T, C], a row per token; without [places, C], a row per place
    blocks   of 128 pairs
    weights  float32 [T, K], the numbers of the pairs; without, they are the pairs, int32
    cost     3 C bytes per pair
    """
    C, places = x.shape[1], len(blocks.order)
    expect(x.dtype is torch.bfloat16 and x.is_contiguous() and C % FP8_BLOCK == 0, f"x is {x.dtype} {tuple(x.shape)}")
    expect(blocks.size == PAIRS, f"blocks of {blocks.size} pairs")
    values = torch.empty(places, C, dtype=torch.uint8, device=x.device)
    numbers = torch.empty(C // FP8_BLOCK + 1, places, dtype=torch.int32, device=x.device)
    pdl = x.is_cuda
    top = 1 if weights is None else weights.shape[1]
    _gather[(places, triton.cdiv(C, 1024))](
        x, blocks.order, blocks.expert, numbers if weights is None else weights, values, numbers, places,
        C=C, TOP=top, BLOCKS=8, BLOCK=PAIRS, UP=weights is not None, PDL=pdl, num_warps=2, launch_pdl=pdl,
    )  # fmt: skip
    return Gathered(values, numbers.view(torch.float32))
