from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.moe.closeness import assert_close
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.moe import reference

route = pytest.importorskip("dsv4.kernels.moe.route")
permute = pytest.importorskip("dsv4.kernels.moe.permute")

pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about NaN and infinity
FACTOR = 1.5


def make_router(T: int, E: int, C: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x, gate = torch.randn(T, C), 3 * torch.randn(E, C) / C**0.5
    return x.to(device, torch.bfloat16), gate.to(device, torch.bfloat16), (torch.randn(E) / 10).to(device)


@pytest.mark.parametrize(("T", "E", "C", "K"), [(1, 16, 64, 6), (19, 40, 300, 6), (3, 256, 128, 6), (0, 16, 64, 2)])
def test_scores_choose_and_affinities_weigh(T: int, E: int, C: int, K: int, device: torch.device) -> None:
    x, gate, bias = make_router(T, E, C, device)
    got = route.route(x, gate, bias, K, FACTOR)
    affinity = reference.affinities(x.float(), gate.float())
    want = reference.weigh(affinity, reference.choose(affinity, bias, K), FACTOR)
    assert torch.equal(got.ids.long(), want.ids)
    if T:
        assert_close(got.weights, want.weights, "routing weights")


def test_logits_far_from_zero_keep_their_precision(device: torch.device) -> None:
    """sqrt(softplus) of -30 to 60: below -17 softplus is smaller than float32's step at 1, above 20 it is linear."""
    logits = torch.tensor([-30.0, -12.0, -3.0, 0.0, 19.5, 20.5, 60.0, 1.0])
    gate = torch.zeros(8, 64)
    gate[:, 0] = logits
    x = torch.zeros(1, 64)
    x[0, 0] = 1
    got = route.route(
        x.to(device, torch.bfloat16), gate.to(device, torch.bfloat16), torch.zeros(8, device=device), 8, 1
    )
    affinity = torch.nn.functional.softplus(logits.double(), threshold=100).sqrt()
    assert float((got.weights[0].cpu().double() / (affinity / affinity.sum()) - 1).abs().max()) < 1e-5


def test_ties_go_to_the_lowest_expert_and_nan_stays_in_its_row(device: torch.device) -> None:
    x, gate, _ = make_router(3, 40, 64, device)
    bias = torch.zeros(40, device=device)
    clean = route.route(x, gate, bias, 4, FACTOR)
    x[1] = 0  # every affinity is sqrt(log 2)
    x[2, 5] = float("nan")
    got = route.route(x, gate, bias, 4, FACTOR)
    assert got.ids[1].tolist() == got.ids[2].tolist() == [0, 1, 2, 3]
    assert bool(got.weights[2].isnan().all())
    assert_bits(got.weights[0], clean.weights[0])
    assert_bits(got.ids[0], clean.ids[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_hash_layers_look_their_experts_up(dtype: torch.dtype, device: torch.device) -> None:
    x, gate, _ = make_router(5, 16, 64, device)
    table = torch.stack([torch.randperm(16)[:6] for _ in range(30)]).to(device)
    token_ids = torch.tensor([29, 0, 7, 7, 13], device=device)
    got = route.route_hashed(x, gate, table.to(dtype), token_ids.to(dtype), FACTOR)
    want = reference.weigh(reference.affinities(x.float(), gate.float()), table[token_ids], FACTOR)
    assert torch.equal(got.ids.long(), want.ids)
    assert_close(got.weights, want.weights, "routing weights")


def test_a_router_outside_the_contract_is_refused(device: torch.device) -> None:
    x, gate, bias = make_router(2, 16, 64, device)
    with pytest.raises(Violation, match="gate"):
        route.route(x, gate.float(), bias, 2, FACTOR)
    with pytest.raises(Violation, match="17 of 16"):
        route.route(x, gate, bias, 17, FACTOR)


def blocks_of(ids: Tensor, E: int, size: int) -> tuple[list[int], list[int]]:
    """The order and the experts that `permute` should give, written down pair by pair."""
    order: list[int] = []
    expert: list[int] = []
    flat = ids.flatten().tolist()
    for e in range(E):
        pairs = [p for p, other in enumerate(flat) if other == e]
        pairs += [-1] * (-len(pairs) % size)
        order += pairs
        expert += [e] * (len(pairs) // size)
    return order, expert


CASES: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.rand(37, 7).argsort(-1)[:, :3].to(torch.int32).contiguous(),
    "one token": lambda: torch.tensor([[6, 2]], dtype=torch.int32),
    "all to one": lambda: torch.full((33, 1), 4, dtype=torch.int32),
    "some to none": lambda: torch.tensor([[-1, 3], [7, 2], [-1, -1], [100, 0]], dtype=torch.int32),
    "nobody": lambda: torch.full((3, 2), -1, dtype=torch.int32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("size", "many"), [(8, 4096), (16, 0)], ids=["one launch", "counted before"])
def test_pairs_lie_by_expert_in_blocks_of_one_expert(
    name: str, size: int, many: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permute, "MANY", many)
    E, ids = 7, CASES[name]().to(device)
    blocks = permute.permute(ids, E, size)
    order, expert = blocks_of(ids, E, size)
    assert blocks.order[: len(order)].tolist() == order
    assert blocks.expert.tolist() == expert + [-1] * (len(blocks.expert) - len(expert))
    assert len(blocks.expert) == permute.most_blocks(ids.numel(), E, size)


def test_there_is_room_for_the_most_blocks_that_pairs_can_need() -> None:
    """Every distribution of n pairs over E experts, for small n."""
    for size in (2, 4):
        for n in range(1, 14):
            for e in range(1, 6):
                worst = max_blocks(n, e, size)
                assert worst <= permute.most_blocks(n, e, size) <= worst + 1


def max_blocks(n: int, E: int, size: int) -> int:
    if E == 1 or n == 0:
        return -(-n // size)
    return max(-(-take // size) + max_blocks(n - take, E - 1, size) for take in range(n + 1))
