from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.moe import cases
from tests.kernels.moe.closeness import assert_close
from torch import Tensor

from dsv4.errors import Violation

if TYPE_CHECKING:
    from dsv4.kernels.moe.weights import Experts

triton = pytest.importorskip("triton")
experts = pytest.importorskip("dsv4.kernels.moe.experts")
weights = pytest.importorskip("dsv4.kernels.moe.weights")
configs = pytest.importorskip("dsv4.kernels.moe.configs")

KINDS = ("w4a16", "w4a8", "w4a4")
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about NaN and infinity


def pack(at: cases.Checkpoint, activations: str) -> Experts:
    device = at.w1.device
    operand = "fp8" if activations == "w4a8" else "bf16"
    packed: Experts = weights.empty_experts(len(at.w1), at.w1.shape[2] * 2, at.w1.shape[1], operand, device)
    for e in range(len(at.w1)):
        for name in ("w1", "w2", "w3"):
            weights.put(packed, e, name, getattr(at, name)[e], getattr(at, f"{name}_scale")[e])
    return packed


def run(x: Tensor, ids: Tensor, w: Tensor, packed: Experts, activations: str, **options: object) -> Tensor:
    out: Tensor = experts.experts(x, experts.Chosen(ids, w), packed, activations, limit=cases.LIMIT, **options)
    return out


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("activations", KINDS)
def test_experts_are_those_of_the_reference(activations: str, T: int, device: torch.device) -> None:
    at = cases.make_checkpoint(device)
    x, (ids, w) = cases.make_x(T, device), cases.make_choice(T, device)
    got = run(x, ids, w, pack(at, activations), activations)
    assert_close(got, cases.expected(x, ids, w, at, activations), activations)


@pytest.mark.parametrize("activations", KINDS)
def test_every_token_may_choose_the_same_expert(activations: str, device: torch.device) -> None:
    at = cases.make_checkpoint(device)
    x, w = cases.make_x(35, device), torch.rand(35, 1, device=device) + 0.1
    ids = torch.full((35, 1), cases.E - 1, dtype=torch.int32, device=device)
    got = run(x, ids, w, pack(at, activations), activations)
    assert_close(got, cases.expected(x, ids, w, at, activations), activations)


def test_no_tokens(device: torch.device) -> None:
    packed = pack(cases.make_checkpoint(device), "w4a8")
    ids, w = cases.make_choice(0, device)
    assert run(cases.make_x(0, device), ids, w, packed, "w4a8").shape == (0, cases.C)


@pytest.mark.parametrize("activations", KINDS)
def test_a_token_has_the_same_bits_alone_and_beside_nan(activations: str, device: torch.device) -> None:
    packed = pack(cases.make_checkpoint(device), activations)
    x, (ids, w) = cases.make_x(18, device), cases.make_choice(18, device)
    alone = run(x[3:4].contiguous(), ids[3:4].contiguous(), w[3:4].contiguous(), packed, activations)
    x[2, 7], x[17, 200], w[4, 0] = float("nan"), float("inf"), float("nan")
    among = run(x, ids, w, packed, activations)
    assert_bits(among[3:4], alone)
    assert bool(among[[2, 4, 17]].isnan().any(-1).all())
    others = [t for t in range(18) if t not in {2, 4, 17}]
    assert bool(among[others].isfinite().all())


@pytest.mark.parametrize("activations", ["w4a16", "w4a8"])
def test_no_cut_of_the_work_changes_a_bit(activations: str, device: torch.device) -> None:
    packed = pack(cases.make_checkpoint(device), activations)
    x, (ids, w) = cases.make_x(21, device), cases.make_choice(21, device)
    tile = configs.Tile
    one = run(x, ids, w, packed, activations, tiles=(tile(128, 16, 4, 3), tile(128, 16, 4, 3)))
    other = run(x, ids, w, packed, activations, tiles=(tile(256, 32, 4, 2), tile(64, 32, 4, 2)))
    assert_bits(other, one)


