"""The process around the application: sockets, signals, and a shutdown in two stages.

    serving ──SIGTERM or SIGINT──▶ draining ──all done, or the time-out──▶ closing ──▶ gone
                                      └──────── second signal, at any time ─────────▶ gone within a second

While draining, connections are still accepted: /ready answers 503 and new requests are refused with Retry-After, so
that a router learns of it. Only this module installs signal dispositions, and only for a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from dsv4.errors import ConfigError
from dsv4.serve.protocol import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from starlette.applications import Starlette

    from dsv4.serve.door import Door
    from dsv4.serve.settings import ServeSettings

CLOSE_TIMEOUT_S = 5
DESCRIPTORS = 65_536
BACKLOG = 2_048

log = logging.getLogger("dsv4.serve")


class Server(uvicorn.Server):
    """uvicorn without its signals: when to stop is told by `should_exit`; says so once it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the doors."""
        await super().startup(sockets=sockets)
        self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone."""
        yield


def bind(settings: ServeSettings) -> socket.socket:
    """A bound socket, before anything slow begins: a taken port fails at once. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY by this number
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be bound: {error.strerror}; choose another --port"
        ) from None
    listener.setblocking(False)  # noqa: FBT003
    return listener


def raise_descriptor_limit(wanted: int = DESCRIPTORS) -> int:
    """Lets the process open more sockets, as far as it may; returns the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        return reachable
    return soft


def uvicorn_config(app: Starlette, settings: ServeSettings) -> uvicorn.Config:
    """The settings of uvicorn: our protocol, no access log, no proxies believed, no other way to be configured."""
    return uvicorn.Config(
        app,
        http=guarded(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.idle_timeout_s)),
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        backlog=BACKLOG,
    )


class Shutdown:
    """Turns the first signal into a drain and the second into an exit."""

    def __init__(self, server: Server, door: Door) -> None:
        self._server = server
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """While inside, SIGTERM and SIGINT are ours."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._arrived) for number in signals}
        try:
            yield
        finally:
            for number, disposition in before.items():
                signal.signal(number, disposition)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if self._asked.is_set() or self._door.draining:
            os._exit(128 + number)  # a step may be running that nothing can interrupt
        self._door.draining = True
        self._loop.call_soon_threadsafe(self._asked.set)

    async def drain_when_asked(self) -> None:
        """Waits for a signal, lets running requests finish, then stops the server."""
        await self._asked.wait()
        timeout = self._door.settings.shutdown_timeout_s
        log.info("draining: running requests have %g s to finish; a second signal exits at once", timeout)
        try:
            report = await self._door.engine.drain(timeout)
            log.info("drained: %s", report)
        finally:
            self._server.should_exit = True


async def serve(app: Starlette, door: Door, listener: socket.socket, listening: Callable[[], None]) -> None:
    """Serves until a signal says otherwise; calls `listening` once connections are taken."""
    server = Server(uvicorn_config(app, door.settings), listening)
    shutdown = Shutdown(server, door)
    gc.collect()
    gc.freeze()
    with shutdown.on_signals():
        draining = asyncio.create_task(shutdown.drain_when_asked())
        try:
            await server.serve(sockets=[listener])
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
