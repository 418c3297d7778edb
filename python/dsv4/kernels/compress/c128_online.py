# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN202 - blocks and pointers pass between jitted functions; only launchers have types
"""Online C128 compression of a layer: 128 tokens become one row, and an open group is three numbers per channel.

    (m, s, a) --row--> m' = max(m, z), s' = s e^(m - m') + e^(z - m'), a' = a e^(m - m') + kv e^(z - m')
    128 rows:  a / s -> RMSNorm -> RoPE -> FP8 per 64 -> pool

Rows enter one by one in order of position, so that the bits are the same however a group is cut into steps. A run is
what one step brings of one group. Runs that close a group read the state that the request's open run will overwrite,
so they go first; with one token per request nobody has both, and everything is one launch.

A softmax cannot forget a draft that was wrong. So the state behind the first token that may be the last to count goes
to bank 0 of the slot, the state behind each draft to the next bank, and the step after goes on from the bank of the
last draft that was right. One program does all of a request's banks, having read the one it comes from first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.cache.pack_rows import norm_rotate_rows, store_kv_rows
from dsv4.kernels.compress.plan import C128Plan
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import round_bf16

D = tl.constexpr(512)


class OnlineCompressor(NamedTuple):
    """The compressor of one C128 layer.

    projected  [T, 2, 512] float32: kv and score
    ape        [128, 512] float32
    weight     [512] of its norm, bf16 or float32
    state      [slots, banks, 3, 512] float32: maximum, sum, weighted value of the open group
    pool       [blocks, page bytes] uint8 in the 584-byte format
    """

    projected: Tensor
    ape: Tensor
    weight: Tensor
    state: Tensor
    pool: Tensor


@triton.jit
def _row(new_ptr, ape_ptr, token, place, i, count):
    """Kv and score of row i of a run; rows from `count` on weigh nothing. -> [512], [512]."""
    channels = tl.arange(0, D)
    inside = tl.zeros([D], tl.int32) + i < count  # a block, because the interpreter takes no scalar mask
    at = (token + i).to(tl.int64) * (2 * D) + channels
    kv = tl.load(new_ptr + at, mask=inside, other=0.0)
    score = tl.load(new_ptr + at + D, mask=inside, other=float("-inf"))
    return kv, score + tl.load(ape_ptr + (place + i) * D + channels, mask=inside, other=0.0)


@triton.jit
def _grown(m, s, a, kv, score):
    """The running softmax with one more row."""
    top = tl.maximum(m, score)
    kept = tl.exp(m - top)
    added = tl.exp(score - top)
    return top, s * kept + added, a * kept + kv * added


@triton.jit
def _load4(new_ptr, ape_ptr, token, place, i, count):
    """Rows i .. i + 3 of a run."""
    k0, z0 = _row(new_ptr, ape_ptr, token, place, i, count)
    k1, z1 = _row(new_ptr, ape_ptr, token, place, i + 1, count)
    k2, z2 = _row(new_ptr, ape_ptr, token, place, i + 2, count)
    k3, z3 = _row(new_ptr, ape_ptr, token, place, i + 3, count)
    return k0, z0, k1, z1, k2, z2, k3, z3


@triton.jit
def _grown4(m, s, a, k0, z0, k1, z1, k2, z2, k3, z3):
    m, s, a = _grown(m, s, a, k0, z0)
    m, s, a = _grown(m, s, a, k1, z1)
    m, s, a = _grown(m, s, a, k2, z2)
    return _grown(m, s, a, k3, z3)


@triton.jit
def _run(new_ptr, ape_ptr, state_ptr, token, count, place, slot):
    """m, s and a after `count` rows from `token` on, over the state in `slot` (-1: none). 16 rows are in flight."""
    channels = tl.arange(0, D)
    at = slot.to(tl.int64) * (3 * D) + channels
    inside = tl.zeros([D], tl.int32) + slot >= 0
    m = tl.load(state_ptr + at, mask=inside, other=float("-inf"))
    s = tl.load(state_ptr + at + D, mask=inside, other=0.0)
    a = tl.load(state_ptr + at + 2 * D, mask=inside, other=0.0)
    for i in range(0, count, 16):
        k0, z0, k1, z1, k2, z2, k3, z3 = _load4(new_ptr, ape_ptr, token, place, i, count)
        k4, z4, k5, z5, k6, z6, k7, z7 = _load4(new_ptr, ape_ptr, token, place, i + 4, count)
        k8, z8, k9, z9, ka, za, kb, zb = _load4(new_ptr, ape_ptr, token, place, i + 8, count)
        kc, zc, kd, zd, ke, ze, kf, zf = _load4(new_ptr, ape_ptr, token, place, i + 12, count)
        m, s, a = _grown4(m, s, a, k0, z0, k1, z1, k2, z2, k3, z3)
        m, s, a = _grown4(m, s, a, k4, z4, k5, z5, k6, z6, k7, z7)
        m, s, a = _grown4(m, s, a, k8, z8, k9, z9, ka, za, kb, zb)
        m, s, a = _grown4(m, s, a, kc, zc, kd, zd, ke, ze, kf, zf)
    return m, s, a


@triton.jit
def _put(state_ptr, row, kept, m, s, a):
    """Keeps a state in a row of the states, if `kept`."""
    at = row.to(tl.int64) * (3 * D) + tl.arange(0, D)
    inside = tl.zeros([D], tl.int32) + kept.to(tl.int32) > 0
    tl.store(state_ptr + at, m, mask=inside)
    tl.store(state_ptr + at + D, s, mask=inside)
    tl.store(state_ptr + at + 2 * D, a, mask=inside)


@triton.jit
def _compress_c128(
    new_ptr: tl.tensor,
    ape_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    state_ptr: tl.tensor,
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    closing_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    open_ptr: tl.tensor,
    n: int,
    eps: float,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    ANGLES: tl.constexpr,
) -> None:
    """Grid (n closing runs + open runs,)."""
    program = tl.program_id(0)
    if program < n:
        run_ptr = closing_ptr + program * 4
        token = tl.load(run_ptr)
        if token >= 0:
            m, s, a = _run(
                new_ptr, ape_ptr, state_ptr, token, tl.load(run_ptr + 1), tl.load(run_ptr + 2), tl.load(run_ptr + 3)
            )
            at = program + tl.arange(0, 1)
            target = tl.load(slots_ptr + at)
            x = round_bf16(a / s)[None, :]
            x = norm_rotate_rows(x, weight_ptr, cos_ptr, sin_ptr, at, target >= 0, eps, 1, 512, ANGLES)
            store_kv_rows(x, bytes_ptr, halves_ptr, target, target >= 0, 1, PAGE, STRIDE)
    else:
        run_ptr = open_ptr + (program - n) * 6
        token = tl.load(run_ptr)
        if token >= 0:
            count, place = tl.load(run_ptr + 1), tl.load(run_ptr + 2)
            row, more = tl.load(run_ptr + 4), tl.load(run_ptr + 5)
            m, s, a = _run(new_ptr, ape_ptr, state_ptr, token, count, place, tl.load(run_ptr + 3))
            _put(state_ptr, row, count > 0, m, s, a)
            for i in range(more):
                at = (place + count + i) % 128
                begins = tl.zeros([D], tl.int32) + at == 0
                kv, score = _row(new_ptr, ape_ptr, token + count + i, at, 0, 1)
                m, s, a = _grown(
                    tl.where(begins, float("-inf"), m), tl.where(begins, 0.0, s), tl.where(begins, 0.0, a), kv, score
                )
                _put(state_ptr, row + 1 + i, at < 127, m, s, a)


def compress_c128(
    part: OnlineCompressor, plan: C128Plan, *, max_new_tokens: int, page_rows: int = 2, eps: float = 1e-6
) -> None:
    """Stores the C128 row of every group that closes, and the running softmax of every group that stays open.

    max_new_tokens  the most tokens that one request brings: 1 is one launch, more are two
    cost            4 KiB read per token, 584 bytes written per group; in decode also 12 KiB of state per request, and
                    6 KiB per draft
    """
    T, n, B = len(part.projected), len(plan.closing), len(plan.open)
    expect(
        part.projected.shape == (T, 2, 512) and part.projected.is_contiguous(), f"rows {tuple(part.projected.shape)}"
    )
    expect(part.state.shape[2:] == (3, 512) and part.state.is_contiguous(), f"state {tuple(part.state.shape)}")
    expect(part.state.shape[1] == plan.banks, f"{part.state.shape[1]} banks, and a plan for {plan.banks}")
    expect(part.ape.shape == (128, 512) and part.ape.is_contiguous() and part.weight.shape == (512,), "parameters")
    expect(part.projected.dtype is part.state.dtype is part.ape.dtype is torch.float32, "float32")
    expect(part.pool.is_contiguous() and part.pool.shape[1] >= 584 * page_rows, f"a pool {tuple(part.pool.shape)}")
    if T and max_new_tokens == 1:
        _launch(part, plan, n, B, page_rows, eps)
    elif T:
        _launch(part, plan, n, 0, page_rows, eps)
        _launch(part, plan, 0, B, page_rows, eps)


def _launch(part: OnlineCompressor, plan: C128Plan, n: int, runs: int, page_rows: int, eps: float) -> None:
    if n + runs == 0:
        return
    _compress_c128[(n + runs,)](
        part.projected, part.ape, part.weight, part.state, part.pool, part.pool.view(torch.bfloat16),
        plan.closing, plan.slots, plan.cos, plan.sin, plan.open, n, eps,
        PAGE=page_rows, STRIDE=part.pool.stride(0), ANGLES=32, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
