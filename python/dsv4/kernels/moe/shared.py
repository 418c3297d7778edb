# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001
"""The shared expert: FP8 weights with one scale per 128 x 128, every token, SwiGLU with the same clamp, weight 1.

Weights stay as a checkpoint has them. A program of the first product takes as many gate rows as up rows, so that SwiGLU
happens where both are; rows are few (64) while tokens are few, or most multiprocessors would have nothing to read.
The two launches and the quantisation between them may run beside the routed experts, on a stream of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import power_of_two, to_bf16
from dsv4.kernels.moe.grouped import product, swiglu
from dsv4.kernels.moe.quantise import Fp8Rows, to_fp8


class Shared(NamedTuple):
    """w13 float8_e4m3fn [2 m, C] (w1 on w3) and w2 [C, m]; scales uint8 [N / 128, K / 128], E8M0."""

    w13: Tensor
    w13_scale: Tensor
    w2: Tensor
    w2_scale: Tensor


@triton.jit
def dense_fp8(
    x_ptr,
    x_steps_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    out_ptr,
    T,
    limit,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Grid (weight rows / BM, tokens / BN). x as `Fp8Rows`; WIDTH channels leave as bf16."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    leaving: tl.constexpr = BM // 2 if GATED else BM
    m = tl.arange(0, BM)
    rows = tl.program_id(0) * leaving + m % leaving + m // leaving * WIDTH
    tokens = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    live = tokens < T
    k128 = tl.arange(0, 128)
    w = w_ptr + rows[:, None] * K + k128[None, :]
    w_scales = w_scale_ptr + rows // 128 * (K // 128)
    x = x_ptr + tokens[:, None] * K + k128[None, :]
    x_steps = x_steps_ptr + tokens * (K // 128)
    zero = tl.zeros([BM, BN], tl.float32)
    total = zero
    for k in tl.range(0, K // 128, num_stages=STAGES):
        step = tl.load(x_steps + k, mask=live, other=0.0)
        s_w = power_of_two(tl.load(w_scales + k).to(tl.int32))
        a = tl.load(w + k * 128)
        b = tl.load(x + k * 128, mask=live[:, None], other=0.0)
        if not PTX:
            a = a.to(tl.float32)
        total = total * step[None, :] + product(a, b, zero, PTX) * s_w[:, None]
    v = total * tl.load(x_scale_ptr + tokens, mask=live, other=0.0)[None, :]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(v, (2, leaving, BN)), (1, 2, 0)))
        v = swiglu(gate, up, limit, 1.0)
    channels = tl.program_id(0) * leaving + tl.arange(0, leaving)
    tl.store(out_ptr + tokens[None, :] * WIDTH + channels[:, None], to_bf16(v), mask=live[None, :])


def shared_expert(x: Fp8Rows, weights: Shared, *, limit: float) -> Tensor:
    """w2 · swiglu(w13 · x) -> bf16 [T, C].

    x     E4M3 rows [T, C] (`to_fp8`), the same that the routed experts read
    cost  3 C m bytes of weights (25 MB at C 4096, m 2048), 6 C m FLOP per token; three launches
    """
    T, C = x.values.shape
    two_m, m = weights.w13.shape[0], weights.w13.shape[0] // 2
    expect(weights.w13.shape == (2 * m, C) and weights.w2.shape == (C, m), f"{weights.w13.shape}, {weights.w2.shape}")
    expect(C % 128 == 0 and m % 128 == 0, f"a shared expert of {two_m} x {C}")
    expect(weights.w13_scale.shape == (two_m // 128, C // 128), f"scales {tuple(weights.w13_scale.shape)}")
    expect(weights.w2_scale.shape == (C // 128, m // 128), f"scales {tuple(weights.w2_scale.shape)}")
    if not T:
        return torch.empty(0, C, dtype=torch.bfloat16, device=x.values.device)
    y = _product(x, weights.w13, weights.w13_scale, m, limit, gated=True)
    return _product(to_fp8(y), weights.w2, weights.w2_scale, C, limit, gated=False)


def _cut(T: int) -> tuple[int, int, int, int]:
    """Rows, tokens, warps, stages of a program. No choice changes a bit."""
    if T <= 64:  # few tokens each, so that there are programs for every multiprocessor; weights come from L2 then
        return 64, 16, 4, 5
    return (64, 64, 4, 4) if T <= 512 else (128, 128, 8, 3)


def _product(x: Fp8Rows, w: Tensor, scale: Tensor, width: int, limit: float, *, gated: bool) -> Tensor:
    T, K = x.values.shape
    rows, tokens, warps, stages = _cut(T)
    out = torch.empty(T, width, dtype=torch.bfloat16, device=w.device)
    pdl = w.is_cuda
    dense_fp8[(w.shape[0] // rows, triton.cdiv(T, tokens))](
        x.values, x.steps, x.scale, w, scale, out, T, limit, K=K, WIDTH=width, GATED=gated, BM=rows, BN=tokens,
        STAGES=stages, PDL=pdl, PTX=isinstance(dense_fp8, triton.JITFunction), num_warps=warps, num_stages=stages,
        launch_pdl=pdl,
    )  # fmt: skip
    return out
