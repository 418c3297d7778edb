"""The CUDA kernel with one barrier, fence or constant taken out: the emulator finds each, or it would prove little."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.attention.emulated import Pair, run
from tests.kernels.attention.paged import tokens
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.cuda.mutants import mutated

from dsv4.errors import Violation
from dsv4.kernels.attention.hopper import ENTRIES

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

ONE = [
    ("if (n > 0) sync_named(READ + group, 256);", "", "no barrier since the load"),
    (
        "wait(base + EMPTY + 16 * stage + 8 * half, (n / STAGES + 1) % 2);",
        "",
        "no barrier since|running product",
    ),
    ("fence_matrix_reads();\n                sync_warp();", "sync_warp();", "without a fence"),
    ("n / STAGES % 2);", "(n / STAGES + 1) % 2);", "nobody wrote it|no barrier since|standstill"),
    ("* TILE, TILE, 1024)", "* TILE, 16, 1024)", "wrong|running product"),
    (
        "            matrix_wait<2>();\n            release(n, 0);",
        "            release(n, 0);",
        "no barrier since|running",
    ),
]
TWO = [
    # a part of the scores is sent before the other block has read the one before
    ("if (own_count > 0) wait_for_remote(credit, (own_count - 1) % 2);", "", "no barrier since the load"),
    # weights go where the other group still reads those of two units ago
    ("if (again) sync_named(READ + group, 256);", "", "no barrier since the load|standstill"),
    # the maximum, and the weights, before they are there
    ("sync_named(MAXIMUM + other(), 256);", "", "no barrier since|nobody wrote it|standstill"),
    ("sync_named(WEIGHED + other(), 256);", "", "no barrier since|nobody wrote it|standstill"),
    # a stage is filled again while products read it; scores of a stage that is not full
    ("wait(base + EMPTY + 8 * stage, (n / STAGES + 1) % 2);", "", "no barrier since|running product"),
    ("wait(base + FULL + 8 * (n % STAGES), n / STAGES % 2);", "", "nobody wrote it|no barrier since"),
    ("fence_matrix_reads();\n                sync_warp();", "sync_warp();", "without a fence"),
    # the queries before the other group's half of them is there
    ("sync_named(QUERIES, 256);", "", "nobody wrote it|no barrier since|without a fence"),
    # a row of the ring before a scout has left it, and one that a producer has not taken yet
    ("wait(base + FOUND + 8 * (i % 4), i / 4 % 2);", "", "no barrier since|nobody wrote it"),
    ("wait(taken, (n + 1) % 2);", "", "no barrier since"),
    # who owns the last unit, and which channels a group has
    ("if ((count - 1) % 2 != group) {", "if (count % 2 != group) {", "wrong|standstill|no barrier since"),
    ("stage(n) + group * 2 * TILE", "stage(n) + TILE", "wrong"),
]


def verdict(kernel: Path, each: int) -> str:
    """What the emulator says, or whether the result is right."""
    x = tokens([300, 700], "c4")
    try:
        mutant = library(kernel, "-O1")
        out = run(Pair(mutant, mutant), x, each)
    except Violation as error:
        return str(error)
    return "right" if torch.allclose(out.float(), x.expected(), atol=0.1) else "wrong"


@pytest.mark.parametrize(
    ("each", "text", "instead", "message"), [(1, *mutant) for mutant in ONE] + [(2, *mutant) for mutant in TWO]
)
def test_a_mutant_is_found(each: int, text: str, instead: str, message: str, mutants: Path) -> None:
    assert re.search(message, verdict(mutated(ENTRIES[each].source, text, instead, mutants), each))
