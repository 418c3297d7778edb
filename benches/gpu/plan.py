"""What `make gpu` runs, in which order, and how long each part may take; nine minutes together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

TOTAL_S = 540
CLOSING_S = 10  # to merge rows and print the table
LEAST_S = 5  # a part that has less left is not started

# Compiling for other GPUs needs none, nor do emulated kernels, and the references are right or wrong on a CPU alike.
# Blackwell's products are timed by no bench; `scripts/gpu.sh OUT moe` runs them.
NOT_HERE = (
    "*_reference.py",
    "*_compiled.py",
    "*test_targets.py",
    "*test_gpu_*.py",
    "*test_emulated.py",
    "*test_mutants.py",
)
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-c", "/dev/null", "--rootdir=.", "--import-mode=importlib")
QUICK = (
    *PYTEST,
    "-p",
    "no:cacheprovider",
    *(f"--ignore-glob={pattern}" for pattern in NOT_HERE),
    "--deselect=tests/kernels/moe/test_blackwell.py",
)


@dataclass(frozen=True, slots=True)
class Part:
    """Tests of some folders, or one bench.

    seconds  what it is given; what an earlier part leaves over is added, what it overruns is not taken away
    """

    name: str
    kind: str  # "tests" or "bench"
    seconds: int

    def command(self, rows: str, commit: str) -> tuple[str, ...]:
        """What runs it, from the root of the repository; a bench appends its rows to the file `rows`."""
        if self.kind == "tests":
            return (*QUICK, f"tests/kernels/{self.name}")
        return (sys.executable, "-m", "benches.kernels.run", "--out", rows, "--only", self.name, "--commit", commit)


TESTS = (
    Part("cache", "tests", 5),
    Part("norm_rope", "tests", 10),
    Part("compress", "tests", 20),
    Part("mhc", "tests", 20),
    Part("index", "tests", 30),
    Part("attention", "tests", 25),
    Part("moe", "tests", 30),
    Part("linear", "tests", 25),
    Part("sample", "tests", 15),
)
BENCHES = (
    Part("sparse_decode", "bench", 45),
    Part("sparse_prefill", "bench", 15),
    Part("moe", "bench", 80),
    Part("linear", "bench", 80),
    Part("index", "bench", 50),
    Part("mhc", "bench", 25),
    Part("compress", "bench", 20),
    Part("norm_rope", "bench", 10),
    Part("sample", "bench", 25),
)
PARTS = TESTS + BENCHES


def limit(parts: Sequence[Part], number: int, elapsed_s: float) -> float:
    """Seconds for a part that begins now: all that is left, but for what the parts after it are given."""
    after = sum(part.seconds for part in parts[number + 1 :])
    return max(0.0, TOTAL_S - CLOSING_S - elapsed_s - after)


def listing(parts: Sequence[Part]) -> str:
    """The plan, one line for each part, and its sum."""
    lines = [f"{part.kind:6} {part.name:14} {part.seconds:4} s" for part in parts]
    given = sum(part.seconds for part in parts)
    return "\n".join([*lines, f"{'':6} {'closing':14} {CLOSING_S:4} s", f"{given + CLOSING_S} of {TOTAL_S} s"])
