"""From a command line to a process that serves, and its exit status.

    parse ─▶ bind ─▶ start the engine ─▶ report ─▶ listen ─▶ drain ─▶ stop
      2       2         2, 1                                           0
      └───▶ plan and print (--dry-run)
                2, 3, 0

Status 0: stopped as asked, or a dry run fits. 1: the engine failed. 2: a setting or a checkpoint cannot work, nothing
was served. 3: a dry run does not fit. 128 + number: a second signal, or an interrupt before anything was served.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import TYPE_CHECKING

import prometheus_client
import uvloop

from dsv4.engine.plan import as_json, as_table, plan
from dsv4.errors import CheckpointError, ConfigError, Dsv4Error
from dsv4.serve.app import create_app
from dsv4.serve.args import parse
from dsv4.serve.server import bind, raise_descriptor_limit, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from dsv4.config.engine import EngineConfig
    from dsv4.serve.args import Launch
    from dsv4.serve.engine import Engine
    from dsv4.serve.settings import ServeSettings
    from dsv4.types import EngineInfo

    Start = Callable[[EngineConfig], AbstractAsyncContextManager[Engine]]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_DOES_NOT_FIT = 3

log = logging.getLogger("dsv4.serve")


def run(argv: Sequence[str], variables: Mapping[str, str], start: Start) -> int:
    """Serves as a command line says, with the engine that `start` opens; returns the exit status."""
    try:
        launch = parse(argv, variables)
        _log_to_stderr(launch.serve)
        for note in launch.notes:
            log.info("%s", note)
        if launch.dry_run:
            return _dry_run(launch)
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        listener = bind(launch.serve)
        with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(launch, listener, start))
    except (ConfigError, CheckpointError) as error:
        _say(f"dsv4: {error}")
        return EXIT_REFUSED
    except Dsv4Error as error:
        _say(f"dsv4: {type(error).__name__}: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return EXIT_OK


def _dry_run(launch: Launch) -> int:
    """Prints what the configuration gives; needs no GPU, no weights and no port."""
    found = plan(launch.engine)
    for line in [json.dumps(as_json(found))] if launch.json else as_table(found):
        _tell(line)
    return EXIT_OK if found.verdict.fits else EXIT_DOES_NOT_FIT


async def _serve(launch: Launch, listener: socket.socket, start: Start) -> None:
    raise_descriptor_limit()
    async with start(launch.engine) as engine:
        app = create_app(engine, launch.serve)
        for line in report_lines(engine.info):
            _tell(line)
        address = url_of(listener)
        await serve(app, app.state.door, listener, lambda: _tell(f"serving {engine.info.served_name} at {address}/v1"))


def report_lines(info: EngineInfo) -> list[str]:
    """The startup report as a table of names and values."""
    width = max((len(name) for name, _ in info.report), default=0)
    return [f"{name:<{width}}  {value}" for name, value in info.report]


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr(settings: ServeSettings) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _tell(line: str) -> None:
    """One line for people and scripts, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
