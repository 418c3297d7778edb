"""The runner: the model sees the step that was planned, its rows are sampled, and closing lets go of everything."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from typing import Any

import pytest
import torch
from tests.runtime.test_batch import core
from tests.runtime.test_choices import MODEL

from dsv4._core import Core, Outcome, Plan, StepDone
from dsv4.config.choices import resolve
from dsv4.config.engine import EngineConfig
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.runtime.runner import ModelRunner, threads
from dsv4.runtime.start import choose_threads
from dsv4.runtime.step import Draw
from dsv4.types import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


class Echo:
    """A network whose likeliest next token is the last one plus one."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.modes: list[bool] = []

    def forward(self, inputs: StepInputs, caches: Any) -> StepOutput:
        self.seen.append(inputs.token_ids.tolist())
        self.modes.append(torch.is_inference_mode_enabled())
        last = inputs.token_ids[inputs.sample_tokens.long()].long()
        logits = torch.zeros(len(last), 1000)
        logits[torch.arange(len(last)), last + 1] = 5.0
        return StepOutput(logits, torch.empty(0))


class Pools:
    """Something that can be let go of."""


def draw(prompt: list[int]) -> Draw:
    return Draw(params=GREEDY, prompt=prompt, seed=0, choice=0, hidden=())


def test_a_plan_becomes_tokens_of_its_requests() -> None:
    filled, network = core(), Echo()
    runner = ModelRunner(network, Pools(), filled)  # type: ignore[arg-type]
    for prompt in ([3, 4, 5], [10] * 300, [7]):
        runner.begin(filled.submit(prompt, max_tokens=4), draw(prompt))
    results = []
    while (plan := filled.plan(runner.memories[0])) is not None:
        result = runner.run(plan)
        results.append((plan.num_tokens, plan.num_prefill_tokens, result.tokens))
        filled.advance([StepDone(plan.step_id, result.tokens, result.non_finite)])
    assert network.seen[0][:3] == [3, 4, 5]
    assert sum(prefilled for _, prefilled, _ in results) == 3 + 300 + 1
    said = [token for _, _, tokens in results for token in tokens]
    assert sorted(said) == sorted([6, 7, 8, 9, 11, 12, 13, 14, 8, 9, 10, 11])
    assert all(network.modes)


def test_two_steps_in_flight_pass_tokens_from_one_to_the_next() -> None:
    filled, network = core(max_steps_in_flight=2), Echo()
    runner = ModelRunner(network, Pools(), filled, num_steps=2)  # type: ignore[arg-type]
    for prompt in ([3, 4, 5], [10, 11], [7]):
        runner.begin(filled.submit(prompt, max_tokens=4), draw(prompt))
    flights: deque[Plan] = deque()
    said: dict[int, list[int]] = {}
    num_forwarded = 0
    for step in range(1, 20):
        plan = filled.plan(runner.memories[step % 2])
        if plan is None:
            break
        num_forwarded += plan.num_forwarded
        flights.append(plan)
        if len(flights) == 2:
            told = finish(filled, runner, flights.popleft())
            for request_id, token in zip(told.request_ids, told.tokens, strict=True):
                said.setdefault(request_id, []).append(token)
    while flights:
        told = finish(filled, runner, flights.popleft())
        for request_id, token in zip(told.request_ids, told.tokens, strict=True):
            said.setdefault(request_id, []).append(token)
    assert list(said.values()) == [[6, 7, 8, 9], [12, 13, 14, 15], [8, 9, 10, 11]]
    assert num_forwarded == 9


def finish(filled: Core, runner: ModelRunner, plan: Plan) -> Outcome:
    result = runner.run(plan)
    return filled.advance([StepDone(plan.step_id, result.tokens, result.non_finite)])


def test_closing_lets_go_of_the_network_and_the_pools() -> None:
    network, pools = Echo(), Pools()
    held: list[weakref.ref[Any]] = [weakref.ref(network), weakref.ref(pools)]
    filled = core()
    runner = ModelRunner(network, pools, filled)  # type: ignore[arg-type]
    del network, pools
    filled.submit([1], max_tokens=1)
    plan = filled.plan(runner.memories[0])
    assert plan is not None
    runner.close()
    runner.close()
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(plan)


def test_a_step_computes_with_its_own_number_of_threads_and_leaves_the_hosts_alone() -> None:
    hosts = torch.get_num_threads()
    with threads(hosts + 1):
        assert torch.get_num_threads() == hosts + 1
    assert torch.get_num_threads() == hosts
    with pytest.raises(ValueError, match="inside"), threads(hosts + 1):
        raise ValueError("inside")
    assert torch.get_num_threads() == hosts
    with threads(None):
        assert torch.get_num_threads() == hosts


def test_a_small_model_runs_on_one_thread_and_a_large_one_as_torch_has_it() -> None:
    settings = resolve(EngineConfig(), MODEL)
    limit = settings.recipe.limits.single_thread_bytes
    assert choose_threads(limit - 1, settings)[0] == 1
    assert choose_threads(limit, settings)[0] == torch.get_num_threads()
