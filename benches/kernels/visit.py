"""A short visit to a GPU: parts run one after the other, in a process that is ended where it says nothing for too long.

A kernel that hangs costs its own part alone; the parts that do not need it go on in a new process. Every line that a
part prints is JSON with its name under "part", and a part that has ended says {"ended": true}.
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
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
Ended = tuple[list[Row], list[str], str]


def no_flags(_: Collection[str]) -> list[str]:
    """A part is called by its name alone."""
    return []


@dataclass(frozen=True)
class Visit:
    """What is run, in order.

    module     its arguments are names of parts
    silence    part -> seconds without a word after which it is ended
    needs      part -> the part that must have ended well before; the others need `rest`
    variables  of the environment
    shown      a row of these parts is printed as it comes
    flags      parts that may still end well -> arguments in front of the names
    """

    module: str
    silence: dict[str, float]
    needs: dict[str, str]
    rest: str
    variables: dict[str, str]
    shown: Collection[str]
    flags: Callable[[Collection[str]], list[str]] = no_flags

    def main(
        self, doc: str | None, table: Callable[[list[Row]], None], *, must: Collection[str], seconds: float
    ) -> int:
        """The command: --out and --seconds, the table last; 0 if the parts that must have ended well did."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seconds", type=float, default=seconds)
        args = parser.parse_args()
        rows, done = self.make(args.out, args.seconds)
        table(rows)
        return int(not set(must) <= done)

    def make(self, out: Path, seconds: float) -> tuple[list[Row], set[str]]:
        """Rows, which also go to `out` as they come, and the parts that ended well; all within so many seconds."""
        end = time.monotonic() + seconds
        out.parent.mkdir(parents=True, exist_ok=True)
        waiting, done, rows = list(self.silence), set[str](), list[Row]()
        with tempfile.TemporaryDirectory() as folder:
            env = self._environment(Path(folder))
            while waiting and time.monotonic() < end - 2:
                found, ended, wrong = self._run(waiting, self.flags({*waiting, *done}), env, end, out)
                rows += found
                done |= set(ended)
                waiting = waiting[len(ended) :]
                if waiting:
                    print(f"{waiting.pop(0)}: {wrong}", flush=True)
                waiting = [part for part in waiting if self.needs.get(part, self.rest) in done]
        return rows, done

    def _environment(self, folder: Path) -> dict[str, str]:
        """A dsv4 of kernels and errors alone: the whole package would want more than torch."""
        lone = folder / "dsv4"
        lone.mkdir()
        (lone / "__init__.py").touch()
        for name in ("kernels", "errors.py"):
            (lone / name).symlink_to(ROOT / "python" / "dsv4" / name)
        path = os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))  # peers stay in it
        return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | self.variables

    def _run(self, parts: list[str], flags: list[str], env: dict[str, str], end: float, out: Path) -> Ended:
        """Parts in one process: their rows, those that ended, and what went wrong with the first that did not."""
        command = [sys.executable, "-m", self.module, *flags, *parts]
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
                left = min(self.silence[parts[len(ended)]], end - time.monotonic())
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
                if row["part"] in self.shown:
                    print(line[:200].rstrip(), flush=True)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        return rows, ended, wrong


def read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Lines as they come, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)
