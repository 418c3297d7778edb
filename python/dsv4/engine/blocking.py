"""The sinks of callers who block: a stream for a thread, and a place where a whole answer is gathered."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Self

from dsv4.engine.stream import nothing
from dsv4.errors import Dsv4Error
from dsv4.types import Delta


class SyncStream:
    """The same for a reader in a thread: a blocking iterator, which aborts when it is closed or dropped.

    Deltas wait in a bounded queue; the end has a place of its own.
    """

    def __init__(self, limit: int) -> None:
        self.abort: Callable[[], None] = nothing
        self._limit = limit
        self._items: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self._error: Dsv4Error | None = None
        self._ended = False
        self._over = False

    @property
    def wake(self) -> None:
        """Putting wakes the reader."""
        return

    def put(self, delta: Delta) -> bool:
        """From the driver."""
        if self._items.qsize() >= self._limit:
            return False
        self._items.put(delta)
        return True

    def end(self, error: Dsv4Error | None) -> None:
        """From the driver."""
        self._error = error
        self._ended = True
        self._items.put(None)

    def take(self) -> Delta | None:
        """The next delta; waits for it; None at the end. Raises RequestFailed."""
        if self._over:
            return None
        item = self._items.get()
        if item is None:
            self._over = True
            if self._error is not None:
                raise self._error
        return item

    def leave(self) -> None:
        """Aborts the request unless it has ended; nothing more comes."""
        self._over = True
        if not self._ended:
            self.abort()


class SyncDeltas:
    """A blocking iterator of deltas; leaving the `for`, `close`, or dropping it aborts the request."""

    def __init__(self, stream: SyncStream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        try:
            item = self._stream.take()
        except BaseException:
            self._stream.leave()
            raise
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """Aborts the request unless it has ended."""
        self._stream.leave()

    def __del__(self) -> None:
        self._stream.leave()


class Gathering:
    """Everything of one request, for a caller who waits for the whole; its size is bounded by max_tokens.

    finished   gets this object when the request has ended
    """

    def __init__(self, prompt_index: int, finished: queue.SimpleQueue[Gathering]) -> None:
        self.prompt_index = prompt_index
        self.deltas: list[Delta] = []
        self.error: Dsv4Error | None = None
        self._finished = finished

    @property
    def wake(self) -> None:
        """The queue of the finished wakes."""
        return

    def put(self, delta: Delta) -> bool:
        """From the driver."""
        self.deltas.append(delta)
        return True

    def end(self, error: Dsv4Error | None) -> None:
        """From the driver."""
        self.error = error
        self._finished.put(self)
