"""Names are the field's words: some say nothing, and one says what cannot be done here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("python", "rust", "benches", "scripts", "tests")
SAY_NOTHING = {"manager", "handler", "helper", "helpers", "util", "utils", "misc", "common"}
RUST_NAME = re.compile(r"\b(?:fn|struct|enum|trait|mod|type|const|static|let(?: mut)?)\s+([A-Za-z_]\w*)")


def words(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return [word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", part)]


def python_names(source: str) -> Iterator[tuple[int, str]]:
    """What a file gives a name to: functions, classes, arguments, variables."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def rust_names(source: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.splitlines(), start=1):
        for name in RUST_NAME.findall(line.partition("//")[0]):
            yield number, name


def refused(name: str) -> str | None:
    """Why a name is none of ours."""
    found = words(name)
    if empty := SAY_NOTHING & set(found):
        return f"{name}: {empty.pop()!r} says nothing"
    frees_something = found[:1] == ["free"] and found[1:2] in (["block"], ["slot"], ["id"], ["request"])
    if name == "free" or frees_something:  # Free, the state of a slot, is the adjective
        return f"{name}: nothing is freed here; blocks retire and are reclaimed (free is an adjective: num_free_blocks)"
    return None


def violations(root: Path) -> list[str]:
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".py", ".pyi", ".rs"):
                continue
            source = path.read_text()
            names = rust_names(source) if path.suffix == ".rs" else python_names(source)
            named = [(0, path.stem), *names]
            found += [f"{path.relative_to(root)}:{line}: {why}" for line, name in named if (why := refused(name))]
    return found


def test_names_are_words_of_ours() -> None:
    assert not violations(ROOT)


@pytest.mark.parametrize(
    "name", ["CacheManager", "request_handler", "helper", "utils", "free", "free_block", "HTTPHandler"]
)
def test_names_that_say_nothing_are_found(name: str) -> None:
    assert refused(name)


@pytest.mark.parametrize("name", ["num_free_blocks", "handle", "Block", "freeze", "is_free", "Free"])
def test_other_names_are_let_through(name: str) -> None:
    assert refused(name) is None
