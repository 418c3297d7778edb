"""Engines under measurement as processes of their own, asked in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INSTALL = "benches/peers/install.sh makes an environment that has it"
PEERS = (
    ("vLLM", "drive_vllm"),
    ("SGLang, Python tree", "drive_sglang python"),
    ("SGLang, Rust tree", "drive_sglang rust"),
)


class Absent(Exception):
    """An engine cannot be driven here; the message tells why."""


@dataclass
class Driver:
    """One engine's process; see `wire.py`."""

    about: Mapping[str, str]
    names: Sequence[str]
    process: subprocess.Popen[str]

    def round(self, name: str) -> list[int]:
        """Nanoseconds of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        times: list[int] = self.read()["times"]
        return times

    def read(self) -> dict[str, Any]:
        """One answer; raises Absent if there will be none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise Absent(f"its driver ended with status {self.process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Lets it end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def start(python: str, script: str) -> Driver:
    """Starts a driver and reads what it is; raises Absent with the last line that it wrote if it cannot."""
    command = [python, "-W", "ignore", "-m", *f"benches.peers.{script}".split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_paths(python))}
    with tempfile.TemporaryFile("w+") as log:  # a file, not a pipe: it is read only if the start fails
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        except OSError as error:
            raise Absent(f"{python}: {error.strerror}; {INSTALL}") from error
        driver = Driver({}, [], process)
        try:
            told = driver.read()
        except Absent as absent:
            log.seek(0)
            said = log.read().strip().splitlines()
            raise Absent(f"{said[-1] if said else absent}; {INSTALL}") from absent
    driver.about, driver.names = told["about"], told["names"]
    return driver


def _paths(python: str) -> list[str]:
    """Our interpreter keeps its own path; a peer sees this repository's benches and nothing else of it."""
    given = os.environ.get("PYTHONPATH", "")
    return [str(ROOT), *([given] if given and python == sys.executable else [])]


@dataclass
class Samples:
    """Rounds of one measurement by engine."""

    rounds: dict[str, list[list[int]]] = field(default_factory=dict)

    def add(self, engine: str, times: list[int]) -> None:
        """One more round."""
        self.rounds.setdefault(engine, []).append(times)

    def median_us(self, engine: str) -> float:
        """Median over all rounds."""
        return median([ns for times in self.rounds[engine] for ns in times]) / 1000

    def p99_us(self, engine: str) -> float:
        """99th percentile over all rounds."""
        ranked = sorted(ns for times in self.rounds[engine] for ns in times)
        return ranked[len(ranked) * 99 // 100] / 1000

    def quietest_us(self, engine: str) -> float:
        """Lowest median of a round: what other processes spoil least."""
        return min(median(times) for times in self.rounds[engine]) / 1000

    def ratio(self, engine: str, ours: str) -> float:
        """How many times ours; the median of the ratios of rounds that ran next to each other."""
        pairs = zip(self.rounds[engine], self.rounds[ours], strict=True)
        return median([median(theirs) / median(mine) for theirs, mine in pairs])


def median(values: Sequence[float]) -> float:
    """The upper one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def interleave(drivers: dict[str, Driver], num_rounds: int) -> dict[str, Samples]:
    """Every measurement in turn, all engines within a round. A peer whose driver ends is told of and left out."""
    measured: dict[str, Samples] = {}
    ours = next(iter(drivers))
    for name in dict.fromkeys(name for driver in drivers.values() for name in driver.names):
        samples = measured[name] = Samples()
        for _ in range(num_rounds):
            for engine, driver in list(drivers.items()):
                if name not in driver.names:
                    continue
                try:
                    samples.add(engine, driver.round(name))
                except Absent as absent:
                    if engine == ours:
                        raise
                    print(f"skipped: {engine} from {name!r} on: {absent}", flush=True)
                    samples.rounds.pop(engine, None)
                    del drivers[engine]
    return measured
