"""Comments that keep a silent stream alive: on the clock of the loop, from acceptance on, whatever the engine does.

The loop of these tests has a clock of its own: when nothing is left to do, it jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message
from tests.serve.harness import CHAT
from tests.serve.stand_in import StandIn

from dsv4.serve.app import create_app
from dsv4.serve.settings import ServeSettings


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits for a timer: it moves its clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def leap(timeout: float | None) -> Any:
            events = select(0)
            if not events and timeout:
                self.now += timeout
            return events

        self._selector.select = leap  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


class Client:
    """One request against the application, without a socket; what was sent is kept with its time."""

    def __init__(self, engine: StandIn, interval: float, **fields: object) -> None:
        loop = asyncio.get_running_loop()
        app = create_app(engine, ServeSettings(keep_alive_interval_s=interval))
        app.state.door.clock = loop.time
        self.sent: list[tuple[float, bytes]] = []
        self._gone = asyncio.Event()
        self._body: bytes | None = json.dumps({**CHAT, "stream": True, **fields}).encode()
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
        self.done = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.sent.append((asyncio.get_running_loop().time(), message["body"]))

    def leave(self) -> None:
        self._gone.set()

    def comments(self) -> list[float]:
        return [at for at, data in self.sent if data == b": keep-alive\n\n"]


def leaping(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(scene())


async def at(seconds: float) -> None:
    """The moment `seconds` after the clock began."""
    await asyncio.sleep(seconds - asyncio.get_running_loop().time())


def test_a_silent_stream_gets_a_comment_every_interval() -> None:
    async def scene() -> None:
        engine = StandIn()
        client = Client(engine, 10)
        stream = await engine.opened()
        await at(35)
        assert client.comments() == pytest.approx([10, 20, 30])
        stream.finish(text="late")
        await client.done
        assert b"late" in client.sent[-2][1]
        assert client.sent[-1][1] == b"data: [DONE]\n\n"

    leaping(scene)


def test_a_frame_puts_the_next_comment_off() -> None:
    async def scene() -> None:
        engine = StandIn()
        client = Client(engine, 10)
        stream = await engine.opened()
        for second in (7, 14, 21):
            await at(second)
            stream.say("x")
        await at(40)
        assert client.comments() == pytest.approx([31])
        stream.finish()
        await client.done

    leaping(scene)


def test_a_queued_request_is_kept_alive_too() -> None:
    async def scene() -> None:
        engine = StandIn(max_running=1)
        first = Client(engine, 0)
        await engine.opened()
        second = Client(engine, 10)
        waiting = await engine.opened()
        assert engine.waiting == [waiting]
        await at(25)
        assert first.comments() == []
        assert second.comments() == pytest.approx([10, 20])
        for client in (first, second):
            client.leave()
            await client.done

    leaping(scene)


def test_zero_is_off() -> None:
    async def scene() -> None:
        engine = StandIn()
        client = Client(engine, 0)
        stream = await engine.opened()
        await at(1000)
        assert client.comments() == []
        stream.finish()
        await client.done

    leaping(scene)


def test_a_whole_answer_gets_no_comments() -> None:
    async def scene() -> None:
        engine = StandIn()
        client = Client(engine, 10, stream=False)
        stream = await engine.opened()
        await at(35)
        assert client.sent == []
        stream.finish(text="late")
        await client.done
        assert json.loads(client.sent[0][1])["choices"][0]["message"]["content"] == "late"

    leaping(scene)


def test_a_client_that_leaves_between_comments_is_noticed_at_once() -> None:
    async def scene() -> None:
        engine = StandIn()
        client = Client(engine, 10)
        stream = await engine.opened()
        await at(15)
        client.leave()
        await stream.aborted.wait()
        await client.done
        assert asyncio.get_running_loop().time() == pytest.approx(15)

    leaping(scene)
