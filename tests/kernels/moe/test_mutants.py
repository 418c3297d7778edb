"""The experts' CUDA kernel with one wait, fence or constant taken out: the emulator finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.moe import cases

from dsv4.errors import Violation

pytest.importorskip("triton")
from tests.kernels.moe.emulated import pack, placed, products, ragged, run, there

from dsv4.kernels.moe.fold import fold
from dsv4.kernels.moe.hopper import SOURCE

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")

RACE = "running product|no barrier since|no wait for the copy|nobody wrote it"
MUTANTS = [
    ("wait_for_remote(base + EMPTY + 8 * ring.stage, ring.parity ^ 1);", "", "one arrival too many"),
    ("wait(base + FULL + 8 * ahead.stage, ahead.parity);", "", RACE),
    ("            matrix_wait<0>();\n", "", "wrong|" + RACE),
    ("        matrix_fence();\n", "", "without matrix_fence"),
    ("        sync_warp();\n        if (lane < 2)", "        if (lane < 2)", "no barrier since the load"),
    ("if (lane < 2) arrive_remote", "if (lane < 1) arrive_remote", "standstill"),
    ("8 * i, 16);", "8 * i, 8);", RACE + "|one arrival"),
    ("    wait_for_launch_before();\n", "", "before the launch before has ended"),
    ("if (group == 1) arrive_named(TURN, 256);", "", "standstill"),
    ("        parity ^= 1;\n", "", "one arrival too many"),
    ("if (step == 0) {", "if (step == 1) {", "nobody wrote it"),
    ("(more ? MORE : 0)", "MORE", "standstill"),
    ("(tile.narrow ? NARROW : 0)", "0", "wrong|nobody wrote it"),
    ("if (!end) release();", "release();", "wrong|standstill|one arrival|" + RACE),
    ("(last ? 1024 : 512)", "512", "more than its barrier"),
    ("(tile.narrow ? X / 2 : X)", "X", "standstill"),
    ("u32(step) % 2 == rank", "u32(step) % 2 == 0", "no wait for the copy"),
    ("copy_box_to(3, stage + rank", "copy_box_to(1, stage + rank", "standstill|more than"),
    ("copy_box(stage + SF, a.sf, step * lines", "copy_box(stage + SF, a.sf, lines", "wrong"),
    ("0x1110 * group + 4", "0x1111 * group", "wrong"),
    ("0x24201C18", "0x24201C10", "wrong"),
    ("c.x[i] << 4 & 0x80808080", "c.x[i] & 0x80808080", "wrong"),
    ("const u32 k = 2 * half + i / 2, r", "const u32 k = 2 * half, r", "wrong"),
    ("scale.x[i / 4 * 2 + i % 2]", "scale.x[i % 4]", "wrong"),
    ("if (i32(pairs[j]) < 0) continue;", "", "outside what the launch was given"),
    ("scale[j / 2 % 2]", "scale[j % 2]", "wrong"),
    (" == 0 || !last) arrive_named", " == 0) arrive_named", "standstill"),
]  # fmt: skip


def verdict(kernel: Path) -> str:
    """What the emulator says, or whether the result is right: wide and narrow tiles, more stages than the ring has."""
    at = cases.make_checkpoint(torch.device("cpu"), num_experts=3, width=768)
    weight, blocks = fold(pack(at).w2, gated=False), ragged([130, 0, 3])
    rows, live = placed(blocks, 768), there(blocks)
    out = torch.full((133, cases.C), torch.nan, dtype=torch.bfloat16)
    try:
        run(library(kernel, "-O1"), rows, weight, blocks, out, grid=2)
    except Violation as error:
        return str(error)
    want = products(rows, torch.stack([at.dense(e, "w2") for e in range(3)]), blocks)[live].bfloat16()
    return "right" if torch.equal(out[blocks.order[live].long()], want) else "wrong"


@pytest.mark.parametrize(("text", "instead", "message"), MUTANTS)
def test_a_mutant_is_found(
    text: str, instead: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path))
    source = SOURCE.read_text()
    assert source.count(text) == 1, "the kernel has changed: write the mutant anew"
    path = tmp_path / "mutant.cu"
    path.write_text(source.replace(text, instead))
    assert re.search(message, verdict(path))


def test_the_kernel_itself_is_right() -> None:
    assert verdict(SOURCE) == "right"
