"""Sampling 129,280 logits a row, against what torch offers, and every draw against the reference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from benches.kernels.harness import Call, Case, Peer
from tests.kernels.sample.rows import Row, expected, tensors
from torch import Tensor

from dsv4.kernels.sample.sample import Edits, Params, Sampled, Workspace, sample

V = 129_280
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_k top_p min_p": {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
    "penalties": {"temperature": 0.8, "top_p": 0.95, "repetition": 1.1, "presence": 0.2, "frequency": 0.1},
    "logprobs 20": {"temperature": 0.8, "top_p": 0.95, "num_logprobs": 20},
}


def logits_of(B: int) -> Tensor:
    """A language model's shape: a long flat tail and a head that decides."""
    x = torch.randn(B, V, device="cuda") * 2 - 4
    heads = torch.randint(0, V, (B, 200), device="cuda")
    return x.scatter_(1, heads, torch.rand(B, 200, device="cuda").pow(0.3) * 16)


def rows_of(kind: str, B: int) -> list[Row]:
    rng = random.Random(B)
    rows = [Row(seed=rng.getrandbits(60), position=rng.randrange(4000), **KINDS[kind]) for _ in range(B)]
    if kind == "penalties":
        for row in rows:
            row.seen = rng.sample(range(V), 1500)
            row.counts = {i: rng.randrange(1, 5) for i in row.seen[:500]}
    return rows


def run(kind: str, x: Tensor, params: Params, edits: Edits, workspace: Workspace) -> Sampled:
    return sample(x, params, edits, workspace, draws=kind != "greedy", logprobs=kind.startswith("logprobs"))


def case(kind: str, B: int) -> Case:
    workspace = Workspace(B, V, torch.device("cuda"))
    params, edits = tensors(rows_of(kind, B), torch.device("cuda"))
    sets: list[Tensor] = []

    def check() -> None:
        rows, x = rows_of(kind, B), logits_of(B)
        undecided = 0
        got = run(kind, x, params, edits, workspace)
        for b in range(min(B, 16)):
            undecided += int(got.status[b] != 0)
            if got.status[b] == 0:
                want = expected(x[b].cpu().numpy(), rows[b])
                assert int(got.tokens[b]) == want, f"row {b} of {B}: {int(got.tokens[b])}, the reference says {want}"
        assert undecided == 0, f"{undecided} rows were left to the reference"

    launches = 1 if kind == "greedy" else 4 if kind.startswith("logprobs") else 3
    result = Case(
        op="sample", shape={"kind": kind, "B": B}, dtype="float32", bytes=4 * B * V, launches=launches, check=check,
        make=lambda i: lambda: run(kind, sets[i], params, edits, workspace),
    )  # fmt: skip
    sets.extend(logits_of(B) for _ in range(result.sets))
    return replace(result, peers=[peer(kind, sets)])


def peer(kind: str, sets: list[Tensor]) -> Peer:
    """What eager engines do, in torch: sort, softmax, mask, exponential race. Its draws are not ours."""

    def make(i: int) -> Call:
        x = sets[i]

        def call() -> Tensor:
            if kind == "greedy":
                return x.argmax(1)
            if kind == "temperature":
                p = (x / 0.8).softmax(1)
                return (p / torch.empty_like(p).exponential_()).argmax(1)
            values, ids = (x / 0.8).sort(1, descending=True)
            p = values.softmax(1)
            p = p.masked_fill(p.cumsum(1) - p > 0.95, 0.0)
            return ids.gather(1, (p / torch.empty_like(p).exponential_()).argmax(1, keepdim=True))

        return call

    return Peer("torch: sort, softmax, race" if kind not in ("greedy", "temperature") else "torch", torch.__version__,
                make)  # fmt: skip


def cases() -> Iterator[Case]:
    for kind in KINDS:
        for B in (1, 64, 256):
            yield case(kind, B)
