"""Routed experts of CUDA C++ on a Hopper GPU, against the reference; test_emulated.py has them on a CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.moe import cases
from tests.kernels.moe.closeness import assert_close

pytest.importorskip("triton")
from tests.kernels.moe.emulated import pack

from dsv4.kernels.moe import hopper
from dsv4.kernels.moe.experts import Chosen

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
HIDDEN, WIDTH = 512, 256


@functools.cache
def checkpoint(device: torch.device) -> cases.Checkpoint:
    return cases.make_checkpoint(device, hidden=HIDDEN, width=WIDTH)


@functools.cache
def layer(device: torch.device) -> hopper.FoldedExperts:
    return hopper.folded(pack(checkpoint(device)))


@pytest.mark.parametrize("T", [0, 1, 2, 27, 90, 300, 1500])
def test_experts_are_those_of_the_reference(T: int, device: torch.device) -> None:
    """Tiles of each width, and more of them than blocks of threads; the same bits again behind its own launches."""
    x, chosen = cases.make_x(T, device, HIDDEN), Chosen(*cases.make_choice(T, device))
    got = hopper.experts(x, chosen, layer(device), limit=cases.LIMIT)
    for _ in range(10):
        assert_bits(hopper.experts(x, chosen, layer(device), limit=cases.LIMIT), got)
    if T:
        assert_close(got, cases.expected(x, *chosen, checkpoint(device), "w4a8"), "w4a8 of 128 channels")


def test_a_token_has_the_same_bits_alone_and_beside_nan(device: torch.device) -> None:
    x, (ids, w) = cases.make_x(400, device, HIDDEN), cases.make_choice(400, device, num_experts=3, top=2)
    x[2, 7], x[17, 200], w[4, 0] = torch.nan, torch.inf, torch.nan
    among = hopper.experts(x, Chosen(ids, w), layer(device), limit=cases.LIMIT)
    assert bool(among[[2, 4, 17]].isnan().any(-1).all())
    for t in (0, 3, 200, 399):
        one = Chosen(ids[t : t + 1].contiguous(), w[t : t + 1].contiguous())
        alone = hopper.experts(x[t : t + 1].contiguous(), one, layer(device), limit=cases.LIMIT)
        assert_bits(among[t : t + 1], alone)


def test_an_id_that_is_no_expert_adds_nothing(device: torch.device) -> None:
    x, (ids, w) = cases.make_x(6, device, HIDDEN), cases.make_choice(6, device)
    ids[1] = -1
    assert bool((hopper.experts(x, Chosen(ids, w), layer(device), limit=cases.LIMIT)[1] == 0).all())
