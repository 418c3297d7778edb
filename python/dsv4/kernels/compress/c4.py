# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN202 - blocks and pointers pass between jitted functions; only launchers have types
"""C4 compression of a layer: attention rows and index rows that close in a step, and the rows kept for later groups.

    rows of this step, state ring of earlier ones -> softmax over 8 rows -> RMSNorm -> RoPE --> FP8 per 64 -> pool
                                                                       (index:) --> Hadamard --> FP4 or FP8 -> pool
    new rows of the last 8 tokens -> state ring, score with ape added

Both compressors of a layer go in one launch. Rows are kept in the same launch when no request brings more tokens than
the ring has rows beside the 7 older ones that a closing group reads: one, where it has 8, or the next token and all of
its drafts, where it was made for them. One token more would overwrite the oldest row of a group that the first closes,
so such steps keep their rows in a second launch, after every group has been read. Drafts that turn out wrong leave rows
in the ring that their positions' next owners overwrite before anybody reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.cache.pack_rows import hadamard_rows, norm_rotate_rows, store_index_rows, store_kv_rows
from dsv4.kernels.compress.plan import C4Plan
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import round_bf16

OLDER = 7  # rows before its last that a group reads


class Compressor(NamedTuple):
    """One compressor of one layer. D channels: 512 (attention) or 128 (index).

    projected  [T, 2, 2 D] float32: kv and score, each the A half then the B half
    ape        [4, 2 D] float32
    weight     [D] of its norm, bf16 or float32
    state      [slots, ring, 2, 2 D] float32
    pool       [blocks, page bytes] uint8
    """

    projected: Tensor
    ape: Tensor
    weight: Tensor
    state: Tensor
    pool: Tensor


@triton.jit
def _row(
    new_ptr, ape_ptr, state_ptr, token, first, slot, position, J: tl.constexpr, D: tl.constexpr, RING: tl.constexpr
):
    """Kv and score of the group's row J: A half of the previous group's tokens, B half of this one's. -> [D], [D]."""
    channels = tl.arange(0, D) + (0 if J < 4 else D)
    row = tl.zeros([D], tl.int32) + J - 7  # a block, because the interpreter takes no scalar mask
    here, at = token + row, position + row
    in_step = here >= first
    earlier = (here < first) & (slot - row * 0 >= 0) & (at >= 0)
    new_at = here.to(tl.int64) * (4 * D) + channels
    state_at = (slot.to(tl.int64) * RING + at % RING) * (4 * D) + channels
    ape = tl.load(ape_ptr + (J % 4) * (2 * D) + channels)
    new_kv = tl.load(new_ptr + new_at, mask=in_step, other=0.0)
    new_score = tl.load(new_ptr + new_at + 2 * D, mask=in_step, other=0.0) + ape
    old_kv = tl.load(state_ptr + state_at, mask=earlier, other=0.0)
    old_score = tl.load(state_ptr + state_at + 2 * D, mask=earlier, other=float("-inf"))
    return tl.where(in_step, new_kv, old_kv), tl.where(in_step, new_score, old_score)


@triton.jit
def _pooled(new_ptr, ape_ptr, state_ptr, token, first, slot, position, D: tl.constexpr, RING: tl.constexpr):
    """The softmax-weighted sum of the group's 8 rows, added in their order. -> [D]."""
    k0, z0 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 0, D, RING)
    k1, z1 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 1, D, RING)
    k2, z2 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 2, D, RING)
    k3, z3 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 3, D, RING)
    k4, z4 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 4, D, RING)
    k5, z5 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 5, D, RING)
    k6, z6 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 6, D, RING)
    k7, z7 = _row(new_ptr, ape_ptr, state_ptr, token, first, slot, position, 7, D, RING)
    top = tl.maximum(
        tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3)), tl.maximum(tl.maximum(z4, z5), tl.maximum(z6, z7))
    )
    total = tl.exp(z0 - top)
    value = total * k0
    total, value = _add(total, value, k1, tl.exp(z1 - top))
    total, value = _add(total, value, k2, tl.exp(z2 - top))
    total, value = _add(total, value, k3, tl.exp(z3 - top))
    total, value = _add(total, value, k4, tl.exp(z4 - top))
    total, value = _add(total, value, k5, tl.exp(z5 - top))
    total, value = _add(total, value, k6, tl.exp(z6 - top))
    total, value = _add(total, value, k7, tl.exp(z7 - top))
    return value / total


