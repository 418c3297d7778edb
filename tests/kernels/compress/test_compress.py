from __future__ import annotations

import pytest
import torch
from tests.kernels.closeness import assert_bits, assert_close
from tests.kernels.compress import steps
from torch import Tensor

from dsv4.kernels.cache import reference as cache
from dsv4.kernels.compress.plan import C4Plan, C128Plan, Requests, plan_c4, plan_c128

c4 = pytest.importorskip("dsv4.kernels.compress.c4")
c128 = pytest.importorskip("dsv4.kernels.compress.c128_online")

POISON = 0xA5
SLOTS = 4  # slot 0 is nobody's
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about -inf and poison


class Bench:
    """Histories of some requests, and the step that adds tokens to each."""

    def __init__(self, widths: tuple[int, ...], slots: list[int], device: torch.device) -> None:
        self.widths, self.device = widths, device
        self.histories = [[steps.History(slot) for slot in slots] for _ in widths]
        self.frequencies = torch.rand(32, device=device)

    def ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def step(
        self, counts: list[int], ratio: int
    ) -> tuple[list[Tensor], Requests, Tensor, Tensor, list[tuple[int, int]]]:
        """New rows [T, 2, width] of each kind, the step's arrays, closing tokens and slots, and who closed where."""
        before = [len(h.rows) for h in self.histories[0]]
        positions = [p for b, n in enumerate(counts) for p in range(before[b], before[b] + n)]
        rows = [b for b, n in enumerate(counts) for _ in range(n)]
        new = [torch.randn(len(rows), 2, width, device=self.device) for width in self.widths]
        for kind, x in enumerate(new):
            for t, b in enumerate(rows):
                self.histories[kind][b].rows.append(x[t])
        starts = self.ints([0, *torch.tensor(counts).cumsum(0).tolist()])
        slots = self.ints([h.slot for h in self.histories[0]])
        resets = self.ints([int(n == 0) for n in before])
        closing = [t for t, p in enumerate(positions) if (p + 1) % ratio == 0]
        closed = [(rows[t], positions[t]) for t in closing]
        entry = [b * 64 + p // ratio for b, p in closed]
        at = Requests(self.ints(positions), self.ints(rows), starts, slots, resets)
        return new, at, self.ints(closing), self.ints(entry), closed


def parameters(shape: tuple[int, int], D: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, device=device), torch.rand(D, device=device) + 0.5


def pool_of(layout: cache.Layout, device: torch.device) -> Tensor:
    return torch.full((256 // layout.page_rows, layout.page_bytes), POISON, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("fp4", [True, False])
def test_c4_rows_are_those_of_the_whole_history_however_it_is_cut(fp4: bool, device: torch.device) -> None:
    bench = Bench((1024, 256), [2, 1], device)
    kv_layout = cache.Layout("fp8_ds_mla", 512, 64, 64)
    index_layout = cache.Layout("fp4" if fp4 else "fp8", 128, 64, 64)
    kv_pool, index_pool = pool_of(kv_layout, device), pool_of(index_layout, device)
    (kv_ape, kv_weight), (index_ape, index_weight) = (
        parameters((4, 1024), 512, device),
        parameters((4, 256), 128, device),
    )
    kv_state = torch.full((SLOTS, 8, 2, 1024), torch.nan, device=device)  # stale rows must never be read
    index_state = torch.full((SLOTS, 8, 2, 256), torch.nan, device=device)
    want = []
    for counts in ([10, 3], [1, 1], [2, 2], [1, 9]):
        new, at, closing, entry, closed = bench.step(counts, 4)
        plan = plan_c4(at, closing, entry, bench.frequencies)
        kv = c4.Compressor(new[0], kv_ape, kv_weight, kv_state, kv_pool)
        index = c4.Compressor(new[1], index_ape, index_weight, index_state, index_pool)
        c4.compress_c4(kv, index, plan, fp4=fp4, max_new_tokens=max(counts))
        want += closed
    slots = torch.tensor([b * 64 + p // 4 for b, p in want], device=device)
    for kind, (pool, layout, ape, weight) in enumerate(
        ((kv_pool, kv_layout, kv_ape, kv_weight), (index_pool, index_layout, index_ape, index_weight))
    ):
        rows = [
            steps.finish(
                steps.c4_entry(bench.histories[kind][b], p, ape), weight, p - 3, bench.frequencies, rotated=kind == 1
            )
            for b, p in want
        ]
        packed = cache.unpack_rows(*cache.pack_rows(torch.cat(rows), layout), layout)
        assert_close(cache.gather(pool, slots, layout), packed, "compressed rows")
        untouched = torch.ones(256, dtype=torch.bool, device=device)
        untouched[slots] = False
        rest = cache._regions(pool, layout)[0].flatten(0, 1)[untouched]
        assert bool((rest == POISON).all())


def test_c4_keeps_the_last_rows_bit_for_bit(device: torch.device) -> None:
    bench = Bench((1024, 256), [3], device)
    new, at, closing, entry, _ = bench.step([6], 4)
    plan = plan_c4(at, closing, entry, bench.frequencies)
    kv_ape, kv_weight = parameters((4, 1024), 512, device)
    index_ape, index_weight = parameters((4, 256), 128, device)
    kv_state, index_state = torch.zeros(SLOTS, 8, 2, 1024, device=device), torch.zeros(SLOTS, 8, 2, 256, device=device)
    kv = c4.Compressor(new[0], kv_ape, kv_weight, kv_state, pool_of(cache.Layout("fp8_ds_mla", 512, 64, 64), device))
    index = c4.Compressor(
        new[1], index_ape, index_weight, index_state, pool_of(cache.Layout("fp4", 128, 64, 64), device)
    )
    c4.compress_c4(kv, index, plan, fp4=True, max_new_tokens=6)
    for x, ape, state in ((new[0], kv_ape, kv_state), (new[1], index_ape, index_state)):
        want = torch.zeros_like(state)
        want[3, :6, 0] = x[:, 0]
        want[3, :6, 1] = x[:, 1] + ape[torch.arange(6) % 4]
        assert_bits(state, want)


@pytest.mark.parametrize(("count", "launches"), [(1, [(1, 1)]), (2, [(1, 0), (0, 2)])])
def test_rows_are_kept_only_once_every_group_has_been_read(
    count: int, launches: list[tuple[int, int]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two tokens goes where the first one's group has its oldest row (position 7 and slot 8 % 8)."""
    bench = Bench((1024, 256), [1], device)
    bench.step([7], 4)
    new, at, closing, entry, _ = bench.step([count], 4)
    plan = plan_c4(at, closing, entry, bench.frequencies)
    kv_layout, index_layout = cache.Layout("fp8_ds_mla", 512, 64, 64), cache.Layout("fp4", 128, 64, 64)
    parts = [
        c4.Compressor(
            x,
            *parameters((4, 2 * D), D, device),
            torch.zeros(SLOTS, 8, 2, 2 * D, device=device),
            pool_of(layout, device),
        )
        for x, D, layout in ((new[0], 512, kv_layout), (new[1], 128, index_layout))
    ]
    seen = []
    monkeypatch.setattr(c4, "_launch", lambda *arguments: seen.append((arguments[3], arguments[4])))
    c4.compress_c4(*parts, plan, fp4=True, max_new_tokens=count)
    assert seen == launches


def run_c128(bench: Bench, cuts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    layout = cache.Layout("fp8_ds_mla", 512, 64, 2)
    ape, weight = torch.linspace(-1, 1, 128 * 512, device=device).view(128, 512), torch.ones(512, device=device)
    state, pool = torch.full((SLOTS, 1, 3, 512), torch.nan, device=device), pool_of(layout, device)
    want = []
    for counts in cuts:
        new, at, closing, entry, closed = bench.step(counts, 128)
        plan = plan_c128(at, closing, entry, bench.frequencies)
        part = c128.OnlineCompressor(new[0], ape, weight, state, pool)
        c128.compress_c128(part, plan, max_new_tokens=max(counts))
        want += closed
    slots = torch.tensor([b * 64 + p // 128 for b, p in want], device=device)
    rows = [
        steps.finish(
            steps.c128_state(bench.histories[0][b], p - 127, p, ape).pooled, weight, p - 127, bench.frequencies,
            rotated=False,
        )
        for b, p in want
    ]  # fmt: skip
    packed = cache.unpack_rows(*cache.pack_rows(torch.cat(rows), layout), layout)
    assert_close(cache.gather(pool, slots, layout), packed, "compressed rows")
    for b, history in enumerate(bench.histories[0]):
        length = len(history.rows)
        if length % 128:
            open_ = torch.cat(steps.c128_state(history, length - length % 128, length - 1, ape))
            assert_close(state[bench.histories[0][b].slot, 0], open_, "compress state")
    return pool, state, want


def test_c128_rows_and_open_groups_are_those_of_the_whole_history(device: torch.device) -> None:
    pool, _, want = run_c128(Bench((512,), [1, 3], device), [[127, 5], [1, 1], [3, 122]], device)
    assert [p for _, p in want] == [127, 127]
    assert bool((pool != POISON).any())


def test_c128_gives_the_same_bits_however_a_group_is_cut(device: torch.device) -> None:
    torch.manual_seed(1)
    rows = torch.randn(129, 2, 512, device=device)
    got = []
    for cuts in ([129], [100, 29]):
        bench = Bench((512,), [2], device)
        bench.frequencies = torch.linspace(0, 1, 32, device=device)
        layout = cache.Layout("fp8_ds_mla", 512, 64, 2)
        state, pool, first = torch.zeros(SLOTS, 1, 3, 512, device=device), pool_of(layout, device), 0
        for count in cuts:
            _, at, closing, entry, _ = bench.step([count], 128)
            plan = plan_c128(at, closing, entry, bench.frequencies)
            ape, weight = torch.zeros(128, 512, device=device), torch.ones(512, device=device)
            part = c128.OnlineCompressor(rows[first : first + count].contiguous(), ape, weight, state, pool)
            c128.compress_c128(part, plan, max_new_tokens=count)
            first += count
        got.append((pool, state))
    for pool, state in got[1:]:
        assert_bits(pool, got[0][0])
        assert_bits(state, got[0][1])


def test_padded_entries_do_nothing(device: torch.device) -> None:
    bench = Bench((512,), [2], device)
    new, at, *_ = bench.step([3], 128)
    none = torch.tensor([-1, -1], dtype=torch.int32, device=device)
    plan = plan_c128(at, none, none, bench.frequencies)
    layout = cache.Layout("fp8_ds_mla", 512, 64, 2)
    pool, state = pool_of(layout, device), torch.zeros(SLOTS, 1, 3, 512, device=device)
    ape, weight = torch.zeros(128, 512, device=device), torch.ones(512, device=device)
    c128.compress_c128(c128.OnlineCompressor(new[0], ape, weight, state, pool), plan, max_new_tokens=3)
    assert bool((pool == POISON).all())


def test_requests_without_tokens_and_tokens_of_nobody_are_in_no_plan() -> None:
    """As a captured step is padded: tokens at position -1, requests that begin and end behind the last real token."""

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    at = Requests(ints(127, -1, -1), ints(0, 0, 0), ints(0, 1, 1, 1), ints(2, 0, 0), ints(0, 1, 1))
    frequencies = torch.rand(32)
    c4_plan = plan_c4(at, ints(0, -1, -1), ints(9, 0, 0), frequencies)
    assert c4_plan.entries[:, 0].tolist() == [0, -1, -1]
    assert c4_plan.kept[:, :, 0].tolist() == [[0, *[-1] * 7], [-1] * 8, [-1] * 8]
    c128_plan = plan_c128(at, ints(0, -1, -1), ints(9, 0, 0), frequencies)
    assert c128_plan.closing[:, 0].tolist() == [0, -1, -1]
    assert c128_plan.open[:, 0].tolist() == [-1, -1, -1], "127 closes its group"
    before = Requests(ints(126, -1, -1), ints(0, 0, 0), ints(0, 1, 1, 1), ints(2, 0, 0), ints(0, 1, 1))
    assert plan_c128(before, ints(-1), ints(0), frequencies).open[:, 0].tolist() == [0, -1, -1]


def test_a_plan_names_every_row_once() -> None:
    device = torch.device("cpu")
    bench = Bench((512,), [2, 1], device)
    bench.step([126, 7], 4)
    _, at, closing, entry, _ = bench.step([4, 2], 4)
    plan = plan_c4(at, closing, entry, bench.frequencies)
    assert isinstance(plan, C4Plan)
    assert plan.entries.tolist() == [[1, 0, 2, 127], [4, 4, 1, 7]]
    kept = [[row for row in request if row[0] >= 0] for request in plan.kept.tolist()]
    assert kept == [[[3, 2 * 8 + 1], [2, 2 * 8 + 0], [1, 2 * 8 + 7], [0, 2 * 8 + 6]], [[5, 8 + 0], [4, 8 + 7]]]
    long = plan_c128(at, torch.tensor([1], dtype=torch.int32), torch.tensor([9], dtype=torch.int32), bench.frequencies)
    assert isinstance(long, C128Plan)
    assert long.closing.tolist() == [[0, 2, 126, 2]]
    assert long.open.tolist() == [[2, 2, 0, -1, 2, 0], [4, 2, 7, 1, 1, 0]]
