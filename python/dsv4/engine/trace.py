"""Writes down what goes into the core while an engine runs; `python -m dsv4.engine.trace FILE` replays it.

    driver ── after each step: core.take_trace() ──▶ queue ──▶ a thread of its own ──▶ FILE

The bytes are the core's (rust/core/src/trace); a replay makes the same calls again and needs neither model nor device.
A trace holds the token ids of every prompt: it is as confidential as they are.
"""

from __future__ import annotations

import argparse
import logging
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from dsv4._core import Core, replay_trace
from dsv4.errors import ConfigError, TraceError

log = logging.getLogger("dsv4.engine")


class Recording:
    """One core's trace on its way to a file. The driver's thread calls `drain`, and never waits for a disk there."""

    def __init__(self, core: Core, path: str | Path) -> None:
        """Begins with the first call of the core. Raises ConfigError for a file that cannot be written."""
        try:
            file = Path(path).expanduser().open("wb")
        except OSError as error:
            raise ConfigError(f"the trace cannot be written to {path}: {error.strerror}") from error
        core.record()
        self._core = core
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, args=(file,), name="dsv4-trace", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Hands on what came since the last time."""
        if piece := self._core.take_trace():
            self._pieces.put(piece)

    def close(self) -> None:
        """Writes the rest and closes the file; after the core's shutdown, which is the last call of a trace."""
        self.drain()
        self._pieces.put(b"")
        self._thread.join()

    def _write(self, file: BinaryIO) -> None:
        try:
            with file:
                while piece := self._pieces.get():
                    file.write(piece)
                    if self._pieces.empty():
                        file.flush()  # what is there when the process dies is worth most
        except OSError:
            log.exception("the trace ends here; the engine goes on")
            while self._pieces.get():
                pass


def main(argv: list[str] | None = None) -> int:
    """Replays a file; 0 if every answer is the same, 1 if one differs, 2 if the file is no whole trace."""
    parser = argparse.ArgumentParser(prog="python -m dsv4.engine.trace", description="Replay a recorded trace.")
    parser.add_argument("file", type=Path, metavar="FILE", help="what --record-trace wrote")
    path: Path = parser.parse_args(argv).file
    try:
        replay = replay_trace(path.read_bytes())
    except (OSError, TraceError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    done = f"{replay.num_calls} calls, {replay.num_requests} requests, {replay.num_steps} steps"
    if replay.difference is not None:
        sys.stdout.write(f"{path}: {done} are the same, then {replay.difference}\n")
        return 1
    end = "to the shutdown" if replay.is_complete else "and there it ends, before a shutdown"
    sys.stdout.write(f"{path}: the same plans and outcomes, {done}, {replay.num_tokens} tokens, {end}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
