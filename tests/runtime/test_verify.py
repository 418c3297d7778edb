"""Verifying drafts leaves what one token at a time leaves, bit for bit: the real model over the real core.

Every request drafts; of its drafts so many are what the model says, and the next is not. However many those are, in
whichever place of a C4 or C128 group, the logits of the tokens that count are those of a run without drafts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest
import torch
from tests.model.stepping import Planner, make_caches
from tests.model.test_invariance import CONFIG, NUMERICS
from torch import Tensor

from dsv4._core import Core, Geometry, Limits, PoolSizes, StepDone
from dsv4.model.caches import Caches, allocate, geometry_numbers
from dsv4.model.dummy import DummySource
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import FLOAT32, Numerics
from dsv4.runtime.batch import StepBuffer
from dsv4.runtime.copies import copy_state

EVERY_FORMAT = pytest.mark.parametrize("numerics", NUMERICS.values(), ids=NUMERICS.keys())
SIZES = PoolSizes(full_blocks=24, swa_blocks=60, state_slots=12)


@functools.cache
def model(numerics: Numerics) -> DeepseekV4:
    return DeepseekV4(CONFIG, DummySource(CONFIG, 7, flavour="fp32" if numerics is FLOAT32 else "official"), numerics)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def poison(caches: Caches) -> None:
    for layer in caches.layers:
        for pool in (layer.swa, layer.c4, layer.index, layer.c128):
            if pool is not None:
                pool.fill_(0xFF)
        for state in (layer.c4_state, layer.index_state, layer.c128_state):
            if state is not None:
                state.fill_(torch.nan)


@functools.cache
def alone(numerics: Numerics, ids: tuple[int, ...], count: int) -> tuple[list[int], Tensor]:
    """Greedy tokens and their logits, one token at a time."""
    planner = Planner(CONFIG.sliding_window, full=4, swa=12, slots=1)
    caches = make_caches(CONFIG, numerics, planner)
    tokens, logits, piece = [], [], list(ids)
    for _ in range(count):
        logits.append(model(numerics).forward(planner.step([("a", piece)]), caches).logits[0])
        piece = [int(logits[-1].argmax())]
        tokens += piece
    return tokens, torch.stack(logits)


class Drafting:
    """A core whose requests draft `width` tokens; how many are right is the test's choice."""

    def __init__(self, numerics: Numerics, width: int, *, cache: bool = False, tokens: int = 300) -> None:
        limits = Limits(
            max_model_len=1024, max_num_requests=8, max_num_tokens=tokens, max_queued_requests=8,
            max_queued_tokens=1 << 16, vocab_size=CONFIG.vocab_size, prefix_cache=cache, max_draft_tokens=width,
        )  # fmt: skip
        geometry = Geometry(**asdict(geometry_numbers(CONFIG, numerics, draft_tokens=width)))
        self.core, self.width, self.numerics = Core(geometry, SIZES, limits), width, numerics
        self.caches = allocate(
            CONFIG, numerics, num_full_blocks=24, num_swa_blocks=60, num_slots=12, draft_tokens=width
        )
        poison(self.caches)
        self.buffer = StepBuffer(self.core)
        self.wanted: dict[int, tuple[list[int], Tensor]] = {}
        self.said: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.accepted: list[int] = []

    def submit(self, ids: Sequence[int], count: int) -> int:
        number = self.core.submit(ids, max_tokens=count)
        self.wanted[number], self.said[number] = alone(self.numerics, tuple(ids), count), []
        return number

    def step(self, rights: Callable[[int], int]) -> bool:
        """One step; rights(request): how many of its next drafts will be right."""
        plan = self.core.plan(self.buffer.memory)
        if plan is None:
            return False
        self.cached |= dict(zip(plan.started_request_ids, plan.started_cached_tokens, strict=True))
        if plan.num_restores:
            copy_state(self.caches, *self.buffer.copies("restore", plan.num_restores))
        inputs = self.buffer.inputs(plan)
        logits = model(self.numerics).forward(inputs, self.caches).logits
        if plan.num_saves:
            copy_state(self.caches, *self.buffer.copies("save", plan.num_saves))
        tokens, accepted, drafts, first = logits.argmax(1).tolist(), [], [], 0
        for count in plan.sample_counts:
            number, at = plan.sample_request_ids[first], plan.sample_positions[first]
            want, of = self.wanted[number]
            brought = inputs.token_ids[inputs.sample_tokens[first + 1 : first + count].long()].tolist()
            right = 0
            while right < count - 1 and brought[right] == tokens[first + right]:
                right += 1
            assert torch.equal(logits[first : first + right + 1], of[at : at + right + 1]), (number, at, right)
            self.said[number] += tokens[first : first + right + 1]
            accepted.append(right)
            drafts += self.guess(want, at + right + 1, rights(number))
            first += count
        self.accepted += accepted
        self.core.advance([StepDone(plan.step_id, tokens, (), accepted, drafts)])
        return True

    def guess(self, want: list[int], at: int, right: int) -> list[int]:
        """Drafts of the tokens from generated position `at` on, the first `right` of them right."""
        follow = [*want[at : at + self.width], *[0] * self.width][: self.width]
        return [token if i < right else (token + 1) % CONFIG.vocab_size for i, token in enumerate(follow)]

    def run(self, rights: Callable[[int], int]) -> None:
        while self.step(rights):
            pass
        self.core.audit()
        for number, (want, _) in self.wanted.items():
            assert self.said[number] == want


