"""The CUDA kernel of FP8 products, run by the emulator: no GPU is involved, and every address is checked."""

from __future__ import annotations

import ctypes

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.linear.emulated import expected, rows_of, run, weight_of

from dsv4.kernels.linear.hopper import SOURCE, Cut, cut_of, cuts
from dsv4.kernels.linear.quantise import Fp8Rows
from dsv4.kernels.linear.tuning import num_splits

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

WHOLE = [Cut(64, "whole", 1, 3), Cut(128, "whole", 1, 2), Cut(128, "whole", 2, 2)]


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return library(SOURCE)


def split(rows: int, splits: int, tiles: int) -> Cut:
    return Cut(rows, "split", splits, tiles * splits)


@pytest.mark.parametrize("cut", WHOLE)
@pytest.mark.parametrize(("T", "N", "K", "splits"), [(1, 256, 128, 1), (70, 256, 1152, 1), (300, 512, 1024, 2)])
def test_a_block_does_all_segments_of_a_tile(
    kernels: ctypes.CDLL, cut: Cut, T: int, N: int, K: int, splits: int
) -> None:
    """More tiles than blocks, fewer stages than the ring has and more, rows that do not fill a tile."""
    x, w = rows_of(T, K), weight_of(N, K)
    want = expected(x, w, splits)
    assert_bits(run(kernels, x, w, splits, cut), want)
    assert_bits(run(kernels, x, w, splits, cut, torch.bfloat16), want.bfloat16())


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize(("T", "N", "K", "splits"), [(20, 256, 1024, 2), (130, 128, 2560, 4), (64, 128, 4096, 8)])
def test_a_cluster_shares_the_segments_of_a_tile(
    kernels: ctypes.CDLL, rows: int, T: int, N: int, K: int, splits: int
) -> None:
    x, w = rows_of(T, K), weight_of(N, K)
    want, cut = expected(x, w, splits), split(rows, splits, -(-T // rows) * N // 128)
    assert_bits(run(kernels, x, w, splits, cut), want)
    assert_bits(run(kernels, x, w, splits, cut, torch.bfloat16), want.bfloat16())


def test_bits_depend_on_nothing_but_the_row(kernels: ctypes.CDLL) -> None:
    """Neither on the cut, nor on the rows beside it, nor on who runs first."""
    T, N, K, splits = 200, 256, 1024, 2
    x, w = rows_of(T, K), weight_of(N, K)
    want = expected(x, w, splits)
    every = [*WHOLE, split(64, splits, 8), split(128, splits, 4)]
    for seed in range(1, 11):
        cut = every[seed % len(every)]
        assert_bits(run(kernels, x, w, splits, cut, seed=seed, eager=seed % 3 == 0), want)
    alone = Fp8Rows(x.values[150:167].contiguous(), x.sf[:, 150:167].contiguous())
    for cut in (Cut(64, "whole", 1, 1), split(64, splits, 2)):
        assert_bits(run(kernels, alone, w, splits, cut), want[150:167])


@pytest.mark.parametrize("cut", [*WHOLE, split(64, 2, 4), split(128, 2, 2)])
def test_a_nan_stays_in_its_row(kernels: ctypes.CDLL, cut: Cut) -> None:
    x, w = rows_of(70, 1024), weight_of(256, 1024)
    fine = run(kernels, x, w, 2, cut)
    x.sf.view(torch.uint8)[1, 4 * 3 + 2] = 255  # of row 3, group 6
    x.values.view(torch.uint8)[65, 700] = 127
    got = run(kernels, x, w, 2, cut)
    assert got[[3, 65]].isnan().all()
    others = [t for t in range(70) if t not in (3, 65)]
    assert_bits(got[others], fine[others])


@pytest.mark.parametrize("byte", [0, 1, 254, 255])
def test_scales_at_the_ends_of_their_range(kernels: ctypes.CDLL, byte: int) -> None:
    """2^-127 is subnormal, 2^127 overflows most sums; 255 is NaN."""
    x, w = rows_of(3, 256), weight_of(128, 256)
    w.sf.view(torch.uint8)[0, 1] = byte
    got, want = run(kernels, x, w, 1, Cut(64, "whole", 1, 1)), expected(x, w, 1)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


SHAPES = [
    (1536, 4096),
    (32768, 1024),
    (8192, 1024),
    (4096, 8192),
    (4096, 4096),
    (4096, 2048),
    (128, 128),
    (7168, 16384),
]


@pytest.mark.parametrize(("N", "K"), SHAPES)
@pytest.mark.parametrize("num_sms", [132, 114])
def test_a_cut_covers_the_product_and_fits_the_device(N: int, K: int, num_sms: int) -> None:
    splits = num_splits(N, K, 1)
    for T in (17, 64, 65, 128, 256, 300, 1024, 8192):
        found = cuts(T, N, splits, num_sms)
        assert cut_of(T, N, K, splits, num_sms) in found
        for cut in found:
            assert cut.blocks % cut.cluster == 0
            tiles = -(-T // cut.rows) * N // 128
            if cut.kind == "split":
                assert (cut.blocks, cut.cluster) == (tiles * splits, splits)
                assert splits in (2, 4, 8), "a cluster has eight blocks at most, and each an equal share of a tile"
            else:
                assert 0 < cut.blocks <= min(tiles, num_sms)
                assert cut.cluster == 1 or N % 256 == 0


def test_few_tiles_are_split_and_many_are_not() -> None:
    assert cut_of(64, 4096, 4096, 4, 132).kind == "split"
    assert cut_of(8192, 4096, 4096, 4, 132).kind == "whole"
    assert cut_of(64, 32768, 1024, 1, 132).kind == "whole"
