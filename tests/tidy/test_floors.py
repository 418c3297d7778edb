"""A package imports only from the floors beneath its own; a Rust module of the core uses only what is below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "python" / "dsv4"
CORE = ROOT / "rust" / "core" / "src"

FLOORS = (  # lowest first; names on one floor do not see each other
    {"errors"},
    {"types"},
    {"_core", "config", "kernels"},
    {"model"},
    {"runtime"},
    {"disagg"},
    {"engine", "worker"},
    {"serve", "bench"},
)
SEALED = {  # narrower than their floor
    "kernels": {"errors"},
    "model": {"kernels", "config", "errors", "types"},
    "serve": {"engine", "config", "types", "errors"},
}
BELOW = {name: set().union(*FLOORS[:i]) for i, names in enumerate(FLOORS) for name in names}

CONFINED = {  # a foreign package -> the only packages of ours that may name it
    "torch": {"kernels", "model", "runtime"},
    "triton": {"kernels"},
    "safetensors": {"model"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "tokenizers": {"engine"},
}

RUST_FLOORS = (  # lowest first
    {"planted"},  # switches for tests: any module may ask
    {"ids", "short", "tokens"},
    {"error"},
    {"geometry", "limits", "validate"},
    {"recipe", "transfer"},
    {"pool", "block", "budget"},
    {"table"},
    {"prefix"},
    {"evict", "metadata"},
    {"admit", "request"},
    {"schedule"},
    {"core"},
    {"trace"},
)
RUST_KNOTS = ({"pool", "block"},)  # one idea in two files
RUST_SEES_ALL_BELOW_CORE = {"audit"}
RUST_UNCHECKED = {"lib", "violations"}  # the crate's root; tests that reach inside


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every module that a file names, as dotted parts: lazy, TYPE_CHECKING and relative imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            dotted = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in dotted:
            yield node.lineno, tuple(name)


def files(root: Path) -> Iterator[tuple[Path, str, ast.Module, tuple[str, ...]]]:
    """Every file below a package folder of `root`: its path, its package of ours, its tree, the package it is in."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] != "__init__":
            yield path.relative_to(root), parts[0], ast.parse(path.read_text()), ("dsv4", *parts[:-1])


def upward_imports(root: Path) -> list[str]:
    found = []
    for path, here, tree, package in files(root):
        allowed = SEALED.get(here, BELOW[here]) | {here}
        for line, name in imported(tree, package):
            if name[0] == "dsv4" and len(name) > 1 and name[1] not in allowed:
                found.append(f"{path}:{line}: {here} must not import {name[1]}")
    return found


def strays(root: Path) -> list[str]:
    found = []
    for path, here, tree, package in files(root):
        for line, name in imported(tree, package):
            if here not in CONFINED.get(name[0], {here}):
                found.append(f"{path}:{line}: {here} must not import {name[0]}")
    return found


def rust_floor(module: str) -> int | None:
    return next((floor for floor, names in enumerate(RUST_FLOORS) if module in names), None)


def rust_upward_uses(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.rs")):
        here = path.relative_to(root).with_suffix("").parts[0]
        if here in RUST_UNCHECKED:
            continue
        floor = rust_floor("core" if here in RUST_SEES_ALL_BELOW_CORE else here)
        if floor is None:
            found.append(f"{path.relative_to(root)}: {here} is on no floor; add it to RUST_FLOORS")
            continue
        shipped = re.split(r"#\[cfg\(test\)\]\n(?:pub\(crate\) )?mod tests", path.read_text(), maxsplit=1)[0]
        for number, line in enumerate(shipped.splitlines(), start=1):
            if "crate::{" in line:
                found.append(f"{path.relative_to(root)}:{number}: name one module in each use")
            for target in re.findall(r"crate::([a-z_0-9]+)", line.partition("//")[0]):
                below = rust_floor(target)
                knotted = any({here, target} <= knot for knot in RUST_KNOTS)
                seen = target == here or knotted or (below is not None and below < floor)
                if not seen and not (here == "core" and target in RUST_SEES_ALL_BELOW_CORE):
                    found.append(f"{path.relative_to(root)}:{number}: {here} must not use {target}")
    return found


def test_packages_import_only_from_below() -> None:
    assert not upward_imports(PYTHON)


def test_foreign_packages_stay_where_they_belong() -> None:
    assert not strays(PYTHON)


def test_every_package_is_on_a_floor() -> None:
    packages = {path.name for path in PYTHON.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert packages <= set(BELOW), f"not on a floor: {packages - set(BELOW)}"


def test_core_modules_use_only_what_is_below() -> None:
    assert not rust_upward_uses(CORE)


@pytest.mark.parametrize(
    "planted",
    [
        "import dsv4.serve",
        "from dsv4 import serve",
        "from dsv4.serve.app import create_app",
        "from ..serve import app",
        "def f():\n    import dsv4.serve",
        "if TYPE_CHECKING:\n    from dsv4.serve import app",
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, planted: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "block.py").write_text(planted)
    assert upward_imports(tmp_path) == [f"model/block.py:{planted.count(chr(10)) + 1}: model must not import serve"]


def test_a_planted_upward_use_is_found(tmp_path: Path) -> None:
    (tmp_path / "pool.rs").write_text("use crate::ids::BlockId;\nuse crate::core::Core;\n")
    (tmp_path / "ids.rs").write_text("use crate::{block::Block, core::Core};\n")
    assert rust_upward_uses(tmp_path) == ["ids.rs:1: name one module in each use", "pool.rs:2: pool must not use core"]