@EVERY_FORMAT
@pytest.mark.parametrize("right", range(4))
def test_so_many_drafts_of_three_are_right_in_every_step(numerics: Numerics, right: int, seed: int) -> None:
    game = Drafting(numerics, 3)
    game.submit(prompt(118, seed), 18)  # over the end of a C128 group
    game.submit(prompt(9, seed + 1), 10)
    game.run(lambda _: right)
    assert right in game.accepted


def test_any_number_at_any_place(seed: int) -> None:
    numerics = NUMERICS["fp8 rows, fp4 index"]
    choose = torch.Generator().manual_seed(seed)
    game = Drafting(numerics, 5)
    for i, length in enumerate((121, 122, 125, 126, 3)):
        game.submit(prompt(length, seed + i), 17)
    game.run(lambda _: int(torch.randint(6, (), generator=choose)))
    assert set(game.accepted) == {0, 1, 2, 3, 4, 5}


def test_a_prefix_that_was_made_with_drafts_is_that_of_a_run_without(seed: int) -> None:
    """Drafts ran over the boundary whose checkpoint the second request goes on from, right and wrong ones."""
    for right in range(4):
        game = Drafting(FLOAT32, 3, cache=True)
        ids = prompt(246, seed)
        first = game.submit(ids, 24)
        game.run(lambda _, right=right: right)  # type: ignore[misc]
        again = game.submit([*ids, *game.said[first][:20]], 6)
        game.run(lambda _, right=right: 3 - right)  # type: ignore[misc]
        assert game.cached[again] == 256


def test_the_core_and_the_pools_agree_on_a_slot() -> None:
    for width in (0, 1, 5, 8, 15):
        geometry = Geometry(**asdict(geometry_numbers(CONFIG, FLOAT32, draft_tokens=width)))
        caches = allocate(CONFIG, FLOAT32, num_full_blocks=1, num_swa_blocks=1, num_slots=1, draft_tokens=width)
        assert (geometry.c4_ring, geometry.c128_banks) == (caches.layouts.c4_ring, caches.layouts.c128_banks)
        states = [s for of in caches.layers for s in (of.c4_state, of.index_state, of.c128_state) if s is not None]
        assert geometry.state_slot_bytes == sum(s[0].nbytes for s in states)
