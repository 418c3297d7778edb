"""Rows of logits with parameters and edits, and the token that the reference takes for each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dsv4.kernels.sample import reference
from dsv4.kernels.sample.philox import uniforms

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Row:
    """One request; ids of `counts` were generated, ids of `seen` came before."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    position: int = 0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seen: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    bias: dict[int, float] = field(default_factory=dict)
    allowed: list[int] | None = None
    hidden: list[int] = field(default_factory=list)
    num_logprobs: int = -1

    def edits(self) -> dict[int, tuple[int, float, float]]:
        """id -> flags, count, bias."""
        ids = {*self.seen, *self.counts, *self.bias, *(self.allowed or ()), *self.hidden}
        return {
            i: (
                (i in self.seen) + 2 * (i in self.hidden) + 4 * (self.allowed is not None and i in self.allowed),
                float(self.counts.get(i, 0)),
                self.bias.get(i, 0.0),
            )
            for i in sorted(ids, reverse=True)
        }


def expected(logits: Floats, row: Row) -> int:
    """The reference's token; the row is finite."""
    masked = logits.copy()
    generated = np.array(list(row.counts), dtype=np.int64)
    reference.penalise(
        masked,
        seen=np.array(row.seen, dtype=np.int64),
        generated=generated,
        counts=np.array(list(row.counts.values()), dtype=np.float32),
        repetition=row.repetition,
        presence=row.presence,
        frequency=row.frequency,
    )
    for i, value in row.bias.items():
        masked[i] += np.float32(value)
    if row.allowed is not None:
        reference.allow_only(masked, np.array(row.allowed, dtype=np.int64))
    masked[row.hidden] = -np.inf
    if row.temperature == 0.0:
        return int(reference.greedy(masked[None])[0])
    number = uniforms(*(np.array([v], dtype=np.int64) for v in (row.seed, row.choice, row.position)))[0]
    return reference.draw(
        masked, temperature=row.temperature, top_k=row.top_k, top_p=row.top_p, min_p=row.min_p, uniform=float(number)
    )


def random_row(rng: random.Random, V: int) -> Row:
    """Any mix of filters, penalties and masks."""
    some = rng.sample(range(V), min(V, 12))
    row = Row(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_k=rng.choice([0, 0, 1, 5, 40, 10 * V]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5, 1e-9]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        seed=rng.getrandbits(64) - 2**63,
        choice=rng.randrange(5),
        position=rng.randrange(10_000),
    )
    if rng.random() < 0.5:
        row.repetition, row.presence, row.frequency = 1.3, rng.choice([0.0, 0.7]), rng.choice([0.0, 0.11])
        row.counts = {i: rng.randrange(1, 9) for i in some[:5]}
        row.seen = [*some[:8]]
    if rng.random() < 0.3:
        row.bias = {i: rng.uniform(-3, 3) for i in some[4:7]}
    if rng.random() < 0.2:
        row.allowed = some
    if rng.random() < 0.3:
        row.hidden = [some[0]]
    return row


def tensors(rows: list[Row], device: torch.device) -> tuple[Any, Any]:
    """Params and Edits."""
    from dsv4.kernels.sample.sample import Edits, Params

    def column(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    params = Params(
        column([r.temperature for r in rows], torch.float64),
        column([r.top_k for r in rows], torch.int32),
        column([r.top_p for r in rows], torch.float64),
        column([r.min_p for r in rows], torch.float64),
        column([r.seed for r in rows], torch.int64),
        column([r.choice for r in rows], torch.int64),
        column([r.position for r in rows], torch.int64),
        column([[r.repetition, r.presence, r.frequency] for r in rows], torch.float32).reshape(len(rows), 3),
        column([r.num_logprobs for r in rows], torch.int32),
    )
    entries = [(i, *values) for r in rows for i, values in r.edits().items()]
    starts = np.cumsum([0, *(len(r.edits()) for r in rows)])
    edits = Edits(
        column(starts.tolist(), torch.int32),
        column([e[0] for e in entries] or [0], torch.int32),
        column([e[1] for e in entries] or [0], torch.uint8),
        column([e[2] for e in entries] or [0], torch.float32),
        column([e[3] for e in entries] or [0], torch.float32),
        column([r.allowed is not None for r in rows], torch.uint8),
    )
    return params, edits
