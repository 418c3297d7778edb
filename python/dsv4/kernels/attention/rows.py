# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201
"""A unit's rows on their way from paged pools to registers: which keys there are, where they lie, what they hold."""

from __future__ import annotations

import triton
import triton.language as tl

from dsv4.kernels.attention.unpack import bf16_of_e4m3, packed_scales


@triton.jit
def seen_in(u, position, count, U: tl.constexpr):
    """Keys lo..hi of unit u exist: the window ends at the token itself, compressed rows start at 0."""
    at = u * U
    lo = tl.where(at < 128, tl.minimum(tl.maximum(127 - position - at, 0), U), 0)
    hi = tl.where(at < 128, U, tl.minimum(count + 128 - at, U))
    return lo, hi


@triton.jit
def slots_of(u, window, extra, EXTRA: tl.constexpr, K: tl.constexpr, U: tl.constexpr):
    """int32 [U] slots of unit u; `window` and `extra` are this token's slots, or its block table of K / 2 pages.

    Entries past the last key may be anything: what they point at is not read. Not waiting for the token's position here
    takes one memory latency off every block.
    """
    j = u * U + tl.arange(0, U)
    slots = tl.load(window + j, mask=j < 128, other=0)
    if EXTRA != 0:
        e = j - 128
        within = (e >= 0) & (e < K)
        if EXTRA == 1:
            chosen = tl.load(extra + e, mask=within, other=0)
        else:
            chosen = tl.load(extra + (e >> 1), mask=within, other=0) * 2 + (e & 1)
        slots = tl.where(e < 0, slots, chosen)
    return slots


@triton.jit
def rows_of(in_window, slots, window_stride, extra_from, extra_stride, EXTRA: tl.constexpr, PAGE: tl.constexpr):
    """int64 [U] offsets in words of 4 bytes from the window pool: each row's data and its scales."""
    page = (slots >> 6).to(tl.int64) * window_stride
    data = page + (slots & 63) * 144
    scales = page + (64 * 144 + (slots & 63) * 2)
    if EXTRA != 0:
        page = (slots // PAGE).to(tl.int64) * extra_stride + extra_from
        data = tl.where(in_window, data, page + (slots % PAGE) * 144)
        scales = tl.where(in_window, scales, page + (PAGE * 144 + (slots % PAGE) * 2))
    return tl.multiple_of(data, 16), scales


@triton.jit
def codes(pool, data, seen, FIRST: tl.constexpr):
    """int32 [U, 16]: the E4M3 codes of channels FIRST..FIRST + 64 of each row, four to a word."""
    at = (pool + data)[:, None] + (FIRST // 4 + tl.arange(0, 16))[None, :]
    return tl.load(at, mask=seen[:, None], other=0)


@triton.jit
def rope(pool, data, seen, PART: tl.constexpr):
    """int32 [U, 16]: half of the rotary channels of each row, in the order that `rope_values` takes."""
    c = tl.arange(0, 16)
    at = (pool + data)[:, None] + ((c // 4) * 8 + c % 4 + (112 + 4 * PART))[None, :]
    return tl.load(at, mask=seen[:, None], other=0)


@triton.jit
def to_l2(pool, data, seen):
    """Asks for lines of the rows' data, so that the loads of the next turn find them in L2."""
    line = tl.minimum(tl.arange(0, 8) * 32, 143)  # words; five lines hold any row
    at = (pool + data)[:, None].to(tl.int64) + 4 * line[None, :]
    wanted = (seen[:, None] & (tl.arange(0, 8) < 6)[None, :]).to(tl.int32)
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [at, wanted],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def scale_word(pool, scales, seen):
    """int64 [U]: the eight scale bytes of each row."""
    return tl.load(pool.to(tl.pointer_type(tl.int64)) + (scales >> 1), mask=seen, other=0)


@triton.jit
def values(codes, word, GROUP: tl.constexpr, PTX: tl.constexpr):
    """[U, 64] values of one group of channels."""
    e8m0 = ((word >> (8 * GROUP)) & 0xFF).to(tl.int32)
    scales = tl.broadcast_to(packed_scales(e8m0)[:, None], codes.shape)
    return bf16_of_e4m3(codes, scales, PTX)


@triton.jit
def side_by_side(a, b):
    """[U, 64] and [U, 64] -> [U, 128]; each thread keeps its values."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (a.shape[0], 128))
