# mypy: disable-error-code="import-untyped, untyped-decorator"
"""Index queries as the scores read them: RoPE, Hadamard, FP8 or FP4, in one launch; scales go into the heads' weights.

    q [T, 64, 128] -- RoPE -- Hadamard --> E4M3 codes, one scale per head --(times the weight of the head)--> weights

FP4 queries keep their four scales: a value times 2^(its scale - the largest of its row) is an E4M3 number, exactly, as
long as the scales of a row lie within 2^11 of each other; below that it is rounded like any E4M3 subnormal.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.cache.pack_rows import (
    FP4_FLOOR,
    FP4_RECIPROCAL,
    FP8_FLOOR,
    FP8_RECIPROCAL,
    block_scales,
    e2m1_codes,
    hadamard_rows,
    inverse_scale,
    rotate_rows,
)
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import e4m3_bytes, power_of_two, round_bf16

HEADS, DIM, PAIRS = 64, 128, 32
ROWS = 4  # heads of a token in one program, one warp
SHIFT = tl.constexpr(6)  # of FP4 values in E4M3: 6 x 2^6 is the largest, 1/2 x 2^6 is 2^14 above the smallest subnormal


@triton.jit
def e2m1_values(codes: tl.tensor) -> tl.tensor:
    """E2M1 codes 0 .. 15 (int32) -> float32."""
    magnitude = codes & 7
    normal = (2 + (magnitude & 1)).to(tl.float32) * power_of_two((magnitude >> 1) + 125)
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, normal)
    return tl.where(codes > 7, -value, value)


@triton.jit
def _index_queries(
    q_ptr: tl.tensor,
    heads_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    out_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    factor: float,
    R: tl.constexpr,
    FP4: tl.constexpr,
    ANGLES: tl.constexpr,
) -> None:
    """Grid (T 64 / R,)."""
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    at = rows[:, None] * 128 + tl.arange(0, 128)[None, :]
    tokens = rows // 64
    x = tl.load(q_ptr + at).to(tl.float32)
    x = round_bf16(rotate_rows(x, cos_ptr, sin_ptr, tokens, tokens >= 0, R, 128, ANGLES))
    x = round_bf16(hadamard_rows(x, R))
    if FP4:
        blocks = tl.reshape(x, [R, 4, 32])
        scales = block_scales(blocks, FP4_FLOOR, FP4_RECIPROCAL)
        top = tl.max(scales, axis=1)
        apart = tl.where(
            (scales == 255) | (top == 255)[:, None], 255, tl.maximum(scales - top[:, None] + 127 + SHIFT, 0)
        )
        values = e2m1_values(e2m1_codes(blocks * inverse_scale(scales)[:, :, None])) * power_of_two(apart)[:, :, None]
        codes = e4m3_bytes(tl.reshape(values, [R, 128]))
        scale = power_of_two(tl.where(top == 255, 255, tl.maximum(top - SHIFT, 0)))
    else:
        scales = block_scales(tl.reshape(x, [R, 1, 128]), FP8_FLOOR, FP8_RECIPROCAL)
        codes = e4m3_bytes(x * inverse_scale(scales))
        scale = tl.sum(power_of_two(scales), axis=1)
    tl.store(out_ptr + at, codes)
    weight = round_bf16(tl.load(heads_ptr + rows).to(tl.float32) * factor)
    tl.store(weights_ptr + rows, weight * scale)


def index_queries(
    q: Tensor, heads: Tensor, angles: tuple[Tensor, Tensor], kind: Literal["fp8", "fp4"]
) -> tuple[Tensor, Tensor]:
    """What `index_scores` takes.

    q        bf16 [T, 64, 128], contiguous: wq_b · q_r
    heads    bf16 [T, 64], contiguous: weights_proj · x, multiplied here by (128 · 64)^-1/2
    angles   cos and sin [T, 32] float32
    kind     how queries are rounded, as their keys are
    out      float8_e4m3fn [T, 64, 128]; float32 [T, 64]
    cost     24 KiB + 640 bytes per token, one launch
    """
    T = len(q)
    expect(q.shape == (T, HEADS, DIM) and q.dtype is torch.bfloat16 and q.is_contiguous(), f"q {q.dtype} {q.shape}")
    expect(
        heads.shape == (T, HEADS) and heads.dtype is torch.bfloat16 and heads.is_contiguous(), f"heads {heads.shape}"
    )
    for x in angles:
        expect(x.shape == (T, PAIRS) and x.dtype is torch.float32 and x.is_contiguous(), f"angles {tuple(x.shape)}")
    out = torch.empty(T, HEADS, DIM, dtype=torch.float8_e4m3fn, device=q.device)
    weights = torch.empty(T, HEADS, device=q.device)
    if T:
        _index_queries[(T * HEADS // ROWS,)](
            q, heads, *angles, out.view(torch.uint8), weights, DIM**-0.5 * HEADS**-0.5,
            R=ROWS, FP4=kind == "fp4", ANGLES=PAIRS, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out, weights
