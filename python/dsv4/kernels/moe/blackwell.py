# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001
"""Grouped products with the block-scaled matrix instructions of Blackwell: W4A4 and W4A8. Compiled, never measured.

    w4a4   E2M1 x E2M1, scales per 32 on both sides                       kind::mxf4
    w4a8   E4M3 x E2M1, the activations' scale per 128 given four times   kind::mxf8f6f4

Weights stay as a checkpoint has them: bytes [N, K / 2] and E8M0 bytes [N, K / 32] per matrix, nothing is rearranged.
Tokens are on the rows of the product here, since these instructions take 128 of them and hold both scales beside the
operands. Every scale is an E8M0 byte that quantise.py made by rounding exponent bits up; nothing else is ever packed.
On a GPU without these instructions the compiler multiplies the expanded values in bf16: right, and slow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import to_bf16
from dsv4.kernels.moe.grouped import swiglu
from dsv4.kernels.moe.permute import Blocks
from dsv4.kernels.moe.quantise import Fp4Rows, Fp8Rows

PAIRS, ROWS, STEP, WARPS = 128, 128, 256, 8  # of a program: pairs, weight rows, channels of K per step


class Native(NamedTuple):
    """Matrices of all experts as in the checkpoint: codes uint8 [E, N, K / 2], scales uint8 [E, N, K / 32]."""

    codes: Tensor
    scales: Tensor


@triton.jit
def grouped_scaled(
    x_ptr,
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
    FP4: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Grid (weight rows / BN, most blocks of BM pairs).

    x is packed [rows, K / 2] with an E8M0 byte for 32 channels, or E4M3 [rows, K] with one for 128.
    """
    block = tl.program_id(1)
    expert = tl.load(expert_ptr + block)
    if expert < 0:
        return
    pairs = tl.load(order_ptr + block * BM + tl.arange(0, BM))
    live = pairs >= 0
    row = tl.where(live, pairs // TOP, 0).to(tl.int64)
    rows_in: tl.constexpr = 2 * WIDTH if GATED else WIDTH
    leaving: tl.constexpr = BN // 2 if GATED else BN
    n = tl.arange(0, BN)
    weight_rows = tl.program_id(0) * leaving + n % leaving + n // leaving * WIDTH  # gate rows, then as many up rows
    half = tl.arange(0, BK // 2)
    k32 = tl.arange(0, BK // 32)
    per_scale: tl.constexpr = 1 if FP4 else 4
    codes = codes_ptr + expert.to(tl.int64) * (rows_in * K // 2) + weight_rows[:, None] * (K // 2) + half[None, :]
    scales = scales_ptr + expert.to(tl.int64) * (rows_in * K // 32) + weight_rows[:, None] * (K // 32) + k32[None, :]
    x_scales = x_scale_ptr + row[:, None] * (K // 32 // per_scale) + (k32 // per_scale)[None, :]
    k = half if FP4 else tl.arange(0, BK)
    x = x_ptr + row[:, None] * (K // 2 if FP4 else K) + k[None, :]
    v = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        a_scale = tl.load(x_scales + k // 32 // per_scale, mask=live[:, None], other=127)
        w, w_scale = tl.load(codes + k // 2), tl.load(scales + k // 32)
        if FP4:
            a = tl.load(x + k // 2, mask=live[:, None], other=0)
            v = tl.dot_scaled(a, a_scale, "e2m1", tl.trans(w), w_scale, "e2m1", v)
        else:
            a = tl.load(x + k, mask=live[:, None], other=0.0)
            v = tl.dot_scaled(a, a_scale, "e4m3", tl.trans(w), w_scale, "e2m1", v)
    if GATED:
        weights = tl.load(weights_ptr + tl.where(live, pairs, 0), mask=live, other=0.0)
        gate, up = tl.split(tl.permute(tl.reshape(v, (BM, 2, leaving)), (0, 2, 1)))
        v = swiglu(gate, up, limit, weights[:, None])
    channels = tl.program_id(0) * leaving + tl.arange(0, leaving)
    at = tl.where(live, pairs, 0).to(tl.int64)[:, None] * WIDTH + channels[None, :]
    tl.store(out_ptr + at, to_bf16(v), mask=live[:, None])


def up(x: Fp4Rows | Fp8Rows, w13: Native, blocks: Blocks, weights: Tensor, *, limit: float) -> Tensor:
    """swiglu(w13 · x) · weight -> bf16 [T K, m]; weights float32 [T, K], blocks of 128 pairs. One launch."""
    return _run(x, w13, blocks, weights, limit, top=weights.shape[1], gated=True)


def down(y: Fp4Rows | Fp8Rows, w2: Native, blocks: Blocks, weights: Tensor) -> Tensor:
    """w2 · y -> bf16 [T K, C], one row per pair. One launch."""
    return _run(y, w2, blocks, weights, 0.0, top=1, gated=False)


def _run(
    x: Fp4Rows | Fp8Rows, w: Native, blocks: Blocks, weights: Tensor, limit: float, *, top: int, gated: bool
) -> Tensor:
    E, N, packed = w.codes.shape
    K, width = 2 * packed, N // 2 if gated else N
    expect(w.codes.dtype is torch.uint8 and w.scales.shape == (E, N, K // 32), f"{w.codes.shape}, {w.scales.shape}")
    expect(K % STEP == 0 and N % ROWS == 0 and blocks.size == PAIRS, f"{N} x {K}, blocks of {blocks.size}")
    fp4 = isinstance(x, Fp4Rows)
    values = x.packed if isinstance(x, Fp4Rows) else x.values
    out = torch.empty(weights.numel(), width, dtype=torch.bfloat16, device=values.device)
    grouped_scaled[(N // ROWS, len(blocks.expert))](
        values, x.exponents, w.codes, w.scales, blocks.order, blocks.expert, weights, out, limit, K=K, WIDTH=width,
        TOP=top, GATED=gated, FP4=fp4, BM=PAIRS, BN=ROWS, BK=STEP, num_warps=WARPS, num_stages=3,
    )  # fmt: skip
    return out
