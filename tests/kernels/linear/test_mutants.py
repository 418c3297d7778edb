"""The CUDA kernel of FP8 products with one wait, fence or constant taken out: the emulator finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.linear.emulated import expected, rows_of, run, weight_of

from dsv4.errors import Violation
from dsv4.kernels.linear.hopper import SOURCE, Cut

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

ALONE, PAIR, SPLIT = Cut(64, "whole", 1, 1), Cut(128, "whole", 2, 2), Cut(64, "split", 2, 8)
RACE = "running product|no barrier since|no wait for the copy|nobody wrote it"
EMPTY = "wait_for_remote(base + L::EMPTY + 8 * p.ring.stage, p.ring.parity ^ 1);"
MUTANTS = [
    (ALONE, EMPTY, "", RACE),
    (ALONE, "wait(base + L::FULL + 8 * ring.stage, ring.parity);", "", RACE),
    (ALONE, "        matrix_wait<0>();\n", "", "wrong|running product|no barrier since"),
    (ALONE, "        matrix_fence();\n", "", "without matrix_fence"),
    (ALONE, "copy_box(stage(p) + L::X, a.w", "copy_box(stage(p) + L::X + 128, a.w", "the swizzle's pattern"),
    (ALONE, "expect_bytes(full(p), L::STAGE);", "expect_bytes(full(p), L::STAGE - 1024);", "more than its barrier"),
    (ALONE, "        wait_for_launch_before();\n        for", "        for", "before the launch before has ended"),
    (ALONE, "        wait_for_launch_before();\n        enter", "        enter", "before the launch before has ended"),
    (ALONE, "if (TURNS && group == 1) arrive_named(TURN, 256);", "", "standstill"),
    (ALONE, "        parity ^= 1;\n", "", "standstill|no wait for the copy|no barrier since|wrong"),
    (ALONE, "number % 4 == 3 ||", "number % 4 == 2 ||", "wrong"),
    (ALONE, "const u32 shift = u32(number) % 4 * 8;", "const u32 shift = u32(number) % 2 * 8;", "wrong"),
    (PAIR, "8 * sides);         // a lane", "8);         // a lane", RACE),
    (PAIR, "} else if (lane < 2) {", "} else if (lane < 1) {", "standstill"),
    (PAIR, "copy_box_to(3, ", "copy_box_to(1, ", "standstill|nobody wrote it|more than"),
    (SPLIT, "        wait_for_remote(base + L::ARRIVED, 0);\n", "", RACE),
    (SPLIT, "L::PARTS_BYTES);", "64);", RACE + "|more"),
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
def test_a_mutant_is_found(
    cut: Cut, text: str, instead: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path))
    source = SOURCE.read_text()
    assert source.count(text) == 1, "the kernel has changed: write the mutant anew"
    path = tmp_path / "mutant.cu"
    path.write_text(source.replace(text, instead))
    assert re.search(message, verdict(path, cut))


@pytest.mark.parametrize("cut", [ALONE, PAIR, SPLIT])
def test_the_kernel_itself_is_right(cut: Cut) -> None:
    assert verdict(SOURCE, cut) == "right"
