"""The event loop beside the engine: never blocked by a step, woken once per step, whatever the number of streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.gates import LIMIT_S, Gate, parts, text_of, whole

from dsv4.engine.engine import AsyncEngine
from dsv4.types import SamplingParams

LONG = SamplingParams(max_tokens=40, ignore_eos=True)


def test_the_loop_answers_while_a_step_takes_its_time() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            stream = await engine.open([5], LONG)
            gate.arrived()  # the driver is inside a step and stays there
            turns = 0
            taking = asyncio.create_task(stream.take())
            for _ in range(1000):
                await asyncio.sleep(0)
                turns += 1
            assert turns == 1000
            assert not taking.done()
            assert engine.health().alive
            assert engine.metrics_text()
            gate.open()
            assert await asyncio.wait_for(taking, LIMIT_S)
            stream.leave()

    asyncio.run(work())


def test_a_step_posts_one_callback_to_a_loop_however_many_streams_it_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        gate = Gate(is_open=True)
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            streams = [await engine.open([5], LONG) for _ in range(30)]
            posted = 0
            real = loop.call_soon_threadsafe

            def counted(callback: Callable[..., object], *args: Any, **context: Any) -> Any:
                nonlocal posted
                posted += 1
                return real(callback, *args, **context)

            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            before = len(gate.plans)
            answers = await asyncio.gather(*(whole(stream) for stream in streams))
            steps = len(gate.plans) - before
            assert all(len(text_of(answer)) == 40 for answer in answers)
            assert posted <= steps + 2

    asyncio.run(work())


def test_a_blocked_loop_gets_one_callback_however_many_steps_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            stream = await engine.open([5], LONG)
            gate.arrived()
            posted = []
            real = loop.call_soon_threadsafe

            def counted(callback: Callable[..., object], *args: Any, **context: Any) -> Any:
                posted.append(callback)
                return real(callback, *args, **context)

            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            gate.open()
            engine._front.driver.when_idle().result(LIMIT_S)  # blocks this loop for forty steps
            assert len(gate.plans) == 40
            assert len(posted) == 1
            assert len(text_of(await whole(stream))) == 40

    asyncio.run(work())
