"""Plants the known bugs one at a time, runs the core's tests against each, and writes docs/planted_bugs.md.

    scripts/planted.py [BUG ...]        those bugs alone, and the table is only printed

Each bug is a variant of `Bug` in rust/core/src/planted.rs. It meets two kinds of tests: the random ones (the campaign, all
layers, until one fails or the time is over), and those that have one behaviour in their name. A test that does not come
to its end in time counts as failed. Exits with 1 if a bug passes both, or if the tests fail without any.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "rust" / "core" / "src" / "planted.rs"
TABLE = ROOT / "docs" / "planted_bugs.md"
CAMPAIGN = "campaign::every_operation_agrees_with_its_model"
RANDOM = ("campaign::", "model::", "conservation::", "chaos::", "progress::random_", "replay::random_")
LIMIT_S = 60.0
NAMED_LIMIT_S = 120.0


@dataclass(frozen=True)
class Bug:
    """One variant: its number, its name, where the bug happened, what is planted."""

    number: int
    name: str
    origin: str
    planted: str


@dataclass(frozen=True)
class Catch:
    """What found a bug: the random run and when, and the named tests that fail."""

    layer: str | None
    operation: str
    seconds: float
    named: tuple[str, ...]


def bugs(source: str) -> list[Bug]:
    """The variants in the order of their numbers."""
    body = source.partition("enum Bug {")[2].partition("\n}")[0]
    found = re.findall(r"/// (.+?) \| (.+(?:\n\s+/// .+)*)\n\s+(\w+),", body)
    texts = [(name, origin, re.sub(r"\s+/// ", " ", what)) for origin, what, name in found]
    return [Bug(number, *text) for number, text in enumerate(texts)]


def build() -> list[Path]:
    """The test binaries of the core, with bugs to switch on."""
    command = ["cargo", "test", "--release", "--locked", "-p", "dsv4-core", "--features", "forged,planted"]
    command += ["--lib", "--test", "suite", "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    built = (json.loads(line) for line in done.stdout.splitlines())
    return [Path(each["executable"]) for each in built if each.get("executable")]


def run(command: list[str | Path], bug: Bug | None, limit_s: float) -> tuple[bool, str, float]:
    """Whether all tests passed, what they printed, and after how long; a run that takes too long is a failure."""
    env = {**os.environ, "RUST_BACKTRACE": "0", "OPS": "1e9" if bug else "1e7", "HOURS": str(LIMIT_S / 3600)}
    env.pop("DSV4_PLANTED", None)
    if bug:
        env["DSV4_PLANTED"] = str(bug.number)
    start = time.monotonic()
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([str(word) for word in command], cwd=ROOT, env=env, **merged) as process:
        try:
            text, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            text = process.communicate()[0] + "\nit does not end"
        return process.returncode == 0, text, time.monotonic() - start


def meet(bug: Bug | None, binaries: list[Path]) -> Catch:
    """What finds a bug; without one, nothing should."""
    suite = next(path for path in binaries if path.name.startswith("suite"))
    passed, text, seconds = run([suite, "--exact", CAMPAIGN, "--ignored"], bug, LIMIT_S + 30)
    layer = None if passed else (re.search(r"LAYER=(\w+)", text) or ["", "it hangs"])[1]
    place = re.search(r"at operation (\d+)", text)
    named = []
    skipped = [word for name in RANDOM for word in ("--skip", name)]
    for binary in binaries:
        passed, text, _ = run([binary, *skipped], bug, NAMED_LIMIT_S)
        named += re.findall(r"^test (\S+).* \.\.\. FAILED$", text, re.MULTILINE)
        named += [] if passed or named else ["a test that does not end"]
    return Catch(layer, place[1] if place else "", seconds, tuple(sorted(named)))


def row(bug: Bug, catch: Catch) -> str:
    """One line of the table."""
    found = f"{catch.layer}, operation {catch.operation}" if catch.operation else catch.layer
    random = f"{found}, {catch.seconds:.1f} s" if catch.layer else "not found"
    first = f"`{catch.named[0]}`" + (f" and {len(catch.named) - 1} more" if catch.named[1:] else "") if catch.named else "–"
    return f"| {bug.name} | {bug.origin} | {bug.planted} | {random} | {first} |"


def table(rows: list[str], caught: list[float], total: int, commit: str) -> str:
    """The document."""
    median = sorted(caught)[len(caught) // 2] if caught else 0.0
    head = f"""# Planted bugs

Written by `make test-planted` at commit {commit}: {total} bugs planted one at a time, all found; {len(caught)} of them by
the random runs, after {median:.1f} s in the median and {max(caught, default=0.0):.1f} s at most. Each bug happened, in an
engine that people use or in the design that we started from; where, is said in the words of `rust/core/src/planted.rs`.

The random runs are the campaign (`make test-core`): its layer, the operation of the seed at which it failed, and the time
from the start of the process on two threads. The named tests are those of `rust/core` that fail besides.

| bug | where it happened | what is planted | random runs | named tests |
|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def main(names: list[str]) -> int:
    """Meets every bug, or those named; writes the table if all were meant and found."""
    known = bugs(SOURCE.read_text())
    meant = [bug for bug in known if not names or bug.name in names]
    binaries = build()
    clean = meet(None, binaries)
    if clean.layer or clean.named:
        print(f"without any bug: {clean}")
        return 1
    rows, caught, missed = [], [], []
    for bug in meant:
        catch = meet(bug, binaries)
        rows.append(row(bug, catch))
        print(rows[-1], flush=True)
        caught += [catch.seconds] if catch.layer else []
        missed += [] if catch.layer or catch.named else [bug.name]
    if missed:
        print(f"nothing finds {', '.join(missed)}")
        return 1
    if not names:
        git = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        TABLE.write_text(table(rows, caught, len(meant), commit))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
