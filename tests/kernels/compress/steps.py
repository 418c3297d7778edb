"""Requests that grow step by step, and what compression must have stored of them: from their whole history at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsv4.kernels.compress import reference
from dsv4.kernels.norm_rope.reference import rms_norm, rotate
from dsv4.kernels.quant.reference import hadamard

EPS = 1e-6


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


@dataclass
class History:
    """All rows [2, width] that one request has brought, in order of position."""

    slot: int
    rows: list[Tensor] = field(default_factory=list)


def angles_at(position: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.tensor([float(position)], device=frequencies.device)[:, None] * frequencies
    return angle.cos(), angle.sin()


def finish(pooled: Tensor, weight: Tensor, position: int, frequencies: Tensor, *, rotated: bool) -> Tensor:
    """A pooled row [1, D] as it is quantised."""
    out = bf16(rotate(bf16(rms_norm(bf16(pooled), weight, EPS)), *angles_at(position, frequencies)))
    return bf16(hadamard(out)) if rotated else out


def c4_entry(history: History, last: int, ape: Tensor) -> Tensor:
    """The pooled row [1, D] of the C4 group that ends at position `last`."""
    D = ape.shape[1] // 2
    kv, score = [], []
    for j, at in enumerate(range(last - 7, last + 1)):
        half = slice(0, D) if j < 4 else slice(D, 2 * D)
        if at < 0:
            kv.append(torch.zeros(D, device=ape.device))
            score.append(torch.full((D,), -torch.inf, device=ape.device))
        else:
            kv.append(history.rows[at][0, half])
            score.append(history.rows[at][1, half] + ape[at % 4, half])
    return reference.pool(torch.stack(kv)[None], torch.stack(score)[None])


def c128_state(history: History, first: int, last: int, ape: Tensor) -> reference.Running:
    """The running softmax of positions first..last of one group."""
    running = reference.Running.empty(1, ape.shape[1], ape.device)
    for at in range(first, last + 1):
        row = history.rows[at]
        running = reference.accumulate(running, row[0][None], row[1][None] + ape[at % 128])
    return running
