"""The judge of the memory checkers' logs finds what is ours, and lets the interpreter's own leftovers go."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "memory_check.py"
SPEC = importlib.util.spec_from_file_location("memory_check", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
memory_check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(memory_check)

INTERPRETER_LEAK = """
==12==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 64 byte(s) in 1 object(s) allocated from:
    #0 0x7f in malloc (/usr/lib/libasan.so.8+0xb4)
    #1 0x7e in _PyObject_New Objects/object.c:176
"""
LEAK_OF_OURS = """
Indirect leak of 8 byte(s) in 1 object(s) allocated from:
    #0 0x7f in malloc (/usr/lib/libasan.so.8+0xb4)
    #1 0x7e  (/stage/dsv4/_core.abi3.so+0x1234)
"""
OVERFLOW = """
==12==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6
WRITE of size 4 at 0x6 thread T0
    #0 0x7f in memcpy (/usr/lib/libasan.so.8+0xb4)
"""
INVALID_WRITE = """
==99== Invalid write of size 4
==99==    at 0x48: fill<()> (memory.rs:70)
==99==    by 0x49: _PyEval_EvalFrameDefault (ceval.c:1)
==99==
==99== Conditional jump or move depends on uninitialised value(s)
==99==    at 0x48: _multiarray_umath (numpy/_core/_multiarray_umath.so)
"""


@pytest.mark.parametrize(
    ("log", "found", "ours"),
    [
        (INTERPRETER_LEAK, 1, 0),
        (INTERPRETER_LEAK + LEAK_OF_OURS, 2, 1),
        (OVERFLOW, 1, 1),
        (INVALID_WRITE, 2, 1),
        ("182 passed in 2.96s", 0, 0),
    ],
)
def test_findings_are_counted_and_ours_are_told_apart(log: str, found: int, ours: int) -> None:
    assert len(memory_check.reports(log)) == found
    assert len(memory_check.ours(log)) == ours
