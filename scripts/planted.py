"""Plants the known bugs one at a time, runs the core's tests against each, and writes docs/planted_bugs.md.

    scripts/planted.py [BUG ...]        those bugs alone, and the table is only printed

Each bug is a variant of `Bug` in rust/core/src/planted.rs. It meets three kinds of tests:

    random    the campaign, all layers, until one fails or the time is over
    simulator one seed after the other, until one fails or the time is over
    named     those of the core that have one behaviour in their name
    search    every state of small worlds of rooms, if the others find nothing

A test that does not come to its end in time counts as failed. Exits with 1 if a bug passes all, or if the tests fail
without any.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "rust" / "core" / "src" / "planted.rs"
TABLE = ROOT / "docs" / "planted_bugs.md"
CAMPAIGN = ["--exact", "campaign::every_operation_agrees_with_its_model", "--ignored"]
RANDOM = (
    "campaign::",
    "chaos::",
    "conservation::",
    "handles::",
    "model::",
    "progress::random_",
    "replay::random_",
    "storm::",
)
LIMIT_S = 10.0
NAMED_LIMIT_S = 25.0
FAILED = re.compile(r"^test (\S+).* \.\.\. FAILED$", re.MULTILINE)
ENDED = re.compile(r"^test (\S+).* \.\.\. \w+", re.MULTILINE)
SEED = re.compile(r"^failed seeds: \[(\d+)", re.MULTILINE)
PLACE = re.compile(r"at operation (\d+)")


@dataclass(frozen=True)
class Bug:
    """One variant: its number, its name, where the bug happened, what is planted."""

    number: int
    name: str
    origin: str
    planted: str


@dataclass(frozen=True)
class Run:
    """One process: its exit status, None if it did not end; what it printed, and how many seconds it took."""

    status: int | None
    text: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all its tests did."""
        return self.status == 0

    @property
    def fate(self) -> str:
        """What became of it, where no test says more."""
        return "does not end" if self.status is None else "aborts"


@dataclass(frozen=True)
class Catch:
    """What finds a bug: the campaign, in its words; the simulator, by its seed; each after its seconds; named tests."""

    random: str | None
    seconds: float
    seed: int | None
    seed_seconds: float
    named: tuple[str, ...]

    @property
    def is_found(self) -> bool:
        """Whether anything does."""
        return bool(self.random or self.named) or self.seed is not None


def bugs(source: str) -> list[Bug]:
    """The variants in the order of their numbers."""
    body = source.partition("enum Bug {")[2].partition("\n}")[0]
    found = re.findall(r"/// (.+?) \| (.+(?:\n\s+/// .+)*)\n\s+(\w+),", body)
    texts = [(name, origin, re.sub(r"\s+/// ", " ", what)) for origin, what, name in found]
    return [Bug(number, *text) for number, text in enumerate(texts)]


def build() -> dict[str, Path]:
    """The test binaries of the core by the names of their targets, with bugs to switch on."""
    command = ["cargo", "test", "--release", "--locked", "-p", "dsv4-core", "--features", "forged,planted"]
    command += ["--lib", "--test", "suite", "--test", "search", "--test", "sim", "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    built = (json.loads(line) for line in done.stdout.splitlines())
    return {each["target"]["name"]: Path(each["executable"]) for each in built if each.get("executable")}


def run(binary: Path, words: Iterable[str], bug: Bug | None, limit_s: float) -> Run:
    """A test binary with a bug; one that takes too long has failed."""
    settings = {"RUST_BACKTRACE": "0", "OPS": "1e10", "HOURS": str(LIMIT_S / 3600)}
    env = {**os.environ, **settings, "DSV4_PLANTED": str(bug.number) if bug else ""}
    start = time.monotonic()
    command = [str(binary), *words]
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT / "rust" / "core", env=env, **merged) as process:  # type: ignore[call-overload]
        try:
            text, _ = process.communicate(timeout=limit_s)
            return Run(process.returncode, text, time.monotonic() - start)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return Run(None, text, time.monotonic() - start)


def by_chance(bug: Bug | None, binaries: dict[str, Path]) -> tuple[str | None, float]:
    """The layer of the campaign that fails, and after how many seconds."""
    campaign = run(binaries["suite"], CAMPAIGN, bug, LIMIT_S + 10)
    if not campaign.passed:
        layer = re.search(r"LAYER=(\w+)", campaign.text)
        place = PLACE.search(campaign.text)
        if layer:
            return f"{layer[1]}, operation {place[1]}" if place else layer[1], campaign.seconds
        return f"the process {campaign.fate}", campaign.seconds
    return None, campaign.seconds


