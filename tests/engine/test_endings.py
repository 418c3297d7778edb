"""Every way a request can end early, in every phase: one terminal event, and all blocks Free."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.engine.gates import (
    LIMIT_S,
    SPELL,
    Gate,
    assert_all_blocks_free,
    assert_free,
    letters,
    opened,
    parts,
    posted,
    text_of,
    whole,
)

from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.engine.stream import AsyncStream, Deltas, LoopWake
from dsv4.errors import EngineClosed, QueueFull, RequestFailed, Violation
from dsv4.runtime.null import NullRunner
from dsv4.runtime.step import Draw, StepResult
from dsv4.types import Delta, SamplingParams

LONG = SamplingParams(max_tokens=3000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3)


def run(work: Awaitable[None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work, LIMIT_S)

    asyncio.run(limited())


async def queued(engine: AsyncEngine, gate: Gate) -> tuple[AsyncStream, list[AsyncStream]]:
    """A request that waits behind another one."""
    first = await engine.open([5] * 10, LONG)
    return await opened(engine, gate, [6] * 10, LONG), [first]


async def prefilling(engine: AsyncEngine, gate: Gate) -> tuple[AsyncStream, list[AsyncStream]]:
    """A request of which a part of the prompt was run."""
    stream = await engine.open([5] * 1000, LONG)
    gate.step()
    return stream, []


async def decoding(engine: AsyncEngine, gate: Gate) -> tuple[AsyncStream, list[AsyncStream]]:
    """A request that has said something."""
    stream = await engine.open([5] * 10, LONG)
    for _ in range(3):
        gate.step()
    await stream.take()
    return stream, []


@pytest.mark.parametrize("phase", [queued, prefilling, decoding])
def test_leaving_a_stream_frees_its_blocks_within_a_step(
    phase: Callable[[AsyncEngine, Gate], Awaitable[tuple[AsyncStream, list[AsyncStream]]]],
) -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate, max_running=1, max_step_tokens=256)) as engine:
            stream, others = await phase(engine, gate)
            gate.arrived()  # a step is running
            await stream.__aexit__(None, None, None)
            for other in others:
                other.leave()
            gate.allow()
            await assert_all_blocks_free(engine)
            with pytest.raises(RequestFailed) as end:
                await whole(stream)
            assert end.value.code == "aborted"
            gate.open()
            assert text_of(await whole(await engine.open([7], SHORT))) == "abc"

    run(work())


def test_leaving_the_loop_of_generate_aborts() -> None:
    async def work() -> None:
        gate = Gate(is_open=True)
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            async for delta in engine.generate("hi", LONG):
                assert delta.content == "a"
                break
            gc.collect()
            await assert_all_blocks_free(engine)

    run(work())


def test_cancelling_the_reader_aborts() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            got = asyncio.Event()

            async def read() -> None:
                async for _ in engine.generate("hi", LONG):
                    got.set()

            task = asyncio.create_task(read())
            await asyncio.to_thread(gate.step)
            await got.wait()
            await asyncio.to_thread(gate.arrived)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.allow()
            await assert_all_blocks_free(engine)

    run(work())


def test_cancelling_an_open_that_waits_for_the_driver_aborts() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            first = await engine.open("one", LONG)
            await asyncio.to_thread(gate.arrived)
            opening = await posted(engine.open([1, 2], LONG))
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            first.leave()
            gate.open()
            await assert_all_blocks_free(engine)

    run(work())


def test_a_reader_that_is_cancelled_in_the_moment_of_acceptance_aborts() -> None:
    async def work() -> None:
        accepted: asyncio.Future[AsyncStream] = asyncio.get_running_loop().create_future()
        stream = AsyncStream(LoopWake(asyncio.get_running_loop()), 1)
        aborts: list[str] = []
        stream.abort = lambda: aborts.append("abort")
        reading = asyncio.create_task(anext(Deltas(lambda: accepted)))
        await asyncio.sleep(0)
        accepted.set_result(stream)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert aborts

    run(work())


def test_closing_an_iterator_that_never_began_submits_nothing() -> None:
    async def work() -> None:
        gate = Gate(is_open=True)
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            deltas = engine.generate("hi", LONG)
            await deltas.aclose()
            assert [delta async for delta in deltas] == []
            await assert_all_blocks_free(engine)
            assert not gate.plans

    run(work())


@pytest.mark.parametrize("leave", ["break", "close", "drop"])
def test_leaving_the_loop_of_stream_aborts(leave: str) -> None:
    with LLM.over(parts()) as llm:
        deltas = llm.stream("hi", LONG)
        for delta in deltas:
            assert delta.content == "a"
            break
        if leave == "close":
            deltas.close()
            assert list(deltas) == []
        del deltas
        gc.collect()
        assert_free(llm.stats())


def test_a_reader_that_takes_nothing_is_cut_off_and_told() -> None:
    async def work() -> None:
        async with AsyncEngine.over(parts(max_output_items=16)) as engine:
            slow = await engine.open("slow", LONG)
            brisk = await whole(await engine.open("brisk", SamplingParams(max_tokens=10)))
            assert text_of(brisk) == "abcdefghij"
            await asyncio.wrap_future(engine._front.driver.when_idle())  # the slow one has ended as well
            taken = await slow.take()
            assert text_of(taken) == "abcdefghijklmnop"
            with pytest.raises(RequestFailed) as end:
                await slow.take()
            assert end.value.code == "slow_consumer"
            await assert_all_blocks_free(engine)
            assert (
                b'dsv4:aborts_total{engine="0",model_name="null",reason="slow_consumer"} 1.0' in engine.metrics_text()
            )

    run(work())


def test_a_slow_thread_is_cut_off_as_well() -> None:
    with LLM.over(parts(max_output_items=16)) as llm:
        deltas = llm.stream("slow", LONG)
        llm._front.driver.when_idle().result(LIMIT_S)
        with pytest.raises(RequestFailed, match="too far behind"):
            list(deltas)


def test_a_blocked_loop_costs_only_its_own_requests_and_no_memory() -> None:
    async def work() -> None:
        async with AsyncEngine.over(parts(max_output_items=16)) as engine:
            stream = await engine.open("hi", LONG)
            idle = engine._front.driver.when_idle()
            idle.result(LIMIT_S)  # this blocks the loop: nothing can be taken meanwhile
            assert len(stream._items) == 16
            with pytest.raises(RequestFailed, match="too far behind"):
                await whole(stream)

    run(work())


class PoisonRunner(NullRunner):
    """Rows of requests whose prompt begins with 13 are not finite at position 2."""

    def run(self, plan: Any) -> StepResult:
        result = super().run(plan)
        bad = [
            row
            for row, (request, position) in enumerate(zip(plan.sample_request_ids, plan.sample_positions, strict=True))
            if self.draws[request].prompt[0] == 13 and position == 2
        ]
        return StepResult(result.tokens, result.logprobs, bad)


def test_a_row_that_is_not_finite_ends_its_request_alone() -> None:
    async def work() -> None:
        given = parts()
        poisoned = _with_runner(given, PoisonRunner(given.core, letters))
        async with AsyncEngine.over(poisoned) as engine:
            bad = await engine.open([13, 1], SamplingParams(max_tokens=6, n=2))
            good = [await engine.open([7, 1], SamplingParams(max_tokens=6)) for _ in range(3)]
            with pytest.raises(RequestFailed) as end:
                await whole(bad)
            assert end.value.code == "numerical_error"
            assert [text_of(await whole(stream)) for stream in good] == ["abcdef"] * 3
            await assert_all_blocks_free(engine)
            groups = [group for group, _ in poisoned.runner.zeroed]
            assert sorted(set(groups)) == ["full", "state", "swa"]
            assert groups.count("state") == 2, "both choices were found at once"
            text = engine.metrics_text()
            assert b'dsv4:corrupted_requests_total{engine="0",model_name="null"} 1.0' in text

    run(work())


class Unbalanced:
    """A core whose books do not balance."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.num_audits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def audit(self) -> None:
        self.num_audits += 1
        raise Violation("full pool: block 3 is listed twice")


