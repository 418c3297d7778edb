"""Prints the speed of the core, of the demo model and of the server on this machine: `make bench`.

Every number is measured here and now; machines are noisy, so compare only what one run printed side by side.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from benches import core, demo, serve
from benches.peers import drive_ours

PARTS: tuple[tuple[str, Callable[[], list[tuple[str, str]]]], ...] = (
    ("core: plan() + advance(), through the binding", core.measure),
    ("core: a prompt of 8,192 tokens, through the binding", drive_ours.measure),
    ("demo: the embedded checkpoint, no GPU", demo.measure),
    ("server: the model replaced by a null runner", serve.measure),
)


def machine() -> str:
    """Where the numbers are from."""
    names = (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name"))
    cpu = next(names, platform.machine())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    return f"{cpu}, Python {platform.python_version()}, commit {commit or 'unknown'}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Measures every part, one after another, and prints it as soon as it is known."""
    print(machine())
    for title, measure in PARTS:
        print(f"\n{title}", flush=True)
        for name, value in measure():
            print(f"  {name:56} {value}", flush=True)


if __name__ == "__main__":
    main()
