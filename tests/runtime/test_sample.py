"""The sampler: every parameter in its place in the order, and no row that knows its neighbours."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dsv4.errors import Violation
from dsv4.runtime.sample import Sampler
from dsv4.runtime.step import Draw, StepResult
from dsv4.types import SamplingParams

V = 300
EOS = 1
Floats = np.ndarray[Any, np.dtype[np.float32]]


def draw_of(params: SamplingParams, *, prompt: Sequence[int] = (5, 6), seed: int = 3, choice: int = 0) -> Draw:
    hidden = (*(() if params.ignore_eos else (EOS,)), *params.stop_token_ids)
    return Draw(params=params, prompt=prompt, seed=seed, choice=choice, hidden=hidden)


def one(logits: Floats, params: SamplingParams, *, position: int = 0, **draw: Any) -> StepResult:
    sampler = Sampler()
    sampler.begin(9, draw_of(params, **draw))
    return sampler.sample(logits[None].copy(), [9], [position])


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **fields)


def peaked(*ids: int) -> Floats:
    """Logits whose likeliest ids are these, in this order."""
    row = np.linspace(-1.0, 0.0, V, dtype=np.float32)
    for rank, token in enumerate(ids):
        row[token] = 10.0 - rank
    return row


def test_greedy_takes_the_likeliest() -> None:
    assert one(peaked(40, 30), greedy()).tokens == [40]


def test_logit_bias_can_force_and_forbid() -> None:
    assert one(peaked(40, 30), greedy(logit_bias={200: 100.0})).tokens == [200]
    assert one(peaked(40, 30), greedy(logit_bias={40: -100.0})).tokens == [30]
    assert one(peaked(40, 30), greedy(logit_bias={30: 2.0})).tokens == [30]  # it is added: 9 + 2 > 10


def test_allowed_token_ids_leave_only_those() -> None:
    assert one(peaked(40, 30), greedy(allowed_token_ids=(7, 9))).tokens == [9]
    assert one(peaked(40, 30), greedy(allowed_token_ids=(7, 9), logit_bias={7: 50.0})).tokens == [7]


@pytest.mark.parametrize("seed", range(5))
def test_allowed_token_ids_hold_when_drawing(seed: int) -> None:
    params = SamplingParams(temperature=2.0, allowed_token_ids=(7, 9))
    assert one(peaked(40, 30), params, seed=seed).tokens[0] in (7, 9)


def test_min_tokens_hides_the_end_and_the_stops_until_then() -> None:
    params = greedy(min_tokens=2, stop_token_ids=(8,))
    assert one(peaked(EOS, 8, 30), params, position=0).tokens == [30]
    assert one(peaked(EOS, 8, 30), params, position=1).tokens == [30]
    assert one(peaked(EOS, 8, 30), params, position=2).tokens == [EOS]


def test_an_end_that_is_ignored_is_not_hidden() -> None:
    assert one(peaked(EOS, 30), greedy(min_tokens=2, ignore_eos=True)).tokens == [EOS]


def test_repetition_penalty_counts_prompt_and_output() -> None:
    logits = np.full(V, -1.0, dtype=np.float32)
    logits[[5, 50, 60]] = [8.0, 7.9, 7.8]
    sampler = Sampler()
    sampler.begin(1, draw_of(greedy(repetition_penalty=2.0), prompt=[5, 5, 6]))
    tokens = [sampler.sample(logits[None], [1], [position]).tokens[0] for position in range(3)]
    assert tokens == [50, 60, 5]  # 5 is in the prompt: 4.0; then 50 and 60 are halved as well


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    logits = np.full(V, -1.0, dtype=np.float32)
    logits[[5, 6]] = [8.0, 7.0]
    sampler = Sampler()
    sampler.begin(1, draw_of(greedy(presence_penalty=0.5, frequency_penalty=0.3), prompt=[5, 5, 5, 5]))
    tokens = [sampler.sample(logits[None], [1], [position]).tokens[0] for position in range(5)]
    # 5: 8.0, 7.2, 6.9 ... and 6: 7.0, 6.2
    assert tokens == [5, 5, 6, 5, 5]


def test_penalties_come_before_the_bias_and_the_masks() -> None:
    logits = peaked(40, 30)
    params = greedy(repetition_penalty=2.0, logit_bias={40: 3.0}, allowed_token_ids=(40, 30))
    assert one(logits, params, prompt=[40]).tokens == [30]  # 10 / 2 + 3 < 9; (10 + 3) / 2 would be even less


def test_a_position_that_skips_a_token_is_a_violation() -> None:
    sampler = Sampler()
    sampler.begin(1, draw_of(greedy(presence_penalty=1.0)))
    sampler.sample(peaked(4)[None], [1], [0])
    with pytest.raises(Violation, match="noted 1"):
        sampler.sample(peaked(4)[None], [1], [2])


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    import torch

    logits = peaked(40, 30)
    found = one(logits, greedy(logprobs=2, logit_bias={200: 100.0}, presence_penalty=1.0)).logprobs[0]
    assert found is not None
    expected = torch.log_softmax(torch.from_numpy(logits), 0)
    assert found.token_id == 200
    assert found.logprob == pytest.approx(float(expected[200]), abs=1e-5)
    assert [token for token, _ in found.top] == [40, 30]
    assert one(logits, greedy()).logprobs == [None]


def various(rng: random.Random, count: int) -> list[Draw]:
    """Requests of every kind."""
    draws = []
    for number in range(count):
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_k=rng.choice([0, 5, 40]),
            top_p=rng.choice([1.0, 0.9]),
            min_p=rng.choice([0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, -0.2]),
            logit_bias=rng.choice([{}, {number: 2.0}]),
            min_tokens=rng.choice([0, 3]),
            logprobs=rng.choice([None, 0, 3]),
        )
        draws.append(draw_of(params, prompt=[rng.randrange(V) for _ in range(9)], seed=number % 4, choice=number % 3))
    return draws


def run(draws: dict[int, Draw], logits: dict[int, Floats], steps: int, order: Sequence[int]) -> dict[int, list[Any]]:
    """Every request for some steps, its rows placed among the others' in a given order."""
    sampler = Sampler()
    for number in order:
        sampler.begin(number, draws[number])
    found: dict[int, list[Any]] = {number: [] for number in order}
    for position in range(steps):
        rows = np.stack([logits[number][position] for number in order])
        result = sampler.sample(rows, list(order), [position] * len(order))
        assert not result.non_finite
        for index, number in enumerate(order):
            found[number].append((result.tokens[index], result.logprobs[index]))
    return found


