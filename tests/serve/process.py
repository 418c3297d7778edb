"""A server in a process of its own: started, found by the line that it prints, stopped by signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
EXIT_WAIT_S = 30


@dataclass
class ServerProcess:
    """One running server.

    url      where it serves, without /v1
    report   what it printed before it served
    """

    popen: subprocess.Popen[str]
    url: str
    report: list[str]
    _stderr: IO[str]

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def exit_status(self) -> int:
        """Waits for the end."""
        return self.popen.wait(EXIT_WAIT_S)

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()


@contextlib.contextmanager
def server_process(module: str, *args: str, **variables: str) -> Iterator[ServerProcess]:
    """Runs `python -m module args`, and kills what is left of it at the end."""
    with tempfile.TemporaryFile("w+") as stderr, spawned(module, *args, stderr=stderr, **variables) as popen:
        assert popen.stdout is not None
        report: list[str] = []
        for line in popen.stdout:
            if line.startswith("serving "):
                url = line.split(" at ")[1].strip().removesuffix("/v1")
                yield ServerProcess(popen, url, report, stderr)
                return
            report.append(line.rstrip("\n"))
        stderr.seek(0)
        raise AssertionError(f"{module} ended with {popen.wait()} before it served:\n{stderr.read()}")


@contextlib.contextmanager
def spawned(module: str, *args: str, stderr: IO[str] | int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A child whose standard output is ours to read."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DSV4_")}
    popen = subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    with popen:
        try:
            yield popen
        finally:
            popen.kill()


def finished(module: str, *args: str, **variables: str) -> tuple[int, str]:
    """Exit status and standard error of a server that does not get far."""
    with tempfile.TemporaryFile("w+") as stderr, spawned(module, *args, stderr=stderr, **variables) as popen:
        status = popen.wait(EXIT_WAIT_S)
        stderr.seek(0)
        return status, stderr.read()
