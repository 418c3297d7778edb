"""Health is progress."""

from __future__ import annotations

import asyncio

from tests.engine.gates import Gate, parts, whole

from dsv4.engine.engine import AsyncEngine
from dsv4.engine.health import STALL_TIMEOUT_S, Progress
from dsv4.types import Health, SamplingParams


def test_an_idle_engine_is_alive_however_long_ago_its_last_step_was() -> None:
    assert Progress(last_step_at=0.0).health(1e9) == Health(alive=True, ready=True)


def test_a_busy_engine_is_alive_while_its_last_step_is_young() -> None:
    progress = Progress(busy_since=100.0, last_step_at=150.0)
    assert progress.health(150.0 + STALL_TIMEOUT_S) == Health(alive=True, ready=True)
    assert progress.health(150.1 + STALL_TIMEOUT_S) == Health(alive=False, ready=False, reason="stalled")


def test_work_that_just_arrived_is_no_stall() -> None:
    assert Progress(busy_since=1000.0, last_step_at=1.0).health(1001.0).alive


def test_a_step_that_hangs_shows_and_the_next_one_clears_it() -> None:
    async def work() -> None:
        gate = Gate()
        async with AsyncEngine.over(parts(before_step=gate)) as engine:
            stream = await engine.open([5], SamplingParams(max_tokens=3))
            gate.arrived()
            progress, clock = engine._front.driver.progress, engine._front.driver.clock
            assert engine.health().alive
            assert progress.health(clock() + STALL_TIMEOUT_S + 1).reason == "stalled"
            gate.open()
            await whole(stream)
            assert progress.health(clock() + STALL_TIMEOUT_S + 1).alive

    asyncio.run(work())
