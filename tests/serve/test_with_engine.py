"""The door over the real engine: core, driver, text and streams; tokens are made up, and every step is gated."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from tests.serve.harness import CHAT, WAIT_S, listening

from dsv4.engine.engine import AsyncEngine
from dsv4.engine.null import null_parts
from dsv4.serve.settings import ServeSettings

pytestmark = pytest.mark.anyio


@dataclass
class Gate:
    """Holds the driver before each step until the test lets it go on; counts the steps."""

    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    begun: threading.Event = field(default_factory=threading.Event)
    num_steps: int = 0

    def __call__(self, _plan: object) -> None:
        self.steps.acquire(timeout=WAIT_S)
        self.num_steps += 1
        self.begun.set()

    def open(self, num_steps: int) -> None:
        self.steps.release(num_steps)

    async def passed(self, num_steps: int) -> None:
        """Lets steps go on, and waits until they have begun."""
        begun = self.num_steps + num_steps
        self.open(num_steps)
        async with asyncio.timeout(WAIT_S):
            while self.num_steps < begun:
                await asyncio.to_thread(self.begun.wait, WAIT_S)
                self.begun.clear()


@dataclass
class Scene:
    engine: AsyncEngine
    gate: Gate
    port: int
    client: httpx.AsyncClient

    async def num_open(self) -> int:
        """Requests that the core knows, between two steps."""
        stats = await self.engine.stats()
        return stats["num_running"] + stats["num_waiting"]


@asynccontextmanager
async def scene(**parts: int) -> AsyncIterator[Scene]:
    gate = Gate()
    given = null_parts(lambda _, position: 1000 + position, before_step=gate, **parts)  # type: ignore[arg-type]
    async with AsyncEngine.over(given) as engine:
        try:
            async with listening(engine, ServeSettings()) as (_, port, client):
                yield Scene(engine, gate, port, client)
                gate.open(10_000)
                assert await no_request_is_left(engine)
                await engine.audit()
        finally:
            gate.open(10_000)


async def no_request_is_left(engine: AsyncEngine) -> bool:
    async with asyncio.timeout(WAIT_S):
        while True:
            stats = await engine.stats()
            if not stats["num_running"] + stats["num_waiting"]:
                return True


async def connect(port: int, body: dict[str, object]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    return reader, writer


async def until_counted(client: httpx.AsyncClient, words: str, value: str = "1.0") -> None:
    """Until a line of the metrics that has the words has the value."""
    async with asyncio.timeout(WAIT_S):
        while not any(
            words in line and line.endswith(f" {value}") for line in (await client.get("/metrics")).text.splitlines()
        ):
            pass


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_costs_at_most_the_step_that_runs(*, stream: bool) -> None:
    async with scene() as one:
        _, writer = await connect(one.port, {**CHAT, "stream": stream, "max_tokens": 500})
        await one.gate.passed(3)
        writer.close()
        await until_counted(one.client, 'status="499"')
        one.gate.open(1)
        assert await one.num_open() == 0
        assert one.gate.num_steps <= 4
        await until_counted(one.client, "dsv4:aborts_total{")


class Openings:
    """Counts the requests that the door hands to the engine."""

    def __init__(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._num = 0
        self._open = engine.open
        self._changed = asyncio.Event()
        monkeypatch.setattr(engine, "open", self)

    async def __call__(self, *args: Any, **fields: Any) -> Any:
        self._num += 1
        self._changed.set()
        return await self._open(*args, **fields)

    async def reached(self, num_requests: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self._num < num_requests:
                self._changed.clear()
                await self._changed.wait()


async def test_a_queued_request_whose_client_leaves_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(max_running=1, max_queued=4) as one:
        openings = Openings(one.engine, monkeypatch)
        _, first = await connect(one.port, {**CHAT, "max_tokens": 500})
        await one.gate.passed(1)
        _, second = await connect(one.port, {**CHAT, "max_tokens": 500})
        await openings.reached(2)
        second.close()
        await until_counted(one.client, 'status="499"')
        one.gate.open(1)
        assert await one.num_open() == 1
        first.close()


async def test_the_same_request_id_twice_is_two_requests() -> None:
    async with scene() as one:
        headers = {"x-request-id": "twin"}
        one.gate.open(10_000)
        replies = await asyncio.gather(
            *(
                one.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5 + number}, headers=headers)
                for number in range(2)
            )
        )
        assert [reply.json()["usage"]["completion_tokens"] for reply in replies] == [5, 6]


async def test_a_full_queue_is_429_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(max_running=1, max_queued=2) as one:
        openings = Openings(one.engine, monkeypatch)
        body = {**CHAT, "max_tokens": 4}
        asked = [asyncio.create_task(one.client.post("/v1/chat/completions", json=body))]
        await one.gate.passed(1)
        asked += [asyncio.create_task(one.client.post("/v1/chat/completions", json=body)) for _ in range(7)]
        await openings.reached(8)
        one.gate.open(10_000)
        replies = await asyncio.gather(*asked)
        assert sorted(reply.status_code for reply in replies) == [200] * 3 + [429] * 5, "one runs and two may wait"
        refused = [reply for reply in replies if reply.status_code == 429]
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert {reply.json()["error"]["code"] for reply in refused} == {"queue_full"}


async def test_a_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    async with scene() as one:
        request = asyncio.create_task(one.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 6}))
        await one.gate.passed(2)
        draining = asyncio.create_task(one.engine.drain(WAIT_S))
        while (await one.client.get("/ready")).status_code == 200:
            pass
        late = await one.client.post("/v1/chat/completions", json=CHAT)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "not_ready")
        one.gate.open(10_000)
        assert (await request).json()["usage"]["completion_tokens"] == 6
        assert (await draining).num_aborted == 0
