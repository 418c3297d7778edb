"""compute-sanitizer over the kernel tests, on this machine's GPU: `make sanitize`.

    memcheck    reads and writes outside of an allocation or misaligned   of every folder first
    racecheck   races in shared memory                                    then these two, as far as the time goes:
    initcheck   reads of device memory that nobody wrote                  they are many times slower

    python -m benches.gpu.sanitize [--seconds N] [--tools memcheck,racecheck] [--only mhc,index] [--plan]

torch's caching allocator is off, so that every tensor is an allocation with an end of its own. Each folder has a line:
clean, its findings, tests that failed, or what kept it from an end; findings and failures make the exit status 1, and 2
says that nothing could be checked: no GPU, or no compute-sanitizer on the PATH (it comes with the CUDA toolkit).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches.gpu.__main__ import device_name, run_for
from benches.gpu.plan import LEAST_S, QUICK, TESTS

TOOLS = ("memcheck", "racecheck", "initcheck")
FOUND = 86  # exit status that says: the tests passed, the tool found something
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
# A case of these sizes is minutes under a tool and runs the code that a small one runs.
SMALL = "not 262144 and not 65536 and not 16384 and not 8192"


def command(tool: str, folder: str, log: str) -> tuple[str, ...]:
    """The tests of one folder under one tool, its report in the file `log`."""
    checked = ("compute-sanitizer", "--tool", tool, "--target-processes", "application-only", "--print-limit", "20")
    return (*checked, "--error-exitcode", str(FOUND), "--log-file", log, *QUICK, "-k", SMALL, f"tests/kernels/{folder}")


def verdict(status: int | None, log: str) -> tuple[str, bool]:
    """What one run says, and whether that is bad. A run without a summary is never clean."""
    if status is None:
        return "did not finish in its time: nothing is said of it", False
    counts = [int(number) for number in SUMMARY.findall(log)]
    if any(counts):
        return f"{sum(counts)} findings", True
    if "Device not supported" in log:
        return "the tool does not support this device: nothing is said of it", False
    if status != 0 or not counts:
        return f"exit status {status}, {'a clean report' if counts else 'no report'}: tests failed, or the tool", True
    return "clean", False


def check(tools: Sequence[str], folders: Sequence[str], seconds: float) -> int:
    """Runs each tool over each folder and prints a line for each; 1 if one found something or failed."""
    jobs = [(tool, folder) for tool in tools for folder in folders]
    end, bad, lines = time.monotonic() + seconds, False, []
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (tool, folder) in enumerate(jobs):
            left = end - time.monotonic()
            here = min(left, 2 * left / (len(jobs) - number) + LEAST_S)
            log = Path(scratch) / f"{tool}-{folder}.log"
            said, failed = "not run, no time left", False
            if here > LEAST_S:
                print(f"== {tool} {folder}, at most {here:.0f} s", flush=True)
                status = run_for(command(tool, folder, str(log)), here)
                report = log.read_text(errors="replace") if log.exists() else ""
                said, failed = verdict(status, report)
                if failed:
                    print(report[:4000], flush=True)
            bad |= failed
            lines.append(f"{tool:10} {folder:10} {said}")
    print("\n".join(lines))
    return int(bad)


def main(arguments: Sequence[str] | None = None) -> int:
    """Says what is missing, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540, help="for everything together (540)")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--only", default=",".join(part.name for part in TESTS), help="folders of tests/kernels")
    parser.add_argument("--plan", action="store_true", help="print the commands, and stop")
    args = parser.parse_args(arguments)
    tools, folders = args.tools.split(","), args.only.split(",")
    if unknown := set(tools) - set(TOOLS) | set(folders) - {part.name for part in TESTS}:
        parser.error(f"unknown: {sorted(unknown)}")
    if args.plan:
        for tool in tools:
            for folder in folders:
                print(" ".join(command(tool, folder, "LOG")))
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH: nothing was checked (it comes with the CUDA toolkit)")
        return 2
    if not device_name():
        print("no GPU here: nothing was checked")
        return 2
    if subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True, check=False).returncode:
        print("pytest is not installed here: nothing was checked")
        return 2
    return check(tools, folders, args.seconds)


if __name__ == "__main__":
    sys.exit(main())
