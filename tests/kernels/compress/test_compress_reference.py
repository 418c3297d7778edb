"""Pooling at once and row by row."""

from __future__ import annotations

import math

import torch

from dsv4.kernels.compress.reference import Running, accumulate, pool


def test_pooling_is_a_softmax_for_every_channel() -> None:
    kv, score = torch.randn(3, 8, 16), torch.randn(3, 8, 16)
    assert torch.allclose(pool(kv, score), (score.softmax(1) * kv).sum(1), atol=1e-6)


def test_absent_rows_weigh_nothing() -> None:
    kv, score = torch.randn(3, 8, 16), torch.randn(3, 8, 16)
    score[:, :4] = -math.inf
    assert torch.allclose(pool(kv, score), (score[:, 4:].softmax(1) * kv[:, 4:]).sum(1), atol=1e-6)


def test_row_by_row_gives_the_same_entry() -> None:
    kv, score = torch.randn(5, 128, 16), torch.randn(5, 128, 16) * 4
    running = Running.empty(5, 16, kv.device)
    for j in range(128):
        running = accumulate(running, kv[:, j], score[:, j])
    assert torch.allclose(running.pooled, (score.softmax(1) * kv).sum(1), atol=1e-5)
