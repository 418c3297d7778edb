"""`make gpu` and `make sanitize` without a GPU: the plan, its time, and what becomes of parts that fail or hang."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from benches.gpu import __main__ as gpu
from benches.gpu import plan, sanitize, store
from benches.gpu.__main__ import Session
from benches.gpu.plan import PARTS, Part

ROOT = Path(__file__).parents[2]


def test_every_bench_and_every_folder_of_kernel_tests_is_in_the_plan() -> None:
    benches = {path.stem.removeprefix("bench_") for path in (ROOT / "benches/kernels").glob("bench_*.py")}
    assert {part.name for part in plan.BENCHES} == benches
    folders = {path.parent.name for path in (ROOT / "tests/kernels").glob("*/test_*.py")}
    assert {part.name for part in plan.TESTS} == folders - {"quant", "cuda"}, "a reference, an emulator"
    for part in plan.BENCHES:
        assert gpu.TESTED_BY.get(part.name, part.name) in folders


def test_the_plan_fits_nine_minutes_and_tests_come_first() -> None:
    assert sum(part.seconds for part in PARTS) + plan.CLOSING_S <= plan.TOTAL_S == 540
    kinds = [part.kind for part in PARTS]
    assert kinds == sorted(kinds, reverse=True)


def test_what_is_left_over_goes_to_later_parts_and_an_overrun_to_the_next_alone() -> None:
    parts = [Part("a", "tests", 500), Part("b", "bench", 20), Part("c", "bench", 10)]
    assert plan.limit(parts, 0, 0) == 500
    assert plan.limit(parts, 1, 500) == 20
    assert plan.limit(parts, 1, 100) == 420
    assert plan.limit(parts, 2, 525) == 5
    assert plan.limit(parts, 2, 600) == 0


@pytest.mark.parametrize("module", ["benches.gpu", "benches.gpu.sanitize"])
def test_a_plan_needs_no_gpu_and_names_every_part(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--plan"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for part in plan.TESTS:
        assert f"tests/kernels/{part.name}" in done.stdout
    assert ("540 of 540 s" in done.stdout) == (module == "benches.gpu")


class Clock:
    """Time that passes when a part runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def session(tmp_path: Path, outcome: dict[str, tuple[int | None, float]]) -> tuple[Session, list[str]]:
    """A session whose commands are stand-ins; by the last word of a tests' command or a bench's name, what they do."""
    clock, ran = Clock(), list[str]()

    def run(command: Sequence[str], seconds: float) -> int | None:
        name = command[-1] if command[-1].startswith("tests/") else command[command.index("--only") + 1]
        ran.append(name)
        status, took = outcome.get(name, (0, 1.0))
        clock.now += min(took, seconds)
        return status if took <= seconds else None

    return Session(tmp_path / "rows", "abc", run=run, clock=clock), ran


def test_a_good_session_runs_everything(tmp_path: Path) -> None:
    good, ran = session(tmp_path, {})
    good.work(PARTS)
    assert len(ran) == len(PARTS)
    assert good.bad == {}


def test_what_fails_its_tests_is_not_timed_and_the_others_are(tmp_path: Path) -> None:
    bad, ran = session(tmp_path, {"tests/kernels/attention": (1, 3.0), "moe": (1, 3.0)})
    bad.work(PARTS)
    assert set(bad.bad) == {"tests attention", "bench sparse_decode", "bench sparse_prefill", "bench moe"}
    assert "sparse_decode" not in ran
    assert ran[-1] == "sample"


def test_a_part_that_hangs_costs_no_later_part_its_time(tmp_path: Path) -> None:
    slow, ran = session(tmp_path, {"moe": (0, 10_000.0), "tests/kernels/linear": (0, 10_000.0)})
    slow.work(PARTS)
    assert set(slow.bad) == {"bench moe", "tests linear"}
    assert "linear" in ran, "tests that did not end say nothing against the kernel"
    assert len(ran) == len(PARTS)
    assert slow.clock() <= plan.TOTAL_S - plan.CLOSING_S


def test_without_pytest_the_benches_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lean, ran = session(tmp_path, {})
    lean.has_pytest = False
    lean.work(PARTS)
    assert ran == [part.name for part in plan.BENCHES]
    assert lean.bad == {}
    assert "pytest is not installed" in capsys.readouterr().out


def test_a_stopped_command_takes_its_processes_along(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    started = time.monotonic()
    assert gpu.run_for(["bash", "-c", f"sleep 60 & echo $! > {out}; wait"], 1.0) is None
    assert time.monotonic() - started < 20
    stat = Path(f"/proc/{out.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_status_is_passed_on() -> None:
    assert gpu.run_for([sys.executable, "-c", "raise SystemExit(3)"], 20.0) == 3


def rows_of(path: Path, **changes: object) -> None:
    first = next(r for r in store.read(store.BASELINES / "h200.jsonl") if r["op"] == "sparse_decode")
    store.write(path, [first | changes])


def test_the_end_of_a_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, _ = session(tmp_path, {})
    out = tmp_path / "h200.jsonl"
    assert gpu.conclude(done, out, strict=False) == 1, "nothing was measured"
    rows_of(done.rows, ratio=0.5)
    assert gpu.conclude(done, out, strict=True) == 0
    rows_of(done.rows, ratio=1.5, us=99.0)
    assert gpu.conclude(done, out, strict=False) == 0
    assert gpu.conclude(done, out, strict=True) == 1
    (kept,) = store.read(out)
    assert (kept["us"], kept["verdict"]) == (99.0, "missed")
    assert kept["why"]
    rows_of(done.rows, ratio=None, peer_us=None, skipped="not installed")
    assert gpu.conclude(done, out, strict=True) == 0
    assert "FlashMLA V4 (2 launches) (not installed)" in capsys.readouterr().out
    done.bad["bench moe"] = "stopped"
    assert gpu.conclude(done, out, strict=False) == 1


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "device_name", lambda: "")
    assert gpu.main([]) == 2
    assert "no GPU here" in capsys.readouterr().out


def test_without_the_tool_the_sanitizer_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert sanitize.main([]) == 2
    assert "compute-sanitizer is not on the PATH" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sanitize.main(["--tools", "memchek"])


MEMCHECK = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: {} errors\n"
RACECHECK = "========= RACECHECK SUMMARY: {} hazards displayed (1 error, 1 warning)\n"


@pytest.mark.parametrize(
    ("status", "log", "bad"),
    [
        (0, MEMCHECK.format(0), False),
        (86, MEMCHECK.format(3), True),
        (0, MEMCHECK.format(3), True),
        (1, MEMCHECK.format(0), True),
        (86, RACECHECK.format(2), True),
        (0, RACECHECK.format(0), False),
        (0, "", True),
        (None, MEMCHECK.format(0), False),
        (1, "========= Error: Device not supported", False),
    ],
)
def test_what_a_report_says(status: int | None, log: str, bad: bool) -> None:
    said, got = sanitize.verdict(status, log)
    assert got == bad
    assert (said == "clean") == (status == 0 and "SUMMARY: 0" in log)


def test_the_tests_that_it_runs_collect_with_the_kernels_alone() -> None:
    """On a bare GPU machine there is torch, triton and pytest, and of dsv4 the kernels and their errors."""
    command = ["scripts/gpu.sh", "--", *plan.QUICK, "--collect-only", "-k", sanitize.SMALL, "tests/kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for part in plan.TESTS:
        assert f"tests/kernels/{part.name}/" in done.stdout, part.name
