# mypy: disable-error-code="import-untyped, untyped-decorator"
"""Blocks of rows, rotated, quantised and stored in a paged pool: the last step of every kernel that fills a cache.

A page of N KV rows is N x 576 bytes (448 E4M3 values, then 64 bf16), then N x 8 (7 E8M0 bytes and a zero); a page of N
FP4 index rows is N x 64 bytes (128 E2M1 values, low nibble first), then N x 4 E8M0 bytes. See cache/reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsv4.kernels.convert import e4m3_bytes, power_of_two, round_bf16, scale_byte, to_bf16

KV_DIM = 512
ROPE_DIM = 64
ROW_BYTES = tl.constexpr(576)
SCALE_BYTES = tl.constexpr(8)
NOPE = tl.constexpr(448)
FP8_RECIPROCAL = tl.constexpr(1.0 / 448.0)
FP8_FLOOR = tl.constexpr(1e-4)
FP4_RECIPROCAL = tl.constexpr(1.0 / 6.0)
FP4_FLOOR = tl.constexpr(6.0 * 2.0**-126)
HADAMARD_SCALE = tl.constexpr(128**-0.5)


@triton.jit
def rotate_rows(
    x: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    at: tl.tensor,
    live: tl.tensor,
    R: tl.constexpr,
    D: tl.constexpr,
    ANGLES: tl.constexpr,
) -> tl.tensor:
    """Rows x [R, D] float32, the last 2 ANGLES channels turned, pairwise, by the angles in rows `at` of the tables."""
    pair = tl.arange(0, D // 2) - (D // 2 - ANGLES)
    turned = pair[None, :] >= 0
    where = at[:, None] * ANGLES + pair[None, :]
    cos = tl.load(cos_ptr + where, mask=turned & live[:, None], other=1.0)
    sin = tl.load(sin_ptr + where, mask=turned & live[:, None], other=0.0)
    a, b = tl.split(tl.reshape(x, [R, D // 2, 2]))
    first = tl.where(turned, a * cos - b * sin, a)
    second = tl.where(turned, a * sin + b * cos, b)
    return tl.reshape(tl.join(first, second), [R, D])


@triton.jit
def norm_rotate_rows(
    x: tl.tensor,
    weight_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    at: tl.tensor,
    live: tl.tensor,
    eps: float,
    R: tl.constexpr,
    D: tl.constexpr,
    ANGLES: tl.constexpr,
) -> tl.tensor:
    """RMSNorm with weight, then rotation, of x [R, D]; rounded to bf16 after each, as the official code holds it."""
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / D + eps)
    weight = tl.load(weight_ptr + tl.arange(0, D)).to(tl.float32)
    x = round_bf16(x * inverse[:, None] * weight[None, :])
    return round_bf16(rotate_rows(x, cos_ptr, sin_ptr, at, live, R, D, ANGLES))


@triton.jit
def block_scales(x: tl.tensor, FLOOR: tl.constexpr, RECIPROCAL: tl.constexpr) -> tl.tensor:
    """X [R, blocks, n] -> E8M0 bytes [R, blocks] as int32; 255 for a block with a NaN or an infinity."""
    amax = tl.max(tl.abs(x), axis=2)
    nan = tl.max((x != x).to(tl.int32), axis=2)  # noqa: PLR0124 - true for a NaN alone
    return tl.where(nan > 0, 255, scale_byte(amax, FLOOR, RECIPROCAL))


@triton.jit
def inverse_scale(byte: tl.tensor) -> tl.tensor:
    """1 / 2^(byte - 127), exact for the bytes that `block_scales` makes; NaN for 255."""
    return power_of_two(tl.where(byte == 255, 255, 254 - byte))


@triton.jit
def store_kv_rows(
    x: tl.tensor,
    bytes_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    slots: tl.tensor,
    live: tl.tensor,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
) -> None:
    """Packs x [R, 512] float32 (bf16 values) and stores row i in slot `slots`[i] (int64) where `live`.

    bytes_ptr and halves_ptr are one pool, seen as uint8 and as bf16. PAGE: rows in a page, STRIDE: bytes.
    """
    blocks = tl.reshape(x, [R, 8, 64])
    scales = block_scales(blocks, FP8_FLOOR, FP8_RECIPROCAL)
    values = e4m3_bytes(tl.reshape(blocks * inverse_scale(scales)[:, :, None], [R, 512]))
    page = (slots // PAGE) * STRIDE
    row = page + (slots % PAGE) * ROW_BYTES
    channels = tl.arange(0, 512)
    nope = live[:, None] & (channels[None, :] < NOPE)
    tl.store(bytes_ptr + row[:, None] + channels[None, :], values, mask=nope)
    rope = live[:, None] & (channels[None, :] >= NOPE)
    tl.store(halves_ptr + row[:, None] // 2 + NOPE // 2 + (channels[None, :] - NOPE), to_bf16(x), mask=rope)
    scale_at = page + PAGE * ROW_BYTES + (slots % PAGE) * SCALE_BYTES
    column = tl.arange(0, 8)
    stored = tl.where(column[None, :] < 7, scales, 0).to(tl.uint8)
    tl.store(bytes_ptr + scale_at[:, None] + column[None, :], stored, mask=live[:, None])


@triton.jit
def hadamard_rows(x: tl.tensor, R: tl.constexpr) -> tl.tensor:
    """Natural-order Hadamard transform of x [R, 128] times 128^-1/2, in the order of quant/reference.py."""
    for stage in tl.static_range(7):
        pairs = tl.reshape(x, [R, 64 // (1 << stage), 2, 1 << stage])
        a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), [R, 128])
    return x * HADAMARD_SCALE


@triton.jit
def e2m1_codes(v: tl.tensor) -> tl.tensor:
    """float32, |v| <= 6 -> code 0 .. 15 (int32) of the nearest E2M1 value, ties to the even code; bit 3 is the sign."""
    m = tl.abs(v)
    code = (m > 0.25).to(tl.int32) + (m >= 0.75).to(tl.int32) + (m > 1.25).to(tl.int32) + (m >= 1.75).to(tl.int32)
    code += (m > 2.5).to(tl.int32) + (m >= 3.5).to(tl.int32) + (m > 5.0).to(tl.int32)
    return code | ((v.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def store_index_rows(
    x: tl.tensor,
    bytes_ptr: tl.tensor,
    words_ptr: tl.tensor,
    slots: tl.tensor,
    live: tl.tensor,
    R: tl.constexpr,
    FP4: tl.constexpr,
    PAGE: tl.constexpr,
    STRIDE: tl.constexpr,
) -> None:
    """Packs x [R, 128] as FP4 with an E8M0 byte per 32, or as FP8 with one float32 power of two, and stores it.

    bytes_ptr and words_ptr are one pool, seen as uint8 and as float32.
    """
    page = (slots // PAGE) * STRIDE
    if FP4:
        blocks = tl.reshape(x, [R, 4, 32])
        scales = block_scales(blocks, FP4_FLOOR, FP4_RECIPROCAL)
        low, high = tl.split(tl.reshape(blocks * inverse_scale(scales)[:, :, None], [R, 64, 2]))
        pairs = (e2m1_codes(low) | (e2m1_codes(high) << 4)).to(tl.uint8)
        row = page + (slots % PAGE) * 64
        tl.store(bytes_ptr + row[:, None] + tl.arange(0, 64)[None, :], pairs, mask=live[:, None])
        scale_at = page + PAGE * 64 + (slots % PAGE) * 4
        tl.store(bytes_ptr + scale_at[:, None] + tl.arange(0, 4)[None, :], scales.to(tl.uint8), mask=live[:, None])
    else:
        scales = block_scales(tl.reshape(x, [R, 1, 128]), FP8_FLOOR, FP8_RECIPROCAL)
        values = e4m3_bytes(x * inverse_scale(scales))
        row = page + (slots % PAGE) * 128
        tl.store(bytes_ptr + row[:, None] + tl.arange(0, 128)[None, :], values, mask=live[:, None])
        scale_at = (page + PAGE * 128) // 4 + slots % PAGE
        tl.store(words_ptr + scale_at[:, None] + tl.arange(0, 1)[None, :], power_of_two(scales), mask=live[:, None])
