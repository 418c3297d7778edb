"""Checks every kernel on this machine's GPU, times it, and holds it against its bars: `make gpu`, nine minutes.

    python -m benches.gpu            all of it, on one H100 or H200
    python -m benches.gpu --plan     what it would run and the time of each part; needs no GPU
    python -m benches.gpu --table    the table of what is stored for a device (--device h200); needs no GPU

    tests of each folder ─▶ benches of each family ─▶ benches/baselines/<device>.jsonl ─▶ table
         │ fail                  │ every case checks itself first, every peer alternates with us
         ▼                       ▼
    its benches are not run   a peer that is missing is a row that says so

Rows of an earlier run stay unless they are measured again. Exit status 1 if a test failed, or a bench failed or ran out
of time; with --strict also if a bar is missed; 2 without a GPU. The bars are those of an H200.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benches.gpu import gates, plan, store
from benches.gpu.plan import Part

ROOT = Path(__file__).parents[2]
# Whose tests come before a bench: the folder of the same name, but for these.
TESTED_BY = {"sparse_decode": "attention", "sparse_prefill": "attention"}


def device_name() -> str:
    """The first GPU, as nvidia-smi names it; empty without one."""
    command = ["nvidia-smi", "-i", "0", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit_name() -> str:
    """$COMMIT, or what git says of this tree, or "unknown"."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    command = ["git", "describe", "--always", "--dirty=+worktree", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run_for(command: Sequence[str], seconds: float) -> int | None:
    """The exit status of a command, or None if it was stopped, with all its processes, after these seconds."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None


@dataclass
class Session:
    """The parts that ran, and what became of them."""

    rows: Path
    commit: str
    run: Callable[[Sequence[str], float], int | None] = run_for
    clock: Callable[[], float] = time.monotonic
    has_pytest: bool = True
    bad: dict[str, str] = field(default_factory=dict)  # name of a part -> what went wrong
    failed_tests: set[str] = field(default_factory=set)

    def work(self, parts: Sequence[Part]) -> None:
        """Every part in its turn, within its time."""
        started = self.clock()
        for number, part in enumerate(parts):
            seconds = plan.limit(parts, number, self.clock() - started)
            why = self._unfit(part, seconds)
            if why is None:
                print(f"== {part.kind} {part.name}, at most {seconds:.0f} s", flush=True)
                why = self._outcome(part, self.run(part.command(str(self.rows), self.commit), seconds), seconds)
            if why:
                print(f"== {part.kind} {part.name}: {why}", flush=True)
                self.bad[f"{part.kind} {part.name}"] = why

    def _unfit(self, part: Part, seconds: float) -> str | None:
        """Why a part is not run at all; "" if that is nobody's fault."""
        if part.kind == "tests" and not self.has_pytest:
            print(f"== tests {part.name}: pytest is not installed here; benches check themselves", flush=True)
            return ""
        if part.kind == "bench" and TESTED_BY.get(part.name, part.name) in self.failed_tests:
            return "not timed, its tests failed"
        return "no time left" if seconds < plan.LEAST_S else None

    def _outcome(self, part: Part, status: int | None, seconds: float) -> str:
        if status == 0:
            return ""
        if part.kind == "tests" and status is not None:
            self.failed_tests.add(part.name)
        return f"stopped after {seconds:.0f} s" if status is None else f"failed, exit status {status}"


def conclude(session: Session, path: Path, *, strict: bool) -> int:
    """Stores the session's rows, prints the table of them and what went wrong; the exit status.

    strict  whether a missed bar fails the run
    """
    bars = gates.load()
    measured = [gates.annotate(row, bars) for row in store.read(session.rows)]
    store.write(path, store.merged(store.read(path), measured))
    print(gates.table(measured, bars))
    missed = [row for row in measured if row["verdict"] == "missed"]
    unpaired = sorted({f"{row['peer']} ({row['skipped']})" for row in measured if row["verdict"] == "no peer"})
    print(f"\n{len(measured)} rows to {path}, {len(missed)} miss their bar")
    if unpaired:
        print("not judged for want of a peer:", "; ".join(unpaired))
    print("without a bar:", ", ".join(gates.without_bar(measured)) or "none")
    for name, why in session.bad.items():
        print(f"{name}: {why}")
    return int(bool(session.bad) or not measured or (strict and bool(missed)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans, runs, stores, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument("--table", action="store_true", help="print the table of the stored rows, and stop")
    parser.add_argument("--device", default="h200", help="whose rows --table reads (h200)")
    parser.add_argument("--strict", action="store_true", help="a missed bar fails the run")
    parser.add_argument("--out", type=Path, help="where rows go, instead of benches/baselines/<device>.jsonl")
    args = parser.parse_args(arguments)
    if args.plan:
        print(plan.listing(plan.PARTS))
        for part in plan.PARTS:
            print(" ".join(part.command("ROWS", "COMMIT")))
        return 0
    if args.table:
        bars = gates.load()
        stored = store.read(args.out or store.BASELINES / f"{args.device}.jsonl")
        print(gates.table([gates.annotate(row, bars) for row in stored], bars))
        return 0
    device = device_name()
    if not device:
        print("no GPU here: nothing was checked or measured (--plan shows what would be)")
        return 2
    probe = subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True, check=False)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder) / "rows.jsonl", commit_name(), has_pytest=probe.returncode == 0)
        session.work(plan.PARTS)
        return conclude(session, args.out or store.file_of(device), strict=args.strict)


if __name__ == "__main__":
    sys.exit(main())
