"""The CUDA kernel of index scores with one fence, wait or constant taken out: the emulator finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.cuda.mutants import mutated

from dsv4.errors import Violation

pytest.importorskip("triton")
from tests.kernels.index.cases import TOLERANCE, UNTOUCHED, Case
from tests.kernels.index.emulated import run

from dsv4.kernels.index.hopper import SOURCE

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning"),
]
MUTANTS = [
    ("        fence_matrix_reads();\n", "", "without a fence|has not fenced"),
    ("        sync_block();\n", "", "no barrier since|nobody wrote it"),
    ("            matrix_fence();\n", "", "without matrix_fence"),
    ("            matrix_wait<0>();\n", "", "wrong"),
    ("(chunk ^ head % 8)", "chunk", "wrong"),
    ("j * 32 + chunk * 4", "j * 4 + chunk * 16", "wrong"),
    ("0x3C383000", "0x3C383030", "wrong"),
    ("u32(up) * 0x08080800", "u32(up) * 0x08080808", "wrong"),
    ("- i32(top) + 6", "- i32(top) + 5", "wrong"),
    ("0x5140", "0x1100", "wrong"),
    ("0x7362", "0x3322", "wrong"),
    ("scales >> 8 * (lane % 4) & 0xFF", "scales & 0xFF", "wrong"),
    ("0.5f * real", "real", "wrong"),
    ("x + magnitude(x)", "magnitude(x)", "wrong"),
    ("bits(sum), 2)", "bits(sum), 1)", "wrong"),
    ("&& key < count", "", "wrong"),
    ("if (tile >= end || count <= a.most_skipped) return;", "if (tile >= end) return;", "wrong"),
]


def verdict(kernel: Path) -> str:
    """What the emulator says, or whether the result is right."""
    case = Case([80, 520], "fp4")
    try:
        scores = run(library(kernel, "-O1"), case, k=20)
    except Violation as error:
        return str(error)
    want, got = case.expected(1).double(), scores[1, :130].double()
    right = (got - want).norm() / want.norm() < TOLERANCE and (scores[0] == UNTOUCHED).all()
    return "right" if right and (scores[1, 130:] == UNTOUCHED).all() else "wrong"


@pytest.mark.parametrize(("text", "instead", "message"), MUTANTS)
def test_a_mutant_is_found(text: str, instead: str, message: str, mutants: Path) -> None:
    assert re.search(message, verdict(mutated(SOURCE, text, instead, mutants)))


def test_the_kernel_itself_is_right() -> None:
    assert verdict(SOURCE) == "right"
