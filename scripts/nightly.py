"""Everything that takes longer than a change can wait, one after the other within HOURS, and one table at the end.

    scripts/nightly.py [HOURS] [PART ...]        8 hours and all parts, if nothing else is said

    core       random operations of the core against its models: 10^10, or as many as fit in its share
    search     every state of the ownership and room machines, about 10^8
    sim        workers under faults in virtual time, for its share of the hours
    planted    every known bug planted, and found
    asan       the core and its binding under AddressSanitizer and LeakSanitizer
    valgrind   the binding under memcheck

core and sim are told their share and end by themselves; a part that is not over at its limit is ended, and has failed.
Seeds of core and sim begin where no other night's do. Logs are in target/nightly. Exits with 1 if a part failed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "target" / "nightly"
DAY_S = 86_400
SEEDS_OF_A_NIGHT = 10_000_000
MARGIN_S = 900
"""For building, on top of a share that a part is told."""


@dataclass(frozen=True)
class Part:
    """One target.

    share     part of the hours that it may take
    command   what runs, given its hours and the night's first seed
    count     finds what it did in its log: the last match
    is_told   it keeps to its hours by itself
    """

    name: str
    share: float
    command: Callable[[float, int], Sequence[str]]
    count: str
    is_told: bool = False


@dataclass(frozen=True)
class Result:
    """How one part went; `status` is None if it was ended at its limit."""

    name: str
    seconds: float
    limit_s: float
    status: int | None
    did: str

    @property
    def verdict(self) -> str:
        """In a word."""
        return "passed" if self.status == 0 else "NOT OVER" if self.status is None else f"FAILED ({self.status})"


PARTS = (
    Part(
        "core",
        0.40,
        lambda hours, seed: ("make", "test-core-nightly", f"HOURS={hours:.3f}", f"SEED={seed}"),
        r"\d+ ops +\d+ seeds(?= +[\d.]+ M)",
        is_told=True,
    ),
    Part("search", 0.15, lambda *_: ("make", "search"), r"\d[\d,]* states in all"),
    Part(
        "sim",
        0.25,
        lambda hours, seed: ("make", "sim", f"SIM=--hours {hours:.3f} --jobs 2 --from {seed}"),
        r"\d[\d,]* seeds[^\n]*",
        is_told=True,
    ),
    Part("planted", 0.10, lambda *_: ("make", "test-planted"), r"(?:\| \w+ \|.*\n)+"),
    Part("asan", 0.05, lambda *_: ("make", "asan"), r"\d+ passed"),
    Part("valgrind", 0.05, lambda *_: ("make", "valgrind"), r"\d+ passed"),
)


def did(part: Part, log: str) -> str:
    """What its log says that it did; of a table, how many rows."""
    found = re.findall(part.count, log)
    if not found:
        return "-"
    rows = found[-1].count("\n")
    return f"{rows} bugs" if rows else re.sub(r" +", " ", found[-1]).strip()


def run(part: Part, hours: float, seed: int, logs: Path = LOGS) -> Result:
    """Runs a part to its end or to its limit, with all that it has started."""
    share_s = part.share * hours * 3600
    limit_s = share_s + MARGIN_S * part.is_told
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{part.name}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            part.command(share_s / 3600, seed), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if status is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    return Result(part.name, time.monotonic() - began, limit_s, status, did(part, text))


def table(results: Sequence[Result]) -> str:
    """One row per part."""
    lines = [f"{'part':<10}{'verdict':<14}{'minutes':>8}{'at most':>9}  did"]
    for result in results:
        minutes, most = result.seconds / 60, result.limit_s / 60
        lines.append(f"{result.name:<10}{result.verdict:<14}{minutes:>8.1f}{most:>9.1f}  {result.did}")
    return "\n".join(lines)


def main(words: Sequence[str], parts: Sequence[Part] = PARTS, logs: Path = LOGS) -> int:
    """Runs the parts that are named, or all."""
    hours = float(words[0]) if words else 8.0
    names = list(words[1:]) or [part.name for part in parts]
    if unknown := set(names) - {part.name for part in parts}:
        print(f"no such part: {', '.join(sorted(unknown))}")
        return 2
    seed = int(time.time()) // DAY_S * SEEDS_OF_A_NIGHT
    results = []
    for part in parts:
        if part.name in names:
            print(f"{part.name} ...", flush=True)
            results.append(run(part, hours, seed, logs))
            if results[-1].status != 0:
                print((logs / f"{part.name}.log").read_text(errors="replace")[-4000:], flush=True)
    print(f"{hours:g} hours, seeds from {seed}\n{table(results)}")
    return int(any(result.status != 0 for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
