"""A real server over a stand-in, on a loopback socket, in the test's own loop; and the clients that talk to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.serve.stand_in import StandIn, StandInStream, say_letters

from dsv4.serve.app import create_app
from dsv4.serve.door import Door
from dsv4.serve.engine import Engine
from dsv4.serve.server import Server, bind, uvicorn_config
from dsv4.serve.settings import ServeSettings

WAIT_S = 10.0
"""Longest wait for something that must happen; reached only by a test that fails."""

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Served:
    """One running server."""

    engine: StandIn
    door: Door
    port: int
    client: httpx.AsyncClient

    async def post(self, path: str, body: object, **more: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **more)

    async def chat(self, **fields: object) -> httpx.Response:
        return await self.post("/v1/chat/completions", {**CHAT, **fields})

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(path, **more)

    @asynccontextmanager
    async def events(self, path: str, body: Mapping[str, object]) -> AsyncIterator[Events]:
        """An open stream of server-sent events."""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            yield Events(response)

    async def raw(self, data: bytes, *, until_closed: bool = True) -> bytes:
        """Sends bytes over a fresh connection, and returns what comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            read = reader.read(-1 if until_closed else 1 << 20)
            return await asyncio.wait_for(read, WAIT_S)
        finally:
            writer.close()


@dataclass
class Events:
    """Server-sent events as they arrive; comments are kept apart."""

    response: httpx.Response
    comments: list[str] = field(default_factory=list)
    _lines: AsyncIterator[str] | None = None

    async def next(self) -> dict[str, Any] | None:
        """The next event, None for the end mark. Raises StopAsyncIteration where the body ends."""
        if self._lines is None:
            self._lines = self.response.aiter_lines()
        while True:
            line = await asyncio.wait_for(anext(self._lines), WAIT_S)
            if line.startswith(":"):
                self.comments.append(line)
            elif line == "data: [DONE]":
                return None
            elif line:
                assert line.startswith("data: "), line
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found

    async def rest(self) -> list[dict[str, Any]]:
        """Everything up to the end mark, which must be the last thing of the body."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        assert self._lines is not None
        assert [line async for line in self._lines if line] == []
        return found


@asynccontextmanager
async def serving(
    engine: StandIn | None = None,
    settings: ServeSettings | None = None,
    *,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Served]:
    """A server over a stand-in that is stopped at the end of the block."""
    engine = engine or StandIn(script=say_letters)
    async with listening(engine, settings or ServeSettings(), headers) as (door, port, client):
        yield Served(engine, door, port, client)


@asynccontextmanager
async def listening(
    engine: Engine, settings: ServeSettings, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[Door, int, httpx.AsyncClient]]:
    """A server over any engine: its door, its port, and a client of it."""
    app = create_app(engine, settings)
    listener = bind(ServeSettings(host="127.0.0.1", port=0))
    server = Server(uvicorn_config(app, settings), lambda: None)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    port: int = listener.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(
            base_url=base,
            headers=headers,
            timeout=WAIT_S,
            trust_env=False,
            verify=False,  # verifying loads certificates, 20 ms a time
        ) as client:
            yield app.state.door, port, client
    finally:
        await _stop(server)
        listener.close()


async def _stop(server: Server) -> None:
    """uvicorn's own shutdown without its sleeps; the real one is tested on a process."""
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    if tasks := list(server.server_state.tasks):
        _, unfinished = await asyncio.wait(tasks, timeout=WAIT_S)
        assert not unfinished
    for _ in range(1000):
        if not server.server_state.connections:
            break
        await asyncio.sleep(0)
    await server.lifespan.shutdown()


@asynccontextmanager
async def undisturbed(served: Served, path: str = "/v1/chat/completions") -> AsyncIterator[None]:
    """A neighbour who streams all the while: each token is read before the next is said, in order, until the end."""
    script, served.engine.script = served.engine.script, None
    body = {"prompt": "Hi"} if path == "/v1/completions" else CHAT
    async with served.events(path, {**body, "max_tokens": 64}) as events:
        stream = await served.engine.opened()
        served.engine.script = script
        over = asyncio.Event()
        talking = asyncio.create_task(_talk(stream, events, over))
        try:
            yield
        finally:
            over.set()
        assert await talking > 1
        stream.finish()
        (last,) = await events.rest()
        assert last["choices"][0]["finish_reason"] == "stop"
        assert not stream.aborted.is_set()


async def _talk(stream: StandInStream, events: Events, over: asyncio.Event) -> int:
    """Says numbers and reads them back until it is over; returns how many."""
    num_said = 0
    while num_said < 2 or not over.is_set():
        stream.say(f"{num_said} ")
        text = ""
        while not text:  # the first frame of a chat has the role only
            event = await events.next()
            assert event is not None
            (choice,) = event["choices"]
            text = choice["delta"]["content"] if "delta" in choice else choice["text"]
        assert text == f"{num_said} "
        num_said += 1
    return num_said


def content(events: list[dict[str, Any]], choice: int = 0) -> str:
    """The text of one choice of a chat stream."""
    parts = [
        part["delta"].get("content", "") for event in events for part in event["choices"] if part["index"] == choice
    ]
    return "".join(parts)


async def aborted(stream: StandInStream) -> None:
    """Until a stream was aborted."""
    await asyncio.wait_for(stream.aborted.wait(), WAIT_S)
