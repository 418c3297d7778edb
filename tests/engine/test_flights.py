"""Two steps in flight say what one says, token for token: greedy, seeded, with stops, aborts, preemption and faults."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.gates import LIMIT_S, Gate, assert_free, parts, text_of, whole
from tests.engine.test_endings import PoisonRunner
from tests.engine.test_preemption import SamplingRunner

from dsv4 import EngineConfig
from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.engine.flights import Flights
from dsv4.errors import ConfigError, RequestFailed
from dsv4.runtime.null import NullRunner
from dsv4.runtime.step import Draw
from dsv4.types import Completion, SamplingParams

DEMO = EngineConfig(kv_cache_memory_bytes=32 << 20, max_num_seqs=4, max_model_len=1024, max_num_batched_tokens=64)

PROMPTS = ["Call me Ishmael.", "It was the best of times, it was the worst of times", "O", "Whether I shall " * 12]


def both(config: EngineConfig) -> Iterator[LLM]:
    """The same engine with one step in flight, then with two."""
    for steps in (1, 2):
        with LLM(config=dataclasses.replace(config, max_steps_in_flight=steps)) as llm:
            yield llm
            llm.audit()
            assert_free(llm.stats())


def kinds() -> list[SamplingParams]:
    """Everything that decides a token, and everything that ends a request."""
    return [
        SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=20, temperature=1.0, seed=11),
        SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=-3, ignore_eos=True),
        SamplingParams(max_tokens=20, seed=5, repetition_penalty=1.3, presence_penalty=0.2, logprobs=2),
        SamplingParams(max_tokens=20, temperature=1.0, seed=7, stop=("e", "th"), min_tokens=3),
        SamplingParams(max_tokens=20, temperature=1.0, seed=8, stop_token_ids=tuple(range(200, 700)), min_tokens=2),
        SamplingParams(max_tokens=1, temperature=1.0, seed=9),
        SamplingParams(max_tokens=2, temperature=1.0, seed=9, n=3),
    ]


def answers(llm: LLM) -> list[Completion]:
    """All prompts with all kinds, at once: twice as many as run, so that they wait and share steps."""
    params = [kind for _ in PROMPTS for kind in kinds()]
    return llm.generate([prompt for prompt in PROMPTS for _ in kinds()], params)


def test_the_demo_says_the_same_with_two_steps_in_flight() -> None:
    one, two = [answers(llm) for llm in both(DEMO)]
    assert len(one) == len(PROMPTS) * (len(kinds()) + 2)
    assert two == one
    assert {"stop", "length"} <= {each.finish_reason for each in one}


@pytest.mark.parametrize("full_blocks", [64, 6])
def test_penalties_and_draws_survive_preemption_with_two_steps_in_flight(full_blocks: int) -> None:
    def run(steps: int) -> tuple[list[tuple[int, ...]], int]:
        given = parts(max_running=2, full_blocks=full_blocks, max_step_tokens=512, max_steps_in_flight=steps)
        runner = SamplingRunner(given.core)
        runner.memories = given.runner.memories  # type: ignore[assignment]
        with LLM.over(dataclasses.replace(given, runner=runner)) as llm:
            params = SamplingParams(
                max_tokens=1100, seed=1, repetition_penalty=1.2, presence_penalty=0.1, ignore_eos=True
            )
            found = [each.token_ids for each in llm.generate([[40 + number] * 10 for number in range(3)], params)]
            assert_free(llm.stats())
            assert not runner.draws
            return found, llm.stats()["num_preemptions"]

    one, _ = run(1)
    two, num_preemptions = run(2)
    assert two == one
    assert (num_preemptions > 0) == (full_blocks == 6)


def test_a_row_that_is_not_finite_ends_its_request_alone_though_the_next_step_has_it() -> None:
    async def work() -> None:
        given = parts(max_steps_in_flight=2)
        runner = PoisonRunner(given.core, given.runner._next_token, num_steps=2)  # type: ignore[attr-defined]
        async with AsyncEngine.over(dataclasses.replace(given, runner=runner)) as engine:
            bad = await engine.open([13, 1], SamplingParams(max_tokens=6))
            good = [await engine.open([7, 1], SamplingParams(max_tokens=6)) for _ in range(3)]
            with pytest.raises(RequestFailed) as end:
                await whole(bad)
            assert end.value.code == "numerical_error"
            assert [text_of(await whole(stream)) for stream in good] == ["abcdef"] * 3
            await engine.audit()

    asyncio.run(work())


def test_a_step_that_fails_takes_its_requests_and_leaves_those_of_the_next_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate, max_steps_in_flight=2)) as engine:
            hit = await engine.open([5], SamplingParams(max_tokens=400))
            gate.arrived()
            gate.fault = ZeroDivisionError("a bug")
            gate.open()
            with pytest.raises(RequestFailed) as end:
                await whole(hit)
            assert end.value.code == "internal_error"
            assert text_of(await whole(await engine.open([9], SamplingParams(max_tokens=3)))) == "abc"
            await engine.audit()

    with caplog.at_level("ERROR"):
        asyncio.run(work())


def test_aborts_while_two_steps_are_in_flight_leave_nothing_behind() -> None:
    async def work() -> None:
        async with AsyncEngine.over(parts(max_steps_in_flight=2, max_running=4)) as engine:
            for number in range(30):
                streams = [await engine.open([5 + number], SamplingParams(max_tokens=50)) for _ in range(3)]
                for stream in streams[:2]:
                    await stream.take()
                    stream.abort()
                assert len(text_of(await whole(streams[2]))) == 50
            await engine.audit()
            runner: Any = engine._front.driver._flights
            stats = await engine.stats()
            assert_free(stats)
            assert not runner._runner.draws

    asyncio.run(work())


class Recorder:
    """A runner that notes when each step began and was planned."""

    def __init__(self) -> None:
        self.memories = [memoryview(bytearray(64)), memoryview(bytearray(64))]
        self.began: list[int] = []
        self.ended: list[int] = []
        self.may_run = threading.Semaphore(0)
        self.has_begun = threading.Semaphore(0)

    def run(self, plan: Any) -> Any:
        self.began.append(plan.step_id)
        self.has_begun.release()
        assert self.may_run.acquire(timeout=LIMIT_S)
        return plan.step_id

    def begin(self, request_id: int, draw: Any) -> None:
        """Nothing to note."""

    def end(self, request_id: int) -> None:
        self.ended.append(request_id)

    def zero(self, blocks: Any) -> None:
        """There are no blocks."""

    def close(self) -> None:
        """Nothing is held."""


@dataclasses.dataclass
class Step:
    step_id: int


def plan(step_id: int) -> Any:
    return Step(step_id)


def test_a_step_is_planned_while_one_runs_and_into_the_other_memory() -> None:
    runner = Recorder()
    flights: Any = Flights(runner)
    first = flights.memory
    flights.launch(plan(1))
    assert runner.has_begun.acquire(timeout=LIMIT_S)
    assert flights.can_launch
    assert flights.memory is not first
    flights.launch(plan(2))
    assert (flights.can_launch, runner.began) == (False, [1])
    flights.end(77)  # it may be in both
    runner.may_run.release(2)
    assert (flights.oldest.step_id, flights.finish()) == (1, 1)
    flights.let_go(1)
    assert runner.ended == []
    assert flights.finish() == 2
    flights.let_go(2)
    assert (runner.ended, runner.began, len(flights)) == ([77], [1, 2], 0)
    flights.end(78)
    assert runner.ended == [77, 78]
    flights.close()


def test_with_one_memory_a_step_runs_on_the_thread_that_finishes_it() -> None:
    ran_on: list[int] = []
    given = parts(before_step=lambda _: ran_on.append(threading.get_ident()))
    assert isinstance(given.runner, NullRunner)
    flights = Flights(given.runner)
    number = given.core.submit([1, 2], max_tokens=1)
    params = SamplingParams(max_tokens=1)
    flights.begin(number, Draw(params=params, prompt=[1, 2], seed=0, choice=0, hidden=()))
    found = given.core.plan(flights.memory)
    assert found is not None
    flights.launch(found)
    assert (flights.can_launch, ran_on) == (False, [])
    flights.finish()
    assert ran_on == [threading.get_ident()]
    given.close()


def test_more_than_two_steps_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_steps_in_flight is 3; it is at most 2"):
        LLM("demo", max_steps_in_flight=3)
