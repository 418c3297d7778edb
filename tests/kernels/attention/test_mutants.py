"""The CUDA kernel with one barrier, fence or constant taken out: the emulator finds each, or it would prove little."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.attention.emulated import run
from tests.kernels.attention.paged import tokens
from tests.kernels.cuda.emulate import compiler, library

from dsv4.errors import Violation
from dsv4.kernels.attention.hopper import SOURCE

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

MUTANTS = [
    (1, "if (n > 0) sync_named(READ + group, 256);", "", "no barrier since the load"),
    (
        1,
        "wait(base + L::EMPTY + 16 * stage + 8 * half, (n / L::STAGES + 1) % 2);",
        "",
        "no barrier since|running product",
    ),
    (1, "fence_matrix_reads();\n                sync_warp();", "sync_warp();", "without a fence"),
    (1, "n / L::STAGES % 2);", "(n / L::STAGES + 1) % 2);", "nobody wrote it|no barrier since|standstill"),
    (1, "* TILE, TILE, 1024)", "* TILE, 16, 1024)", "wrong|running product"),
    (
        1,
        "            matrix_wait<2>();\n            release(n, 0);",
        "            release(n, 0);",
        "no barrier since|running",
    ),
    (
        2,
        "receive(n, part);\n        if (token.first + 1 < token.last) send(n + 1);",
        "if (token.first + 1 < token.last) send(n + 1);\n        receive(n, part);",
        "no barrier since the load",
    ),
]


def verdict(kernel: Path, each: int) -> str:
    """What the emulator says, or whether the result is right."""
    x = tokens([300, 700], "c4")
    try:
        out = run(library(kernel, "-O1"), x, each)
    except Violation as error:
        return str(error)
    return "right" if torch.allclose(out.float(), x.expected(), atol=0.1) else "wrong"


@pytest.mark.parametrize(("each", "text", "instead", "message"), MUTANTS)
def test_a_mutant_is_found(
    each: int, text: str, instead: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path))
    source = SOURCE.read_text()
    assert source.count(text) == 1, "the kernel has changed: write the mutant anew"
    path = tmp_path / "mutant.cu"
    path.write_text(source.replace(text, instead))
    assert re.search(message, verdict(path, each))
