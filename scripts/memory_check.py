"""Runs the core and its binding under AddressSanitizer and LeakSanitizer, or the binding under valgrind's memcheck.

    scripts/memory_check.py asan        needs gcc's libasan; instruments on stable Rust through RUSTC_BOOTSTRAP
    scripts/memory_check.py valgrind    needs valgrind

The binding is driven by its own tests (tests/core) from a copy of the package with another build of `_core` inside, so
that nothing that is installed changes. An interpreter leaves much behind at its end that is nobody's mistake: of leaks,
and of what memcheck finds, those count whose stack goes through `_core` or names a line of Rust. An error that
AddressSanitizer finds counts wherever it is. Exits with 1 if there is any, or if a test fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = "x86_64-unknown-linux-gnu"
EXTENSION = "_core.abi3.so"
# Neither says more under a checker than in `make test`, and both take minutes there.
SLOW = "not hundred_thousand"
CAMPAIGN_OPERATIONS = "3e6"
OURS = re.compile(r"_core\.abi3\.so|\.rs:\d+|ERROR: AddressSanitizer")


def run(*command: str | Path, env: Mapping[str, str]) -> int:
    """Prints a command and runs it in the root of the repository; its exit status."""
    print("$", *command, flush=True)
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, cwd=ROOT, env={**os.environ, **env}).returncode


def staged(folder: Path, library: Path) -> Path:
    """A copy of the package, by links, with `library` as its extension; returns what goes on PYTHONPATH."""
    shutil.rmtree(folder, ignore_errors=True)
    package = ROOT / "python" / "dsv4"
    for source in package.rglob("*"):
        target = folder / "dsv4" / source.relative_to(package)
        if source.is_file() and source.suffix != ".so" and "__pycache__" not in source.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    shutil.copy(library, folder / "dsv4" / EXTENSION)
    return folder


def reports(log: str) -> list[str]:
    """The separate findings of a log of LeakSanitizer or memcheck, each with its stacks."""
    parts = re.split(r"\n\s*\n", re.sub(r"^==\d+== ?", "", log, flags=re.MULTILINE))
    return [part.strip() for part in parts if re.search(r"^\s+(#\d+|at 0x)", part, re.MULTILINE)]


def ours(log: str) -> list[str]:
    """Those findings that go through the extension or a line of Rust, or are an error of AddressSanitizer's."""
    return [part for part in reports(log) if OURS.search(part)]


def judge(folder: Path, code: int) -> int:
    """Prints the findings in `folder`/log.* that are ours; 1 if there are any or the tests failed with `code`."""
    logs = sorted(folder.glob("log.*"))
    text = "\n\n".join(log.read_text(errors="replace") for log in logs)
    found = ours(text)
    for finding in found:
        print(finding, end="\n\n")
    print(f"{len(reports(text))} findings in {len(logs)} processes, {len(found)} of them ours; tests exit with {code}")
    return 1 if found or code else 0


def drive_binding(folder: Path, library: Path, checker: tuple[str, ...], env: Mapping[str, str]) -> int:
    """The tests of the binding under a checker that writes to `folder`/log.PID."""
    for old in folder.glob("log.*"):
        old.unlink()
    package = staged(folder / "python", library)
    env = {**env, "PYTHONPATH": str(package), "PYTHONMALLOC": "malloc", "PYTHONDONTWRITEBYTECODE": "1"}
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0", "-k", SLOW, "tests/core")
    return judge(folder, run(*checker, sys.executable, *tests, env=env))


def asan() -> int:
    """The core's tests, then the binding's, with every access of Rust's checked."""
    folder = ROOT / "target" / "asan"
    env = {
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": "-Zsanitizer=address",
        "CARGO_TARGET_DIR": str(folder),
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        "CARGO_PROFILE_RELEASE_DEBUG": "line-tables-only",
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "OPS": CAMPAIGN_OPERATIONS,
    }
    build = ("--release", "--locked", "--target", TARGET)
    core = ("cargo", "test", *build, "-p", "dsv4-core", "--features", "forged", "--lib", "--test", "suite")
    # The campaign plays the same games as `model`, and fewer of them.
    failed = run(*core, "--", "--include-ignored", "--skip", "model::", env=env)
    failed = failed or run("cargo", "build", *build, "-p", "dsv4-py", env=env)
    if failed:
        return 1
    gcc = shutil.which("gcc") or sys.exit("gcc is missing; its libasan is what the interpreter preloads")
    runtime = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    library = folder / TARGET / "release" / "lib_core.so"
    options = {
        "LD_PRELOAD": str(Path(runtime.strip()).resolve()),
        "ASAN_OPTIONS": f"detect_leaks=1:log_path={folder / 'log'}:malloc_context_size=40",
        "LSAN_OPTIONS": "exitcode=0",
    }
    return drive_binding(folder, library, (), options)


def valgrind() -> int:
    """The binding's tests under memcheck: the border to Python, with nothing instrumented."""
    folder = ROOT / "target" / "valgrind"
    env = {"CARGO_TARGET_DIR": str(folder), "CARGO_PROFILE_RELEASE_DEBUG": "line-tables-only"}
    if run("cargo", "build", "--release", "--locked", "-p", "dsv4-py", env=env):
        return 1
    leaks = ("--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite")
    checker = ("valgrind", *leaks, "--num-callers=40", f"--log-file={folder / 'log.%p'}")
    return drive_binding(folder, folder / "release" / "lib_core.so", checker, {})


if __name__ == "__main__":
    checks = {"asan": asan, "valgrind": valgrind}
    if sys.argv[1:2] not in [[name] for name in checks]:
        sys.exit(__doc__)
    sys.exit(checks[sys.argv[1]]())
