"""The experts' CUDA kernel with one wait, fence or constant taken out: the emulator finds each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.emulate import compiler, library
from tests.kernels.cuda.mutants import mutated
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
    ("        matrix_wait<0>();\n", "", "wrong|" + RACE),
    ("        matrix_fence();\n", "", "without matrix_fence"),
    ("        sync_warp();\n        if (lane < 2)", "        if (lane < 2)", "no barrier since the load"),
    ("if (lane < 2) arrive_remote", "if (lane < 1) arrive_remote", "standstill"),
    ("8 * i, 2 * CONSUMERS / 32);", "8 * i, CONSUMERS / 32);", RACE + "|one arrival"),
    ("    wait_for_launch_before();\n", "", "before the launch before has ended"),
    ("    sync_cluster(); ", "    meet_cluster(); ", "the block may end before"),
    ("more_registers<112>();", "more_registers<120>();", "registers, of"),
    ("        parity ^= 1;\n", "", "one arrival too many"),
    ("if (step == 0) store_shared", "if (step == 1) store_shared", "nobody wrote it"),
    ("tile.columns | u32(more)", "tile.columns | 1", "standstill"),
    ("order + 32)) < 0", "order + 48)) < 0", "wrong"),
    ("order + 16)) < 0", "order + 24)) < 0", "wrong"),
    ("if (!end || more) fetch();", "if (!end) fetch();", "wrong|standstill|" + RACE),
    ("if (!end) release();", "release();", "wrong|standstill|one arrival|" + RACE),
    ("(last ? PAIRS * 4 : 0)", "0", "more than its barrier"),
    ("(half ? X / 2 : X)", "X", "standstill"),
    ("u32(step) % 2 == rank", "u32(step) % 2 == 0", "no wait for the copy"),
    ("copy_box_to(3, stage + rank", "copy_box_to(1, stage + rank", "standstill|more than"),
    ("step * a.num_blocks + tile.block, 0, full", "a.num_blocks + tile.block, 0, full", "wrong"),
    ("tile.band * i32(GROUPS / 2) + i32(i)", "tile.band * i32(GROUPS / 2)", "wrong"),
    ("shift * 0x01010100 + 0x14100800", "shift * 0x01010101 + 0x14100800", "wrong"),
    ("0x24201C18", "0x24201C10", "wrong"),
    ("word << 4 & 0x80808080", "word & 0x80808080", "wrong"),
    ("k = i / 2, r = i % 2", "k = i / 2 * 2, r = i % 2", "wrong"),
    ("i % 2 ? both & 0xFFFF0000 : both << 16", "both << 16", "wrong"),
    ("if (i32(pairs[j]) < 0) continue;", "", "outside what the launch was given"),
    ("scale[j / 2 % 2]", "scale[j % 2]", "wrong"),
]  # fmt: skip


def verdict(kernel: Path) -> str:
    """What the emulator says, or whether the result is right: tiles of each width, more stages than the ring has."""
    at = cases.make_checkpoint(torch.device("cpu"), num_experts=3, hidden=512, width=640)
    weight, blocks = fold(pack(at).w2, gated=False), ragged([168, 22, 3])
    rows, live = placed(blocks, 640), there(blocks)
    out = torch.full((193, 512), torch.nan, dtype=torch.bfloat16)
    try:
        run(library(kernel, "-O1"), rows, weight, blocks, out, grid=2)
    except Violation as error:
        return str(error)
    want = products(rows, torch.stack([at.dense(e, "w2") for e in range(3)]), blocks)[live].bfloat16()
    return "right" if torch.equal(out[blocks.order[live].long()], want) else "wrong"


@pytest.mark.parametrize(("text", "instead", "message"), MUTANTS)
def test_a_mutant_is_found(text: str, instead: str, message: str, mutants: Path) -> None:
    assert re.search(message, verdict(mutated(SOURCE, text, instead, mutants)))


def test_the_kernel_itself_is_right() -> None:
    assert verdict(SOURCE) == "right"