def test_an_idle_engine_audits_its_books_and_says_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        given = parts()
        core: Any = Unbalanced(given.core)
        async with AsyncEngine.over(dataclasses.replace(given, core=core)) as engine:
            for _ in range(2):
                stream = await engine.open([7, 1], SamplingParams(max_tokens=6))
                assert text_of(await whole(stream)) == "abcdef", "nobody fails for it"
            assert core.num_audits == 1, "once in a while, not after every request"
            text = engine.metrics_text()
            assert b'dsv4:invariant_violations_total{engine="0",kind="core",model_name="null"} 1.0' in text

    with caplog.at_level("ERROR"):
        run(work())
    assert "books do not balance" in caplog.text


def test_a_bug_in_the_model_fails_the_requests_of_that_step(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate, max_running=2)) as engine:
            hit = [await engine.open([5], LONG)]
            hit.append(await opened(engine, gate, [6], LONG))
            gate.arrived()
            waiting = await posted(engine.open([9], SHORT))  # not in the step that fails
            gate.fault = ZeroDivisionError("a bug")
            gate.open()
            for stream in hit:
                with pytest.raises(RequestFailed) as end:
                    await whole(stream)
                assert end.value.code == "internal_error"
            assert text_of(await whole(await waiting)) == "abc"
            assert engine.health().alive
            await assert_all_blocks_free(engine)

    with caplog.at_level("ERROR"):
        run(work())
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_bug_in_reading_an_answer_ends_that_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            bad = await engine.open([5], SHORT)
            good = await opened(engine, gate, [6], SHORT)
            gate.arrived()
            (request,) = [request for request in engine._front.driver._open if request.prompt == [5]]
            request.choices[0].reader = None  # type: ignore[assignment]
            gate.open()
            with pytest.raises(RequestFailed) as end:
                await whole(bad)
            assert end.value.code == "internal_error"
            assert text_of(await whole(good)) == "abc"
            await assert_all_blocks_free(engine)

    with caplog.at_level("ERROR"):
        run(work())
    assert len([record for record in caplog.records if record.exc_info]) == 1


