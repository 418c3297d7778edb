"""Sampling one token per row, as it is defined. A row is the logits of one request; it never sees its neighbours.

    penalties ─▶ logit bias ─▶ masks ─▶ temperature ─▶ top_k ─▶ top_p ─▶ min_p ─▶ draw

Everything after the masks runs in float64 over the ids in ascending order, so that the inverse of the cumulative
distribution adds up in one fixed order. Where logits are equal, the lowest id is taken to be the likelier.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv4.kernels.contract import expect

LEAST_TEMPERATURE = 1e-30
"""Below it every difference of float32 logits is as good as infinite, and the quotient could overflow."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]


def finite_rows(logits: Floats) -> NDArray[np.bool_]:
    """Which rows of [B, V] hold neither NaN nor an infinity -> [B] bool."""
    return np.asarray(np.isfinite(logits).all(axis=1), dtype=np.bool_)


def penalise(
    row: Floats, *, seen: Ids, generated: Ids, counts: Floats, repetition: float, presence: float, frequency: float
) -> None:
    """Lowers what was there before, in place.

    row        [V] float32
    seen       distinct ids of the prompt and the output: repetition divides positive logits and multiplies the others
    generated  distinct ids of the output; counts [same length] float32, how often each came
    """
    if repetition != 1.0 and len(seen):
        found = row[seen]
        factor = np.float32(repetition)
        row[seen] = np.where(found > 0, found / factor, found * factor)
    if len(generated) and (presence != 0.0 or frequency != 0.0):
        row[generated] -= np.float32(frequency) * counts + np.float32(presence)


def allow_only(row: Floats, allowed: Ids) -> None:
    """Masks every id that is not in `allowed`, in place."""
    kept = row[allowed]
    row.fill(-np.inf)
    row[allowed] = kept


def greedy(logits: Floats) -> Ids:
    """The likeliest id of each row of [B, V]; ties go to the lowest id."""
    found: Ids = np.argmax(logits, axis=1)
    return found


def draw(row: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """One id from a masked row.

    row          [V] float32; masked ids are -inf, and at least one is not
    temperature  above 0
    top_k        keep the k likeliest; 0 or less, or V and more: off
    top_p        of these keep the smallest set of the likeliest whose probability reaches top_p; 1: off
    min_p        of these keep what is at least min_p times as likely as the likeliest; 0: off
    uniform      in [0, 1)
    """
    V = row.shape[0]
    logits = row.astype(np.float64)
    weights = np.exp((logits - logits.max()) / max(temperature, LEAST_TEMPERATURE))
    if 0 < top_k < V:
        weights = _only(weights, _likeliest(logits, top_k))
    if top_p < 1.0:
        weights = _only(weights, _nucleus(weights, logits, top_p))
    if min_p > 0.0:
        weights[weights < min_p] = 0.0  # the likeliest weighs 1
    total = np.cumsum(weights)
    found = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return min(found, int(np.flatnonzero(weights)[-1]))  # the product may round up to the total


def _only(weights: Doubles, kept: Ids) -> Doubles:
    masked = np.zeros_like(weights)
    masked[kept] = weights[kept]
    return masked


def _likeliest(logits: NDArray[np.floating], k: int) -> Ids:
    """Ids of the k largest, likeliest first; ties to the lowest id. 0 < k <= V."""
    V = logits.shape[0]
    if k < V:
        threshold = np.partition(logits, V - k)[V - k]
        above = np.flatnonzero(logits > threshold)
        equal = np.flatnonzero(logits == threshold)[: k - len(above)]
        found = np.concatenate((above, equal))
        found.sort()
    else:
        found = np.arange(V)
    order: Ids = found[np.argsort(-logits[found], kind="stable")]
    return order


def _nucleus(weights: Doubles, logits: Doubles, top_p: float) -> Ids:
    """Ids of the smallest set of the likeliest whose share of the weights reaches top_p.

    Only what can be in the set is sorted: ids below `floor` weigh less than half of what the set may leave out.
    """
    total = weights.sum()
    floor = 0.5 * (1.0 - top_p) * total / len(weights)
    found = np.flatnonzero(weights > floor)
    found = found[np.argsort(-logits[found], kind="stable")]
    reached = np.cumsum(weights[found])
    count = int(np.searchsorted(reached, top_p * total, side="left")) + 1
    kept: Ids = found[:count]
    return kept


def log_normaliser(row: Floats) -> float:
    """log(sum(exp(row))), in float64."""
    top = np.float64(row.max())
    return float(top + np.log(np.exp(row.astype(np.float64) - top).sum()))


def logprob(row: Floats, token: int, top: int) -> tuple[float, int, tuple[tuple[int, float], ...]]:
    """Log-probability of one id under the unmodified logits, its rank from 1, and the `top` likeliest ids with theirs.

    row [V] float32, finite; values are float32 log-softmax; of equal logits the lower id ranks first.
    """
    expect(0 <= token < row.shape[0], f"token {token} is outside a vocabulary of {row.shape[0]}")
    norm = log_normaliser(row)
    value = row[token]
    rank = 1 + int((row > value).sum()) + int((row[:token] == value).sum())
    best = _likeliest(row, min(top, row.shape[0])) if top else ()
    alternatives = tuple((int(i), float(np.float32(row[i] - norm))) for i in best)
    return float(np.float32(value - norm)), rank, alternatives
