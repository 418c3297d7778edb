# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Sparse attention of many tokens, as prompts bring them: a block takes neighbours, one after the other.

    token t:    rows of unit 0, 1, ..  ──▶ S, P, O      ┐ the first rows of t + 1 are loaded under the last product of
    token t+1:  rows of unit 0, 1, ..  ──▶ S, P, O      ┘ t, its queries come to L2 a token ahead

Same operations in the same order as `sparse_decode`, unit for unit, so a token has the same bits whether it came in a
prompt, in whichever chunk, or was decoded. What changes is what happens between tokens: a block that is started for one
token waits for its position, then its slots, then its rows and its queries, and nobody else is on the multiprocessor
then. Window rows of neighbours, and all rows of C128 layers, are read by one block within a few microseconds: they come
from memory once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4.kernels.attention.combine import finish, fold, fold_weights
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
from dsv4.kernels.attention.sparse_decode import (
    LOG2E,
    SCALE,
    UNIT,
    SelectedRows,
    VisibleRows,
    _put,
    _queries,
    checked,
)
from dsv4.kernels.attention.unpack import rope_values
from dsv4.kernels.contract import expect
from dsv4.kernels.convert import to_bf16

MOST_TOKENS = 16  # of a block: more hide no more, and leave the last blocks longer alone
WAVES = 4  # blocks for each multiprocessor before a block takes another token