def test_a_row_is_the_same_alone_and_in_any_company(rng: random.Random, seed: int) -> None:
    noise = np.random.Generator(np.random.PCG64(seed))
    draws = dict(enumerate(various(rng, 16)))
    logits = {number: noise.normal(0, 3, (6, V)).astype(np.float32) for number in draws}
    order = list(draws)
    together = run(draws, logits, 6, order)
    rng.shuffle(order)
    assert run(draws, logits, 6, order) == together
    for number in draws:
        assert run(draws, logits, 6, [number])[number] == together[number]


def test_the_logits_are_left_as_they_are(rng: random.Random, seed: int) -> None:
    noise = np.random.Generator(np.random.PCG64(seed))
    draws = dict(enumerate(various(rng, 8)))
    logits = {number: noise.normal(0, 3, (1, V)).astype(np.float32) for number in draws}
    before = {number: row.copy() for number, row in logits.items()}
    run(draws, logits, 1, list(draws))
    assert all((logits[number] == before[number]).all() for number in draws)


def test_a_bad_row_is_reported_and_the_others_are_sampled() -> None:
    sampler = Sampler()
    for number, params in enumerate((greedy(), SamplingParams(presence_penalty=1.0), greedy(logprobs=1))):
        sampler.begin(number, draw_of(params))
    logits = np.stack([peaked(40), peaked(50), peaked(60)])
    alone = [sampler_of(params).sample(logits[i : i + 1], [0], [0]) for i, params in ((0, greedy()), (2, greedy()))]
    logits[1, 17] = np.nan
    result = sampler.sample(logits, [0, 1, 2], [0, 0, 0])
    assert result.non_finite == [1]
    assert result.logprobs[1] is None
    assert [result.tokens[0], result.tokens[2]] == [alone[0].tokens[0], alone[1].tokens[0]]


def sampler_of(params: SamplingParams) -> Sampler:
    sampler = Sampler()
    sampler.begin(0, draw_of(params))
    return sampler


def test_requests_that_ended_leave_nothing_behind() -> None:
    sampler = Sampler()
    sampler.begin(1, draw_of(greedy(repetition_penalty=1.5)))
    sampler.end(1)
    sampler.end(1)
    assert len(sampler) == 0


def test_no_rows_give_no_tokens() -> None:
    assert Sampler().sample(np.zeros((0, V), dtype=np.float32), [], []) == StepResult([], [], [])
