"""Compression where tokens are drafts: after any number of them is taken back, everything is as if they never came.

A row of a step brings one token that counts and D drafts behind it; K of those are right, for every K from 0 to D and
at every place of a group. What was stored is compared with the history of the tokens that counted, from its beginning.
"""

from __future__ import annotations

import pytest
import torch
from tests.kernels.closeness import assert_bits, assert_close
from tests.kernels.compress import steps
from tests.kernels.compress.test_compress import POISON, parameters, pool_of
from torch import Tensor

from dsv4.kernels.cache import reference as cache
from dsv4.kernels.compress.plan import C4_ROWS, Requests, plan_c4, plan_c128

c4 = pytest.importorskip("dsv4.kernels.compress.c4")
c128 = pytest.importorskip("dsv4.kernels.compress.c128_online")

KV, KV128, INDEX = cache.Layout("fp8_ds_mla", 512, 64, 64), cache.Layout("fp8_ds_mla", 512, 64, 2), cache.Layout(
    "fp4", 128, 64, 64
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about -inf and poison


class Verifying:
    """Requests, the rows of the tokens that count, and steps of drafts."""

    def __init__(self, widths: tuple[int, ...], lengths: list[int], drafts: int, device: torch.device) -> None:
        self.device, self.drafts, self.widths = device, drafts, widths
        self.ring, self.num_banks = -(-(C4_ROWS + drafts) // 8) * 8, 1 + drafts
        self.slots = [2 + b for b in reversed(range(len(lengths)))]
        self.histories = [[steps.History(slot) for slot in self.slots] for _ in widths]
        self.banks = [0] * len(lengths)
        self.frequencies = torch.rand(32, device=device)

    def ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def states(self, *shape: int) -> Tensor:
        """Nobody may read what nobody wrote."""
        return torch.full((len(self.slots) + 2, *shape), torch.nan, device=self.device)

    def step(self, counts: list[int], drafts: int, ratio: int) -> tuple[list[Tensor], Requests, Tensor, Tensor]:
        """New rows of each kind, the step's arrays, closing tokens and where they go; the last `drafts` are drafts."""
        before = [len(h.rows) for h in self.histories[0]]
        positions = [p for b, n in enumerate(counts) for p in range(before[b], before[b] + n)]
        rows = [b for b, n in enumerate(counts) for _ in range(n)]
        new = [torch.randn(len(rows), 2, width, device=self.device) for width in self.widths]
        for kind, x in enumerate(new):
            for t, b in enumerate(rows):
                self.histories[kind][b].rows.append(x[t])
        writes = [place for n in counts for place in ([-1] * (n - 1 - drafts) + list(range(drafts + 1)))]
        closing = [t for t, p in enumerate(positions) if (p + 1) % ratio == 0]
        at = Requests(
            self.ints(positions),
            self.ints(rows),
            self.ints([0, *torch.tensor(counts).cumsum(0).tolist()]),
            self.ints(self.slots),
            self.ints([int(n == 0) for n in before]),
            self.ints(self.banks),
            self.ints(writes),
            self.ring,
            self.num_banks,
        )
        entry = [rows[t] * 64 + positions[t] // ratio for t in closing]
        return new, at, self.ints(closing), self.ints(entry)

    def accept(self, accepted: list[int], drafts: int) -> None:
        """So many drafts of each request were right; the others never came."""
        self.banks = accepted
        for histories in self.histories:
            for history, right in zip(histories, accepted, strict=True):
                del history.rows[len(history.rows) - (drafts - right) :]


def every_number_accepted(drafts: int, num_requests: int) -> list[list[int]]:
    """Steps in which each request has each number of drafts accepted, another one than its neighbours."""
    return [[(b + i) % (drafts + 1) for b in range(num_requests)] for i in range(drafts + 1)]


@pytest.mark.parametrize("drafts", [1, 3])
def test_c4_rows_are_those_of_the_tokens_that_count(drafts: int, device: torch.device) -> None:
    lengths = [5, 6, 7, 8]  # a draft closes a group at every place
    game = Verifying((1024, 256), lengths, drafts, device)
    pools = pool_of(KV, device), pool_of(INDEX, device)
    weights = parameters((4, 1024), 512, device), parameters((4, 256), 128, device)
    states = game.states(game.ring, 2, 1024), game.states(game.ring, 2, 256)

    def run(counts: list[int], num_drafts: int) -> None:
        new, at, closing, entry = game.step(counts, num_drafts, 4)
        parts = [c4.Compressor(x, *of, s, pool) for x, of, s, pool in zip(new, weights, states, pools, strict=True)]
        c4.compress_c4(*parts, plan_c4(at, closing, entry, game.frequencies), fp4=True, max_new_tokens=max(counts))

    run(lengths, 0)
    for accepted in every_number_accepted(drafts, len(lengths)):
        run([1 + drafts] * len(lengths), drafts)
        game.accept(accepted, drafts)
    run([3] * len(lengths), 0)  # and a few that nobody doubts
    for kind, (pool, layout, (ape, weight)) in enumerate(zip(pools, (KV, INDEX), weights, strict=True)):
        rows, slots = [], []
        for b, history in enumerate(game.histories[kind]):
            for p in range(3, len(history.rows), 4):
                pooled = steps.c4_entry(history, p, ape)
                rows.append(steps.finish(pooled, weight, p - 3, game.frequencies, rotated=kind == 1))
                slots.append(b * 64 + p // 4)
        packed = cache.unpack_rows(*cache.pack_rows(torch.cat(rows), layout), layout)
        at = torch.tensor(slots, device=device)
        assert_close(cache.gather(pool, at, layout), packed, "compressed rows")


def test_a_ring_made_for_drafts_keeps_their_rows_in_the_same_launch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for drafts, tokens, launches in ((1, 2, 1), (5, 6, 1), (8, 9, 1), (9, 10, 1), (0, 2, 2), (9, 18, 2)):
        game = Verifying((1024, 256), [7], drafts, device)
        game.step([7], 0, 4)
        new, at, closing, entry = game.step([tokens], min(drafts, tokens - 1), 4)
        parts = [
            c4.Compressor(
                x,
                *parameters((4, 2 * D), D, device),
                game.states(game.ring, 2, 2 * D),
                pool_of(kind, device),
            )
            for x, D, kind in ((new[0], 512, KV), (new[1], 128, INDEX))
        ]
        seen: list[int] = []
        monkeypatch.setattr(c4, "_launch", lambda *given, into=seen: into.append(given[3]))
        c4.compress_c4(*parts, plan_c4(at, closing, entry, game.frequencies), fp4=True, max_new_tokens=tokens)
        assert len(seen) == launches, (drafts, tokens)
        assert game.ring >= C4_ROWS - 1 + 1 + drafts


@pytest.mark.parametrize("drafts", [1, 3])
def test_c128_goes_on_from_the_last_draft_that_was_right(drafts: int, device: torch.device) -> None:
    lengths = [128 - drafts, 127, 128, 3]  # the group closes at every place of a step sooner or later
    game = Verifying((512,), lengths, drafts, device)
    pool, state = pool_of(KV128, device), game.states(game.num_banks, 3, 512)
    ape, weight = torch.linspace(-1, 1, 128 * 512, device=device).view(128, 512), torch.ones(512, device=device)

    def run(counts: list[int], num_drafts: int) -> None:
        new, at, closing, entry = game.step(counts, num_drafts, 128)
        plan = plan_c128(at, closing, entry, game.frequencies)
        part = c128.OnlineCompressor(new[0], ape, weight, state, pool)
        c128.compress_c128(part, plan, max_new_tokens=max(counts))
        for b, history in enumerate(game.histories[0]):  # every bank is the state behind its token
            for bank in range(num_drafts + 1) if b == 0 else [num_drafts]:
                end = len(history.rows) - num_drafts + bank
                if end % 128:
                    want = torch.cat(steps.c128_state(history, end - end % 128, end - 1, ape))
                    assert_close(state[history.slot, bank], want, "compress state")

    run(lengths, 0)
    for accepted in [*every_number_accepted(drafts, len(lengths)), [0] * 4, [drafts] * 4]:
        run([1 + drafts] * len(lengths), drafts)
        game.accept(accepted, drafts)
    rows, slots = [], []
    for b, history in enumerate(game.histories[0]):
        for p in range(127, len(history.rows), 128):
            pooled = steps.c128_state(history, p - 127, p, ape).pooled
            rows.append(steps.finish(pooled, weight, p - 127, game.frequencies, rotated=False))
            slots.append(b * 64 + p // 128)
    assert len(slots) == 3
    packed = cache.unpack_rows(*cache.pack_rows(torch.cat(rows), KV128), KV128)
    at = torch.tensor(slots, device=device)
    assert_close(cache.gather(pool, at, KV128), packed, "compressed rows")
    assert bool((pool != POISON).any())
    assert bool(state[:2].isnan().all()), "slots of nobody"


@pytest.mark.parametrize("right", range(4))
def test_c128_has_the_bits_of_one_token_at_a_time(right: int, device: torch.device) -> None:
    """Right drafts count, wrong ones leave no trace: bit for bit what steps of one token leave."""
    rows = torch.randn(130, 2, 512, device=device)
    ape, weight = torch.randn(128, 512, device=device), torch.ones(512, device=device)
    frequencies = torch.linspace(0, 1, 32, device=device)
    wrong = torch.randn(3 - right, 2, 512, device=device)
    whole = [(0, rows[:125], 0, 0), *((at, rows[at : at + 1], 0, 0) for at in range(125, 130))]
    drafted = [
        (0, rows[:125], 0, 0),
        (125, torch.cat((rows[125 : 126 + right], wrong)), 3, 0),
        (126 + right, rows[126 + right :], 0, right),
    ]
    left = []
    for width, pieces in ((0, whole), (3, drafted)):
        game = Verifying((512,), [124], width, device)
        pool, state = pool_of(KV128, device), game.states(game.num_banks, 3, 512)
        for first, new, num_drafts, bank in pieces:
            game.histories[0][0].rows, game.banks = list(rows[:first]), [bank]
            _, at, closing, entry = game.step([len(new)], num_drafts, 128)
            part = c128.OnlineCompressor(new.contiguous(), ape, weight, state, pool)
            c128.compress_c128(part, plan_c128(at, closing, entry, frequencies), max_new_tokens=len(new))
        left.append((pool[:1], state[2, 0]))
    assert_bits(left[1][0], left[0][0])
    assert_bits(left[1][1], left[0][1])
