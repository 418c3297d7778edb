"""The CUDA kernel of FP8 products, run by the emulator: no GPU is involved, and every address is checked."""

from __future__ import annotations

import ctypes

import pytest
import torch
from tests.kernels.closeness import assert_bits
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.linear.emulated import expected, rows_of, run, weight_of

from dsv4.kernels.linear.hopper import SOURCE, Cut, Shape, cut_by, cut_of, tiles
from dsv4.kernels.linear.quantise import Fp8Rows

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

CUTS = [Cut(Shape(64, 64), 3), Cut(Shape(64, 128), 3), Cut(Shape(128, 128), 2)]


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return library(SOURCE)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("T", "N", "K", "splits"), [(1, 256, 128, 1), (70, 256, 1152, 1), (100, 256, 2816, 2), (300, 512, 1024, 2)]
)
def test_a_block_does_tile_after_tile(kernels: ctypes.CDLL, cut: Cut, T: int, N: int, K: int, splits: int) -> None:
    """More tiles than blocks, fewer stages than the ring has and more, batches that segments and tiles end inside, rows
    that do not fill a tile.
    """
    x, w = rows_of(T, K), weight_of(N, K)
    assert_bits(run(kernels, x, w, splits, cut), expected(x, w, splits))


def test_the_order_of_sums_is_seen(kernels: ctypes.CDLL) -> None:
    """With these inputs: one segment and two have other bits."""
    x, w = rows_of(100, 2048), weight_of(128, 2048)
    got = run(kernels, x, w, 1, CUTS[0])
    assert (got != expected(x, w, 2)).float().mean() > 0.5


def test_bits_depend_on_nothing_but_the_row(kernels: ctypes.CDLL) -> None:
    """Neither on the cut, nor on the rows beside it, nor on who runs first."""
    T, N, K, splits = 200, 256, 1024, 2
    x, w = rows_of(T, K), weight_of(N, K)
    want = expected(x, w, splits)
    for seed in range(1, 11):
        assert_bits(run(kernels, x, w, splits, CUTS[seed % 3], seed=seed, eager=seed % 2 == 0), want)
    alone = Fp8Rows(x.values[150:167].contiguous(), x.sf[:, 150:167].contiguous())
    for cut in CUTS:
        assert_bits(run(kernels, alone, w, splits, cut_by(cut.shape, 17, N, 1)), want[150:167])


@pytest.mark.parametrize("cut", CUTS)
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
    got, want = run(kernels, x, w, 1, CUTS[0]), expected(x, w, 1)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


PRODUCTS = [
    (1536, 4096),
    (32768, 1024),
    (8192, 1024),
    (4096, 8192),
    (4096, 4096),
    (4096, 2048),
    (128, 128),
    (7168, 16384),
]


@pytest.mark.parametrize(("N", "K"), PRODUCTS)
@pytest.mark.parametrize("num_sms", [132, 114])
def test_a_cut_covers_the_product_and_fits_the_device(N: int, K: int, num_sms: int) -> None:
    for T in (17, 64, 65, 128, 256, 300, 1024, 8192):
        shape, blocks = cut_of(T, N, K, num_sms)
        assert N % shape.columns == 0
        assert 0 < blocks <= min(tiles(shape, T, N), num_sms)


def test_few_rows_have_small_tiles_and_many_have_large_ones() -> None:
    assert cut_of(64, 1536, 4096, 132) == (Shape(64, 64), 24)
    assert cut_of(256, 4096, 4096, 132) == (Shape(64, 128), 128)
    assert cut_of(8192, 4096, 4096, 132) == (Shape(128, 128), 132)
