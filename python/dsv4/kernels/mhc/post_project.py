# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN202 - blocks and pointers pass between jitted functions; only launchers have types
"""First launch of an mHC boundary: post-mix of the previous sublayer and partial products of the next site.

    streams [T, 4, C] --+-- post-mix --> new streams [T, 4, C]   (written once, in bf16)
    out     [T, C] -----+                    |
                                             +--> fn . x, |x|^2 of a slice of C --> partials [T, slices, P]

One program holds one slice of fn and goes through some blocks of 16 tokens; what it has just written never comes back
from memory. Partials leave in a fixed place each; the second launch adds them in a fixed order.

The product is exact to float32: new streams are bf16, and each fn splits into three bf16 numbers (8 + 8 + 8 bits of
mantissa), so three bf16 products with float32 accumulation lose nothing that float32 keeps. Blocks always have 16
tokens and programs 4 warps, so a row meets the same instructions in the same order and its bits do not depend on T.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.convert import dot_bf16, pinned_bf16, to_bf16


@triton.jit
def _parts(fn_ptr, at, live):
    """A tile of fn [P, BC] as three bf16 tiles [BC, P] whose sum is its float32 value."""
    fn = tl.load(fn_ptr + at, mask=live, other=0.0)
    high = to_bf16(fn)
    rest = fn - high.to(tl.float32)
    middle = to_bf16(rest)
    low = to_bf16(rest - middle.to(tl.float32))
    return tl.trans(pinned_bf16(high)), tl.trans(pinned_bf16(middle)), tl.trans(pinned_bf16(low))


@triton.jit
def _tile(x_ptr, rows, columns, T, WIDTH: tl.constexpr, OFFSET: tl.constexpr):
    """Channels OFFSET + columns of rows of a [T, WIDTH] array; zeros beyond T."""
    at = rows[:, None] * WIDTH + OFFSET + columns[None, :]
    return tl.load(x_ptr + at, mask=(rows < T)[:, None], other=0.0)


@triton.jit
def _weights(comb_ptr, post_ptr, rows, T, K: tl.constexpr):
    """How new stream K is made: comb[0..3, K] and post[K] of each row."""
    live = rows < T
    c0 = tl.load(comb_ptr + rows * 16 + K, mask=live, other=0.0)
    c1 = tl.load(comb_ptr + rows * 16 + 4 + K, mask=live, other=0.0)
    c2 = tl.load(comb_ptr + rows * 16 + 8 + K, mask=live, other=0.0)
    c3 = tl.load(comb_ptr + rows * 16 + 12 + K, mask=live, other=0.0)
    return (
        c0[:, None],
        c1[:, None],
        c2[:, None],
        c3[:, None],
        tl.load(post_ptr + rows * 4 + K, mask=live, other=0.0)[:, None],
    )


@triton.jit
def _mixed(w0, w1, w2, w3, post, x0, x1, x2, x3, out):
    """One new stream, bf16."""
    mixed = w0 * x0.to(tl.float32) + w1 * x1.to(tl.float32) + w2 * x2.to(tl.float32) + w3 * x3.to(tl.float32)
    return pinned_bf16(to_bf16(post * out.to(tl.float32) + mixed))


@triton.jit
def _add(x, fn_high, fn_middle, fn_low, square, high, middle, low):
    """Adds a stream's squares and its three products."""
    wide = x.to(tl.float32)
    square += wide * wide
    return square, dot_bf16(x, fn_high, high), dot_bf16(x, fn_middle, middle), dot_bf16(x, fn_low, low)


