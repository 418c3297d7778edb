# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202, SIM102
"""Sparse attention over paged 584-byte rows: window rows plus selected or all compressed rows of each token.

This file is the contract and the Triton kernel; sparse_decode.cu serves on Hopper where it is asked for (choice.py).

One block takes one token and one group of heads through the token's keys, 128 at a time (a unit; the window is unit 0):
rows come to registers, become bf16 in shared memory, and serve both products from there, S = Q Kᵀ and O = P K. Eight
warps share the keys of the first product and the channels of the second; rows of the next unit are on their way to L2
meanwhile.

With `splits` > 1 the units of a token are dealt to several blocks, and the last block to arrive folds what all of them
left in memory: one launch. Units and the order in which they are folded depend on the key index alone (combine.py), so
a token's result has the same bits at any batch size, head group and split.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.attention import hopper
from dsv4.kernels.attention.choice import choice
from dsv4.kernels.attention.combine import combine_units, finish, fold, fold_weights
from dsv4.kernels.attention.rows import (
    codes,
    rope,
    rows_of,
    scale_word,
    seen_in,
    side_by_side,
    slots_of,
    to_l2,
    values,
)
from dsv4.kernels.attention.split import DIM, Split, SplitScratch
from dsv4.kernels.attention.unpack import rope_values
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import to_bf16
from dsv4.kernels.cuda.choice import CUDA

UNIT = 128  # keys
WINDOW, WINDOW_PAGE = 128, 64
LOG2E = tl.constexpr(1.4426950408889634)
SCALE = LOG2E.value * DIM**-0.5  # of scores: their exponent is one of 2
_NONE, _SELECTED, _VISIBLE = 0, 1, 2  # a layer's compressed rows, as the kernel sees them


class SelectedRows(NamedTuple):
    """Compressed rows of a C4 layer: the indexer's choice.

    pool   uint8 [pages, page bytes], pages of 64 rows, page bytes a multiple of 576
    slots  int32 [T, K]: the first min(K, (position + 1) // ratio) of each row are slots (page x 64 + row in page)
    """

    pool: Tensor
    slots: Tensor
    ratio: int = 4


class VisibleRows(NamedTuple):
    """Compressed rows of a C128 layer: all that the token sees.

    pool         uint8 [pages, page bytes], pages of 2 rows, page bytes a multiple of 576
    block_table  int32 [B, F]: page of rows 2 i, 2 i + 1 of each request
    token_rows   int32 [T]: the request of each token
    """

    pool: Tensor
    block_table: Tensor
    token_rows: Tensor
    ratio: int = 128


def units_of(rows: SelectedRows | VisibleRows | None, num_rows: int) -> int:
    """Units of 128 keys of a token that may see `num_rows` compressed rows."""
    if isinstance(rows, SelectedRows):
        num_rows = min(num_rows, rows.slots.shape[1])
    return -(-(WINDOW + (num_rows if rows else 0)) // UNIT)


@triton.jit
def _queries(q, rows, HB: tl.constexpr, C: tl.constexpr, PTX: tl.constexpr):
    """[64, 128]: channels 128 C..128 C + 128 of HB heads; rows beyond are zeros."""
    at = q + rows[:, None] * 512 + (128 * C + tl.arange(0, 128))[None, :]
    x = tl.load(at, mask=rows[:, None] < HB, other=0.0)
    if not PTX:
        x = x.to(tl.float32)
    return x


@triton.jit
def _put(out, rows, x, HB: tl.constexpr, C: tl.constexpr):
    at = out + rows[:, None] * 512 + (128 * C + tl.arange(0, 128))[None, :]
    tl.store(at, x, mask=rows[:, None] < HB)


@triton.jit
def _sparse_decode(
    q,
    sink,
    window_pool,
    window_stride,
    window_slots,
    positions,
    extra_from,
    extra_pool_stride,
    extra,
    extra_stride,
    token_rows,
    out,
    partial,
    stats,
    arrivals,
    max_units,
    scale,
    K: tl.constexpr,
    RATIO: tl.constexpr,
    EXTRA: tl.constexpr,
    PAGE: tl.constexpr,
    H: tl.constexpr,
    HB: tl.constexpr,
    SPLITS: tl.constexpr,
    U: tl.constexpr,
    BLACKWELL: tl.constexpr,
    PTX: tl.constexpr,
):
    pid = tl.program_id(0)
    groups: tl.constexpr = H // HB
    split = pid % SPLITS
    g = (pid // SPLITS) % groups
    t = (pid // (SPLITS * groups)).to(tl.int64)

    position = tl.load(positions + t)
    count = 0
    if EXTRA == 1:
        count = tl.minimum((position + 1) // RATIO, K)
        extra += t * extra_stride
    if EXTRA == 2:
        count = (position + 1) // RATIO
        extra += tl.load(token_rows + t).to(tl.int64) * extra_stride
    num_units = (128 + count + U - 1) // U
    each = (num_units + SPLITS - 1) // SPLITS
    first = split * each
    last = tl.minimum(first + each, num_units)
    if first >= num_units:
        return

    pool = window_pool.to(tl.pointer_type(tl.int32))
    window_stride = window_stride // 4
    extra_from = extra_from // 4
    extra_pool_stride = extra_pool_stride // 4
    rows = tl.arange(0, 64)
    q += (t * H + g * HB) * 512
    window_slots += t * 128
    keys = tl.arange(0, U)
    lo, hi = seen_in(first, position, count, U)
    seen = (keys >= lo) & (keys < hi)
    slots = slots_of(first, window_slots, extra, EXTRA, K, U)
    data, scales = rows_of(first * U < 128, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
    slots = slots_of(first + 1, window_slots, extra, EXTRA, K, U)
    word = scale_word(pool, scales, seen)
    r0 = codes(pool, data, seen, 0)
    r1 = codes(pool, data, seen, 64)
    r2 = codes(pool, data, seen, 128)
    r3 = codes(pool, data, seen, 192)
    r4 = codes(pool, data, seen, 256)
    r5 = codes(pool, data, seen, 320)
    r6 = codes(pool, data, seen, 384)
    r7 = rope(pool, data, seen, 0)
    r8 = rope(pool, data, seen, 1)
    q0 = _queries(q, rows, HB, 0, PTX)
    q1 = _queries(q, rows, HB, 1, PTX)
    q2 = _queries(q, rows, HB, 2, PTX)
    q3 = _queries(q, rows, HB, 3, PTX)

    m = tl.full([64], float("-inf"), tl.float32)
    denominator = tl.zeros([64], tl.float32)
    o0 = tl.zeros([64, 128], tl.float32)
    o1 = tl.zeros([64, 128], tl.float32)
    o2 = tl.zeros([64, 128], tl.float32)
    o3 = tl.zeros([64, 128], tl.float32)
    unit_0 = (t * groups + g) * max_units
    once = tl.minimum(position + 1, 1)
    for u in tl.range(first, last, disable_licm=True):
        k0 = side_by_side(values(r0, word, 0, PTX), values(r1, word, 1, PTX))
        k1 = side_by_side(values(r2, word, 2, PTX), values(r3, word, 3, PTX))
        k2 = side_by_side(values(r4, word, 4, PTX), values(r5, word, 5, PTX))
        k3 = side_by_side(values(r6, word, 6, PTX), rope_values(r7, r8, PTX))

        next_lo, next_hi = seen_in(u + 1, position, count, U)
        next_hi = tl.where(u + 1 < last, next_hi, 0)
        fetch = (keys >= next_lo) & (keys < next_hi)
        in_window = (u + 1) * U < 128
        if PTX:
            data, scales = rows_of(in_window, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
            to_l2(pool, data, fetch)
        next_slots = slots_of(u + 2, window_slots, extra, EXTRA, K, U)

        # Always one turn. Inside a loop of its own the compiler does not see that P feeds a second product, for which
        # it would give all eight warps the same 64 rows twice.
        m_unit = tl.full([64], float("-inf"), tl.float32)
        l_unit = tl.zeros([64], tl.float32)
        p = tl.zeros([64, U], k0.dtype)
        for _ in range(once):
            s = tl.dot(q0, tl.trans(k0), out_dtype=tl.float32)
            if BLACKWELL:
                s = tl.dot(q1, tl.trans(k1), s)
                s = tl.dot(q2, tl.trans(k2), s)
                s = tl.dot(q3, tl.trans(k3), s) * scale
            else:
                s *= scale
                s = tl.fma(tl.dot(q1, tl.trans(k1), out_dtype=tl.float32), scale, s)
                s = tl.fma(tl.dot(q2, tl.trans(k2), out_dtype=tl.float32), scale, s)
                s = tl.fma(tl.dot(q3, tl.trans(k3), out_dtype=tl.float32), scale, s)
            s = tl.where(((keys - lo).to(tl.uint32) < (hi - lo).to(tl.uint32))[None, :], s, float("-inf"))
            m_unit = tl.max(s, 1)
            e = tl.exp2(s - tl.maximum(m_unit, -1e30)[:, None])
            l_unit = tl.sum(e, 1)
            p = to_bf16(e).to(k0.dtype)

        lo, hi = next_lo, next_hi
        data, scales = rows_of(in_window, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
        slots = next_slots
        if SPLITS == 1:  # as many as the registers hold beside the accumulators; the others when the product is done
            word = scale_word(pool, scales, fetch)
            r0 = codes(pool, data, fetch, 0)
            r1 = codes(pool, data, fetch, 64)
            r2 = codes(pool, data, fetch, 128)
            r3 = codes(pool, data, fetch, 192)

        m, alpha, beta = fold_weights(m, m_unit)
        denominator = fold(denominator, alpha, l_unit, beta)
        # One turn again: P, carried by the loop, is read from shared memory instead of 32 registers. Blackwell takes
        # two at a time: with P, four results of 128 columns do not fit its tensor memory.
        for _ in range(once):
            o0 = fold(o0, alpha[:, None], tl.dot(p, k0, out_dtype=tl.float32), beta[:, None])
            o1 = fold(o1, alpha[:, None], tl.dot(p, k1, out_dtype=tl.float32), beta[:, None])
            if not BLACKWELL:
                o2 = fold(o2, alpha[:, None], tl.dot(p, k2, out_dtype=tl.float32), beta[:, None])
                o3 = fold(o3, alpha[:, None], tl.dot(p, k3, out_dtype=tl.float32), beta[:, None])
                p = tl.zeros([64, U], k0.dtype)
        if BLACKWELL:
            for _ in range(once):
                o2 = fold(o2, alpha[:, None], tl.dot(p, k2, out_dtype=tl.float32), beta[:, None])
                o3 = fold(o3, alpha[:, None], tl.dot(p, k3, out_dtype=tl.float32), beta[:, None])
        if SPLITS > 1:
            # The first block leaves its units folded, the others leave each as it is: from m = -inf a fold is exact.
            if (split > 0) | (u + 1 == last):
                part = tl.where(split == 0, 0, u - each + 1)
                here = partial + (unit_0 + part) * (512 * HB)
                _put(here, rows, o0, HB, 0)
                _put(here, rows, o1, HB, 1)
                _put(here, rows, o2, HB, 2)
                _put(here, rows, o3, HB, 3)
                here = stats + (unit_0 + part) * (2 * HB)
                tl.store(here + rows, m, mask=rows < HB)
                tl.store(here + HB + rows, denominator, mask=rows < HB)
                m = tl.full([64], float("-inf"), tl.float32)

        if SPLITS > 1:
            word = scale_word(pool, scales, fetch)
            r0 = codes(pool, data, fetch, 0)
            r1 = codes(pool, data, fetch, 64)
            r2 = codes(pool, data, fetch, 128)
            r3 = codes(pool, data, fetch, 192)
        r4 = codes(pool, data, fetch, 256)
        r5 = codes(pool, data, fetch, 320)
        r6 = codes(pool, data, fetch, 384)
        r7 = rope(pool, data, fetch, 0)
        r8 = rope(pool, data, fetch, 1)

    out += (t * H + g * HB) * 512
    if SPLITS == 1:
        sinks = tl.load(sink + g * HB + rows, mask=rows < HB, other=0.0) * LOG2E
        _put(out, rows, to_bf16(finish(o0, m[:, None], denominator[:, None], sinks[:, None])), HB, 0)
        _put(out, rows, to_bf16(finish(o1, m[:, None], denominator[:, None], sinks[:, None])), HB, 1)
        _put(out, rows, to_bf16(finish(o2, m[:, None], denominator[:, None], sinks[:, None])), HB, 2)
        _put(out, rows, to_bf16(finish(o3, m[:, None], denominator[:, None], sinks[:, None])), HB, 3)
    else:
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + t * groups + g, 1, sem="acq_rel")
        if arrived == (num_units + each - 1) // each - 1:
            sinks = tl.load(sink + g * HB + tl.arange(0, HB)) * LOG2E
            partial += unit_0 * (512 * HB)
            stats += unit_0 * (2 * HB)
            combine_units(partial, stats, num_units - each + 1, sinks, out, HB, 512 if HB <= 32 else 256, 3)
            tl.store(arrivals + t * groups + g, 0)


def checked(
    q: Tensor,
    sink: Tensor,
    window_pool: Tensor,
    window_slots: Tensor,
    positions: Tensor,
    rows: SelectedRows | VisibleRows | None,
) -> hopper.Inputs:
    """The tensors of a call in the kernels' terms. Raises Violation where they break the contract."""
    T, H, D = q.shape
    expect(q.dtype is torch.bfloat16 and q.is_contiguous() and D == DIM and H % 64 == 0, f"q is {q.dtype} {q.shape}")
    expect(sink.dtype is torch.float32 and sink.shape == (H,), f"sink is {sink.dtype} {tuple(sink.shape)}")
    expect(window_slots.dtype is torch.int32 and window_slots.shape == (T, WINDOW), f"slots {window_slots.shape}")
    expect(window_slots.is_contiguous() and positions.dtype is torch.int32 and positions.shape == (T,), "positions")
    for pool in (window_pool, *rows[:1]) if rows else (window_pool,):
        expect(pool.dtype is torch.uint8 and pool.stride(0) % 576 == 0 and pool.stride(1) == 1, f"pool {pool.stride()}")
        expect(pool.data_ptr() % 16 == 0, "a pool starts at a multiple of 16 bytes")
    fixed = (q, sink, window_pool, window_slots, positions)
    if isinstance(rows, SelectedRows):
        slots = rows.slots
        expect(slots.dtype is torch.int32 and slots.shape[0] == T and slots.stride(1) == 1, f"slots {slots.shape}")
        return hopper.Inputs(*fixed, _SELECTED, rows.pool, slots, positions, 64, slots.shape[1], rows.ratio)
    if isinstance(rows, VisibleRows):
        table, token_rows = rows.block_table, rows.token_rows
        expect(table.dtype is torch.int32 and table.stride(1) == 1 and token_rows.shape == (T,), f"table {table.shape}")
        return hopper.Inputs(*fixed, _VISIBLE, rows.pool, table, token_rows, 2, 2 * table.shape[1], rows.ratio)
    return hopper.Inputs(*fixed, _NONE, window_pool, window_slots, positions, WINDOW_PAGE, 0, 1)


def sparse_decode(
    q: Tensor,
    sink: Tensor,
    window_pool: Tensor,
    window_slots: Tensor,
    positions: Tensor,
    rows: SelectedRows | VisibleRows | None,
    split: Split,
    scratch: SplitScratch,
) -> Tensor:
    """o_h = Σ_j p_j k_j with p_j = e^(s_j - m) / (Σ_i e^(s_i - m) + e^(sink_h - m)) and s_j = q_h · k_j · 512^-½.

    q             bf16 [T, H, 512], contiguous; H a multiple of 64
    sink          float32 [H]
    window_pool   uint8 [pages, page bytes]: 584-byte rows in pages of 64, page bytes a multiple of 576
    window_slots  int32 [T, 128]: entry j is the slot of position - 127 + j; read only where that is not negative
    positions     int32 [T]; -1 is an idle row: it reads nothing and gets zeros
    rows          the layer's compressed rows; None in window layers
    split         see `split_of`; it and the scratch are the Triton kernel's alone
    scratch       `scratch_of` for at least T tokens and as many units as any of them has
    out           bf16 [T, H, 512]
    cost          584 bytes per key, 4 KiB per token and head; 2,048 FLOP per key, head and token; one launch

    Every token is on its own: several queries of one request are several tokens. `choice` says which kernel serves.
    Weights e^(s_j - m) are rounded to bf16 with m the maximum of the key's unit (Triton) or of all keys so far (CUDA).
    A NaN or infinity in a visible row or query ends in that token's output alone; bytes of rows that no token sees are
    never read.
    """
    x = checked(q, sink, window_pool, window_slots, positions, rows)
    out = torch.empty_like(q)
    if not len(q):
        return out
    if choice(q.device).name == CUDA:
        hopper.launch(x, out, SCALE)
    else:
        launch_triton(x, out, split, scratch)
    return out


def launch_triton(x: hopper.Inputs, out: Tensor, split: Split, scratch: SplitScratch) -> None:
    """Fills `out`; at least one token."""
    T, H, _ = x.q.shape
    expect(split.heads in {4, 8, 16, 32, 64} and split.splits > 0, f"{split}")
    max_units = -(-(WINDOW + x.most) // UNIT)
    groups = H // split.heads
    if split.splits > 1:
        expect(scratch.arrivals.numel() >= T * groups, f"scratch for {scratch.arrivals.numel()} of {T * groups} groups")
        needed, max_units = max_units, scratch.stats.numel() // (2 * T * H)
        expect(max_units >= needed or x.kind == _VISIBLE, f"scratch for {max_units} of {needed} units")
    _sparse_decode[(T * groups * split.splits,)](
        x.q,
        x.sink,
        x.window_pool,
        x.window_pool.stride(0),
        x.window_slots,
        x.positions,
        x.extra_pool.data_ptr() - x.window_pool.data_ptr(),
        x.extra_pool.stride(0),
        x.extra,
        x.extra.stride(0),
        x.token_rows,
        out,
        scratch.partial,
        scratch.stats,
        scratch.arrivals,
        max_units,
        SCALE,
        K=x.most,
        RATIO=x.ratio,
        EXTRA=x.kind,
        PAGE=x.page,
        H=H,
        HB=split.heads,
        SPLITS=split.splits,
        U=UNIT,
        BLACKWELL=x.q.is_cuda and torch.cuda.get_device_capability(x.q.device)[0] >= 10,
        PTX=isinstance(_sparse_decode, triton.JITFunction),
        num_warps=8,
        num_stages=1,
    )
