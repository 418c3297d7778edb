# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call, possibly-undefined"
# ruff: noqa: ANN001, ANN201, ANN202 - jitted functions pass blocks and pointers; only launchers have types
"""A weight times a few rows: bytes and latency rule, so weights stand on the tall side of the matrix units.

    weight tile [BN, K / SPLITS] --+
                                   +--> acc [BN, BT] --> partial --> the last split to arrive adds them, 0 .. SPLITS
    rows        [BT, K / SPLITS] --+

The K axis is cut into SPLITS segments. A segment is one chain of additions, the segments are added in their order, and
both are properties of the weight: `many_rows` adds alike, and a row's bits do not depend on how many rows there are.
Where rows abound (SERIAL) one program does all segments and nothing is left to anybody.

Scales come in words of four steps, the next word while this one is in use.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.convert import INTERPRETED, dot_bf16, e4m3_bytes, power_of_two, round_bf16, scale_byte, to_bf16
from dsv4.kernels.linear.quantise import inverse_scale, largest

# Rows x weight: E4M3 with group scales x E4M3 with block scales, bf16 x the same weight dequantised, bf16 x bf16.
FP8, MIXED, BF16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TO_BF16, TO_F32, TO_FP8 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def widened(w, scale):
    """E4M3 block times its power of two, bf16, exact while it is a normal bf16."""
    if INTERPRETED:
        return to_bf16(w.to(tl.float32) * scale)
    else:  # noqa: RET505
        return w.to(tl.bfloat16) * scale.to(tl.bfloat16)


@triton.jit
def word_of(sf, number, stride, WORDS: tl.constexpr):
    """Word `number`, the E8M0 bytes of four groups of 128 channels; nothing is read beyond the last one."""
    return tl.load(sf + tl.minimum(number + tl.full([], 0, tl.int32), WORDS - 1) * stride)


@triton.jit
def scale_of(word, step):
    """The scale of one group of 128 channels, float32."""
    return power_of_two((word >> (step % 4 * 8)) & 255)


@triton.jit
def _finish(total, out, out_sf, first_group, t, n, T, N, out_row, OUT: tl.constexpr):
    """Writes total [BN, BT]."""
    live = (t < T)[:, None] & (n < N)[None, :]
    at = t.to(tl.int64)[:, None] * out_row + n[None, :]
    if OUT == TO_F32:
        tl.store(out + at, tl.trans(total), mask=live)
    elif OUT == TO_BF16:
        tl.store(out + at, tl.trans(to_bf16(total)), mask=live)
    else:  # 128 outputs of a row are one group of the next product
        total = round_bf16(total)
        byte = scale_byte(largest(total, 0), 1e-4, 0.002232142857142857)
        codes = e4m3_bytes(total * inverse_scale(byte)[None, :])
        tl.store(out.to(tl.pointer_type(tl.uint8)) + at, tl.trans(codes), mask=live)
        group = tl.min(n) // 128 + first_group
        tl.store(out_sf + (group // 4 * T + t) * 4 + group % 4, byte.to(tl.uint8), mask=t < T)


@triton.jit
def few_rows(
    x,
    x_sf,
    w,
    w_sf,
    out,
    out_sf,
    partials,
    arrivals,
    T,
    x_row,
    out_row,
    N,
    K: tl.constexpr,
    GROUPS: tl.constexpr,  # noqa: ARG001 - the grid has them
    SPLITS: tl.constexpr,
    KIND: tl.constexpr,
    OUT: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    SERIAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (cdiv(N, BN) x GROUPS, 1 if SERIAL else SPLITS, cdiv(T, BT)).

    A row of x holds GROUPS pieces of K, a row of out GROUPS pieces of N; group g multiplies piece g by w[g] [N, K].
    """
    STEPS: tl.constexpr = (K + SPLITS * BK - 1) // (SPLITS * BK)
    tiles = tl.cdiv(N, BN)
    g = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    t = tl.program_id(2) * BT + tl.arange(0, BT)
    k = split * (STEPS * BK) + tl.arange(0, BK)
    EVEN: tl.constexpr = K % (SPLITS * BK) == 0
    LENGTH: tl.constexpr = STEPS * SPLITS if SERIAL else STEPS
    w_at = w + g * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    x_at = x + g * K + t.to(tl.int64)[:, None] * x_row + k[None, :]
    first = split * STEPS
    WORDS: tl.constexpr = (K + 511) // 512
    if KIND != BF16:
        w_sf += (g * N + tile * BN) // 128 * WORDS
        number = first * BK // 512
        ws, next_ws = word_of(w_sf, number, 1, WORDS), word_of(w_sf, number + 1, 1, WORDS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BN, BT], tl.float32)
    total = acc
    if KIND == FP8:
        # A row that is not there reads the last one's scales.
        x_sf += g * (K // 512) * T + tl.minimum(t, T - 1)
        xs, next_xs = word_of(x_sf, number, T, WORDS), word_of(x_sf, number + 1, T, WORDS)
    for i in tl.range(0, LENGTH, num_stages=STAGES):
        inside = (k + i * BK < K)[None, :]
        if EVEN:
            wt = tl.load(w_at, mask=(n < N)[:, None], other=0.0)
            xt = tl.load(x_at, mask=(t < T)[:, None], other=0.0)
        else:
            wt = tl.load(w_at, mask=(n < N)[:, None] & inside, other=0.0)
            xt = tl.load(x_at, mask=(t < T)[:, None] & inside, other=0.0)
        step = (first + i) * BK // 128
        if KIND == FP8:
            scale = scale_of(xs, step) * scale_of(ws, step)
            acc += tl.dot(wt, tl.trans(xt), out_dtype=tl.float32) * scale[None, :]
        elif KIND == MIXED:
            acc = dot_bf16(widened(wt, scale_of(ws, step)), tl.trans(xt), acc)
        else:
            acc = dot_bf16(wt, tl.trans(xt), acc)
        if KIND != BF16 and (first + i + 1) * BK % 512 == 0:
            number = (first + i + 1) * BK // 512 + 1
            ws, next_ws = next_ws, word_of(w_sf, number, 1, WORDS)
            if KIND == FP8:
                xs, next_xs = next_xs, word_of(x_sf, number, T, WORDS)
        if SERIAL and SPLITS > 1 and i % STEPS == STEPS - 1:
            total += acc
            acc = tl.zeros([BN, BT], tl.float32)
        w_at += BK
        x_at += BK
    if not (SERIAL and SPLITS > 1):
        total = acc
    out += g * N
    if SERIAL or SPLITS == 1:
        _finish(total, out, out_sf, g * N // 128, t, n, T, N, out_row, OUT)
    else:
        place = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        piece = partials + place.to(tl.int64) * (SPLITS * BN * BT)
        piece += tl.arange(0, BN)[:, None] * BT + tl.arange(0, BT)[None, :]
        tl.store(piece + split * (BN * BT), total)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + place, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.load(piece, cache_modifier=".cg")
            for s in tl.static_range(1, SPLITS):
                total += tl.load(piece + s * (BN * BT), cache_modifier=".cg")
            _finish(total, out, out_sf, g * N // 128, t, n, T, N, out_row, OUT)
            tl.store(arrivals + place, 0)
