"""The CUDA kernel of index scores, run by the emulator: no GPU is involved, and every address is checked."""

from __future__ import annotations

import ctypes

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.cuda.emulate import compiler, library

pytest.importorskip("triton")
from tests.kernels.index.cases import TOLERANCE, UNTOUCHED, Case, far_apart
from tests.kernels.index.emulated import run

from dsv4.kernels.index import hopper

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning"),  # numpy, about NaN
]


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return library(hopper.SOURCE)


def test_scores_of_visible_keys_and_nothing_else(kernels: ctypes.CDLL) -> None:
    """None, too few to be scored, one page and its edges, several blocks; poison wherever there is no key."""
    case = Case([3, 66, 67, 68, 255, 259, 300, 801], "fp4")
    scores = run(kernels, case)
    for t, position in enumerate(case.positions):
        count = (position + 1) // 4 if (position + 1) // 4 > 16 else 0
        if count:
            want = case.expected(t).double()
            error = float((scores[t, :count].double() - want).norm() / want.norm())
            assert error < TOLERANCE, f"token {t}: relative error {error}"
        assert (scores[t, count:] == UNTOUCHED).all()


def test_bits_depend_on_nothing_but_the_token_and_the_key(kernels: ctypes.CDLL) -> None:
    """Neither on how the work is cut nor on who runs first nor on the other tokens."""
    case = Case([400, 801], "fp4")
    want = run(kernels, case)
    for seed, tiles in enumerate((1, 3, 4), 1):
        assert_bits(run(kernels, case, tiles=tiles, seed=seed, eager=bool(seed % 2)), want)
    case.positions[0] = 3
    assert_bits(run(kernels, case)[1], want[1])


def test_a_query_that_is_nan_spoils_its_own_token_only(kernels: ctypes.CDLL) -> None:
    case = Case([400, 300], "fp4")
    clean = run(kernels, case)
    case.q.view(torch.uint8)[0, 9, 77] = 0x7F
    scores = run(kernels, case)
    assert bool(scores[0, :100].isnan().all())
    assert torch.equal(scores[1], clean[1])


def test_fp4_scales_up_to_2_to_the_11_apart_are_exact(kernels: ctypes.CDLL) -> None:
    case, want = far_apart()
    error = (run(kernels, case)[0, :65].double() - want).norm() / want.norm()
    assert error < 1e-6, "float32 products of exact values"


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 500])
def test_blocks_have_equal_work_and_cover_all_keys(num_tokens: int) -> None:
    for keys in (1, 64, 65, 2048, 16_384, 262_144):
        pages = -(-keys // 64)
        cut = hopper.cut_of(num_tokens, keys, 132)
        assert 1 <= cut.tiles <= hopper.MOST_TILES
        assert 0 <= cut.blocks * cut.tiles - pages < cut.blocks
