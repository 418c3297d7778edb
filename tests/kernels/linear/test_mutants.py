"""The CUDA kernel of FP8 products with one wait, fence or constant taken out: the emulator finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.cuda.mutants import mutated
from tests.kernels.linear.emulated import expected, rows_of, run, weight_of

from dsv4.errors import Violation
from dsv4.kernels.linear.hopper import SOURCE, Cut, Shape

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

SMALL, LARGE = Cut(Shape(64, 64), 3), Cut(Shape(128, 128), 1)
RACE = "running product|no barrier since|no wait for the copy|nobody wrote it"
STALE = RACE + "|wrong"
MUTANTS = [
    (SMALL, "wait(base + L::EMPTY + 8 * p.ring.stage, p.ring.parity ^ 1);", "", RACE),
    (SMALL, "wait(base + L::EMPTY + 8 * ring.stage, ring.parity ^ 1);", "", RACE),
    (SMALL, "if (to_start > 0) wait(base + L::FULL + 8 * started.stage, started.parity);", "", RACE),
    (SMALL, "wait(base + L::OUT_FULL + 8 * group, parity);", "", RACE),
    (SMALL, "wait(base + L::OUT_EMPTY + 8 * group, parity ^ 1);", "", RACE),
    (SMALL, "2);                  // the copies, the scales", "1);", RACE + "|arrive"),
    (SMALL, "if (L::BATCH - i == 4) matrix_wait<3>();", "", "wrong|running product|no barrier since"),
    (LARGE, "if (L::BATCH - i == 1) matrix_wait<0>();", "", "wrong|running product|no barrier since"),
    (SMALL, "        matrix_fence();\n", "", "without matrix_fence"),
    (SMALL, "copy_box(stage(p) + L::X, a.w", "copy_box(stage(p) + L::X + 128, a.w", "the swizzle's pattern"),
    (SMALL, "(full(p), L::STAGE);", "(full(p), L::STAGE - 1024);", "more than its barrier|standstill"),
    (SMALL, "wait_for_launch_before();\n        for", "for", "before the launch before has ended"),
    (SMALL, "wait_for_launch_before();\n        Ring", "Ring", "before the launch before has ended"),
    (SMALL, "wait_for_launch_before();\n        u32 parity", "u32 parity", "before the launch before has ended"),
    (SMALL, "        parity ^= 1;\n    }\n};", "    }\n};", "standstill|no wait for the copy|no barrier since|wrong"),
    (SMALL, "put(now, 8 * u32(n), ring)", "put(now, 8 * u32(n ^ 1), ring)", "wrong"),
    (LARGE, "lane / 8 * 16 + lane % 8 + r * 8", "lane / 8 * 16 + lane % 8 + (1 - r) * 8", "wrong"),
    (LARGE, "if (++segment == a.segments)", "if (++segment >= 1)", "wrong|standstill"),
    (LARGE, "fewer_registers<56>", "fewer_registers<64>", "registers, of"),
]  # fmt: skip


def verdict(kernel: Path, cut: Cut) -> str:
    """What the emulator says, or whether the result is right."""
    x, w = rows_of(100, 3072), weight_of(256, 3072)
    try:
        out = run(library(kernel, "-O1"), x, w, 2, cut)
    except Violation as error:
        return str(error)
    return "right" if torch.equal(out, expected(x, w, 2)) else "wrong"


@pytest.mark.parametrize(("cut", "text", "instead", "message"), MUTANTS)
def test_a_mutant_is_found(cut: Cut, text: str, instead: str, message: str, mutants: Path) -> None:
    assert re.search(message, verdict(mutated(SOURCE, text, instead, mutants), cut))


@pytest.mark.parametrize("cut", [SMALL, LARGE])
def test_the_kernel_itself_is_right(cut: Cut) -> None:
    assert verdict(SOURCE, cut) == "right"
