"""Routing and SwiGLU experts in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from dsv4.kernels.linear.reference import linear
from dsv4.kernels.norm_rope.reference import silu, softplus

Rounding = Callable[[Tensor], Tensor]


class Routes(NamedTuple):
    """The K experts of each token, in ascending order: ids int64 and their weights float32, both [T, K]."""

    ids: Tensor
    weights: Tensor


def affinities(x: Tensor, gate: Tensor) -> Tensor:
    """sqrt(softplus(x · gateᵀ)). x [T, C], gate [E, C] -> [T, E], float32."""
    return softplus(linear(x, gate)).sqrt()


def choose(affinity: Tensor, bias: Tensor, k: int) -> Tensor:
    """The k largest of affinity + bias, ties to the lowest expert. [T, E] -> [T, k] int64."""
    return (affinity + bias).sort(stable=True, dim=-1, descending=True).indices[:, :k]


def weigh(affinity: Tensor, ids: Tensor, factor: float) -> Routes:
    """affinity[ids] / Σ affinity[ids] · factor: the bias has no part in the weights."""
    ids = ids.sort(-1).values
    chosen = affinity.gather(1, ids)
    total = chosen[:, :1]
    for j in range(1, ids.shape[1]):
        total = total + chosen[:, j : j + 1]
    return Routes(ids, chosen / total * factor)


def swiglu(gate_up: Tensor, limit: float, weights: Tensor | None = None) -> Tensor:
    """silu(min(a, limit)) · clamp(b, -limit, limit) · weight, for gate_up = [a | b]. [T, 2 m], [T] -> [T, m]."""
    a, b = gate_up.chunk(2, -1)
    y = silu(a.clamp(max=limit)) * b.clamp(-limit, limit)
    return y if weights is None else y * weights[:, None]


def experts(
    x: Tensor, routes: Routes, w13: Tensor, w2: Tensor, *, limit: float, rounded: Rounding, quantised: Rounding
) -> Tensor:
    """Σ over a token's experts of w2 · (swiglu(w13 · x) · weight), added in order of expert.

    x          [T, C] float32, already as the experts' first product wants it
    w13, w2    [E, 2 m, C] (gate rows, then up rows) and [E, C, m]
    rounded    applied to the output of every product and to the activation
    quantised  applied to the activation before w2
    out        [T, C]; only experts that were hit are computed
    """
    T, K = routes.ids.shape
    order = routes.ids.flatten().argsort(stable=True)
    counts = routes.ids.flatten().bincount(minlength=len(w13)).tolist()
    rows, weights = x[order // K], routes.weights.flatten()[order]
    out, first = x.new_empty(T * K, x.shape[1]), 0
    for e in [e for e, count in enumerate(counts) if count]:
        part = slice(first, first + counts[e])
        y = rounded(swiglu(rounded(linear(rows[part], w13[e])), limit, weights[part]))
        out[order[part]] = rounded(linear(quantised(y), w2[e]))
        first += counts[e]
    by_token = out.view(T, K, -1)
    total = by_token[:, 0]
    for j in range(1, K):
        total = total + by_token[:, j]
    return total
