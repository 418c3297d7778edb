"""Every test that docs/core_rules.md names exists, and every rule of the core has a row that names one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "core_rules.md"
CORE = ROOT / "rust" / "core"
RUST_TEST = re.compile(r"#\[test\]\s*(?:#\[[^\]]*\]\s*)*fn (\w+)", re.MULTILINE)


def rust_tests(root: Path) -> set[tuple[str, str]]:
    """(file or folder, function) of each test; nested `mod tests` count as their file."""
    found = set()
    for path in root.rglob("*.rs"):
        places = {path.stem, path.parent.name}
        found |= {(place, name) for place in places for name in RUST_TEST.findall(path.read_text())}
    return found


def named(text: str) -> Iterator[tuple[str, str]]:
    """(place, name) of every test in backticks; place is a .py file, the last Rust module, or empty."""
    for words in re.findall(r"`([^`\s]+)`", text):
        file, _, name = words.rpartition("::")
        if file.endswith(".py"):
            yield file, name
        elif file:
            yield file.removesuffix("::tests").rpartition("::")[2], name
        elif words.count("_") > 8:
            yield "", words


def missing(text: str, known: set[tuple[str, str]], root: Path) -> list[str]:
    names = {name for _, name in known}
    found = []
    for place, name in named(text):
        if place.endswith(".py"):
            file = root / place
            text_of_file = file.read_text() if file.exists() else ""
            exists = re.search(rf"^(async )?def {name}\(", text_of_file, re.MULTILINE) is not None
        else:
            exists = (place, name) in known if place else name in names
        if not exists:
            found.append(f"{place}::{name}")
    return found


def test_every_test_that_is_named_exists() -> None:
    assert missing(TABLE.read_text(), rust_tests(CORE), ROOT / "tests") == []


def test_every_rule_has_a_row_and_every_row_a_test() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| R")]
    rules = [row.split("|")[1].strip() for row in rows]
    assert rules == [f"R{number}" for number in (*range(1, 21), 30)]
    assert [row for row in rows if not list(named(row)) and "clippy.toml" not in row] == []


def test_a_name_that_is_no_test_is_found() -> None:
    known = rust_tests(CORE)
    assert len(known) > 250
    assert missing("`model::no_such_test`, `core/test_memory.py::test_none`", known, ROOT / "tests") == [
        "model::no_such_test",
        "core/test_memory.py::test_none",
    ]
