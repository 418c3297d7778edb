"""The CUDA kernel of sparse decode, run by the emulator: no GPU is involved, and every address is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.kernels.attention.emulated import Pair, built, run
from tests.kernels.attention.paged import LAYOUTS, Kind, Tokens, page_bytes, tokens
from tests.kernels.attention.test_sparse_decode import assert_near
from tests.kernels.cuda.emulate import compiler
from torch import Tensor

from dsv4.kernels.attention.hopper import cut_of
from dsv4.kernels.cache.reference import gather, store

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")
EACH = [1, 2]


@pytest.fixture(scope="module")
def kernels() -> Pair:
    return built()


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("each", EACH)
@pytest.mark.parametrize(
    ("kind", "positions"),
    [
        ("window", [0]),
        ("window", [0, 62, 63, 64, 126, 127, 128, 1000]),
        ("c4", [2, 3, 254, 255, 300, 2047, 3000]),
        ("c128", [126, 127, 255, 16_600]),
    ],
)
def test_a_token_attends_to_its_window_and_its_compressed_rows(
    kernels: Pair, kind: Kind, positions: list[int], each: int
) -> None:
    x = tokens(positions, kind)
    assert_near(run(kernels, x, each, teams=3), x.expected())


@pytest.mark.parametrize("each", EACH)
def test_more_selected_rows_than_a_token_can_have_are_cut_at_k(kernels: Pair, each: int) -> None:
    x = tokens([3_000, 200], "c4", k=100)
    assert_near(run(kernels, x, each), x.expected())


@pytest.mark.parametrize("each", EACH)
def test_pro_has_128_heads(kernels: Pair, each: int) -> None:
    x = tokens([70, 300], "c4", heads=128)
    assert_near(run(kernels, x, each, teams=2), x.expected())


def test_bits_depend_on_nothing_but_the_token(kernels: Pair) -> None:
    """Neither on blocks per token, nor on how many teams share the tokens, nor on the batch, nor on who runs first."""
    x = tokens([40, 600, 900], "c4")
    assert x.table is not None
    want = run(kernels, x)
    for seed in range(1, 7):
        for each in EACH:
            assert same(run(kernels, x, each, teams=1 + seed % 3, seed=seed, eager=seed % 2 == 1), want)
    alone = replace(
        x, positions=x.positions[1:2], q=x.q[1:2], window=x.window[1:2], extra=x.extra[1:2], table=x.table[1:2]
    )
    assert same(run(kernels, alone, 2)[0], want[1])


@pytest.mark.parametrize("each", EACH)
def test_nan_in_one_token_changes_no_other(kernels: Pair, each: int) -> None:
    x = tokens([100, 101, 102, 103], "window")
    clean = run(kernels, x, each)
    x.q[1, 7, 3] = torch.nan
    for token, channel in ((2, 500), (3, 5)):  # a rotary channel, and one whose scale byte says NaN
        row = gather(x.window_pool, x.window[token][:1], LAYOUTS[64])
        row[0, channel] = torch.nan
        store(x.window_pool, x.window[token][:1], row, LAYOUTS[64])
    out = run(kernels, x, each)
    assert same(out[0], clean[0])
    assert out[1, 7].isnan().all()
    heads = torch.arange(64) != 7
    assert same(out[1, heads], clean[1, heads])
    assert out[2].isnan().any(1).all()
    assert out[3].isnan().any(1).all()


@pytest.mark.parametrize("each", EACH)
@pytest.mark.parametrize("sink", [-1e30, 80.0])
def test_a_sink_takes_weight_and_gives_no_value(kernels: Pair, sink: float, each: int) -> None:
    x = tokens([9], "window")
    x.sink.fill_(sink)
    assert_near(run(kernels, x, each), x.expected())


@pytest.mark.parametrize("kind", ["window", "c4", "c128"])
@pytest.mark.parametrize("each", EACH)
def test_an_idle_row_reads_nothing_and_gets_zeros(kernels: Pair, kind: Kind, each: int) -> None:
    x = tokens([300, 300, 200, 200], kind)
    clean = run(kernels, x, each)
    out = run(kernels, replace(x, positions=[-1, 300, -1, -1]), each)
    assert not out[[0, 2, 3]].any()
    assert same(out[1], clean[1])


@pytest.mark.parametrize("each", EACH)
def test_weights_that_grow_from_unit_to_unit(kernels: Pair, each: int) -> None:
    """Every unit has a larger maximum than all before it, by far: what was summed so far is scaled away."""
    x = tokens([700], "c4")
    rows = gather(x.window_pool, x.window[0], LAYOUTS[64])
    store(x.window_pool, x.window[0], rows * torch.linspace(1, 8, len(rows)).unsqueeze(1), LAYOUTS[64])
    x.q *= 4
    assert_near(run(kernels, x, each), x.expected())


@pytest.mark.parametrize("each", EACH)
def test_the_largest_slot_of_a_pool_beyond_four_gib(kernels: Pair, each: int) -> None:
    """Addresses are 64 bits wide; of the pool, only the pages in use are touched."""
    x = tokens([300], "c4", k=64)
    try:
        pool = torch.empty(125_000, page_bytes(64), dtype=torch.uint8)
    except RuntimeError:
        pytest.skip("no 4.7 GB of address space")
    last = pool.shape[0] * 64 - 1 - torch.arange(64)
    store(pool, last, torch.randn(64, 512), LAYOUTS[64])
    far = replace(x, extra_pool=pool, extra=[last], table=last.int().unsqueeze(0))
    assert_near(run(kernels, far, each), far.expected())


def test_blocks_never_outnumber_the_multiprocessors() -> None:
    assert cut_of(1, 64, 132).blocks_per_token == 2
    assert cut_of(66, 64, 132).blocks == 132
    assert cut_of(67, 64, 132).blocks_per_token == 1
    for T in range(1, 400):
        for heads in (64, 128):
            cut = cut_of(T, heads, 132)
            assert 0 < cut.blocks <= 132
            assert cut.blocks % cut.blocks_per_token == 0


@pytest.mark.parametrize("each", EACH)
def test_rows_that_no_token_sees_are_never_read(kernels: Pair, each: int) -> None:
    """Slots of rows that do not exist point outside every pool: reading one would end the run."""
    x = tokens([40, 300], "c4")
    assert x.table is not None
    clean = run(kernels, x, each)
    wild = Wild(**{f: getattr(x, f) for f in Tokens.__dataclass_fields__})
    for t in range(2):
        wild.table[t, len(x.extra[t]) :] = 2**31 - 1  # type: ignore[index]
    assert same(run(kernels, wild, each), clean)


class Wild(Tokens):
    """Tokens whose unused window slots are no slots."""

    @property
    def window_slots(self) -> Tensor:
        slots = super().window_slots
        for t, found in enumerate(self.window):
            slots[t, : 128 - len(found)] = -(2**31)
        return slots