@triton.jit
def post_project(
    streams_ptr: tl.tensor,
    out_ptr: tl.tensor,
    post_ptr: tl.tensor,
    comb_ptr: tl.tensor,
    fn_ptr: tl.tensor,
    new_ptr: tl.tensor,
    partials_ptr: tl.tensor,
    T: int,
    blocks: int,
    C: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    POST: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Grid (C / BC, tokens / BT / blocks). fn is [M, 4 C]; P > M, a power of two; column M of the partials is |x|^2."""
    piece = tl.program_id(0)
    columns = piece * BC + tl.arange(0, BC)
    outputs = tl.arange(0, P)
    fn_at = outputs[:, None] * (4 * C) + columns[None, :]
    fn_live = outputs[:, None] < M
    h0, m0, l0 = _parts(fn_ptr, fn_at, fn_live)
    h1, m1, l1 = _parts(fn_ptr, fn_at + C, fn_live)
    h2, m2, l2 = _parts(fn_ptr, fn_at + 2 * C, fn_live)
    h3, m3, l3 = _parts(fn_ptr, fn_at + 3 * C, fn_live)
    if PDL:  # fn is a weight: reading it need not wait for the kernel before
        gdc_launch_dependents()
        gdc_wait()
    rows = (tl.program_id(1) * (BT * blocks) + tl.arange(0, BT)).to(tl.int64)
    x0 = _tile(streams_ptr, rows, columns, T, 4 * C, 0)
    x1 = _tile(streams_ptr, rows, columns, T, 4 * C, C)
    x2 = _tile(streams_ptr, rows, columns, T, 4 * C, 2 * C)
    x3 = _tile(streams_ptr, rows, columns, T, 4 * C, 3 * C)
    out = x0
    if POST:
        out = _tile(out_ptr, rows, columns, T, C, 0)
    for i in range(blocks):
        y0, y1, y2, y3 = x0, x1, x2, x3
        if POST:
            a0, a1, a2, a3, ap = _weights(comb_ptr, post_ptr, rows, T, 0)
            b0, b1, b2, b3, bp = _weights(comb_ptr, post_ptr, rows, T, 1)
            c0, c1, c2, c3, cp = _weights(comb_ptr, post_ptr, rows, T, 2)
            d0, d1, d2, d3, dp = _weights(comb_ptr, post_ptr, rows, T, 3)
            y0 = _mixed(a0, a1, a2, a3, ap, x0, x1, x2, x3, out)
            y1 = _mixed(b0, b1, b2, b3, bp, x0, x1, x2, x3, out)
            y2 = _mixed(c0, c1, c2, c3, cp, x0, x1, x2, x3, out)
            y3 = _mixed(d0, d1, d2, d3, dp, x0, x1, x2, x3, out)
        now = rows
        # The next block is on its way while this one is multiplied; after the last one nothing is read.
        rows = tl.where(i + 1 < blocks, rows + BT, T)
        x0 = _tile(streams_ptr, rows, columns, T, 4 * C, 0)
        x1 = _tile(streams_ptr, rows, columns, T, 4 * C, C)
        x2 = _tile(streams_ptr, rows, columns, T, 4 * C, 2 * C)
        x3 = _tile(streams_ptr, rows, columns, T, 4 * C, 3 * C)
        if POST:
            out = _tile(out_ptr, rows, columns, T, C, 0)
        live = (now < T)[:, None]
        if POST:
            at = now[:, None] * (4 * C) + columns[None, :]
            tl.store(new_ptr + at, y0, mask=live)
            tl.store(new_ptr + at + C, y1, mask=live)
            tl.store(new_ptr + at + 2 * C, y2, mask=live)
            tl.store(new_ptr + at + 3 * C, y3, mask=live)
        square = tl.zeros([BT, BC], tl.float32)
        zero = tl.zeros([BT, P], tl.float32)
        square, high, middle, low = _add(y0, h0, m0, l0, square, zero, zero, zero)
        square, high, middle, low = _add(y1, h1, m1, l1, square, high, middle, low)
        square, high, middle, low = _add(y2, h2, m2, l2, square, high, middle, low)
        square, high, middle, low = _add(y3, h3, m3, l3, square, high, middle, low)
        products = (low + middle) + high
        partial = tl.where(outputs[None, :] == M, tl.sum(square, axis=1)[:, None], products)
        partials_at = (now[:, None] * (C // BC) + piece) * P + outputs[None, :]
        tl.store(partials_ptr + partials_at, partial, mask=live)
