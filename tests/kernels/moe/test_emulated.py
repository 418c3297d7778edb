"""The experts' CUDA kernel, run by the emulator: no GPU is involved, and every address is checked."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.moe import cases
from tests.kernels.moe.closeness import assert_close
from torch import Tensor

pytest.importorskip("triton")
from tests.kernels.moe.emulated import emulated_experts, in_places, pack, placed, products, ragged, run, there

from dsv4.kernels.moe import hopper, reference
from dsv4.kernels.moe.experts import Chosen
from dsv4.kernels.moe.fold import fold
from dsv4.kernels.moe.permute import Blocks, permute
from dsv4.kernels.moe.place import PAIRS, place
from dsv4.kernels.moe.quantise import to_fp8

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning"),  # numpy, about NaN and infinity
]
CPU = torch.device("cpu")
RAGGED = [[0, 1, 127, 64, 65], [128, 0, 0, 129, 3], [16, 17, 32, 33, 15]]
HIDDEN, WIDTH = 512, 256
LIMIT = 100.0  # of values like those of `placed`


class Layer(NamedTuple):
    at: cases.Checkpoint
    weights: hopper.FoldedExperts

    def dense(self, name: str) -> Tensor:
        """float32 [E, N, K]."""
        return torch.stack([self.at.dense(e, name) for e in range(len(self.at.w1))])


def layer(hidden: int = HIDDEN, width: int = WIDTH) -> Layer:
    at = cases.make_checkpoint(CPU, hidden=hidden, width=width)
    return Layer(at, hopper.folded(pack(at)))


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return library(hopper.SOURCE)


def empty_rows(blocks: Blocks) -> Tensor:
    """Rows [pairs, C] that nobody has written."""
    return torch.full((int(there(blocks).sum()), HIDDEN), torch.nan, dtype=torch.bfloat16)


@pytest.mark.parametrize("counts", RAGGED)
@pytest.mark.parametrize("width", [128, 384, 1280])
def test_down_has_the_bits_of_its_arithmetic(kernels: ctypes.CDLL, counts: list[int], width: int) -> None:
    """One step and more, fewer stages than the ring has and more; NaN wherever there is no pair."""
    at, blocks = cases.make_checkpoint(CPU, hidden=HIDDEN, width=width), ragged(counts)
    weight, rows, live = fold(pack(at).w2, gated=False), placed(blocks, width), there(blocks)
    want = products(rows, torch.stack([at.dense(e, "w2") for e in range(cases.E)]), blocks)[live].bfloat16()
    for grid, eager in ((2, False), (6, True)):
        out = run(kernels, rows, weight, blocks, empty_rows(blocks), grid=grid, eager=eager)
        assert_bits(out[blocks.order[live].long()], want)


@pytest.mark.parametrize("counts", RAGGED)
@pytest.mark.parametrize("hidden", [512, 1536])
def test_up_is_swiglu_of_its_arithmetic(kernels: ctypes.CDLL, counts: list[int], hidden: int) -> None:
    made, blocks = layer(hidden), ragged(counts)
    live, weights = there(blocks), torch.rand(len(blocks.order)) + 0.5
    rows = placed(blocks, hidden, weights)
    out = torch.full((len(blocks.order), WIDTH), torch.nan, dtype=torch.bfloat16)
    run(kernels, rows, made.weights.w13, blocks, out, LIMIT)
    both = torch.cat([products(rows, made.dense(name), blocks)[live].bfloat16().float() for name in ("w1", "w3")], 1)
    want = reference.swiglu(both, LIMIT, weights[live])
    assert bool((both.abs() > LIMIT).any())
    assert bool((both.abs() < LIMIT).any())
    assert torch.allclose(out[live].float(), want, rtol=2**-8, atol=1e-30)
    assert bool(out[-PAIRS:].isnan().all()), "a block that is not there was written"


def test_bits_depend_on_nothing_but_the_pair(kernels: ctypes.CDLL) -> None:
    """Neither on the pairs beside it and the width of their tile, nor on who runs first, nor on the grid."""
    made, blocks = layer(width=1280), ragged([40, 0, 1, 100, 0])
    rows = placed(blocks, 1280)
    want = run(kernels, rows, made.weights.w2, blocks, empty_rows(blocks))
    for seed in range(1, 7):
        how = {"grid": 2 * (seed % 3 + 1), "eager": seed % 2}
        got = run(kernels, rows, made.weights.w2, blocks, empty_rows(blocks), seed=seed, **how)  # type: ignore[arg-type]
        assert_bits(got, want)
    narrow = ragged([0, 0, 0, 60, 0])
    alone = placed(narrow, 1280)
    wide = slice(2 * PAIRS, 2 * PAIRS + 60)  # the fourth expert's first 60 of 100 pairs
    alone.values[:60] = rows.values[wide]
    scales = in_places(alone.scales, back=True)
    scales[:, :60] = in_places(rows.scales, back=True)[:, wide]
    got = run(kernels, alone._replace(scales=in_places(scales)), made.weights.w2, narrow, empty_rows(narrow))
    assert_bits(got[narrow.order[:60].long()], want[blocks.order[wide].long()])


@pytest.mark.parametrize(("T", "num_experts", "top"), [(1, 5, 3), (30, 5, 3), (140, 1, 1)])
def test_experts_are_those_of_the_reference(kernels: ctypes.CDLL, T: int, num_experts: int, top: int) -> None:
    at, weights = layer()
    x, (ids, w) = cases.make_x(T, CPU, HIDDEN), cases.make_choice(T, CPU, num_experts, top)
    got = emulated_experts(kernels, x, Chosen(ids, w), weights)
    assert_close(got, cases.expected(x, ids, w, at, "w4a8"), "w4a8")


def test_a_token_has_the_same_bits_alone_and_beside_nan(kernels: ctypes.CDLL) -> None:
    weights = layer().weights
    x, (ids, w) = cases.make_x(70, CPU, HIDDEN), cases.make_choice(70, CPU, num_experts=2, top=2)
    alone = emulated_experts(kernels, x[3:4].contiguous(), Chosen(ids[3:4].contiguous(), w[3:4].contiguous()), weights)
    x[2, 7], x[17, 200], w[4, 0] = torch.nan, torch.inf, torch.nan
    among = emulated_experts(kernels, x, Chosen(ids, w), weights)
    assert_bits(among[3:4], alone)
    assert bool(among[[2, 4, 17]].isnan().any(-1).all())
    others = [t for t in range(70) if t not in {2, 4, 17}]
    assert bool(among[others].isfinite().all())


def test_an_id_that_is_no_expert_adds_nothing(kernels: ctypes.CDLL) -> None:
    weights = layer().weights
    x, (ids, w) = cases.make_x(6, CPU, HIDDEN), cases.make_choice(6, CPU)
    ids[1] = -1
    assert bool((emulated_experts(kernels, x, Chosen(ids, w), weights)[1] == 0).all())


def test_rows_are_placed_as_they_are_quantised() -> None:
    """With the codes and scales of `to_fp8`, and the weight of each pair; untouched where there is none."""
    x, (ids, w) = cases.make_x(20, CPU), cases.make_choice(20, CPU)
    ids[3, 1], ids[7] = -1, cases.E
    blocks = permute(ids, cases.E, PAIRS, places=True)
    live, found = there(blocks), to_fp8(x)
    pairs = blocks.order[live].long()
    assert len(pairs) == 20 * cases.K - 1 - cases.K
    up = place(x, blocks, weights=w)
    assert torch.equal(up.values[live], found.values.view(torch.uint8)[pairs // cases.K])
    exponents = found.exponents[pairs // cases.K].float() - 127
    assert torch.equal(in_places(up.scales, back=True)[:, live].float(), exponents.exp2().t())
    assert up.weights is not None
    assert torch.equal(up.weights[live], w.flatten()[pairs])
    y = torch.randn(len(blocks.order), WIDTH).bfloat16()
    down = place(y, blocks)
    found = to_fp8(y[live])
    assert torch.equal(down.values[live], found.values.view(torch.uint8))
    assert torch.equal(in_places(down.scales, back=True)[:, live].float(), (found.exponents.float() - 127).exp2().t())
