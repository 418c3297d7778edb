"""Every bug that can be planted has its row in docs/planted_bugs.md, in its words, and a test that found it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("planted", ROOT / "scripts" / "planted.py")
assert SPEC is not None
assert SPEC.loader is not None
planted = importlib.util.module_from_spec(SPEC)
sys.modules["planted"] = planted  # its dataclasses look themselves up
SPEC.loader.exec_module(planted)

BUGS = planted.bugs(planted.SOURCE.read_text())


def rows(table: str) -> list[list[str]]:
    """The cells of each line below the head."""
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_variant_is_read() -> None:
    body = planted.SOURCE.read_text().partition("enum Bug {")[2].partition("\n}")[0]
    assert [bug.name for bug in BUGS] == re.findall(r"^ {4}(\w+),$", body, re.MULTILINE)
    assert len(BUGS) >= 60


def test_the_table_has_the_bugs_of_the_core_and_each_was_found() -> None:
    table = rows(planted.TABLE.read_text())
    assert [cells[:3] for cells in table] == [[bug.name, bug.origin, bug.planted] for bug in BUGS]
    assert [cells[0] for cells in table if cells[3:] == ["–", "–", "–"]] == []


def test_every_bug_has_a_site_outside_the_list() -> None:
    sources = (ROOT / "rust" / "core" / "src").rglob("*.rs")
    text = "\n".join(path.read_text() for path in sources if path != planted.SOURCE)
    assert [bug.name for bug in BUGS if f"Bug::{bug.name})" not in text] == []


def test_a_bug_that_nothing_found_shows_in_its_row() -> None:
    bug = planted.Bug(0, "DropFrees", "trt#14565", "what is given up is free at once")
    missed = planted.Catch(None, 20.0, None, 20.0, ())
    assert planted.row(bug, missed).endswith("| – | – | – |")
    assert not missed.is_found
    found = planted.Catch("handles, operation 5", 0.25, 13, 0.5, ("a", "b"))
    assert planted.row(bug, found).endswith("| handles, operation 5, 0.2 s | seed 13, 0.5 s | `a` and 1 more |")
    assert planted.Catch(None, 20.0, 0, 0.5, ()).is_found
