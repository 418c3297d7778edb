"""The whole server without a model: door, engine, core and text over a runner that makes tokens up at once.

A step begins when the door has sent what the step before it made, as it would with a model that takes its time;
otherwise the driver runs ahead, and several tokens travel in one chunk.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dsv4.config.engine import EngineConfig
from dsv4.engine.engine import AsyncEngine
from dsv4.engine.null import null_parts
from dsv4.serve.launch import run

TURNS = 3
"""Turns of the loop between a step and its chunks: wake the streams, resume their readers, send."""


class Lockstep:
    """Holds the driver's thread back until the loop has had its turns."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = threading.Event()

    def __call__(self, _plan: object) -> None:
        self._done.clear()
        self._loop.call_soon_threadsafe(self._turn, TURNS)
        self._done.wait()

    def _turn(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._turn, left - 1)
        else:
            self._done.set()


@asynccontextmanager
async def over_null_runner(_config: EngineConfig) -> AsyncIterator[AsyncEngine]:
    """In the place of `AsyncEngine.running`. Token ids are those of short words of the demo's tokenizer."""
    parts = null_parts(lambda _, position: 1000 + position % 500, max_running=64, before_step=Lockstep())
    async with AsyncEngine.over(parts) as engine:
        yield engine


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ, over_null_runner))
