# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201
"""The fold of attention units: how the results of 128 keys each become one, in a fixed order.

A unit is 128 keys. Its maximum m_u, sum l_u and weighted values o_u depend on its own keys alone, and units are folded
first to last with the functions below, whether one block holds them all in registers or several blocks left them in
memory: the same operations in the same order, so the result does not depend on how many blocks shared the work.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsv4.kernels.convert import to_bf16


@triton.jit
def fold_weights(m, m_unit):
    """The new maximum, the factor of what was folded so far, and the factor of this unit (all [H], log2 units)."""
    top = tl.maximum(m, m_unit)
    at = tl.maximum(top, -1e30)  # no visible key yet: both factors are 0, not NaN
    return top, tl.exp2(m - at), tl.exp2(m_unit - at)


@triton.jit
def fold(total, alpha, part, beta):
    """Total x alpha + part x beta with one rounding each, spelled so that no compiler contracts it otherwise."""
    return tl.fma(part, beta, total * alpha)


@triton.jit
def finish(total, m, denominator, sink):
    """Weighted values over the softmax denominator; the sink [H] (log2 units) enters there and nowhere else."""
    at = tl.maximum(m, -1e30)
    return total / (denominator + tl.exp2(sink - at))


@triton.jit
def combine_units(partial, stats, num_units, sink, out, HB: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr):
    """Folds units 0..num_units of one (token, head group) from memory and writes its output rows.

    partial  float32 [U, HB, 512]
    stats    float32 [U, 2, HB]: maximum and sum
    sink     float32 [HB], log2 units
    out      bf16 [HB, 512], WIDTH channels at a time
    """
    heads = tl.arange(0, HB)
    for first in range(0, 512, WIDTH):
        at = heads[:, None] * 512 + (first + tl.arange(0, WIDTH))[None, :]
        m = tl.full([HB], float("-inf"), tl.float32)
        denominator = tl.zeros([HB], tl.float32)
        total = tl.zeros([HB, WIDTH], tl.float32)
        for u in tl.range(0, num_units, num_stages=STAGES):
            m_unit = tl.load(stats + (2 * u) * HB + heads, cache_modifier=".cg")
            l_unit = tl.load(stats + (2 * u + 1) * HB + heads, cache_modifier=".cg")
            part = tl.load(partial + u * (512 * HB) + at, cache_modifier=".cg")
            m, alpha, beta = fold_weights(m, m_unit)
            denominator = fold(denominator, alpha, l_unit, beta)
            total = fold(total, alpha[:, None], part, beta[:, None])
        done = finish(total, m[:, None], denominator[:, None], sink[:, None])
        tl.store(out + at, to_bf16(done))
