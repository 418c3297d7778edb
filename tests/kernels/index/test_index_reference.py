"""Index scores and the choice of entries."""

from __future__ import annotations

import random

import pytest
import torch

from dsv4.kernels.index.reference import scores, select


@pytest.mark.parametrize("shared", [True, False])
def test_scores_are_weighted_positive_parts(*, shared: bool) -> None:
    q, w = torch.randn(5, 16, 32), torch.randn(5, 16)
    keys = torch.randn(1 if shared else 5, 128, 32)
    want = torch.einsum("thd,tsd->ths", q, keys.expand(5, -1, -1)).relu().mul(w[..., None]).sum(1)
    assert torch.allclose(scores(q, w, keys, bf16=False), want, atol=1e-3)


def naive(score: list[float], visible: list[bool], k: int) -> list[int]:
    order = sorted((s for s, seen in enumerate(visible) if seen), key=lambda s: (-score[s], s))
    return sorted(order[:k])


@pytest.mark.parametrize("k", [1, 5, 16, 64, 100, 300])
def test_ties_go_to_the_lowest_index_whatever_is_beside(rng: random.Random, k: int) -> None:
    """ReLU makes exact zeros common: scores from three values only, so that almost everything is a tie."""
    score = torch.tensor([[rng.choice((0.0, 0.5, -1.0)) for _ in range(192)] for _ in range(40)])
    visible = torch.tensor([[s < limit for s in range(192)] for limit in (rng.randrange(193) for _ in range(40))])
    got = select(score, visible, k)
    assert got.shape[1] % 64 == 0
    for row, values, seen in zip(got.tolist(), score.tolist(), visible.tolist(), strict=True):
        want = naive(values, seen, k)
        assert row == want + [-1] * (len(row) - len(want))


def test_a_row_of_nan_scores_harms_no_other() -> None:
    score, visible = torch.randn(3, 128), torch.ones(3, 128, dtype=torch.bool)
    clean = select(score, visible, 10)
    score[1] = torch.nan
    assert torch.equal(select(score, visible, 10)[[0, 2]], clean[[0, 2]])
