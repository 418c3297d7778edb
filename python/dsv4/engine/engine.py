"""The two doors into an engine: `AsyncEngine` for asyncio, `LLM` (llm.py) for everything else, both in this process.

No signal is handled, no policy set, no process started. One thread per engine touches the core; callers talk to it
through the driver. Leaving the `with` block aborts what runs, waits for the device, and lets go of model and pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Self

from dsv4.config.engine import EngineConfig
from dsv4.engine.front import Front, aborting, shut
from dsv4.engine.gather import completions
from dsv4.engine.llm import LLM
from dsv4.engine.metrics import EngineMetrics
from dsv4.engine.parts import Parts
from dsv4.engine.start import start
from dsv4.engine.stream import AsyncStream, Deltas, LoopWake
from dsv4.engine.text import Tokenizer
from dsv4.errors import RequestFailed
from dsv4.types import (
    ChatRequest,
    ChatResult,
    Delta,
    DrainReport,
    EngineInfo,
    Health,
    Prompt,
    RenderedChat,
    SamplingParams,
)

__all__ = ["LLM", "AsyncEngine"]

MAX_TOMBSTONES = 1024
"""Aborted ids that are remembered, so that a late start of one is refused."""


class AsyncEngine:
    """An engine on asyncio. Made by `running`, or by `over` from parts; its methods are for any event loop.

    async with AsyncEngine.running(EngineConfig(model="demo")) as engine:
        async for delta in engine.generate("Once", SamplingParams(max_tokens=16)):
            print(delta.content, end="")
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._metrics = EngineMetrics(front.driver.counts, front.facts)
        self._wakes: dict[asyncio.AbstractEventLoop, LoopWake] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._finalizer = weakref.finalize(self, shut, front.driver, os.getpid())

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, config: EngineConfig) -> AsyncIterator[Self]:
        """Loads a model, off the loop, and runs it until the block is left. Raises ConfigError or CheckpointError."""
        async with cls.over(await _loaded(config)) as engine:
            yield engine

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, parts: Parts) -> AsyncIterator[Self]:
        """The same over parts that exist already: any core, any runner. Both are the engine's from here on."""
        front = Front(parts)
        del parts  # nothing here may keep the model alive
        front.driver.start()
        engine = cls(front)
        try:
            yield engine
        finally:
            await engine._close()

    @property
    def info(self) -> EngineInfo:
        """What is known once it runs."""
        return self._front.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._front.tokenizer

    async def render(self, request: ChatRequest) -> RenderedChat:
        """Encodes a conversation, off the loop. Raises InvalidRequest."""
        self._front.check_usable()
        return await asyncio.to_thread(self._front.render, request)

    async def open(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncStream:
        """Validates and submits; text is encoded off the loop. The stream is to be used as `async with`.

        cache_salt   prefixes are shared with requests of the same salt only

        Raises InvalidRequest, QueueFull, EngineClosed, or RequestFailed for an id that was aborted; nothing runs then.
        """
        front = self._front
        front.check_usable()
        if request_id in self._tombstones:
            raise RequestFailed(f"request {request_id} was aborted before it came", "aborted")
        token_ids = (
            await asyncio.to_thread(front.token_ids, prompt) if isinstance(prompt, str) else front.token_ids(prompt)
        )
        stream = AsyncStream(self._wake(), front.bounds.max_output_items * max(1, params.n))
        request = front.request(
            prompt, token_ids, params, stream, request_id=request_id, priority=priority, cache_salt=cache_salt
        )
        front.check_queue(params.n)
        stream.abort = aborting(front, request)
        try:
            await asyncio.wrap_future(front.driver.submit(request))
        except asyncio.CancelledError:
            stream.abort()
            raise
        return stream

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> Deltas:
        """An asynchronous iterator of deltas. Leaving the `async for`, or cancelling its task, aborts the request.

        The request is submitted when the first delta is asked for. Raises then what `open` raises.
        """
        return Deltas(lambda: asyncio.ensure_future(self.open(prompt, params or SamplingParams())))

    async def chat(self, request: ChatRequest, params: SamplingParams | None = None) -> ChatResult:
        """The whole answer to a conversation; cancelling aborts it. Raises InvalidRequest, QueueFull, RequestFailed."""
        rendered = await self.render(request)
        found: list[Delta] = []
        async with await self.open(rendered, params or SamplingParams()) as stream:
            while deltas := await stream.take():
                found += deltas
        return ChatResult(choices=tuple(completions(found)), warnings=rendered.warnings)

    async def abort(self, request_id: str) -> bool:
        """Ends the requests of that id wherever they are; False if there is none, and then none may start later."""
        driver = self._front.driver
        found = await asyncio.wrap_future(driver.find(request_id))
        for request in found:
            driver.abort(request, RequestFailed(f"request {request_id} was aborted", "aborted"), "abort")
        if not found:
            self._tombstones[request_id] = None
            if len(self._tombstones) > MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
        return bool(found)

    async def drain(self, timeout: float) -> DrainReport:  # noqa: ASYNC109 - the interface's word
        """Takes no new requests, waits for the running ones, aborts what is left after `timeout` seconds."""
        front = self._front
        started = time.monotonic()
        front.draining = front.driver.progress.draining = True
        num_open = front.driver.num_open
        num_aborted = 0
        idle = asyncio.wrap_future(front.driver.when_idle())
        try:
            await asyncio.wait_for(idle, timeout)
        except TimeoutError:
            left = RequestFailed("the engine was drained, and the time for it is over", "aborted")
            num_aborted = await asyncio.wrap_future(front.driver.abort_all(left, "drain"))
        return DrainReport(max(0, num_open - num_aborted), num_aborted, time.monotonic() - started)

    def health(self) -> Health:
        """Cheap, from any thread."""
        return self._front.health()

    def metrics_text(self) -> bytes:
        """The engine's metrics in Prometheus' text exposition."""
        return self._metrics.text()

    async def stats(self) -> dict[str, int]:
        """Counters and gauges of the core, between two steps."""
        self._front.check_usable()
        return await asyncio.wrap_future(self._front.driver.ask(lambda core: core.stats()))

    async def explain_recipe(self) -> str:
        """Which limits are in force at the present load, since when and why, and when they change."""
        self._front.check_usable()
        return await asyncio.wrap_future(self._front.driver.ask(lambda core: core.explain_recipe()))

    async def audit(self) -> None:
        """Proves that every block of the core is in exactly one place, between two steps. Raises Violation."""
        self._front.check_usable()
        await asyncio.wrap_future(self._front.driver.ask(lambda core: core.audit()))

    def _wake(self) -> LoopWake:
        loop = asyncio.get_running_loop()
        wake = self._wakes.get(loop)
        if wake is None:
            for other in [other for other in self._wakes if other.is_closed()]:
                self._wakes.pop(other, None)
            wake = self._wakes[loop] = LoopWake(loop)
        return wake

    async def _close(self) -> None:
        self._front.closed = True
        self._front.driver.stop()
        await _whole(asyncio.to_thread(self._front.driver.join))
        self._finalizer.detach()


async def _loaded(config: EngineConfig) -> Parts:
    """Loads off the loop; when the caller is cancelled meanwhile, what was loaded is let go of."""
    loading = asyncio.ensure_future(asyncio.to_thread(start, config))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            (await loading).close()
        raise


async def _whole(work: Any) -> None:  # noqa: ANN401 - any awaitable
    """Waits to the end even when cancelled, and is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