def by_seed(bug: Bug | None, binaries: dict[str, Path]) -> tuple[int | None, float]:
    """The seed of the simulator that fails, and after how many seconds; 0 if it is not told."""
    words = ["--seeds", "1..1000000000", "--first", "--jobs", "2", "--hours", str(LIMIT_S / 3600)]
    done = run(binaries["sim"], words, bug, NAMED_LIMIT_S)
    if done.passed:
        return None, done.seconds
    seed = SEED.search(done.text)
    return int(seed[1]) if seed else 0, done.seconds


def by_name(binary: Path, words: Iterable[str], bug: Bug | None) -> list[str]:
    """The tests of a binary that fail; of one that takes the process down or does not end, the name is a guess."""
    done = run(binary, words, bug, NAMED_LIMIT_S)
    if done.passed:
        return []
    if failed := FAILED.findall(done.text):
        return failed
    # Tests begin in order: the first that has not come to its end is the one.
    listed = subprocess.run([binary, "--list", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
    names = re.findall(r"^(\S+): test$", listed, re.MULTILINE)
    ended = set(ENDED.findall(done.text))
    return [next((name for name in names if name not in ended), "a test")]


def meet(bug: Bug | None, binaries: dict[str, Path]) -> Catch:
    """What finds a bug; without one, nothing should."""
    random, seconds = by_chance(bug, binaries)
    seed, seed_seconds = by_seed(bug, binaries)
    skipped = [word for name in RANDOM for word in ("--skip", name)]
    named = by_name(binaries["dsv4_core"], [], bug) + by_name(binaries["suite"], skipped, bug)
    if not random and not named and seed is None:
        named = by_name(binaries["search"], [], bug)
    return Catch(random, seconds, seed, seed_seconds, tuple(sorted(named)))


def row(bug: Bug, catch: Catch) -> str:
    """One line of the table."""
    random = f"{catch.random}, {catch.seconds:.1f} s" if catch.random else "–"
    seed = "–" if catch.seed is None else f"seed {catch.seed}, {catch.seed_seconds:.1f} s"
    more = f" and {len(catch.named) - 1} more" if catch.named[1:] else ""
    named = f"`{catch.named[0]}`{more}" if catch.named else "–"
    return f"| {bug.name} | {bug.origin} | {bug.planted} | {random} | {seed} | {named} |"


def table(rows: list[str], catches: list[Catch], commit: str, machine: str) -> str:
    """The document."""
    seconds = [catch.seconds for catch in catches if catch.random]
    seeds = [catch.seed_seconds for catch in catches if catch.seed is not None]
    head = f"""# Planted bugs

Written by `make test-planted` at commit {commit} on {machine}: {len(rows)} bugs planted one at a time, all found;
{len(seconds)} of them by the campaign, after {median(seconds):.2f} s in the median and {max(seconds):.1f} s at most;
{len(seeds)} by the simulator, after {median(seeds):.2f} s in the median and {max(seeds):.1f} s at most.
Each bug happened in an engine that people use, or is one that this design could have. The first column is its switch in
`rust/core/src/planted.rs`; the second says where it happened: sgl, vllm, trt and dyn are SGLang, vLLM, TensorRT-LLM and
Dynamo, each with the number of an issue or a change there.

The campaign (`make test-core`): its layer, the operation of the seed at which it failed, and the time from the start of
the process until it had stopped, on two threads. The simulator (`make sim`): the first seed that failed, of those from
1 on, and the same time; seed 0: the process aborted, or did not end in {NAMED_LIMIT_S:.0f} s. Each has {LIMIT_S:.0f} s.
The named tests are those of `rust/core` that fail besides.

| bug | where it happened | what is planted | campaign | simulator | named tests |
|---|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def written(known: list[Bug], catches: list[Catch]) -> str:
    """The document for what was found at the commit that is checked out."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    rows = [row(*each) for each in zip(known, catches, strict=True)]
    return table(rows, catches, commit, f"{os.cpu_count()} cores")


def main(names: list[str]) -> int:
    """Meets every bug, or those named; writes the table if all were meant and found."""
    known = bugs(SOURCE.read_text())
    meant = [bug for bug in known if not names or bug.name in names]
    binaries = build()
    clean = meet(None, binaries)
    if clean.is_found:
        print(f"without any bug: {clean}")
        return 1
    catches = []
    for bug in meant:
        catches.append(meet(bug, binaries))
        print(row(bug, catches[-1]), flush=True)
    missed = [bug.name for bug, catch in zip(meant, catches, strict=True) if not catch.is_found]
    if missed:
        print(f"nothing finds {', '.join(missed)}")
        return 1
    if not names:
        TABLE.write_text(written(known, catches))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
