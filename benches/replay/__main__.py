"""Replays a trace through every rule and writes the notes: python -m benches.replay TRACE."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from benches.replay import geometry, notes, sweep, trace, traps

NOTES = Path(__file__).parents[2] / "docs" / "notes"


def machine() -> str:
    """Processor and interpreter."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, Python {platform.python_version()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each row as it is measured, then writes replay.md and its figures."""
    parser = argparse.ArgumentParser(prog="python -m benches.replay", description=__doc__)
    parser.add_argument("trace", type=Path, help="conversation_trace.jsonl of Mooncake's FAST'25 release")
    parser.add_argument("--end", choices=("named", "raw"), default="named", help="see benches/replay/trace.py")
    parser.add_argument("--notes", type=Path, default=NOTES, help="folder that replay.md and its figures go to")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(sweep.SIZES_GB), metavar="GB")
    given = parser.parse_args(argv)
    geometry.check()
    if not given.trace.exists():
        print(f"skipped: no trace at {given.trace}; it is published with Mooncake, github.com/kvcache-ai/Mooncake")
        return 0
    started = time.monotonic()
    requests = trace.read(given.trace, given.end)
    bounds = sweep.bounds(requests, given.sizes)
    for row in bounds:
        print(notes.line(row), flush=True)
    ceiling = sweep.unlimited(requests, given.sizes)
    print(notes.line(ceiling), flush=True)
    measured = []
    for row in sweep.rows(requests, given.sizes):
        print(notes.line(row), flush=True)
        measured.append(row)
    scenarios = [*traps.prefix_rows(), *traps.window_rows()]
    collapses = notes.collapses(traps.prefix_lines(), traps.window_lines())
    about = notes.About(
        command=f"python -m benches.replay {given.trace.name} --end {given.end}",
        machine=machine(),
        digest=trace.digest(given.trace),
        num_requests=len(requests),
        num_input_tokens=sum(request.num_input_tokens for request in requests),
        minutes=(time.monotonic() - started) / 60,
    )
    text, figure = notes.report(about, given.sizes, (*bounds, ceiling), measured, scenarios)
    given.notes.mkdir(parents=True, exist_ok=True)
    (given.notes / "replay.md").write_text(text)
    for name, drawn in {"replay.svg": figure, **collapses}.items():
        (given.notes / name).write_text(drawn)
    print(f"wrote {given.notes}/replay.md and its figures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
