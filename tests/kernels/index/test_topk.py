from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.index import reference, topk


def run(scores: Tensor, counts: list[int], k: int, device: torch.device, **slots: Tensor) -> Tensor:
    workspace = topk.Workspace(len(counts), scores.shape[1], k, device)
    positions = torch.tensor([4 * count for count in counts], dtype=torch.int32, device=device)
    out = topk.select_topk(scores.to(device), positions, k, workspace, **slots)
    assert not workspace.arrivals.any(), "a launch leaves its counters at zero"
    return out.cpu()


def expected(scores: Tensor, counts: list[int], k: int) -> Tensor:
    visible = torch.arange(scores.shape[1]) < torch.tensor(counts).unsqueeze(1)
    return reference.select(scores, visible, k)[:, :k].int()


def poisoned(scores: Tensor, counts: list[int]) -> Tensor:
    """NaN, which would be chosen before anything else, in every place that must not be read."""
    scores = scores.clone()
    for t, count in enumerate(counts):
        scores[t, count:] = torch.nan
    return scores


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than 256 candidates go to several blocks, as rows of thousands do otherwise."""
    monkeypatch.setattr(topk, "_WHOLE", 256)
    monkeypatch.setattr(topk, "_segment_of", lambda _: 128)


def examples(name: str, T: int, S: int) -> Tensor:
    match name:
        case "random":
            return torch.randn(T, S)
        case "ties":
            return torch.randn(T, S).round()
        case "equal":
            return torch.zeros(T, S)
        case "zeros of both signs":
            return torch.where(torch.rand(T, S) < 0.5, 0.0, -0.0)
        case _:
            extremes = torch.tensor([torch.inf, -torch.inf, 3.4e38, -3.4e38, 1e-45, -1e-45, 0.0])
            return extremes[torch.randint(0, 7, (T, S))]


NAMES = ["random", "ties", "equal", "zeros of both signs", "extremes"]


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_with_ties_to_the_lowest_index(name: str, device: torch.device) -> None:
    counts = [0, 1, 31, 32, 33, 500, 1000]
    scores = examples(name, len(counts), 1000)
    assert torch.equal(run(poisoned(scores, counts), counts, 32, device), expected(scores, counts, 32))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("name", NAMES)
def test_several_blocks_choose_what_one_would(name: str, device: torch.device) -> None:
    counts = [0, 64, 65, 127, 128, 129, 257, 800, 1000]
    scores = examples(name, len(counts), 1000)
    assert torch.equal(run(poisoned(scores, counts), counts, 64, device), expected(scores, counts, 64))


@pytest.mark.parametrize("k", [512, 1024])
def test_the_models_own_k(k: int, device: torch.device) -> None:
    counts = [k - 1, k, k + 1, 3000]
    scores = torch.randn(len(counts), 3000)
    assert torch.equal(run(poisoned(scores, counts), counts, k, device), expected(scores, counts, k))


def test_the_largest_row(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("262,144 candidates take a GPU; several blocks at small sizes are tested above")
    scores = torch.randn(2, topk.MAX_CANDIDATES)
    counts = [topk.MAX_CANDIDATES, topk.MAX_CANDIDATES - 1]
    assert torch.equal(run(scores, counts, 512, device), expected(scores, counts, 512))


@pytest.mark.usefixtures("short_blocks")
def test_entries_come_out_as_slots(device: torch.device) -> None:
    counts = [20, 600]
    scores = torch.randn(2, 640)
    table = torch.randint(1, 10**6, (3, 10), dtype=torch.int32)
    rows = torch.tensor([2, 0], dtype=torch.int32)
    got = run(scores, counts, 32, device, block_table=table.to(device), token_rows=rows.to(device))
    want = expected(scores, counts, 32)
    slots = table[rows.long()].gather(1, want.clamp_min(0).long() // 64) * 64 + want % 64
    assert torch.equal(got, torch.where(want >= 0, slots, -1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
def test_a_nan_score_is_chosen_and_harms_no_other_row(device: torch.device) -> None:
    scores = torch.randn(2, 300)
    clean = run(scores, [300, 300], 32, device)
    scores[0, 250] = torch.nan
    got = run(scores, [300, 300], 32, device)
    assert 250 in got[0].tolist()
    assert torch.equal(got[1], clean[1])
    assert (got[0].diff() > 0).all()


def test_no_tokens(device: torch.device) -> None:
    assert run(torch.zeros(0, 100), [], 32, device).shape == (0, 32)


def test_what_is_outside_the_contract_is_refused(device: torch.device) -> None:
    with pytest.raises(Violation, match="top 48"):
        run(torch.zeros(1, 100), [100], 48, device)
    with pytest.raises(Violation, match="token_rows"):
        run(torch.zeros(1, 100), [100], 32, device, block_table=torch.zeros(1, 2, dtype=torch.int32, device=device))
