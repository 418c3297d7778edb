"""From the driver's thread to whoever reads: bounded, without locks held while waiting, ended exactly once.

    driver:  put, put, ... end        flush once per step
                │                        │
                ▼                        ▼
             a deque ◀── take ──   one callback per step and loop wakes every stream that got something

A reader that falls behind by more than the limit is told so at its next take; `put` never waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from dsv4.errors import Dsv4Error
from dsv4.types import Delta


class Sink(Protocol):
    """Where one request's deltas go; `put` and `end` are called by the driver alone, `end` exactly once."""

    @property
    def wake(self) -> LoopWake | None:
        """Who is to be flushed after something was put; None where putting is enough."""

    def put(self, delta: Delta) -> bool:
        """False: the reader is too far behind, and the request is to be ended."""

    def end(self, error: Dsv4Error | None) -> None:
        """Nothing follows."""


class LoopWake:
    """Wakes the streams of one event loop: at most one callback is on its way at any time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._streams: dict[AsyncStream, None] = {}
        self._scheduled = False

    def add(self, stream: AsyncStream) -> None:
        """To be woken at the next flush."""
        with self._lock:
            self._streams[stream] = None

    def flush(self) -> bool:
        """Posts one callback for all streams that were added; False when the loop is closed."""
        with self._lock:
            if self._scheduled or not self._streams:
                return True
            self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._run)
        except RuntimeError:  # the loop was closed and nobody will ever read
            return False
        return True

    def _run(self) -> None:
        with self._lock:
            streams, self._streams = self._streams, {}
            self._scheduled = False
        for stream in streams:
            stream.ready.set()


class AsyncStream:
    """One accepted request, read on one event loop; leaving its block aborts it unless it has ended.

    limit   most deltas that may wait to be taken
    abort   asks the driver to end the request; from any thread, any number of times
    ready   set by the loop's callback: something arrived
    """

    def __init__(self, wake: LoopWake, limit: int) -> None:
        self.ready = asyncio.Event()
        self.abort: Callable[[], None] = nothing
        self._wake = wake
        self._limit = limit
        self._items: deque[Delta] = deque()
        self._error: Dsv4Error | None = None
        self._ended = False

    @property
    def wake(self) -> LoopWake:
        """The loop's."""
        return self._wake

    def put(self, delta: Delta) -> bool:
        """From the driver."""
        if len(self._items) >= self._limit:
            return False
        self._items.append(delta)
        self._wake.add(self)
        return True

    def end(self, error: Dsv4Error | None) -> None:
        """From the driver; what was put before is still taken."""
        self._error = error
        self._ended = True
        self._wake.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Aborts the request unless it has ended."""
        if not self._ended:
            self.abort()

    async def take(self) -> list[Delta]:
        """Everything that has arrived; waits for something; empty once every choice has ended. Raises RequestFailed."""
        while True:
            ended = self._ended  # read first: what was put before the end is then in the deque
            items = self._drain()
            if items:
                return items
            if ended:
                if self._error is not None:
                    raise self._error
                return []
            self.ready.clear()  # only this loop sets it, so nothing is lost between the look and the wait
            if self._items or self._ended:
                continue
            await self.ready.wait()

    def _drain(self) -> list[Delta]:
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items


class Deltas:
    """An asynchronous iterator of deltas; closing it, dropping it or cancelling its reader aborts the request."""

    def __init__(self, opening: Callable[[], asyncio.Future[AsyncStream]]) -> None:
        self._opening: Callable[[], asyncio.Future[AsyncStream]] | None = opening
        self._stream: AsyncStream | None = None
        self._waiting: deque[Delta] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._waiting:
            return self._waiting.popleft()
        try:
            if self._opening is not None:
                self._stream = await self._opened(self._opening)
            if self._stream is not None:
                self._waiting.extend(await self._stream.take())
        except BaseException:
            self._leave()
            raise
        if not self._waiting:
            self._leave()
            raise StopAsyncIteration
        return self._waiting.popleft()

    async def _opened(self, opening: Callable[[], asyncio.Future[AsyncStream]]) -> AsyncStream:
        self._opening = None
        task = opening()
        try:
            return await task
        except BaseException:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().leave()  # it was accepted in the moment in which its reader was cancelled
            raise

    async def aclose(self) -> None:
        """Aborts the request unless it has ended; nothing more comes."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._opening = None
        stream, self._stream = self._stream, None
        self._waiting.clear()
        if stream is not None:
            stream.leave()


def nothing() -> None:
    """Before the driver knows a request, there is nothing to abort."""