@triton.jit
def _add(total, value, kv, weight):
    return total + weight, value + weight * kv


@triton.jit
def _keep(new_ptr, ape_ptr, state_ptr, token, row, D: tl.constexpr):
    """Copies the token's kv and score (ape added) to its row of the ring."""
    channels = tl.arange(0, 2 * D)
    new_at = token.to(tl.int64) * (4 * D) + channels
    state_at = row.to(tl.int64) * (4 * D) + channels
    ape = tl.load(ape_ptr + (row % 4) * (2 * D) + channels)
    tl.store(state_ptr + state_at, tl.load(new_ptr + new_at))
    tl.store(state_ptr + state_at + 2 * D, tl.load(new_ptr + new_at + 2 * D) + ape)


@triton.jit
def _close_kv(
    new_ptr,
    ape_ptr,
    state_ptr,
    weight_ptr,
    bytes_ptr,
    halves_ptr,
    entry_ptr,
    slots_ptr,
    cos_ptr,
    sin_ptr,
    program,
    eps,
    RING: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """One attention row, from the plan's entry to the pool."""
    first, slot, position = tl.load(entry_ptr + 1), tl.load(entry_ptr + 2), tl.load(entry_ptr + 3)
    x = _pooled(new_ptr, ape_ptr, state_ptr, tl.load(entry_ptr), first, slot, position, 512, RING)
    at = program + tl.arange(0, 1)
    target = tl.load(slots_ptr + at)
    x = norm_rotate_rows(round_bf16(x)[None, :], weight_ptr, cos_ptr, sin_ptr, at, target >= 0, eps, 1, 512, ANGLES)
    store_kv_rows(x, bytes_ptr, halves_ptr, target, target >= 0, 1, PAGE, STRIDE)


@triton.jit
def _close_index(
    new_ptr,
    ape_ptr,
    state_ptr,
    weight_ptr,
    bytes_ptr,
    words_ptr,
    entry_ptr,
    slots_ptr,
    cos_ptr,
    sin_ptr,
    program,
    eps,
    RING: tl.constexpr,
    FP4: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
    ANGLES: tl.constexpr,
):
    """One index row, from the plan's entry to the pool."""
    first, slot, position = tl.load(entry_ptr + 1), tl.load(entry_ptr + 2), tl.load(entry_ptr + 3)
    x = _pooled(new_ptr, ape_ptr, state_ptr, tl.load(entry_ptr), first, slot, position, 128, RING)
    at = program + tl.arange(0, 1)
    target = tl.load(slots_ptr + at)
    x = norm_rotate_rows(round_bf16(x)[None, :], weight_ptr, cos_ptr, sin_ptr, at, target >= 0, eps, 1, 128, ANGLES)
    x = round_bf16(hadamard_rows(x, 1))
    store_index_rows(x, bytes_ptr, words_ptr, target, target >= 0, 1, FP4, PAGE, STRIDE)


@triton.jit
def _compress_c4(
    kv_new_ptr: tl.tensor,
    kv_ape_ptr: tl.tensor,
    kv_weight_ptr: tl.tensor,
    kv_state_ptr: tl.tensor,
    kv_bytes_ptr: tl.tensor,
    kv_halves_ptr: tl.tensor,
    index_new_ptr: tl.tensor,
    index_ape_ptr: tl.tensor,
    index_weight_ptr: tl.tensor,
    index_state_ptr: tl.tensor,
    index_bytes_ptr: tl.tensor,
    index_words_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    n: int,
    last: int,
    eps: float,
    RING: tl.constexpr,
    FP4: tl.constexpr,
    PAGE: tl.constexpr,
    KV_STRIDE: tl.constexpr,
    INDEX_STRIDE: tl.constexpr,
    ANGLES: tl.constexpr,
) -> None:
    """Grid (n + `last` tokens of each request, 2): axis 1 is the attention compressor, then the index compressor."""
    program = tl.program_id(0)
    if program >= n:
        place = (program - n) // last * RING + (program - n) % last
        token = tl.load(kept_ptr + place * 2)
        row = tl.load(kept_ptr + place * 2 + 1)
        if token >= 0:
            if tl.program_id(1) == 0:
                _keep(kv_new_ptr, kv_ape_ptr, kv_state_ptr, token, row, 512)
            else:
                _keep(index_new_ptr, index_ape_ptr, index_state_ptr, token, row, 128)
    elif tl.load(entries_ptr + program * 4) >= 0:
        entry_ptr = entries_ptr + program * 4
        if tl.program_id(1) == 0:
            _close_kv(
                kv_new_ptr, kv_ape_ptr, kv_state_ptr, kv_weight_ptr, kv_bytes_ptr, kv_halves_ptr,
                entry_ptr, slots_ptr, cos_ptr, sin_ptr, program, eps, RING, PAGE, KV_STRIDE, ANGLES,
            )  # fmt: skip
        else:
            _close_index(
                index_new_ptr, index_ape_ptr, index_state_ptr, index_weight_ptr, index_bytes_ptr, index_words_ptr,
                entry_ptr, slots_ptr, cos_ptr, sin_ptr, program, eps, RING, FP4, PAGE, INDEX_STRIDE, ANGLES,
            )  # fmt: skip


def compress_c4(
    kv: Compressor, index: Compressor, plan: C4Plan, *, fp4: bool, max_new_tokens: int, page_rows: int = 64,
    eps: float = 1e-6,
) -> None:  # fmt: skip
    """Stores the C4 row and the index row of every group that closes, and keeps the last rows of every request.

    kv              the attention compressor, D = 512; its pool in the 584-byte format
    index           the index compressor, D = 128; its pool in the 68-byte (fp4) or the 132-byte format
    max_new_tokens  the most tokens that one request brings: up to ring - 7 are one launch, more are two
    cost            20 KiB read per token (projections), 652 bytes written per group; in decode also 20 KiB per token
                    kept and 7 rows of state (35 KiB) per group
    """
    T, n, ring = len(kv.projected), len(plan.entries), plan.kept.shape[1]
    expect(ring % 8 == 0 and ring > 0, f"a ring of {ring} rows is not made of groups of 8")
    for part, D in ((kv, 512), (index, 128)):
        expect(part.projected.shape == (T, 2, 2 * D) and part.projected.is_contiguous(), f"rows {part.projected.shape}")
        expect(
            part.state.shape[1:] == (ring, 2, 2 * D) and part.state.is_contiguous(), f"state {tuple(part.state.shape)}"
        )
        expect(part.ape.shape == (4, 2 * D) and part.weight.shape == (D,) and part.pool.is_contiguous(), "parameters")
        expect(part.projected.dtype is part.state.dtype is part.ape.dtype is torch.float32, "float32")
    row_bytes = 68 if fp4 else 132
    expect(index.pool.shape[1] >= row_bytes * page_rows and kv.pool.shape[1] >= 584 * page_rows, "pools too narrow")
    last = min(max_new_tokens, ring)
    if T and max_new_tokens <= ring - OLDER:
        _launch(kv, index, plan, n, last, fp4, page_rows, eps)
    elif T:
        _launch(kv, index, plan, n, 0, fp4, page_rows, eps)
        _launch(kv, index, plan, 0, last, fp4, page_rows, eps)


def _launch(
    kv: Compressor, index: Compressor, plan: C4Plan, n: int, last: int, fp4: bool, page_rows: int, eps: float  # noqa: FBT001
) -> None:  # fmt: skip
    """One launch over n groups, then over the `last` newest tokens of every request."""
    programs = n + len(plan.kept) * last
    if programs == 0:
        return
    _compress_c4[(programs, 2)](
        kv.projected, kv.ape, kv.weight, kv.state, kv.pool, kv.pool.view(torch.bfloat16),
        index.projected, index.ape, index.weight, index.state, index.pool, index.pool.view(torch.float32),
        plan.entries, plan.slots, plan.cos, plan.sin, plan.kept, n, max(last, 1), eps,
        RING=plan.kept.shape[1], FP4=fp4, PAGE=page_rows, KV_STRIDE=kv.pool.stride(0),
        INDEX_STRIDE=index.pool.stride(0), ANGLES=32, num_warps=2, enable_fp_fusion=False,
    )  # fmt: skip
