"""Unsafe lines are counted: none in the core, and in the binding only those of the one file that lends and reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RUST = Path(__file__).parents[2] / "rust"
UNSAFE = re.compile(r"\bunsafe\b(?!_)")


def unsafe_lines(root: Path) -> dict[str, int]:
    """How many lines of code of each file below `root` say `unsafe`; comments do not count."""
    found = {}
    for path in sorted(root.rglob("*.rs")):
        lines = (line.partition("//")[0] for line in path.read_text().splitlines())
        if count := sum(bool(UNSAFE.search(line)) for line in lines):
            found[path.relative_to(root).as_posix()] = count
    return found


def test_the_core_has_no_unsafe_line_and_forbids_them() -> None:
    assert unsafe_lines(RUST / "core") == {}
    assert "#![forbid(unsafe_code)]" in (RUST / "core" / "src" / "lib.rs").read_text()


def test_the_binding_has_two_in_the_file_that_says_why() -> None:
    text = (RUST / "py" / "src" / "memory.rs").read_text()
    assert unsafe_lines(RUST / "py") == {"src/memory.rs": 2}
    assert text.count("// SAFETY:") == 2


@pytest.mark.parametrize("line", ["unsafe { *p }", "    unsafe fn f() {}", "unsafe impl Send for T {}"])
def test_unsafe_lines_are_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.rs").write_text(f"// unsafe\n#![deny(unsafe_code)]\n{line}\n")
    assert unsafe_lines(tmp_path) == {"a.rs": 1}