class FaultyCore:
    """A core that breaks when told to."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def advance(self, events: Any) -> Any:
        if self.broken:
            raise RuntimeError("the core is broken")
        return self._core.advance(events)


def test_a_bug_in_the_core_ends_the_engine_and_nothing_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        gate = Gate()
        given = parts(before_step=gate)
        core = FaultyCore(given.core)
        async with AsyncEngine.over(_with_core(given, core)) as engine:
            streams = [await engine.open([5], LONG)]
            streams += [await opened(engine, gate, [5], LONG) for _ in range(2)]
            gate.arrived()
            late = [await posted(engine.stats()), await posted(engine.open([5], SHORT))]
            core.broken = True
            gate.open()
            for call in late:  # they were in the inbox when the driver died
                with pytest.raises(EngineClosed):
                    await call
            for stream in streams:
                with pytest.raises(RequestFailed) as end:
                    await whole(stream)
                assert end.value.code == "internal_error"
            await asyncio.to_thread(engine._front.driver.join)
            assert engine.health().reason == "engine_dead"
            assert not engine.health().alive
            for refused in (engine.open([5], SHORT), engine.stats()):
                with pytest.raises(EngineClosed):
                    await refused
            assert (await engine.drain(1)).num_aborted == 0

    with caplog.at_level("CRITICAL", logger="dsv4.engine"):
        run(work())


def test_a_full_queue_refuses_and_takes_again_later() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate, max_running=1, max_queued=2)) as engine:
            streams = [await engine.open([5], SamplingParams(max_tokens=9))]
            streams += [await opened(engine, gate, [5], SHORT) for _ in range(2)]
            gate.arrived()
            with pytest.raises(QueueFull) as refusal:
                await engine.open([5], SHORT)  # the loop need not wait for a step to hear this
            assert refusal.value.retry_after_s > 0
            gate.open()
            assert [text_of(await whole(stream)) for stream in streams] == ["abcdefghi", "abc", "abc"]
            assert text_of(await whole(await engine.open([5], SHORT))) == "abc"
            await assert_all_blocks_free(engine)
            assert b'admission_rejections_total{engine="0",model_name="null",reason="queue_full"} 1.0' in (
                engine.metrics_text()
            )

    run(work())


def test_choices_are_taken_together_or_not_at_all() -> None:
    async def work() -> None:
        gate = Gate(is_open=True)
        async with AsyncEngine.over(parts(before_step=gate, max_running=1, max_queued=2)) as engine:
            with pytest.raises(QueueFull):
                await engine.open([5], SamplingParams(n=16, max_tokens=3000, ignore_eos=True))
            await assert_all_blocks_free(engine)
            assert not gate.plans

    run(work())


def test_abort_by_id_ends_it_and_an_unknown_id_may_not_start_later() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            stream = await engine.open("hi", LONG, request_id="mine")
            gate.arrived()
            abort = await posted(engine.abort("mine"))
            gate.open()
            assert await abort
            with pytest.raises(RequestFailed, match="mine was aborted"):
                await whole(stream)
            assert not await engine.abort("later")
            with pytest.raises(RequestFailed, match="before it came"):
                await engine.open("hi", SHORT, request_id="later")
            await assert_all_blocks_free(engine)

    run(work())


def test_drain_lets_what_runs_finish_and_takes_nothing_new() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            stream = await engine.open("hi", SHORT)
            draining = await posted(engine.drain(LIMIT_S))
            assert engine.health().reason == "draining"
            assert engine.health().alive
            with pytest.raises(EngineClosed, match="draining"):
                await engine.open("late", SHORT)
            gate.open()
            assert text_of(await whole(stream)) == "abc"
            report = await draining
            assert (report.num_finished, report.num_aborted) == (1, 0)

    run(work())


def test_drain_aborts_what_is_left_when_its_time_is_over() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            streams = [await engine.open([5], LONG)]
            streams.append(await opened(engine, gate, [6], LONG))
            draining = await posted(engine.drain(0))  # while a step runs
            gate.open()
            report = await draining
            assert (report.num_finished, report.num_aborted) == (0, 2)
            for stream in streams:
                with pytest.raises(RequestFailed, match="drained"):
                    await whole(stream)

    run(work())


def test_a_storm_of_aborts_leaves_one_end_each_and_every_block_free(rng: Any) -> None:
    async def work() -> None:
        async with AsyncEngine.over(parts(max_running=8, max_step_tokens=64, full_blocks=24)) as engine:
            ends: dict[int, str] = {}

            async def one(number: int, patience: int) -> None:
                params = SamplingParams(max_tokens=rng.randrange(1, 60), n=rng.choice([1, 1, 3]), ignore_eos=True)
                taken: list[Delta] = []
                async with await engine.open([5] * rng.randrange(1, 600), params) as stream:
                    while deltas := await stream.take():
                        taken += deltas
                        if len(taken) > patience:
                            ends[number] = "left"
                            return
                for index in range(params.n):
                    said = [delta for delta in taken if delta.index == index]
                    assert [delta.finish_reason for delta in said].count("length") == 1
                    assert said[-1].finish_reason == "length"
                    assert said[-1].num_generated_tokens == params.max_tokens
                ends[number] = "finished"

            await asyncio.gather(*(one(number, rng.choice([0, 3, 10**9])) for number in range(120)))
            assert len(ends) == 120
            assert {"left", "finished"} == set(ends.values())
            await assert_all_blocks_free(engine)

    run(work())


def _with_runner(given: Any, runner: Any) -> Any:
    import dataclasses

    return dataclasses.replace(given, runner=runner)


def _with_core(given: Any, core: Any) -> Any:
    import dataclasses

    return dataclasses.replace(given, core=core)


def test_letters_are_what_the_table_says() -> None:
    draw = Draw(params=SHORT, prompt=[1], seed=0, choice=1, hidden=())
    assert letters(draw, 0) == SPELL[98]
