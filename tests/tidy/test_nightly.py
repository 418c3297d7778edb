"""The nightly target runs its parts in their time, and its table says what became of each."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("nightly", ROOT / "scripts" / "nightly.py")
assert SPEC is not None
assert SPEC.loader is not None
nightly = importlib.util.module_from_spec(SPEC)
sys.modules["nightly"] = nightly  # its dataclasses look themselves up
SPEC.loader.exec_module(nightly)

SECOND = 1 / 3600


def shell(name: str, script: str, count: str = r"\d+ things", **settings: Any) -> Any:
    return nightly.Part(name, 1.0, lambda *_: ("sh", "-c", script), count, **settings)


def alive_in_group(group: int) -> list[str]:
    """Names of the processes of a group that have not ended; one that nobody has waited for has."""
    stats = [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [(stat.partition("(")[2].rpartition(")")[0], stat.rpartition(")")[2].split()) for stat in stats]
    return [name for name, (state, _, of_group, *_) in fields if int(of_group) == group and state != "Z"]


def test_a_night_says_what_passed_what_failed_and_what_was_not_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = f"echo $$ > {tmp_path}/pid; sleep 60 & wait"
    parts = [shell("good", "echo 7 things; echo 12 things"), shell("bad", "echo it broke; exit 3"), shell("slow", late)]
    assert nightly.main([str(SECOND)], parts, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "it broke" in lines
    rows = [re.split(r"\s{2,}", line) for line in lines[-3:]]
    assert [row[:2] + row[-1:] for row in rows] == [
        ["good", "passed", "12 things"],
        ["bad", "FAILED (3)", "-"],
        ["slow", "NOT OVER", "-"],
    ]
    assert alive_in_group(int((tmp_path / "pid").read_text())) == [], "with everything that it had started"


def test_all_that_passes_is_a_good_night_and_parts_can_be_named(tmp_path: Path) -> None:
    parts = [shell("good", "echo 7 things"), shell("bad", "exit 1")]
    assert nightly.main([str(SECOND), "good"], parts, tmp_path) == 0
    assert nightly.main([str(SECOND), "nothing"], parts, tmp_path) == 2


def test_the_shares_are_a_whole_and_each_target_exists() -> None:
    assert sum(part.share for part in nightly.PARTS) == pytest.approx(1.0)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [part.command(1.0, 5) for part in nightly.PARTS]
    assert {command[1] for command in commands} <= targets
    seeds = [re.findall("SEED=5|--from 5", str(command)) for command in commands]
    assert [words for words in seeds if words] == [["SEED=5"], ["--from 5"]]


@pytest.mark.parametrize(
    ("name", "log", "expected"),
    [
        (
            "core",
            "1.0 s   123 ops   4 seeds  1.2 M ops/s\n2 s  999 ops  8 seeds  1 M ops/s\n  rooms  5 ops  1 seeds, 0\n",
            "999 ops 8 seeds",
        ),
        ("search", "380367361 states in all, closed, no violation, nothing left over\n", "380367361 states in all"),
        ("planted", "built\n| A | x | y |\n| B | x | y |\n", "2 bugs"),
        ("asan", "... 182 passed in 2.96s\n", "182 passed"),
        ("valgrind", "error: it did not build\n", "-"),
    ],
)
def test_what_a_part_did_is_read_from_its_log(name: str, log: str, expected: str) -> None:
    (part,) = [part for part in nightly.PARTS if part.name == name]
    assert nightly.did(part, log) == expected
