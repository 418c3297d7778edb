# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call, possibly-undefined"
# ruff: noqa: ANN001, ANN201, ANN202 - jitted functions pass blocks and pointers; only launchers have types
"""The product of a weight with many rows: the matrix units rule. Rows on the tall side, tiles by the copy engine.

Every 128 channels the FP8 product leaves the matrix units (whose accumulator keeps about 14 bits), is scaled by one
power of two per row and added in float32. Segments of K are added in the order of `few_rows`:
both give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.convert import dot_bf16, e4m3_bytes, round_bf16, scale_byte, to_bf16
from dsv4.kernels.linear.few_rows import BF16, FP8, MIXED, TO_BF16, TO_F32, scale_of, widened, word_of
from dsv4.kernels.linear.quantise import inverse_scale, largest


@triton.jit
def _finish(total, out, out_sf, first_group, t, n, T, N, out_row, OUT: tl.constexpr):
    """Writes total [BT, BN]."""
    live = (t < T)[:, None] & (n < N)[None, :]
    at = t.to(tl.int64)[:, None] * out_row + n[None, :]
    if OUT == TO_F32:
        tl.store(out + at, total, mask=live)
    elif OUT == TO_BF16:
        tl.store(out + at, to_bf16(total), mask=live)
    else:
        total = round_bf16(total)
        byte = scale_byte(largest(total, 1), 1e-4, 0.002232142857142857)
        codes = e4m3_bytes(total * inverse_scale(byte)[:, None])
        tl.store(out.to(tl.pointer_type(tl.uint8)) + at, codes, mask=live)
        group = tl.min(n) // 128 + first_group
        tl.store(out_sf + (group // 4 * T + t) * 4 + group % 4, byte.to(tl.uint8), mask=t < T)


@triton.jit
def many_rows(
    x,
    x_sf,
    w,
    w_sf,
    out,
    out_sf,
    T,
    out_row,
    N,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    KIND: tl.constexpr,
    OUT: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (cdiv(T, BT) x cdiv(N, BN), groups); x and w are descriptors of [T, groups K] and [groups N, K].

    Tiles go in bands of BAND tiles of rows, so that what runs together shares weights and rows in the L2 cache.
    """
    STEPS: tl.constexpr = K // (SPLITS * BK)
    tall, wide = tl.cdiv(T, BT), tl.cdiv(N, BN)
    g = tl.program_id(1)
    band = tl.program_id(0) // (BAND * wide)
    height = tl.minimum(tall - band * BAND, BAND)
    rest = tl.program_id(0) - band * (BAND * wide)
    row = (band * BAND + rest % height) * BT
    column = rest // height * BN
    t = row + tl.arange(0, BT)
    n = column + tl.arange(0, BN)
    WORDS: tl.constexpr = (K + 511) // 512
    if KIND != BF16:
        w_sf += (g * N + column) // 128 * WORDS
        ws, next_ws = word_of(w_sf, 0, 1, WORDS), word_of(w_sf, 1, 1, WORDS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BT, BN], tl.float32)
    total = acc
    if KIND == FP8:
        # A row that is not there reads the last one's scales.
        x_sf += g * (K // 512) * T + tl.minimum(t, T - 1)
        xs, next_xs = word_of(x_sf, 0, T, WORDS), word_of(x_sf, 1, T, WORDS)
    for i in tl.range(0, SPLITS * STEPS, num_stages=STAGES):
        xt = x.load([row, g * K + i * BK])
        wt = w.load([g * N + column, i * BK])
        step = i * BK // 128
        if KIND == FP8:
            scale = scale_of(xs, step) * scale_of(ws, step)
            acc += tl.dot(xt, tl.trans(wt), out_dtype=tl.float32) * scale[:, None]
        elif KIND == MIXED:
            acc = dot_bf16(xt, tl.trans(widened(wt, scale_of(ws, step))), acc)
        else:
            acc = dot_bf16(xt, tl.trans(wt), acc)
        if KIND != BF16 and (i + 1) * BK % 512 == 0:
            number = (i + 1) * BK // 512 + 1
            ws, next_ws = next_ws, word_of(w_sf, number, 1, WORDS)
            if KIND == FP8:
                xs, next_xs = next_xs, word_of(x_sf, number, T, WORDS)
        if SPLITS > 1 and i % STEPS == STEPS - 1:
            total += acc
            acc = tl.zeros([BT, BN], tl.float32)
    if SPLITS == 1:
        total = acc
    out += g.to(tl.int64) * N
    _finish(total, out, out_sf, g * N // 128, t, n, T, N, out_row, OUT)
