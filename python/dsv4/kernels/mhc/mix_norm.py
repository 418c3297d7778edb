# mypy: disable-error-code="import-untyped, untyped-decorator"
"""Second launch of an mHC boundary: partial products -> coefficients, stream combine and RMSNorm.

Two kinds of programs share the launch, because what the next sublayer waits for does not need the Sinkhorn rounds:

    0 .. mixers           post and comb of BM tokens: 20 rounds on 4 x 4 numbers, a chain of 78 dependent sums
    mixers .. mixers + T  one token: pre, sum of its four streams, RMSNorm

Both add the partials of a token themselves, in one fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.convert import reciprocal, round_bf16, to_bf16


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _summed(
    partials_ptr: tl.tensor,
    rows: tl.tensor,
    live: tl.tensor,
    SLICES: tl.constexpr,
    SP: tl.constexpr,
    P: tl.constexpr,
    FIRST: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """Columns FIRST .. FIRST + N of the partials, added over the slices. -> [BM, N]."""
    pieces = tl.arange(0, SP)
    columns = FIRST + tl.arange(0, N)
    at = (rows[:, None, None] * SLICES + pieces[None, :, None]) * P + columns[None, None, :]
    mask = live[:, None, None] & (pieces[None, :, None] < SLICES)
    return tl.sum(tl.load(partials_ptr + at, mask=mask, other=0.0), axis=1)


@triton.jit
def _coefficients(
    block: tl.tensor,
    partials_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    T: int,
    norm_eps: float,
    eps: float,
    C: tl.constexpr,
    SLICES: tl.constexpr,
    SP: tl.constexpr,
    BM: tl.constexpr,
    ITERS: tl.constexpr,
) -> None:
    rows = (block * BM + tl.arange(0, BM)).to(tl.int64)
    live = rows < T
    square = tl.sum(_summed(partials_ptr, rows, live, SLICES, SP, 32, 24, 1), axis=1)
    inverse = tl.rsqrt(square / (4 * C) + norm_eps)
    streams = tl.arange(0, 4)
    post = _summed(partials_ptr, rows, live, SLICES, SP, 32, 4, 4) * inverse[:, None]
    post = 2.0 * _sigmoid(post * tl.load(scale_ptr + 1) + tl.load(base_ptr + 4 + streams)[None, :])
    tl.store(post_ptr + rows[:, None] * 4 + streams[None, :], post, mask=live[:, None])
    mixes = tl.arange(0, 16)
    logits = _summed(partials_ptr, rows, live, SLICES, SP, 32, 8, 16) * inverse[:, None]
    logits = logits * tl.load(scale_ptr + 2) + tl.load(base_ptr + 8 + mixes)[None, :]
    c = tl.reshape(logits, [BM, 4, 4])
    c = tl.exp(c - tl.max(c, axis=2, keep_dims=True))
    c = c * reciprocal(tl.sum(c, axis=2, keep_dims=True)) + eps
    c = c * reciprocal(tl.sum(c, axis=1, keep_dims=True) + eps)
    for _ in range(ITERS - 1):
        c = c * reciprocal(tl.sum(c, axis=2, keep_dims=True) + eps)
        c = c * reciprocal(tl.sum(c, axis=1, keep_dims=True) + eps)
    comb_at = rows[:, None, None] * 16 + streams[None, :, None] * 4 + streams[None, None, :]
    tl.store(comb_ptr + comb_at, c, mask=live[:, None, None])


@triton.jit
def _combine(
    token: tl.tensor,
    partials_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    streams_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mixed_ptr: tl.tensor,
    norm_eps: float,
    eps: float,
    C: tl.constexpr,
    CP: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    SLICES: tl.constexpr,
    SP: tl.constexpr,
) -> None:
    columns = tl.arange(0, CP)
    inside = columns < C
    x_ptr = streams_ptr + token * (4 * C) + columns
    x0 = tl.load(x_ptr, mask=inside, other=0.0)
    x1 = tl.load(x_ptr + C, mask=inside, other=0.0)
    x2 = tl.load(x_ptr + 2 * C, mask=inside, other=0.0)
    x3 = tl.load(x_ptr + 3 * C, mask=inside, other=0.0)
    outputs = tl.arange(0, P)
    pieces = tl.arange(0, SP)[:, None]
    at = (token * SLICES + pieces) * P + outputs[None, :]
    total = tl.sum(tl.load(partials_ptr + at, mask=pieces < SLICES, other=0.0), axis=0)
    square = tl.sum(tl.where(outputs == M, total, 0.0))
    mixes = total * tl.rsqrt(square / (4 * C) + norm_eps)
    base = tl.load(base_ptr + outputs, mask=outputs < 4, other=0.0)
    pre = _sigmoid(mixes * tl.load(scale_ptr) + base) + eps
    u = x0.to(tl.float32) * tl.sum(tl.where(outputs == 0, pre, 0.0))
    u += x1.to(tl.float32) * tl.sum(tl.where(outputs == 1, pre, 0.0))
    u += x2.to(tl.float32) * tl.sum(tl.where(outputs == 2, pre, 0.0))
    u += x3.to(tl.float32) * tl.sum(tl.where(outputs == 3, pre, 0.0))
    u = round_bf16(u)
    inverse = tl.rsqrt(tl.sum(u * u) / C + norm_eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(mixed_ptr + token * C + columns, to_bf16(u * inverse * weight), mask=inside)


@triton.jit
def mix_norm(
    partials_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    base_ptr: tl.tensor,
    streams_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mixed_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    T: int,
    norm_eps: float,
    eps: float,
    C: tl.constexpr,
    CP: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    SLICES: tl.constexpr,
    SP: tl.constexpr,
    BM: tl.constexpr,
    ITERS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Grid (cdiv(T, BM) + T,) with M = 24 (a site), (T,) with M = 4 (the head, which has neither post nor comb)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    mixers = tl.cdiv(T, BM) if M == 24 else 0
    if program < mixers:
        _coefficients(
            program,
            partials_ptr,
            scale_ptr,
            base_ptr,
            post_ptr,
            comb_ptr,
            T,
            norm_eps,
            eps,
            C,
            SLICES,
            SP,
            BM,
            ITERS,
        )
    else:
        _combine(
            (program - mixers).to(tl.int64),
            partials_ptr,
            scale_ptr,
            base_ptr,
            streams_ptr,
            weight_ptr,
            mixed_ptr,
            norm_eps,
            eps,
            C,
            CP,
            M,
            P,
            SLICES,
            SP,
        )
