"""A hit equals a miss, bit for bit: the real model over the real core, with and without the prefix cache.

The logits of every sampled row are compared, as they left the model. What a request reads from the cache was written by
another, at other places, in other steps and beside other requests.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from tests.model.test_invariance import CONFIG, NUMERICS
from torch import Tensor

from dsv4._core import Core, Geometry, Limits, Plan, PoolSizes, StepDone
from dsv4.model.caches import Caches, allocate, geometry_numbers
from dsv4.model.dummy import DummySource
from dsv4.model.inputs import StepInputs
from dsv4.model.model import DeepseekV4, StepOutput
from dsv4.model.numerics import FLOAT32, Numerics
from dsv4.runtime.runner import ModelRunner
from dsv4.runtime.step import Draw
from dsv4.types import SamplingParams

EVERY_FORMAT = pytest.mark.parametrize("numerics", NUMERICS.values(), ids=NUMERICS.keys())
ROOMY = PoolSizes(full_blocks=40, swa_blocks=80, state_slots=24)


@functools.cache
def model(numerics: Numerics) -> DeepseekV4:
    return DeepseekV4(CONFIG, DummySource(CONFIG, 7, flavour="fp32" if numerics is FLOAT32 else "official"), numerics)


class Watched:
    """The model, with the logits of its last step to look at."""

    def __init__(self, network: DeepseekV4) -> None:
        self.network = network
        self.logits = torch.empty(0)

    def forward(self, inputs: StepInputs, caches: Caches) -> StepOutput:
        output = self.network.forward(inputs, caches)
        self.logits = output.logits.clone()
        return output


class Engine:
    """Core, pools and model; pools begin poisoned, so that a read of what was not written shows."""

    def __init__(self, numerics: Numerics, *, cache: bool, sizes: PoolSizes = ROOMY, tokens: int = 300) -> None:
        limits = Limits(
            max_model_len=2048,
            max_num_requests=8,
            max_num_tokens=tokens,
            max_queued_requests=64,
            max_queued_tokens=1 << 20,
            vocab_size=CONFIG.vocab_size,
            prefix_cache=cache,
        )
        self.core = Core(Geometry(**asdict(geometry_numbers(CONFIG, numerics))), sizes, limits)
        caches = allocate(
            CONFIG,
            numerics,
            num_full_blocks=sizes.full_blocks,
            num_swa_blocks=sizes.swa_blocks,
            num_slots=sizes.state_slots,
        )
        for layer in caches.layers:
            for pool in (layer.swa, layer.c4, layer.index, layer.c128):
                if pool is not None:
                    pool.fill_(0xFF)
            for state in (layer.c4_state, layer.index_state, layer.c128_state):
                if state is not None:
                    state.fill_(torch.nan)
        self.network = Watched(model(numerics))
        self.runner = ModelRunner(self.network, caches, self.core)
        self.cached: dict[int, int] = {}
        self.logits: dict[int, list[Tensor]] = {}
        self.tokens: dict[int, list[int]] = {}

    def submit(self, prompt: Sequence[int], max_tokens: int, salt: str | None = None) -> int:
        number = self.core.submit(prompt, max_tokens=max_tokens, cache_salt=salt)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        self.runner.begin(number, Draw(params=params, prompt=prompt, seed=0, choice=0, hidden=()))
        self.logits[number], self.tokens[number] = [], []
        return number

    def step(self) -> Plan | None:
        plan = self.core.plan(self.runner.memories[0])
        if plan is None:
            return None
        for number, count in zip(plan.started_request_ids, plan.started_cached_tokens, strict=True):
            self.cached.setdefault(number, count)
        result = self.runner.run(plan)
        assert not result.non_finite
        for row, number in enumerate(plan.sample_request_ids):
            self.logits[number].append(self.network.logits[row])
            self.tokens[number].append(result.tokens[row])
        self.core.advance([StepDone(plan.step_id, result.tokens)])
        return plan

    def run(self, prompt: Sequence[int], max_tokens: int, salt: str | None = None) -> int:
        """One request from beginning to end, beside whatever else there is."""
        number = self.submit(prompt, max_tokens, salt)
        while self.step() is not None:
            pass
        self.core.audit()
        return number

    def answer(self, number: int) -> tuple[list[int], Tensor]:
        return self.tokens[number], torch.stack(self.logits[number])


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def missed(numerics: Numerics, ids: tuple[int, ...], max_tokens: int) -> tuple[list[int], Tensor]:
    """The answer without a cache, alone, in other chunks."""
    engine = Engine(numerics, cache=False, tokens=2048)
    return engine.answer(engine.run(ids, max_tokens))


def equals_a_miss(engine: Engine, number: int, numerics: Numerics, ids: Sequence[int], max_tokens: int) -> None:
    tokens, logits = engine.answer(number)
    expected, expected_logits = missed(numerics, tuple(ids), max_tokens)
    assert tokens == expected
    assert torch.equal(logits, expected_logits), f"{engine.cached[number]} tokens were cached"


@EVERY_FORMAT
def test_the_same_prompt_again_at_every_length_around_a_boundary(numerics: Numerics, seed: int) -> None:
    ids = prompt(513, seed)
    engine = Engine(numerics, cache=True)
    for length, hit in [(256, 0), (257, 256), (512, 256), (513, 512)]:
        engine.run(ids[:length], 3)
        again = engine.run(ids[:length], 3)
        assert engine.cached[again] == hit, length
        equals_a_miss(engine, again, numerics, ids[:length], 3)


@EVERY_FORMAT
def test_the_next_turn_of_a_conversation(numerics: Numerics, seed: int) -> None:
    engine = Engine(numerics, cache=True)
    ids = prompt(250, seed)
    for turn, hit in enumerate([0, 256, 256, 512]):
        number = engine.run(ids, 20)
        assert engine.cached[number] == hit, f"turn {turn}, {len(ids)} tokens"
        equals_a_miss(engine, number, numerics, ids, 20)
        ids = [*ids, *engine.tokens[number], *prompt(150, seed + turn)]


@EVERY_FORMAT
def test_forks_of_a_prefix_beside_each_other(numerics: Numerics, seed: int) -> None:
    engine = Engine(numerics, cache=True)
    shared = prompt(300, seed)
    forks = [[*shared, *prompt(40 + 9 * i, seed + i)] for i in range(5)]
    engine.run(forks[0], 4)
    numbers = [engine.submit(ids, 4) for ids in forks[1:]]
    most_shared = 0
    while engine.step() is not None:
        most_shared = max(most_shared, engine.core.stats()["full_shared"])
    engine.core.audit()
    assert most_shared >= 1
    assert all(engine.cached[number] == 256 for number in numbers)
    for number, ids in zip(numbers, forks[1:], strict=True):
        equals_a_miss(engine, number, numerics, ids, 4)


def test_after_eviction_everything_is_computed_again(seed: int) -> None:
    sizes = PoolSizes(full_blocks=4, swa_blocks=12, state_slots=3)
    engine = Engine(FLOAT32, cache=True, sizes=sizes)
    prompts = [prompt(560, seed + i) for i in range(3)]
    hits = 0
    for which in (0, 0, 1, 0, 2, 2, 1, 0, 0):
        number = engine.run(prompts[which], 3)
        hits += engine.cached[number] > 0
        equals_a_miss(engine, number, FLOAT32, prompts[which], 3)
    stats = engine.core.stats()
    assert hits >= 3
    assert stats["num_evicted_blocks"] >= 2
    assert stats["prefix_miss_evicted_full_tokens"] + stats["prefix_miss_evicted_window_tokens"] > 0


def test_another_salt_shares_nothing_and_answers_the_same(seed: int) -> None:
    engine = Engine(FLOAT32, cache=True)
    ids = prompt(300, seed)
    for salt in ("a", "b", None):
        first, again = engine.run(ids, 3, salt), engine.run(ids, 3, salt)
        assert (engine.cached[first], engine.cached[again]) == (0, 256)
        equals_a_miss(engine, first, FLOAT32, ids, 3)
        equals_a_miss(engine, again, FLOAT32, ids, 3)
