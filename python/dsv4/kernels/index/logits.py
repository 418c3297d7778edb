# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Index scores over paged FP8 or FP4 keys: I[t, s] = Σ_h w[t, h] · max(q[t, h] · k[s], 0).

This file is the contract and the Triton kernel; scores.cu serves FP4 keys on Hopper (choice.py).

Keys are on the rows of the product and heads on its columns, so the sum over heads stays inside a thread and two
shuffles. FP8 keys go to the matrix units as they lie in their pages. FP4 keys become E4M3 on the way, with one scale
per key: four scales that span at most 2^11 fit into the codes exactly, since E2M1 has one bit after the point.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.cuda.choice import CUDA
from dsv4.kernels.index import hopper
from dsv4.kernels.index.choice import choice
from dsv4.kernels.index.hopper import PAGE, RATIO

HEADS, DIM = 64, 128
PAGE_BYTES = {"fp8": PAGE * (DIM + 4), "fp4": PAGE * (DIM // 2 + 4)}
_TILE, _WARPS = 128, 4  # keys of one product, warps of one block

# Four words of eight E2M1 codes each ($8..$11, 32 channels of one scale) to eight words of four E4M3 codes. A byte
# table of the eight magnitudes times 2^d (d = 6 for the largest scale of a row) is $12 (0, 1/2, 1, 3/2) and $16
# (2, 3, 4, 6): one byte permute looks up four, a second spreads the signs.
_ASM = tl.constexpr(
    """
    {
    .reg .b32 x, y, s, t, lo, hi;
    add.u32 lo, $12, 0;
    add.u32 hi, $16, 0;
    """
    + "".join(
        f"""
    and.b32 x, ${8 + word}, 0x77777777;
    prmt.b32 y, lo, hi, x;
    prmt.b32 s, ${8 + word}, 0, 0x1100;
    shl.b32 t, s, 4;
    and.b32 t, t, 0x00800080;
    lop3.b32 s, s, 0x80008000, t, 0xEA;
    or.b32 ${2 * word}, y, s;
    shr.u32 x, x, 16;
    prmt.b32 y, lo, hi, x;
    prmt.b32 s, ${8 + word}, 0, 0x3322;
    shl.b32 t, s, 4;
    and.b32 t, t, 0x00800080;
    lop3.b32 s, s, 0x80008000, t, 0xEA;
    or.b32 ${2 * word + 1}, y, s;
    """
        for word in range(4)
    )
    + "}"
)


@triton.jit
def _tables(d):
    """E4M3 codes of 2^d x (0, 1/2, 1, 3/2) and of 2^d x (2, 3, 4, 6), four to a word; zeros below d = -5."""
    up = tl.maximum(d, -5)
    lo = 0x3C383000 + up * 0x08080800
    hi = 0x4C484440 + up * 0x08080808
    return tl.where(d >= -5, lo, 0), tl.where(d >= -5, hi, 0)


@triton.jit
def _e2m1(words, d, SHIFT: tl.constexpr):
    """float32 of the nibble at SHIFT of each word, times 2^d."""
    code = words >> SHIFT
    moved = (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True)
    scale = tl.where(d >= -5, (d + 127) << 23, 0).to(tl.float32, bitcast=True)
    return moved * 85070591730234615865843651857942052864.0 * scale  # 2^126


@triton.jit
def _fp4_values(words, e8m0, PTX: tl.constexpr):
    """int32 [M, 16] words of eight E2M1 codes, int32 [M] of four E8M0 bytes -> E4M3 [M, 128], float32 [M].

    The values times the second result are the keys: the largest of the four scales over 2^6. A scale 2^12 or more below
    the largest counts as zero. float32 values without PTX.
    """
    e0, e1, e2, e3 = e8m0 & 0xFF, (e8m0 >> 8) & 0xFF, (e8m0 >> 16) & 0xFF, (e8m0 >> 24) & 0xFF
    top = tl.maximum(tl.maximum(e0, e1), tl.maximum(e2, e3))
    group = (tl.arange(0, 16) // 4)[None, :]
    d = ((e8m0[:, None] >> (8 * group)) & 0xFF) - top[:, None] + 6
    if PTX:
        lo, hi = _tables(d)
        v0, v1, v2, v3, v4, v5, v6, v7 = tl.inline_asm_elementwise(
            _ASM,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r,r,r",
            [words, lo, hi],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
        # Element 4 g + i of v_j is channel 32 g + 4 j + i.
        a, b = tl.join(tl.join(v0, v4), tl.join(v2, v6)), tl.join(tl.join(v1, v5), tl.join(v3, v7))
        x = tl.reshape(tl.join(a, b), (words.shape[0], 4, 4, 8))
        x = tl.reshape(tl.permute(x, (0, 1, 3, 2)), (words.shape[0], 128)).to(tl.float8e4nv, bitcast=True)
    else:
        a = tl.join(tl.join(_e2m1(words, d, 0), _e2m1(words, d, 16)), tl.join(_e2m1(words, d, 8), _e2m1(words, d, 24)))
        b = tl.join(tl.join(_e2m1(words, d, 4), _e2m1(words, d, 20)), tl.join(_e2m1(words, d, 12), _e2m1(words, d, 28)))
        x = tl.reshape(tl.join(a, b), (words.shape[0], 128))
    scale = tl.where(top > 6, (top - 6) << 23, 0).to(tl.float32, bitcast=True)
    return x, scale


@triton.jit
def _index_scores(
    q,
    weights,
    pool,
    page_bytes,
    block_table,
    table_stride,
    token_rows,
    positions,
    scores,
    scores_stride,
    K: tl.constexpr,
    RATIO: tl.constexpr,
    FP4: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    PTX: tl.constexpr,
):
    t = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * (TILES * TILE)
    count = (tl.load(positions + t) + 1) // RATIO
    if (first >= count) | (count <= K):
        return
    table = block_table + tl.load(token_rows + t).to(tl.int64) * table_stride
    heads = tl.arange(0, 64)
    w = tl.load(weights + t * 64 + heads)
    q += t * (64 * 128)
    q_all = tl.load(q + heads[:, None] * 128 + tl.arange(0, 128)[None, :])
    if FP4 and not PTX:
        q_all = q_all.to(tl.float32)
    scores += t * scores_stride
    for tile in tl.range(0, tl.minimum(TILES, (count - first + TILE - 1) // TILE), num_stages=STAGES):
        s = first + tile * TILE + tl.arange(0, TILE)
        seen = s < count
        page = tl.load(table + s // 64, mask=seen, other=0).to(tl.int64) * page_bytes
        if FP4:
            rows = (pool.to(tl.pointer_type(tl.int32))) + tl.multiple_of((page + s % 64 * 64) >> 2, 16)
            words = tl.load(rows[:, None] + tl.arange(0, 16)[None, :], mask=seen[:, None], other=0)
            at = (page + 64 * 64 + s % 64 * 4) >> 2
            e8m0 = tl.load(pool.to(tl.pointer_type(tl.int32)) + at, mask=seen, other=0)
            keys, scale = _fp4_values(words, e8m0, PTX)
        else:
            rows = (pool.to(tl.pointer_type(tl.float8e4nv))) + tl.multiple_of(page + s % 64 * 128, 128)
            keys = tl.load(rows[:, None] + tl.arange(0, 128)[None, :], mask=seen[:, None], other=0.0)
            at = (page + 64 * 128 + s % 64 * 4) >> 2
            scale = tl.load(pool.to(tl.pointer_type(tl.float32)) + at, mask=seen, other=0.0)
        product = tl.dot(keys, tl.trans(q_all), out_dtype=tl.float32)
        score = tl.sum(tl.maximum(product, 0.0) * w[None, :], 1) * scale
        tl.store(scores + s, score, mask=seen)


def tiles_of(num_tokens: int, max_keys: int, num_sms: int) -> int:
    """Tiles of 128 keys per block: blocks of equal work, about four to a multiprocessor, all of them at once."""
    tiles = -(-max_keys // _TILE)
    each = max(1, min(tiles, -(-num_tokens * tiles // (4 * num_sms))))
    return -(-tiles // -(-tiles // each))


def index_scores(
    q: Tensor,
    weights: Tensor,
    pool: Tensor,
    block_table: Tensor,
    token_rows: Tensor,
    positions: Tensor,
    scores: Tensor,
    kind: Literal["fp8", "fp4"],
    *,
    k: int,
    num_sms: int = 132,
) -> None:
    """Writes I[t, s] for the visible keys s < (position + 1) // 4 of every token that sees more than k of them.

    q            float8_e4m3fn [T, 64, 128]; FP4 queries in the same form, their four scales folded into the codes
    weights      float32 [T, 64], the scale of each query row folded in
    pool         uint8 [pages, page bytes], pages of 64 keys: at least 8,448 B (FP8) or 4,352 B (FP4), a multiple of 16
    block_table  int32 [B, F]: page of keys 64 i..64 i + 63 of each request
    token_rows   int32 [T]
    positions    int32 [T]
    scores       float32 [T, S], S >= the most keys a token sees; other elements are left as they are
    kind         how the pool holds its keys
    k            tokens that see at most k keys are skipped: all of theirs are chosen without a score
    cost         132 or 68 bytes per key, 4 per score; 16,384 FLOP per key; one launch
    """
    T = len(q)
    expect(q.dtype is torch.float8_e4m3fn and q.is_contiguous(), f"q is {q.dtype}")
    expect(q.shape == (T, HEADS, DIM), f"q is {tuple(q.shape)}")
    expect(weights.dtype is torch.float32 and weights.shape == (T, HEADS) and weights.is_contiguous(), "weights")
    expect(pool.dtype is torch.uint8 and pool.stride(1) == 1 and pool.stride(0) % 16 == 0, f"pool {pool.stride()}")
    expect(pool.shape[1] >= PAGE_BYTES[kind], f"pages of {pool.shape[1]} bytes for {kind} keys")
    expect(block_table.dtype is torch.int32 and block_table.stride(1) == 1, "block_table")
    expect(token_rows.dtype is torch.int32 and positions.dtype is torch.int32, "token_rows and positions are int32")
    expect(token_rows.shape == positions.shape == (T,), f"{token_rows.shape} rows, {positions.shape} positions")
    expect(scores.dtype is torch.float32 and scores.shape[0] == T and scores.stride(1) == 1, "scores")
    if not T or not scores.shape[1]:
        return
    if kind == "fp4" and choice(q.device).name == CUDA:
        hopper.launch(q, weights, pool, block_table, token_rows, positions, scores, k)
        return
    tiles = tiles_of(T, scores.shape[1], num_sms)
    _index_scores[(-(-scores.shape[1] // (tiles * _TILE)), T)](
        q,
        weights,
        pool,
        pool.stride(0),
        block_table,
        block_table.stride(0),
        token_rows,
        positions,
        scores,
        scores.stride(0),
        K=k,
        RATIO=RATIO,
        FP4=kind == "fp4",
        TILES=tiles,
        TILE=_TILE,
        STAGES=3,
        PTX=isinstance(_index_scores, triton.JITFunction),
        num_warps=_WARPS,
    )
