# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Top-k of index scores: a fixed set for every row, ties to the lowest index, indices in ascending order.

One block holds up to 8,192 scores of a row in registers as ordered integers, finds the k-th largest bit by bit (32
counts), and compacts what lies above it, plus the first of those equal to it, through one prefix sum. A longer row is
dealt to several blocks; each leaves the k best of its segment (still ascending) and the last one to arrive does the
same once more over what they left: at 262,144 candidates that is 32 segments and one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.contract import expect

MAX_CANDIDATES = 262_144
RATIO = 4  # tokens per index key
_WHOLE = 4_096  # candidates of one block


def _segment_of(max_candidates: int) -> int:
    """Candidates per block of a row that one block does not hold: few enough parts for the last block to merge."""
    return 4_096 if max_candidates <= 65_536 else 8_192


@triton.jit
def _ordered(scores):
    """float32 -> uint32 that compares alike; -0 equals 0, and NaN is above everything."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _kth_largest(keys, k):
    """The largest v with at least k keys >= v; k > 0."""
    v = tl.full([], 0, tl.uint32)
    for bit in range(32):
        trial = v | (tl.full([], 1, tl.uint32) << (31 - bit))
        enough = tl.sum((keys >= trial).to(tl.int32), 0) >= k
        v = tl.where(enough, trial, v)
    return v


@triton.jit
def _places(keys, valid, k):
    """Which keys are the k largest, ties to the first, and the place of each among the chosen, in order of position."""
    v = _kth_largest(tl.where(valid, keys, 0), k)
    above = (valid & (keys > v)).to(tl.uint32)
    level = (valid & (keys == v)).to(tl.uint32)
    before = tl.cumsum(above + level * 65536, 0)
    num_above = tl.sum(above.to(tl.int32), 0)
    of_level = (before >> 16).to(tl.int32)
    chosen = (above > 0) | ((level > 0) & (of_level <= k - num_above))
    return chosen, (before & 65535).to(tl.int32) + tl.minimum(of_level, k - num_above) - 1


@triton.jit
def _as_slots(entries, table, SLOTS: tl.constexpr, mask):
    if SLOTS:
        entries = tl.load(table + entries // 64, mask=mask, other=0) * 64 + entries % 64
    return entries


@triton.jit
def _select(
    scores,
    scores_stride,
    positions,
    block_table,
    table_stride,
    token_rows,
    out,
    left_keys,
    left_entries,
    arrivals,
    K: tl.constexpr,
    RATIO: tl.constexpr,
    SLOTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    MERGE: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    count = (tl.load(positions + t) + 1) // RATIO
    num_parts = tl.maximum((count + SEGMENT - 1) // SEGMENT, 1)
    if part >= num_parts:
        return
    out += t * K
    table = block_table
    if SLOTS:
        table += tl.load(token_rows + t).to(tl.int64) * table_stride
    if count <= K:
        column = tl.arange(0, K)
        entries = _as_slots(column, table, SLOTS, column < count)
        tl.store(out + column, tl.where(column < count, entries, -1))
        return

    entries = part * SEGMENT + tl.arange(0, SEGMENT)
    valid = entries < count
    keys = _ordered(tl.load(scores + t * scores_stride + entries, mask=valid, other=float("-inf")))
    here = tl.minimum(count - part * SEGMENT, SEGMENT)
    chosen, place = _places(keys, valid, tl.minimum(here, K))
    if SEGMENTS == 1:
        tl.store(out + place, _as_slots(entries, table, SLOTS, chosen), mask=chosen)
    else:
        if num_parts == 1:
            tl.store(out + place, _as_slots(entries, table, SLOTS, chosen), mask=chosen)
            return
        left_keys += t * (SEGMENTS * K)
        left_entries += t * (SEGMENTS * K)
        tl.store(left_keys + part * K + place, keys.to(tl.int32, bitcast=True), mask=chosen)
        tl.store(left_entries + part * K + place, entries, mask=chosen)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + t, 1, sem="acq_rel")
        if arrived == num_parts - 1:
            # Only the last segment can be short, so what is left is one run of (num_parts - 1) K + its size.
            left = tl.arange(0, MERGE)
            num_left = (num_parts - 1) * K + tl.minimum(count - (num_parts - 1) * SEGMENT, K)
            there = left < num_left
            best = tl.load(left_keys + left, mask=there, other=0, cache_modifier=".cg").to(tl.uint32, bitcast=True)
            which = tl.load(left_entries + left, mask=there, other=0, cache_modifier=".cg")
            taken, rank = _places(best, there, K)
            tl.store(out + rank, _as_slots(which, table, SLOTS, taken), mask=taken)
            tl.store(arrivals + t, 0)


class Workspace:
    """What blocks that share a row leave for each other; for launches of at most so many tokens and candidates.

    arrivals  at least num_tokens zeros that other launches of the stream also leave at zero; without them new ones
    """

    def __init__(
        self, num_tokens: int, max_candidates: int, k: int, device: torch.device, arrivals: Tensor | None = None
    ) -> None:
        segments = -(-max_candidates // _segment_of(max_candidates)) if max_candidates > _WHOLE else 0
        self.keys = torch.empty(num_tokens * segments * k, dtype=torch.int32, device=device)
        self.entries = torch.empty_like(self.keys)
        self.arrivals = torch.zeros(num_tokens, dtype=torch.int32, device=device) if arrivals is None else arrivals


def select_topk(
    scores: Tensor,
    positions: Tensor,
    k: int,
    workspace: Workspace,
    *,
    block_table: Tensor | None = None,
    token_rows: Tensor | None = None,
) -> Tensor:
    """The min(k, visible) entries of the largest score of each token's visible entries, ascending, then -1.

    scores       float32 [T, S], S <= 262,144; read at [t, s] for s < (position + 1) // 4, not at all if that is <= k
    positions    int32 [T], (position + 1) // 4 <= S
    k            512 or 1024 in the released models; a power of two
    workspace    for at least T tokens and S candidates
    block_table  int32 [B, F] with token_rows int32 [T]: entries come out as slots, block x 64 + entry % 64
    out          int32 [T, k]; of equal scores the lower entry is chosen; NaN counts as the largest
    cost         4 bytes per candidate, 4 k per token; one launch
    """
    T, S = scores.shape
    expect(scores.dtype is torch.float32 and scores.stride(1) == 1, f"scores are {scores.dtype}")
    expect(S <= MAX_CANDIDATES and k & (k - 1) == 0, f"top {k} of {S}")
    expect(positions.dtype is torch.int32 and positions.shape == (T,), f"positions {positions.shape}")
    out = torch.empty((T, k), dtype=torch.int32, device=scores.device)
    if not T:
        return out
    slots = block_table is not None and token_rows is not None
    expect(slots == (block_table is not None), "block_table comes with token_rows")
    table = block_table if block_table is not None else positions
    segment, segments = triton.next_power_of_2(max(S, 2 * k)), 1
    if S > _WHOLE:
        segment = _segment_of(S)
        segments = -(-S // segment)
        expect(workspace.keys.numel() >= T * segments * k, f"workspace of {workspace.keys.numel()} candidates")
        expect(workspace.arrivals.numel() >= T, f"workspace for {workspace.arrivals.numel()} of {T} tokens")
    _select[(T, segments)](
        scores,
        scores.stride(0),
        positions,
        table,
        table.stride(0),
        token_rows if token_rows is not None else positions,
        out,
        workspace.keys,
        workspace.entries,
        workspace.arrivals,
        K=k,
        RATIO=RATIO,
        SLOTS=slots,
        SEGMENT=segment,
        SEGMENTS=segments,
        MERGE=triton.next_power_of_2(segments * k),
        num_warps=16 if segment > 4_096 else 8,
    )
    return out
