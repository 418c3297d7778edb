# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""Grouped products of MXFP4 weights: each block of pairs by the matrix of its expert, and what follows in registers.

    up     swiglu(w13 · x) · routing weight   -> y [T K, m], bf16
    down   w2 · y                             -> rows [T K, C], bf16

Weights are on the rows of the product and pairs on its columns, because at decode sizes an expert sees one to eight
pairs and the matrix units take 64 rows but as few as 16 columns. Weights stay packed until they are in registers, where
few instructions expand them (expand.py) and the matrix units read them. A program takes 64 to 256 rows of one block
through all of K in steps of 128 channels; nothing is split, so a pair's sum has one order whatever lies beside it.

`grouped_fp8`: E4M3 x E4M3. Each 32 channels are one product, whose float32 result is scaled by the weights' block scale
and added (as the official code does). The sum is kept in units of the activations' scale of these 128 channels: a
power of two, so that going from one unit to the next is exact and takes one multiplication.
`grouped_bf16`: bf16 x bf16; the weights' scale is part of the expanded value, and sums stay in the accumulator.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.convert import reciprocal, round_bf16, to_bf16
from dsv4.kernels.moe.expand import BF16_SHORT, E4M3_SHORT, bf16_of, e4m3_of, scale_of
from dsv4.kernels.moe.quantise import amax, e2m1_rounded, fp4_scale

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(a, b, accumulator, PTX: tl.constexpr):
    """The sum of accumulator and a · bᵀ, on the matrix units or in float32 without them."""
    if PTX:
        return tl.dot(a, tl.trans(b), accumulator, out_dtype=tl.float32)
    else:  # noqa: RET505 - Triton compiles one branch, so the other must be one
        wide = tl.trans(b.to(tl.float32))
        return accumulator + tl.dot(a, wide, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def _pairs(order_ptr, block, TOP: tl.constexpr, BN: tl.constexpr):
    """Pairs of a block, whether each is there, and the row of x that it reads."""
    pairs = tl.load(order_ptr + block * BN + tl.arange(0, BN))
    live = pairs >= 0
    return pairs, live, tl.where(live, pairs // TOP, 0).to(tl.int64)


@triton.jit
def swiglu(a, b, limit, weights):
    """silu(min(a, limit)) · clamp(b, -limit, limit) · weight; a, b and the result are rounded to bf16; NaN stays."""
    a, b = round_bf16(a), round_bf16(b)
    a = tl.where(a > limit, limit, a)
    b = tl.where(b > limit, limit, b)
    b = tl.where(b < -limit, -limit, b)
    silu = a * reciprocal(1.0 + tl.exp2(-a * LOG2E))
    return round_bf16(silu * b * weights)


@triton.jit
def _halves(v, BM: tl.constexpr, BN: tl.constexpr):
    """Rows in bands of 32 gate and 32 up -> gate and up [BM / 2, BN]."""
    bands = tl.permute(tl.reshape(v, (BM // 64, 2, 32, BN)), (0, 2, 3, 1))
    gate, up = tl.split(bands)
    return tl.reshape(gate, (BM // 2, BN)), tl.reshape(up, (BM // 2, BN))


@triton.jit
def _leave(v, out_ptr, pairs, live, tile, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FP4: tl.constexpr):
    """Stores v float32 [BM, BN], channels tile BM.. of the pairs, as bf16; with FP4 rounded to MXFP4 before."""
    channels = tile * BM + tl.arange(0, BM)
    if FP4:
        blocks = tl.reshape(v, (BM // 32, 32, BN))
        byte = fp4_scale(amax(blocks, 1))
        v = tl.reshape(e2m1_rounded(blocks, byte[:, None, :]), (BM, BN))
    at = tl.where(live, pairs, 0).to(tl.int64)[None, :] * WIDTH + channels[:, None]
    tl.store(out_ptr + at, to_bf16(v), mask=live[None, :])


@triton.jit
def grouped_fp8(
    x_ptr,
    x_steps_ptr,
    x_scale_ptr,
    codes_ptr,
    scales_ptr,
    order_ptr,
    expert_ptr,
    weights_ptr,
    out_ptr,
    limit,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    GATED: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Grid (rows / BM, most blocks). x is E4M3 [rows, K] with steps [rows, K / 128] and scale [rows], see `Fp8Rows`."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.load(expert_ptr + block)
    if expert < 0:
        return
    pairs, live, row = _pairs(order_ptr, block, TOP, BN)
    rows_in: tl.constexpr = 2 * WIDTH if GATED else WIDTH
    m = tl.arange(0, BM)
    k32 = tl.arange(0, 32)
    codes = codes_ptr + expert.to(tl.int64) * (K // 2 * rows_in) + tile * (BM * 32) + m[:, None] * 32 + k32[None, :]
    scales = scales_ptr + expert.to(tl.int64) * (K // 128 * rows_in) + tile * BM + m
    x = x_ptr + row[:, None] * K + k32[None, :]
    x_steps = x_steps_ptr + row * (K // 128)
    seen = live[:, None]
    zero = tl.zeros([BM, BN], tl.float32)
    total = zero
    s_w = tl.load(scales)
    for k in tl.range(0, K // 128, num_stages=STAGES):
        step = tl.load(x_steps + k, mask=live, other=0.0)
        s_rows = tl.broadcast_to(s_w[:, None], (BM, BN))  # before it is unpacked: one change of layout, not four
        total *= step[None, :]
        for half in tl.static_range(2):
            x_low = tl.load(x + k * 128 + half * 64, mask=seen, other=0.0)
            x_high = tl.load(x + k * 128 + half * 64 + 32, mask=seen, other=0.0)
            low, high = e4m3_of(tl.load(codes + (2 * k + half) * (rows_in * 32)), PTX)
            total += product(low, x_low, zero, PTX) * scale_of(s_rows, 16 * half)
            total += product(high, x_high, zero, PTX) * scale_of(s_rows, 16 * half + 8)
        s_w = tl.load(scales + tl.minimum(k + 1, K // 128 - 1) * rows_in)
    v = total * (tl.load(x_scale_ptr + row, mask=live, other=0.0) * E4M3_SHORT)[None, :]
    if GATED:
        weights = tl.load(weights_ptr + tl.where(live, pairs, 0), mask=live, other=0.0)
        gate, up = _halves(v, BM, BN)
        v = swiglu(gate, up, limit, weights[None, :])
    _leave(v, out_ptr, pairs, live, tile, WIDTH, BM // 2 if GATED else BM, BN, FP4=False)


@triton.jit
def grouped_bf16(
    x_ptr,
    codes_ptr,
    scales_ptr,
    order_ptr,
    expert_ptr,
    weights_ptr,
    out_ptr,
    limit,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    GATED: tl.constexpr,
    FP4: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Grid (rows / BM, most blocks). x bf16 [rows, K]; WIDTH channels leave."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.load(expert_ptr + block)
    if expert < 0:
        return
    pairs, live, row = _pairs(order_ptr, block, TOP, BN)
    rows_in: tl.constexpr = 2 * WIDTH if GATED else WIDTH
    m = tl.arange(0, BM)
    k16 = tl.arange(0, 16)
    codes = codes_ptr + expert.to(tl.int64) * (K // 8 * rows_in) + tile * (BM * 16) + m[:, None] * 16 + k16[None, :]
    scales = scales_ptr + expert.to(tl.int64) * (K // 128 * rows_in) + tile * BM + m
    x = x_ptr + row[:, None] * K + k16[None, :]
    seen = live[:, None]
    total = tl.zeros([BM, BN], tl.float32)
    for k in tl.range(0, K // 128, num_stages=STAGES):
        values = bf16_of(tl.load(codes + k * (rows_in * 16)), tl.load(scales + k * rows_in), PTX)
        for j in tl.static_range(8):
            x_j = tl.load(x + k * 128 + 16 * j, mask=seen, other=0.0)
            total = product(values[j], x_j, total, PTX)
    v = total * (BF16_SHORT if PTX else 1.0)
    if GATED:
        weights = tl.load(weights_ptr + tl.where(live, pairs, 0), mask=live, other=0.0)
        gate, up = _halves(v, BM, BN)
        v = swiglu(gate, up, limit, weights[None, :])
    _leave(v, out_ptr, pairs, live, tile, WIDTH, BM // 2 if GATED else BM, BN, FP4)
