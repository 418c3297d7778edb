"""Pooling of compressor rows in float32: a softmax over the tokens of a group, one for every channel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def pool(kv: Tensor, score: Tensor) -> Tensor:
    """Σ_j softmax_j(score) · kv, per channel. kv, score [n, J, D], an absent row has score -inf -> [n, D].

    The J rows are added in their order, so that it does not matter which of them were kept from earlier steps.
    """
    weight = (score - score.amax(1, keepdim=True)).exp()
    total, value = weight[:, 0], weight[:, 0] * kv[:, 0]
    for j in range(1, kv.shape[1]):
        total = total + weight[:, j]
        value = value + weight[:, j] * kv[:, j]
    return value / total


class Running(NamedTuple):
    """A softmax under way: maximum m, sum s and weighted value a, each [n, D]. Nothing seen yet: -inf, 0, 0."""

    m: Tensor
    s: Tensor
    a: Tensor

    @staticmethod
    def empty(n: int, dim: int, device: torch.device) -> Running:
        """Running softmaxes of n groups that have seen nothing."""
        zeros = torch.zeros(n, dim, device=device)
        return Running(torch.full_like(zeros, -math.inf), zeros, zeros.clone())

    @property
    def pooled(self) -> Tensor:
        """The entry of a finished group."""
        return self.a / self.s


def accumulate(state: Running, kv: Tensor, score: Tensor) -> Running:
    """One more row of every group, in order of position: the same bits however a group is cut into steps.

    m' = max(m, z); s' = s e^(m - m') + e^(z - m'); a' = a e^(m - m') + kv e^(z - m').
    """
    m = torch.maximum(state.m, score)
    kept, added = (state.m - m).exp(), (score - m).exp()
    return Running(m, state.s * kept + added, state.a * kept + kv * added)