def tokens_of(num_tokens: int, num_heads: int, num_sms: int) -> int:
    """Tokens that a block takes. Never changes a result."""
    return max(1, min(MOST_TOKENS, num_tokens * num_heads // 64 // (WAVES * num_sms)))


@triton.jit
def _visible(position, K: tl.constexpr, RATIO: tl.constexpr, EXTRA: tl.constexpr):
    """Compressed rows of a token."""
    count = position * 0
    if EXTRA == 1:
        count = tl.minimum((position + 1) // RATIO, K)
    if EXTRA == 2:
        count = (position + 1) // RATIO
    return count


@triton.jit
def _extra_at(extra_stride, token_rows, t, EXTRA: tl.constexpr):
    """Where a token's slots, or its request's block table, begin."""
    row = t
    if EXTRA == 2:
        row = tl.load(token_rows + t).to(tl.int64)
    return row * extra_stride


@triton.jit
def _queries_to_l2(q, wanted):
    """Asks for the lines of one token's 64 heads."""
    at = q.to(tl.int64) + 128 * tl.arange(0, 512)
    ask = tl.zeros([512], tl.int32) + wanted.to(tl.int32)
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [at, ask],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _sparse_prefill(
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
    num_tokens,
    tokens,
    scale,
    K: tl.constexpr,
    RATIO: tl.constexpr,
    EXTRA: tl.constexpr,
    PAGE: tl.constexpr,
    H: tl.constexpr,
    U: tl.constexpr,
    BLACKWELL: tl.constexpr,
    PTX: tl.constexpr,
):
    """Grid (blocks of `tokens` tokens x H / 64,)."""
    pid = tl.program_id(0)
    groups: tl.constexpr = H // 64
    g = pid % groups
    begin = (pid // groups).to(tl.int64) * tokens
    end = tl.minimum(begin + tokens, num_tokens)

    pool = window_pool.to(tl.pointer_type(tl.int32))
    window_stride = window_stride // 4
    extra_from = extra_from // 4
    extra_pool_stride = extra_pool_stride // 4
    heads = tl.arange(0, 64)
    keys = tl.arange(0, U)
    sinks = tl.load(sink + g * 64 + heads) * LOG2E

    position = tl.load(positions + begin)
    count = _visible(position, K, RATIO, EXTRA)
    extra_at = _extra_at(extra_stride, token_rows, begin, EXTRA)
    lo, hi = seen_in(0, position, count, U)
    seen = (keys >= lo) & (keys < hi)
    slots = slots_of(0, window_slots + begin * 128, extra + extra_at, EXTRA, K, U)
    data, scales = rows_of(lo >= 0, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
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
    alone = 128 + count <= U
    ahead = tl.where(alone, tl.minimum(begin + 1, end - 1), begin)
    slots = slots_of(
        tl.where(alone, 0, 1), window_slots + ahead * 128, extra + extra_at, EXTRA, K, U
    )  # of the unit after the first one

    for t in range(begin, end):
        num_units = (128 + count + U - 1) // U
        here = q + (t * H + g * 64) * 512
        q0 = _queries(here, heads, 64, 0, PTX)
        q1 = _queries(here, heads, 64, 1, PTX)
        q2 = _queries(here, heads, 64, 2, PTX)
        q3 = _queries(here, heads, 64, 3, PTX)
        following = tl.minimum(t + 1, end - 1)
        if PTX:
            _queries_to_l2(q + (following * H + g * 64) * 512, t + 1 < end)
        position_1 = tl.load(positions + following)
        count_1 = _visible(position_1, K, RATIO, EXTRA)
        extra_1 = _extra_at(extra_stride, token_rows, following, EXTRA)

        m = tl.full([64], float("-inf"), tl.float32)
        denominator = tl.zeros([64], tl.float32)
        o0 = tl.zeros([64, 128], tl.float32)
        o1 = tl.zeros([64, 128], tl.float32)
        o2 = tl.zeros([64, 128], tl.float32)
        o3 = tl.zeros([64, 128], tl.float32)
        once = tl.minimum(position + 1, 1)
        for u in tl.range(0, num_units, disable_licm=True):
            k0 = side_by_side(values(r0, word, 0, PTX), values(r1, word, 1, PTX))
            k1 = side_by_side(values(r2, word, 2, PTX), values(r3, word, 3, PTX))
            k2 = side_by_side(values(r4, word, 4, PTX), values(r5, word, 5, PTX))
            k3 = side_by_side(values(r6, word, 6, PTX), rope_values(r7, r8, PTX))

            # The unit after this one: this token's next, or the next token's window.
            over = u + 1 == num_units
            u_1 = tl.where(over, 0, u + 1)
            seen_count = tl.where(over, count_1, count)
            next_lo, next_hi = seen_in(u_1, tl.where(over, position_1, position), seen_count, U)
            next_hi = tl.where(over & (t + 1 >= end), 0, next_hi)
            fetch = (keys >= next_lo) & (keys < next_hi)
            if PTX:
                data, scales = rows_of(u_1 == 0, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
                to_l2(pool, data, fetch)
            # And the slots of the one after that; of unit 0 they are in the window alone.
            t_1 = tl.where(over, following, t)
            done = 128 + seen_count <= (u_1 + 1) * U
            t_2 = tl.where(done, tl.minimum(t_1 + 1, end - 1), t_1)
            next_slots = slots_of(
                tl.where(done, 0, u_1 + 1),
                window_slots + t_2 * 128,
                extra + tl.where(over, extra_1, extra_at),
                EXTRA,
                K,
                U,
            )

            m_unit = tl.full([64], float("-inf"), tl.float32)  # as in sparse_decode: always one turn
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
            data, scales = rows_of(u_1 == 0, slots, window_stride, extra_from, extra_pool_stride, EXTRA, PAGE)
            slots = next_slots
            word = scale_word(pool, scales, fetch)
            r0 = codes(pool, data, fetch, 0)
            r1 = codes(pool, data, fetch, 64)
            r2 = codes(pool, data, fetch, 128)
            r3 = codes(pool, data, fetch, 192)

            m, alpha, beta = fold_weights(m, m_unit)
            denominator = fold(denominator, alpha, l_unit, beta)
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

            r4 = codes(pool, data, fetch, 256)
            r5 = codes(pool, data, fetch, 320)
            r6 = codes(pool, data, fetch, 384)
            r7 = rope(pool, data, fetch, 0)
            r8 = rope(pool, data, fetch, 1)

        there = out + (t * H + g * 64) * 512
        _put(there, heads, to_bf16(finish(o0, m[:, None], denominator[:, None], sinks[:, None])), 64, 0)
        _put(there, heads, to_bf16(finish(o1, m[:, None], denominator[:, None], sinks[:, None])), 64, 1)
        _put(there, heads, to_bf16(finish(o2, m[:, None], denominator[:, None], sinks[:, None])), 64, 2)
        _put(there, heads, to_bf16(finish(o3, m[:, None], denominator[:, None], sinks[:, None])), 64, 3)
        position, count, extra_at = position_1, count_1, extra_1


def sparse_prefill(
    q: Tensor,
    sink: Tensor,
    window_pool: Tensor,
    window_slots: Tensor,
    positions: Tensor,
    rows: SelectedRows | VisibleRows | None,
    tokens: int,
) -> Tensor:
    """What `sparse_decode` gives of the same arguments, bit for bit.

    tokens  neighbours that a block takes, see `tokens_of`; the same request's, so that they share rows, or any
    cost    584 bytes per key and token from L2, of which memory gives the rows of a request once; 4 KiB per token and
            head; 2,048 FLOP per key, head and token; one launch
    """
    x = checked(q, sink, window_pool, window_slots, positions, rows)
    expect(tokens > 0, f"blocks of {tokens} tokens")
    T, H, _ = q.shape
    out = torch.empty_like(q)
    if not T:
        return out
    _sparse_prefill[(triton.cdiv(T, tokens) * (H // 64),)](
        q,
        sink,
        window_pool,
        window_pool.stride(0),
        window_slots,
        positions,
        x.extra_pool.data_ptr() - window_pool.data_ptr(),
        x.extra_pool.stride(0),
        x.extra,
        x.extra.stride(0),
        x.token_rows,
        out,
        T,
        tokens,
        SCALE,
        K=x.most,
        RATIO=x.ratio,
        EXTRA=x.kind,
        PAGE=x.page,
        H=H,
        U=UNIT,
        BLACKWELL=q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 10,
        PTX=isinstance(_sparse_prefill, triton.JITFunction),
        num_warps=8,
        num_stages=1,
    )
    return out