def test_an_id_that_is_no_expert_costs_nothing_and_adds_nothing(device: torch.device) -> None:
    at = cases.make_checkpoint(device)
    x, (ids, w) = cases.make_x(6, device), cases.make_choice(6, device)
    packed = pack(at, "w4a8")
    ids[1], ids[4, 2] = -1, cases.E + 3
    got = run(x, ids, w, packed, "w4a8")
    assert bool((got[1] == 0).all()), "a padding row is zeros"
    kept = torch.cat((ids[4:5, :2], ids[4:5, :1]), 1).contiguous()
    zero = torch.cat((w[4:5, :2], torch.zeros(1, 1, device=device)), 1)
    assert_close(got[4:5], cases.expected(x[4:5], kept, zero, at, "w4a8"), "w4a8")


@pytest.mark.parametrize("activations", ["w4a16", "w4a8"])
def test_experts_that_nobody_chose_are_never_read(activations: str, device: torch.device) -> None:
    packed = pack(cases.make_checkpoint(device), activations)
    x, (ids, w) = cases.make_x(9, device), cases.make_choice(9, device, num_experts=cases.E - 1)
    clean = run(x, ids, w, packed, activations)
    for matrix in packed:
        matrix.codes[cases.E - 1] = matrix.codes.new_full((), -1 if matrix.operand == "bf16" else 255)
        matrix.scales[cases.E - 1] = -1  # four NaN bytes
    assert_bits(run(x, ids, w, packed, activations), clean)


def test_the_shared_expert_comes_last(device: torch.device) -> None:
    at = cases.make_checkpoint(device)
    x, (ids, w) = cases.make_x(4, device), cases.make_choice(4, device)
    shared = cases.make_x(4, device)
    got = run(x, ids, w, pack(at, "w4a16"), "w4a16", shared=shared)
    assert_close(got, cases.expected(x, ids, w, at, "w4a16") + shared.float(), "w4a16")


def test_a_wide_layer_and_extreme_scales(device: torch.device) -> None:
    """E8M0 bytes over the range in which bf16 holds value and scale in one number; a hidden size of three groups."""
    at = cases.make_checkpoint(device, 3, 384, 256)
    at.w1_scale[:, ::2], at.w2_scale[:, 1::2] = 64, 150
    x, (ids, w) = cases.make_x(5, device, 384), cases.make_choice(5, device, 3, 2)
    for activations in KINDS:
        got = run(x, ids, w, pack(at, activations), activations)
        assert_close(got, cases.expected(x, ids, w, at, activations), activations)


def test_arguments_outside_the_contract_are_refused(device: torch.device) -> None:
    packed = pack(cases.make_checkpoint(device), "w4a8")
    x, (ids, w) = cases.make_x(2, device), cases.make_choice(2, device)
    with pytest.raises(Violation, match="x is"):
        run(x.float(), ids, w, packed, "w4a8")
    with pytest.raises(Violation, match="needs weights for bf16"):
        run(x, ids, w, packed, "w4a4")
    with pytest.raises(Violation, match="ids are"):
        run(x, ids.long(), w, packed, "w4a8")
    with pytest.raises(Violation, match="weights are float32"):
        run(x, ids, w[:, :1], packed, "w4a8")
    with pytest.raises(Violation, match="multiples of 128"):
        weights.empty_experts(2, 192, 128, "fp8", device)


@pytest.mark.parametrize("activations", KINDS)
def test_every_size_has_tiles_that_fit_together(activations: str) -> None:
    for pairs in (1, 6, 12, 24, 48, 384, 2048, 2049, 12288, 12289, 10**6):
        up, down = configs.tiles_of(activations, pairs, 256)
        assert up.pairs == down.pairs
        assert up.rows in {64, 128, 256}
        assert down.rows in {64, 128, 256}
