"""One short visit to a Hopper GPU for the CUDA kernel of sparse decode: right first, then fast, inside a time limit.

    python3 benches/kernels/hopper_attention.py --out FILE [--seconds 80]

Needs Python with torch and triton, and nothing else of dsv4's dependencies. hopper_parts.py does the work, in a process
that is ended where it says nothing for too long, so that a kernel that hangs costs its own part alone; the parts that
do not need it go on in a new process:

    compile        NVRTC, from disk if it is there
    right-1        one block per token: poisoned pools, edge positions, more tokens than multiprocessors; float64 on the
    right-2        device is the judge. Two blocks of a cluster: the same, and the same bits as one block
    times          CUDA at every batch and shape; FlashMLA beside it where it is installed
    timeline       one block per token against two; clocks inside one block: who waits for whom
    triton         the Triton kernel beside the CUDA one, as far as the time goes (each split compiles for seconds)

Lines of JSON go to FILE as they come, a table is printed last. Status 1 unless everything was right.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
SILENCE = {"compile": 25, "right-1": 15, "right-2": 10, "times": 12, "timeline": 12, "triton": 40}  # seconds
NEEDS = {"compile": "", "right-1": "compile", "right-2": "right-1"}  # the others: right-1
Row = dict[str, Any]
Ended = tuple[list[Row], list[str], str]


def environment(folder: Path) -> dict[str, str]:
    """A dsv4 of kernels and errors alone: the whole package would want more than torch."""
    lone = folder / "dsv4"
    lone.mkdir()
    (lone / "__init__.py").touch()
    for name in ("kernels", "errors.py"):
        (lone / name).symlink_to(ROOT / "python" / "dsv4" / name)
    path = os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))  # peers stay in it
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "DSV4_SPARSE_DECODE": "cuda"}


def read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def run(parts: list[str], flags: list[str], env: dict[str, str], end: float, out: Path) -> Ended:
    """Parts in one process: their rows, those that ended, and what went wrong with the first that did not."""
    command = [sys.executable, "-m", "benches.kernels.hopper_parts", *flags, *parts]
    rows: list[Row] = []
    ended: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()
    with (
        out.open("a") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT, start_new_session=True
        ) as child,
    ):
        assert child.stdout is not None
        threading.Thread(target=read, args=(child.stdout, lines), daemon=True).start()
        wrong = ""
        while len(ended) < len(parts):
            left = min(SILENCE[parts[len(ended)]], end - time.monotonic())
            try:
                line = lines.get(timeout=max(left, 0))
            except queue.Empty:
                wrong = "time is up" if time.monotonic() >= end else f"said nothing for {left:.0f} s"
                break
            if line is None:
                wrong = f"ended with status {child.wait()}"
                break
            if not line.startswith("{"):
                print(line, end="", flush=True)
                continue
            row = json.loads(line)
            file.write(line)
            if row.get("ended"):
                ended.append(row["part"])
                print(f"{row['part']}: ended", flush=True)
                continue
            rows.append(row)
            if row["part"] != "times" and row["part"] != "triton":
                print(line[:200].rstrip(), flush=True)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return rows, ended, wrong


def table(rows: list[Row]) -> None:
    """What was measured, one line per shape and batch: us of the CUDA kernel, of FlashMLA and of Triton, and ratios."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        if not row.get("peer"):
            continue
        line = found.setdefault((row["shape"]["kind"], row["shape"]["B"]), [])
        if row["part"] == "times":
            line.insert(0, f"{row['us']:8.2f} us {row['x_floor']:7.2f} x floor")
            if row.get("ratio"):
                line.append(f"FlashMLA {row['peer_us']:.2f} us, ratio {row['ratio']:.3f}")
        elif row.get("ratio"):
            line.append(f"Triton {row['us']:.2f} us beside {row['peer_us']:.2f}, ratio {1 / row['ratio']:.3f}")
    for (kind, B), line in sorted(found.items()):
        print(f"{kind:10} B {B:4} " + "   ".join(line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=80)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    args.out.parent.mkdir(parents=True, exist_ok=True)
    waiting, done, rows = list(SILENCE), set(), []
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder))
        while waiting and time.monotonic() < end - 2:
            flags = [] if {"right-2"} & {*waiting, *done} else ["--one-block"]
            found, ended, wrong = run(waiting, flags, env, end, args.out)
            rows += found
            done |= set(ended)
            waiting = waiting[len(ended) :]
            if waiting:
                print(f"{waiting.pop(0)}: {wrong}", flush=True)
            waiting = [part for part in waiting if NEEDS.get(part, "right-1") in done]
    table(rows)
    return int(not {"compile", "right-1", "right-2"} <= done)


if __name__ == "__main__":
    sys.exit(main())
