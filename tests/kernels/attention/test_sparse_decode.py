# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from tests.kernels.attention.paged import LAYOUTS, Kind, Tokens, page_bytes, tokens
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.attention import plan, unpack
from dsv4.kernels.attention import sparse_decode as kernel
from dsv4.kernels.attention.split import Split, scratch_of, split_of
from dsv4.kernels.cache.reference import gather, store
from dsv4.kernels.cuda.choice import CUDA, TRITON, Choice

TOLERANCE = 4e-3  # bf16 weights and a bf16 result, rounded in another order than the reference's
WHOLE = Split(64, 1)
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.fixture(params=[TRITON, CUDA] if HOPPER else [TRITON], autouse=True)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test holds for both kernels; the CUDA one has more in test_emulated.py."""
    name = str(request.param)
    monkeypatch.setattr(kernel, "choice", lambda _: Choice(name, "a test asks for it"))
    return name


def rows_of(x: Tokens, device: torch.device) -> kernel.SelectedRows | kernel.VisibleRows | None:
    if x.extra_pool is None or x.table is None:
        return None
    pool, table = x.extra_pool.to(device), x.table.to(device)
    if x.page == 64:
        return kernel.SelectedRows(pool, table)
    return kernel.VisibleRows(pool, table, torch.arange(len(x.positions), dtype=torch.int32, device=device))


def run(x: Tokens, device: torch.device, split: Split = WHOLE, *, num_rows: int = 4096) -> Tensor:
    rows = rows_of(x, device)
    T, H, _ = x.q.shape
    scratch = scratch_of(split, T, H, kernel.units_of(rows, num_rows), device)
    positions = torch.tensor(x.positions, dtype=torch.int32, device=device)
    window, slots = x.window_pool.to(device), x.window_slots.to(device)
    out = kernel.sparse_decode(x.q.to(device), x.sink.to(device), window, slots, positions, rows, split, scratch)
    assert not scratch.arrivals.any(), "a launch leaves its counters at zero"
    return out.cpu()


def assert_near(out: Tensor, want: Tensor) -> None:
    assert out.dtype is torch.bfloat16
    for t in range(len(want)):
        error = float((out[t].double() - want[t].double()).norm() / want[t].double().norm())
        assert error < TOLERANCE, f"token {t}: relative error {error}"  # NaN fails, too


@pytest.mark.parametrize(
    ("kind", "positions"),
    [
        ("window", [0, 63, 126, 127, 128, 1000]),
        ("c4", [2, 3, 300, 515]),
        ("c128", [126, 127, 16_600]),
    ],
)
def test_a_token_attends_to_its_window_and_its_compressed_rows(
    kind: Kind, positions: list[int], device: torch.device
) -> None:
    x = tokens(positions, kind)
    assert_near(run(x, device), x.expected())


def test_more_selected_rows_than_a_token_can_have_are_cut_at_k(device: torch.device) -> None:
    x = tokens([3_000], "c4", k=128)
    assert_near(run(x, device), x.expected())


def test_pro_has_128_heads(device: torch.device) -> None:
    x = tokens([70], "c4", heads=128)
    assert_near(run(x, device), x.expected())


def test_no_tokens(device: torch.device) -> None:
    x = tokens([5], "window")
    empty = torch.empty(0, 128, dtype=torch.int32, device=device)
    scratch = scratch_of(WHOLE, 0, 64, 2, device)
    q, pool = x.q[:0].to(device), x.window_pool.to(device)
    out = kernel.sparse_decode(q, x.sink.to(device), pool, empty, empty[:, 0], None, WHOLE, scratch)
    assert out.shape == (0, 64, 512)


@pytest.mark.parametrize("split", [Split(16, 4), Split(64, 2), Split(32, 3)])
def test_bits_depend_neither_on_the_split_nor_on_the_batch(split: Split, device: torch.device) -> None:
    x = tokens([40, 600], "c4")
    together = run(x, device)
    assert torch.equal(run(x, device, split).view(torch.int16), together.view(torch.int16))
    assert x.table is not None
    second = Tokens(
        x.positions[1:], x.q[1:], x.sink, x.window_pool, x.window[1:], x.extra_pool, x.extra[1:], x.table[1:], x.page
    )
    assert torch.equal(run(second, device)[0].view(torch.int16), together[1].view(torch.int16))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
def test_nan_in_one_token_changes_no_other(device: torch.device) -> None:
    x = tokens([100, 101, 102], "window")
    clean = run(x, device)
    x.q[1, 7, 3] = torch.nan
    row = gather(x.window_pool, x.window[2][:1], LAYOUTS[64])
    row[0, 500] = torch.nan  # a rotary channel: bf16 holds it
    store(x.window_pool, x.window[2][:1], row, LAYOUTS[64])
    out = run(x, device)
    assert torch.equal(out[0], clean[0])
    assert out[1, 7].isnan().all()
    heads = torch.arange(64) != 7
    assert torch.equal(out[1, heads], clean[1, heads])
    assert out[2].isnan().any(1).all()


@pytest.mark.parametrize("sink", [-1e30, 80.0])
def test_a_sink_takes_weight_and_gives_no_value(sink: float, device: torch.device) -> None:
    x = tokens([9], "window")
    x.sink.fill_(sink)
    assert_near(run(x, device), x.expected())


def test_the_split_fills_the_device_and_only_while_it_must() -> None:
    assert split_of(256, 64, 5, 132) == Split(64, 1)
    assert split_of(1, 64, 5, 132) == Split(4, 5)
    assert split_of(1, 64, 1, 132) == Split(64, 1)
    for T in range(1, 600):
        for H in (64, 128):
            for units in (1, 2, 5, 65):
                split = split_of(T, H, units, 132)
                assert 64 % split.heads == 0
                assert 1 <= split.splits <= units
                assert split.splits == 1 or T * (H // split.heads) * split.splits <= 132


def test_what_is_outside_the_contract_is_refused(device: torch.device, served: str) -> None:
    x = tokens([5], "window", heads=32)
    with pytest.raises(Violation, match="q is"):
        run(x, device)
    x = tokens([5], "window")
    x.window_pool = torch.zeros(4, page_bytes(64) + 64, dtype=torch.uint8)
    with pytest.raises(Violation, match="pool"):
        run(x, device)
    if served == CUDA:
        return  # it takes no scratch
    with pytest.raises(Violation, match="scratch for 1 of 5 units"):
        run(tokens([5], "c4"), device, Split(64, 2), num_rows=0)


def test_window_slots_follow_the_block_table(device: torch.device) -> None:
    positions = torch.tensor([0, 63, 64, 200, 1000], dtype=torch.int32, device=device)
    rows = torch.tensor([0, 0, 1, 1, 2], dtype=torch.int32, device=device)
    first = torch.tensor([0, 0, 13], dtype=torch.int32, device=device)
    table = torch.randint(1, 10**6, (3, 4), dtype=torch.int32).to(device)
    got = plan.window_slots(positions, rows, table, first)
    want = torch.full((5, 128), -1, dtype=torch.int32)
    for t in range(5):
        for j in range(128):
            position = int(positions[t]) - 127 + j
            if position >= 0:
                b = int(rows[t])
                want[t, j] = int(table[b, position // 64 - int(first[b])]) * 64 + position % 64
    assert torch.equal(got.cpu(), want)
    assert plan.window_slots(positions[:0], rows[:0], table, first).shape == (0, 128)


@triton.jit
def _unpack(words, scales, out, PTX: tl.constexpr):  # noqa: ANN001, ANN202
    at = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    packed = tl.broadcast_to(unpack.packed_scales(tl.load(scales + tl.arange(0, 64)))[:, None], (64, 16))
    x = unpack.bf16_of_e4m3(tl.load(words + tl.arange(0, 64)[:, None] * 16 + tl.arange(0, 16)[None, :]), packed, PTX)
    tl.store(out + at, x.to(tl.float32))


def test_every_code_at_every_scale_is_exact(device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(4, 64)
    codes[(codes & 127) == 127] = 0  # NaN: never stored
    for first in (0, 64, 71):  # E8M0 bytes first..first + 63; 134 is the largest that a store may write
        scales = torch.arange(first, first + 64, dtype=torch.int32)
        for part in codes:
            words = part.expand(64, 64).contiguous().view(torch.int32).to(device)
            out = torch.empty(64, 64, device=device)
            _unpack[(1,)](words, scales.to(device), out, device.type == "cuda")
            value = part.view(torch.float8_e4m3fn).float() * (scales.double() - 127).exp2().float().unsqueeze(1)
            tiny = value.abs() < 2.0**-126  # below the normal numbers both float32 and bf16 may lose bits
            assert torch.equal(out.cpu()[~tiny], value[~tiny])
