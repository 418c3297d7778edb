"""Sampling against a plain oracle in float64 that sorts, adds and divides as the definition says."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from dsv4.errors import Violation
from dsv4.kernels.sample import reference

Floats = np.ndarray[Any, np.dtype[np.float32]]


def row_of(rng: random.Random, size: int, *, spread: float = 3.0, ties: bool = False) -> Floats:
    values = [rng.gauss(0, spread) for _ in range(size)]
    if ties:
        values = [round(value) for value in values]
    return np.array(values, dtype=np.float32)


def oracle(row: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The distribution that a draw follows, by definition."""
    logits = [float(value) for value in row]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[:top_k] if 0 < top_k < len(order) else order
    top = logits[order[0]]
    weights = {i: math.exp((logits[i] - top) / temperature) for i in kept}
    total = math.fsum(weights.values())
    nucleus, reached = [], 0.0
    for i in kept:
        nucleus.append(i)
        reached += weights[i] / total
        if top_p < 1.0 and reached >= top_p:
            break
    kept = [i for i in nucleus if weights[i] >= min_p]
    total = math.fsum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


FILTERS = [
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 0.3, "top_k": -1, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 2.0, "top_k": 5, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.7, "min_p": 0.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1e-9, "min_p": 0.0},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "top_k": 10_000, "top_p": 0.999999, "min_p": 0.0},
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_the_inverse_of_the_cumulative_distribution_equals_the_oracle(
    rng: random.Random, filters: dict[str, Any], ties: bool
) -> None:
    for _ in range(6):
        row = row_of(rng, rng.choice([1, 2, 50, 400]), ties=ties)
        probabilities = oracle(row, **filters)
        edges = np.cumsum(probabilities)
        for _ in range(40):
            uniform = rng.random()
            if np.abs(edges - uniform).min() < 1e-9:
                continue  # on an edge either side is right
            expected = int(np.searchsorted(edges, uniform, side="right"))
            assert reference.draw(row, uniform=uniform, **filters) == expected


@pytest.mark.parametrize("filters", FILTERS[:7], ids=str)
def test_frequencies_follow_the_distribution(rng: random.Random, seed: int, filters: dict[str, Any]) -> None:
    row = row_of(rng, 30)
    probabilities = np.array(oracle(row, **filters))
    count = 4000
    uniforms = np.random.Generator(np.random.PCG64(seed)).random(count)
    drawn = [reference.draw(row, uniform=uniform, **filters) for uniform in uniforms.tolist()]
    observed = np.bincount(drawn, minlength=30)
    assert not observed[probabilities == 0].any()
    likely = probabilities * count >= 5
    expected = probabilities[likely] * count
    chi_square = float(((observed[likely] - expected) ** 2 / expected).sum())
    freedom = max(1, int(likely.sum()) - 1)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_find_tokens_that_are_allowed(uniform: float) -> None:
    row = np.array([-np.inf, 0.5, 0.25, -np.inf], dtype=np.float32)
    found = reference.draw(row, temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, uniform=uniform)
    assert found == (1 if uniform == 0.0 else 2)


def test_tiny_temperatures_do_not_overflow() -> None:
    row = np.array([3.0e38, -3.0e38, 2.9e38], dtype=np.float32)
    assert reference.draw(row, temperature=1e-300, top_k=0, top_p=0.9, min_p=0.0, uniform=0.9) == 0


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = np.array([[1, 2, 2, 0], [5, 5, 5, 5], [-np.inf, -np.inf, 0, 0]], dtype=np.float32)
    assert reference.greedy(logits).tolist() == [1, 0, 2]


def test_top_k_takes_exactly_k_and_the_lowest_of_equals() -> None:
    row = np.array([1, 3, 2, 2, 2], dtype=np.float32)
    drawn = {reference.draw(row, temperature=1.0, top_k=2, top_p=1.0, min_p=0.0, uniform=u / 100) for u in range(100)}
    assert drawn == {1, 2}


def test_penalties_are_those_of_the_definition() -> None:
    row = np.array([2.0, -2.0, 1.0, 4.0, 0.5], dtype=np.float32)
    reference.penalise(
        row,
        seen=np.array([0, 1, 3]),
        generated=np.array([1, 3]),
        counts=np.array([3, 1], dtype=np.float32),
        repetition=2.0,
        presence=0.5,
        frequency=0.25,
    )
    assert row.tolist() == [1.0, -4.0 - 0.75 - 0.5, 1.0, 2.0 - 0.25 - 0.5, 0.5]


def test_allowed_ids_are_the_only_ones_left() -> None:
    row = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    reference.allow_only(row, np.array([0, 1]))
    assert row.tolist() == [1.0, 2.0, -math.inf]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_found(bad: float) -> None:
    logits = np.zeros((3, 5), dtype=np.float32)
    logits[1, 3] = bad
    assert reference.finite_rows(logits).tolist() == [True, False, True]
    assert reference.finite_rows(logits[:0]).tolist() == []


@pytest.mark.parametrize("ties", [False, True])
def test_logprobs_equal_the_log_softmax_of_the_logits(rng: random.Random, ties: bool) -> None:
    import torch

    row = row_of(rng, 500, ties=ties)
    expected = torch.log_softmax(torch.from_numpy(row).double(), 0)
    order = sorted(range(500), key=lambda i: (-row[i], i))
    for token in (0, 7, order[0], order[-1]):
        value, rank, top = reference.logprob(row, token, 20)
        assert value == pytest.approx(float(expected[token]), abs=1e-6)
        assert np.float32(value) == value
        assert order[rank - 1] == token
        assert [i for i, _ in top] == order[:20]
        assert [v for _, v in top] == pytest.approx([float(expected[i]) for i in order[:20]], abs=1e-6)
    assert reference.logprob(row, 3, 0)[2] == ()
    assert len(reference.logprob(row[:4], 3, 20)[2]) == 4


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(Violation, match="outside"):
        reference.logprob(np.zeros(4, dtype=np.float32), 4, 0)
