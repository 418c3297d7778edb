"""Prints the ten longest functions and the ten longest files of each language, so that a long one is seen.

Rust functions are found by their `fn` line and the closing brace at the same indentation, which is what rustfmt writes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = 10
Size = tuple[int, str]


def python_functions(path: Path) -> Iterator[Size]:
    """Length in lines and place of every function of a Python file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield length, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def rust_functions(path: Path) -> Iterator[Size]:
    """Length in lines and place of every function of a Rust file."""
    opened: list[tuple[str, int, str]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if found := re.match(r"(\s*)(?:pub(?:\([a-z]+\))? )?(?:const )?fn (\w+)", line):
            if not line.rstrip().endswith(("}", ";")):
                opened.append((found[1], number, found[2]))
        elif opened and line == opened[-1][0] + "}":
            _, start, name = opened.pop()
            yield number - start + 1, f"{path.relative_to(ROOT)}:{start} {name}"


def show(title: str, sizes: list[Size]) -> None:
    """Prints the longest of `sizes`."""
    print(f"\n{title}")
    for length, place in sorted(sizes, reverse=True)[:SHOWN]:
        print(f"{length:6}  {place}")


def main() -> None:
    """Prints the four lists."""
    for language, folders, suffix, functions in (
        ("Python", ("python", "tests", "scripts", "benches"), "*.py", python_functions),
        ("Rust", ("rust", "benches"), "*.rs", rust_functions),
    ):
        paths = [path for folder in folders for path in sorted((ROOT / folder).rglob(suffix))]
        show(f"longest {language} functions", [size for path in paths for size in functions(path)])
        files = [(path.read_text().count("\n"), str(path.relative_to(ROOT))) for path in paths]
        show(f"longest {language} files ({sum(length for length, _ in files)} lines in all)", files)


if __name__ == "__main__":
    main()
