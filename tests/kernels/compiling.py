"""What a compiler made of kernels, row by row: each script runs once a target, in a process, whoever asks for it.

A process of its own, because the tests have Triton in its interpreter, where there is nothing to compile.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "python" / "dsv4" / "kernels"
TARGETS = (90, 100, 103)  # Hopper, and the Blackwell chips that nobody here can run
TOGETHER = (("attention.compiled",), ("moe.compiled",), ("linear.compiled",), ("sample.compiled", "targets"))
SCRIPTS = tuple(script for scripts in TOGETHER for script in scripts)
"""Every script under tests/kernels that compiles kernels: a JSON line for each, whose `entry` says which it is.

Those that run together are quick.
"""
EACH = """
import sys
from importlib import import_module
for script in sys.argv.pop().split():
    sys.stdout.write(script + chr(10))
    import_module("tests.kernels." + script).main()
    sys.stdout.flush()
"""


def rows(script: str, arch: int) -> list[dict[str, Any]]:
    """What `tests.kernels.<script>` compiled for one target."""
    return _compiled(next(scripts for scripts in TOGETHER if script in scripts), arch)[script]


@functools.cache
def _compiled(scripts: tuple[str, ...], arch: int) -> dict[str, list[dict[str, Any]]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'python'}"
    command = [sys.executable, "-W", "ignore", "-c", EACH, str(arch), " ".join(scripts)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        if line in scripts:
            found[line] = []
        else:
            found[next(reversed(found))].append(json.loads(line))
    return found


def entries(folder: Path = KERNELS) -> set[str]:
    """The kernels that are launched, as module.function: jitted functions that no jitted function calls."""
    jitted, called = set(), set()
    for path in folder.rglob("*.py"):
        module = ".".join(("dsv4.kernels", *path.relative_to(folder).with_suffix("").parts))
        body = ast.parse(path.read_text()).body
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in body:
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "triton.jit" for d in node.decorator_list):
                jitted.add(f"{module}.{node.name}")
                called |= {imported.get(name, f"{module}.{name}") for name in _named(node)}
    return jitted - called


def _named(function: ast.FunctionDef) -> Iterator[str]:
    """What a jitted function calls, or gives to another, as to tl.reduce."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield from (part.id for part in (node.func, *node.args) if isinstance(part, ast.Name))
