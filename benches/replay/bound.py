"""Two upper bounds on the tokens that any cache could find, the future known.

Requests are numbered in order of arrival; gap g lies between request g and g + 1. Block b was last seen by request
p = prev(b, r) before request r uses it. KV comes from computing alone: if r finds b, then b was held in every gap
p … r - 1. So a hit of d blocks at r holds d intervals, and a rule whose pool has C bytes holds at most C bytes of
intervals in every gap. Not caching is allowed, moving is free, and what running requests hold is not counted.

**Full bound** (`full_bound`). Count blocks of S bytes alone, each hit for itself, whether or not its ancestors are
held. The hits of any rule are a set of intervals of which at most ⌊C / S⌋ overlap in any gap; so no rule finds more
than the largest such set has. Belady with bypass builds it: walk the gaps; where one too many of the kept intervals
overlap, drop the one that ends last. *Proof:* let M be a largest set that agrees with greedy up to the gap where greedy
drops x. If M has x, it lacks some y that greedy still keeps there, or that gap of M were too full; y ends no later than
x. Put y in for x: before this gap M has only what greedy keeps, which fits; from it on y fills gaps that x filled. The
size is the same and the agreement longer. An ancestor is used no later than its descendant, so dropping the deepest of
equals leaves a prefix-closed set: a cache that knew the future would attain the bound if windows cost nothing.

**Window bound** (`window_bound`). A hit that ends at block b also needs the window at b (w bytes). That window was
made, or still held, when prev(b, r) passed it, so it is held over the same gaps as b; windows of two boundaries share
no row, as 256 > 128. Over all choices of one depth d(r) per request, maximise Σ d(r) subject to the C bytes in each
gap. Every rule that resumes only at boundaries of which it holds the window makes such a choice. For any λ(g) ≥ 0,

    Σ d(r)  ≤  Σ d(r) + Σ_g λ(g) (C - held(g))  ≤  C Σ_g λ(g) + Σ_r max_d [ d - Σ_{b ≤ d} S Λ(b, r) - w Λ(d, r) ]

where λ is a price and Λ(b, r) the sum over b's gaps: weak duality. So *every* λ gives a bound; subgradient steps look
for a low one and the lowest seen is returned, without a claim that it is the lowest. The integer optimum lies below.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from benches.replay.trace import P, Request

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def full_bound(requests: Sequence[Request], num_blocks: int) -> int:
    """Tokens found by the optimum that keeps num_blocks full blocks between requests and needs no window."""
    uses = _next_uses(requests)
    held: dict[int, int] = {}  # block → the request that uses it next
    order: list[tuple[int, int, int]] = []  # furthest use first, deepest first, block
    found = 0
    for number, request in enumerate(requests):
        for depth, block in enumerate(request.blocks):
            if held.pop(block, -1) == number and depth < request.num_hit_blocks:
                found += 1
            following = uses[number][depth]
            if following >= 0:
                held[block] = following
                heapq.heappush(order, (-following, -depth, block))
        while len(held) > num_blocks:
            following, _, block = heapq.heappop(order)
            if held.get(block) == -following:
                del held[block]
    return P * found


def _next_uses(requests: Sequence[Request]) -> list[list[int]]:
    """Per request and block: the next request that could find the block, or -1."""
    later: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in range(len(requests) - 1, -1, -1):
        request = requests[number]
        uses.append([later.get(block, -1) for block in request.blocks])
        for depth, block in enumerate(request.blocks):
            later[block] = number if depth < request.num_hit_blocks else -1
    uses.reverse()
    return uses


@dataclass(frozen=True)
class Choices:
    """The depths worth choosing: ends of runs of blocks that were last seen by the same request.

    request, prev   per run: who could find it, who made it last                      [N] int64
    blocks          blocks in the run                                                 [N] int64
    first           index of the first run of its request                             [N] int64
    starts          the same, once per request with runs                              [R] int64

    Within a run profit is linear in depth and the price of the window the same, so no depth inside beats both ends.
    """

    request: Ints
    prev: Ints
    blocks: Ints
    first: Ints
    starts: Ints
    num_gaps: int


def choices(requests: Sequence[Request]) -> Choices:
    """The runs of every request, in order."""
    seen: dict[int, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    starts: list[int] = []
    for number, request in enumerate(requests):
        first = len(rows)
        for block in request.blocks[: request.num_hit_blocks]:
            prev = seen.get(block, -1)
            if prev < 0:
                break
            if len(rows) > first and rows[-1][1] == prev:
                rows[-1] = (number, prev, rows[-1][2] + 1, first)
            else:
                rows.append((number, prev, 1, first))
        if len(rows) > first:
            starts.append(first)
        for block in request.blocks:
            seen[block] = number
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    columns = [np.ascontiguousarray(table[:, at]) for at in range(4)]
    begins = np.array(starts, dtype=np.int64)
    return Choices(columns[0], columns[1], columns[2], columns[3], begins, max(0, len(requests) - 1))


def window_bound(
    requests: Sequence[Request], pool: float, window: float, *, steps: int = 2000, known: Choices | None = None
) -> float:
    """Tokens: the lowest dual value found, never above what every choice of hits together gives.

    pool, window   in full blocks (bytes divided by the bytes of one), not rounded
    known          `choices(requests)`, if there already
    """
    runs = choices(requests) if known is None else known
    if not len(runs.starts):
        return 0.0
    prices = np.zeros(runs.num_gaps)
    mean, square = np.zeros_like(prices), np.zeros_like(prices)
    stride, best = 3.0 / (8.0 * float(runs.blocks.mean())), float("inf")
    for at in range(1, steps + 1):
        value, slack = _dual(runs, prices, pool, window)
        best = min(best, value)
        mean = 0.9 * mean + 0.1 * slack
        square = 0.999 * square + 0.001 * slack**2
        scaled = (mean / (1 - 0.9**at)) / (np.sqrt(square / (1 - 0.999**at)) + 1e-9)
        prices = np.maximum(0.0, prices - stride / at**0.5 * scaled)
    return P * best


def _dual(runs: Choices, prices: Floats, pool: float, window: float) -> tuple[float, Floats]:
    """The bound in blocks at these prices, and its slope: what is left of the pool in each gap."""
    until = np.concatenate(([0.0], np.cumsum(prices)))
    price = until[runs.request] - until[runs.prev]
    gain = np.cumsum(runs.blocks * (1.0 - price))
    before = np.where(runs.first > 0, gain[runs.first - 1], 0.0)
    net = gain - before - window * price
    best = np.maximum.reduceat(net, runs.starts)
    sizes = np.diff(np.append(runs.starts, len(net)))
    chosen = (net == np.repeat(best, sizes)) & (net > 0)
    last = np.where(chosen, np.arange(len(net)), -1)
    deepest = np.repeat(np.maximum.reduceat(last, runs.starts), sizes)
    taken = np.arange(len(net)) <= deepest
    held = np.zeros(runs.num_gaps + 1)
    weight = runs.blocks * taken + window * (np.arange(len(net)) == deepest)
    np.add.at(held, runs.prev, weight)
    np.subtract.at(held, runs.request, weight)
    value = pool * float(until[-1]) + float(np.maximum(best, 0.0).sum())
    return value, pool - np.cumsum(held)[:-1]
