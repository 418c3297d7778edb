"""Steps of the GPU's runner: tokens are those of the CPU's sampler, whatever was asked for; tokens are forwarded."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.test_batch import core

from dsv4._core import Plan, StepDone
from dsv4.model.gpu.step import Bounds
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.runtime.gpu.runner import GpuRunner
from dsv4.runtime.gpu.sample import GpuSampler
from dsv4.runtime.sample import Sampler
from dsv4.runtime.step import Draw, StepResult
from dsv4.types import SamplingParams

V = 1000
KINDS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_p=0.9, top_k=50, min_p=0.01, logprobs=3),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=-0.2),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, logprobs=0),
    SamplingParams(temperature=1.0, logit_bias={5: 8.0, 7: -3.0, 900: 2.5}),
    SamplingParams(temperature=1.0, allowed_token_ids=(3, 5, 8, 400)),
    SamplingParams(temperature=1.0, min_tokens=3, logit_bias={11: 50.0}),
)


def draw(params: SamplingParams, number: int) -> Draw:
    return Draw(params=params, prompt=[5, 6, 7, number], seed=number, choice=0, hidden=(11, 12))


def test_tokens_are_those_of_the_cpu_for_every_kind_of_request(device: torch.device, seed: int) -> None:
    ours, theirs = GpuSampler(16, V, device), Sampler()
    for number, params in enumerate(KINDS):
        ours.requests.begin(number, draw(params, number))
        theirs.begin(number, draw(params, number))
    noise = np.random.Generator(np.random.PCG64(seed))
    ids = list(range(len(KINDS)))
    for position in range(4):
        logits = noise.standard_normal((len(KINDS), V), dtype=np.float32) * 3
        found = ours.sample(torch.from_numpy(logits.copy()).to(device), ids, [position] * len(ids))
        want = theirs.sample(logits, ids, [position] * len(ids))
        assert found.tokens == want.tokens
        for got, expected in zip(found.logprobs, want.logprobs, strict=True):
            assert (got is None) == (expected is None)
            if got is not None and expected is not None:
                assert (got.token_id, got.rank) == (expected.token_id, expected.rank)
                assert got.logprob == pytest.approx(expected.logprob, abs=1e-5)
                assert [token for token, _ in got.top] == [token for token, _ in expected.top]


def test_a_row_that_is_not_finite_is_told_and_the_others_are_sampled(device: torch.device) -> None:
    sampler = GpuSampler(4, V, device)
    for number in range(3):
        sampler.requests.begin(number, draw(KINDS[1], number))
    logits = torch.randn(3, V, device=device)
    clean = sampler.sample(logits, [0, 1, 2], [0, 0, 0])
    logits[1, 17] = torch.nan
    found = sampler.sample(logits, [0, 1, 2], [0, 0, 0])
    assert found.non_finite == [1]
    assert [found.tokens[i] for i in (0, 2)] == [clean.tokens[i] for i in (0, 2)]
    assert sampler.sample(logits[:0], [], []) == StepResult([], [], [])


class Next:
    """A network whose likeliest token is the last one plus one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bounds: list[Bounds] = []

    def forward(self, inputs: StepInputs, _caches: object, bounds: Bounds) -> StepOutput:
        self.bounds.append(bounds)
        last = inputs.token_ids[inputs.sample_tokens.long()].long()
        logits = torch.nn.functional.one_hot(last + 1, V).float()
        return StepOutput(logits, logits)


@pytest.mark.parametrize("steps", [1, 2])
def test_tokens_pass_from_step_to_step_on_the_device(steps: int, device: torch.device) -> None:
    filled, network = core(max_steps_in_flight=steps), Next(device)
    caches: Any = object()
    runner = GpuRunner(network, caches, filled, max_rows=8, vocab_size=V, num_steps=steps)
    for prompt in ([3, 4, 5], [10, 11], [7]):
        number = filled.submit(prompt, max_tokens=4)
        runner.begin(number, Draw(params=KINDS[0], prompt=prompt, seed=0, choice=0, hidden=()))
    flights: deque[Plan] = deque()
    said: dict[int, list[int]] = {}
    for step in range(1, 20):
        plan = filled.plan(runner.memories[step % steps])
        if plan is not None:
            flights.append(plan)
        if flights and (plan is None or len(flights) == steps):
            done = flights.popleft()
            result = runner.run(done)
            told = filled.advance([StepDone(done.step_id, result.tokens, result.non_finite)])
            for number, token in zip(told.request_ids, told.tokens, strict=True):
                said.setdefault(number, []).append(token)
    assert list(said.values()) == [[6, 7, 8, 9], [12, 13, 14, 15], [8, 9, 10, 11]]
    assert network.bounds[0] == Bounds(3, 3)
    assert network.bounds[-1].max_new_tokens == 1
    runner.close()
