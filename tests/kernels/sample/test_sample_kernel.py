from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.sample.rows import Row, expected, random_row, tensors
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.sample import reference

sample = pytest.importorskip("dsv4.kernels.sample.sample")

V = 301  # three segments of 128, the last one short


@pytest.fixture(autouse=True)
def _small_segments(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough for the interpreter; a GPU takes the sizes that it will serve."""
    if device.type == "cpu":
        monkeypatch.setattr(sample, "SEGMENT", 128)
        monkeypatch.setattr(sample, "CANDIDATES", 128)
        monkeypatch.setattr(sample, "CHUNK", 8)


def run(logits: Tensor, rows: list[Row], **launches: bool) -> Any:
    params, edits = tensors(rows, logits.device)
    workspace = sample.Workspace(max(1, len(rows)), logits.shape[1], logits.device)
    for pool in (workspace.masked, workspace.floats, workspace.sums, workspace.left_logits, workspace.best_logits):
        pool.fill_(float("nan"))  # what nobody wrote must not matter
    got = sample.sample(logits, params, edits, workspace, **launches)
    assert not workspace.arrivals.any(), "the workspace is ready for the next launch"
    return got


def logits_of(rng: random.Random, B: int, device: torch.device, *, ties: bool = False) -> Tensor:
    values = np.array([[rng.gauss(0, 3) for _ in range(V)] for _ in range(B)], dtype=np.float32)
    return torch.from_numpy(np.round(values) if ties else values).to(device)


@pytest.mark.parametrize("ties", [False, True])
def test_every_row_gets_the_token_of_the_reference(rng: random.Random, device: torch.device, ties: bool) -> None:
    rows = [random_row(rng, V) for _ in range(24)]
    logits = logits_of(rng, len(rows), device, ties=ties)
    before = logits.clone()
    got = run(logits, rows)
    assert_bits(logits, before)
    decided = [b for b in range(len(rows)) if got.status[b] == 0]
    assert len(decided) > 18
    assert set(got.status.tolist()) <= {0, 2}
    for b in decided:
        assert int(got.tokens[b]) == expected(logits[b].cpu().numpy(), rows[b]), (b, rows[b])


@pytest.mark.parametrize("B", [0, 1])
def test_no_row_and_one_row(rng: random.Random, device: torch.device, B: int) -> None:
    rows = [Row(temperature=0.8, top_k=7, seed=5)] * B
    logits = logits_of(rng, B, device) if B else torch.empty(0, V, device=device)
    got = run(logits, rows)
    assert got.tokens.tolist() == [expected(logits[b].cpu().numpy(), rows[b]) for b in range(B)]


def test_greedy_rows_need_one_launch_and_ties_go_to_the_lowest_id(device: torch.device) -> None:
    logits = torch.zeros(3, V, device=device)
    logits[1, [70, 299]] = 2.0
    logits[2] = -3.0
    logits[2, 300] = 1.0
    got = run(logits, [Row(temperature=0.0)] * 3, draws=False)
    assert got.tokens.tolist() == [0, 70, 300]


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about the NaN
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_flagged_and_no_other_row_changes(
    rng: random.Random, device: torch.device, bad: float
) -> None:
    rows = [random_row(rng, V) for _ in range(4)]
    for row in rows:
        row.num_logprobs = 2
    logits = logits_of(rng, 4, device)
    fine = run(logits, rows, logprobs=True)
    logits[2, 130] = bad
    got = run(logits, rows, logprobs=True)
    assert got.status[2] == 1
    assert got.tokens[2] == 0
    others = [0, 1, 3]
    for a, b in ((got.tokens, fine.tokens), (got.status, fine.status), (got.ranks, fine.ranks)):
        assert_bits(a[others], b[others])
    decided = [b for b in others if got.status[b] == 0]
    assert_bits(got.logprobs[decided], fine.logprobs[decided])


def test_a_row_does_not_depend_on_its_place_or_its_neighbours(rng: random.Random, device: torch.device) -> None:
    rows = [random_row(rng, V) for _ in range(5)]
    logits = logits_of(rng, 5, device)
    together = run(logits, rows)
    for b in range(5):
        alone = run(logits[b : b + 1], rows[b : b + 1])
        assert int(alone.tokens[0]) == int(together.tokens[b])
        assert int(alone.status[0]) == int(together.status[b])


def test_a_flat_row_that_top_p_hardly_cuts_is_left_to_the_reference(device: torch.device) -> None:
    flat = torch.zeros(1, 2 * sample.CANDIDATES + 5, device=device)
    got = run(flat, [Row(top_p=0.999)])
    assert got.status.tolist() == [2]
    got = run(flat, [Row()])  # without a filter nothing needs to be sorted
    assert got.status.tolist() == [0]
    assert int(got.tokens[0]) == expected(flat[0].cpu().numpy(), Row())


@pytest.mark.parametrize("ties", [False, True])
def test_logprobs_ranks_and_alternatives_are_those_of_the_reference(
    rng: random.Random, device: torch.device, ties: bool
) -> None:
    rows = [Row(temperature=0.0 if b % 2 else 1.5, seed=b, num_logprobs=(b % 4) * 3 - 1) for b in range(8)]
    logits = logits_of(rng, 8, device, ties=ties)
    got = run(logits, rows, logprobs=True)
    for b, row in enumerate(rows):
        if row.num_logprobs < 0:
            continue
        values = logits[b].cpu().numpy()
        value, rank, top = reference.logprob(values, int(got.tokens[b]), row.num_logprobs)
        assert float(got.logprobs[b]) == pytest.approx(value, abs=1e-6)
        assert int(got.ranks[b]) == rank
        assert got.top_ids[b, : row.num_logprobs].tolist() == [i for i, _ in top]
        assert got.top_logprobs[b, : row.num_logprobs].tolist() == pytest.approx([v for _, v in top], abs=1e-6)


def test_arguments_outside_the_contract_are_refused(device: torch.device) -> None:
    params, edits = tensors([Row()], device)
    workspace = sample.Workspace(1, V, device)
    with pytest.raises(Violation, match="logits"):
        sample.sample(torch.zeros(1, V, device=device).double(), params, edits, workspace)
    with pytest.raises(Violation, match="workspace"):
        sample.sample(torch.zeros(2, V, device=device), params, edits, workspace)
    with pytest.raises(Violation, match="seed"):
        sample.sample(torch.zeros(1, V, device=device), params._replace(seed=params.seed.int()), edits, workspace)
