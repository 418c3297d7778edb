"""`python -m tests.serve.stand_in_main`: the server's whole process over a stand-in.

The prompt "hold" gets one word, and its end when the process gets SIGUSR1. The model "broken" cannot be started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.serve.stand_in import StandIn, StandInStream, say_letters

from dsv4.config.engine import EngineConfig
from dsv4.errors import CheckpointError, EngineClosed
from dsv4.serve.launch import run
from dsv4.types import Delta


@asynccontextmanager
async def start(config: EngineConfig) -> AsyncIterator[StandIn]:
    if config.model == "broken":
        raise CheckpointError("config.json is missing")
    if config.model == "failing":
        raise EngineClosed("the device went away")
    held: list[StandInStream] = []

    def script(stream: StandInStream) -> list[list[Delta]]:
        if stream.prompt != "hold":
            return say_letters(stream)
        held.append(stream)
        stream.say("held")
        return []

    engine = StandIn(script=script)

    def let_go() -> None:
        for stream in held:
            stream.finish(text=" and let go")

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, let_go)
    yield engine
    print("engine stopped", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ, start))
