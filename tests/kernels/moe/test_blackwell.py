"""The block-scaled products: right wherever they run, and on Blackwell the instructions that were meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kernels import compiling
from tests.kernels.compiling import TARGETS
from tests.kernels.moe import cases
from tests.kernels.moe.closeness import assert_close

triton = pytest.importorskip("triton")
blackwell = pytest.importorskip("dsv4.kernels.moe.blackwell")
combine = pytest.importorskip("dsv4.kernels.moe.combine")
permute = pytest.importorskip("dsv4.kernels.moe.permute")
quantise = pytest.importorskip("dsv4.kernels.moe.quantise")


@pytest.mark.parametrize("activations", ["w4a4", "w4a8"])
def test_block_scaled_products_are_those_of_the_reference(activations: str, device: torch.device) -> None:
    builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
    if device.type == "cpu" and not hasattr(builder, "create_dot_scaled"):
        pytest.skip("this Triton's interpreter has no block-scaled product")
    E, T, hidden, width = 3, 7, 256, 256
    at = cases.make_checkpoint(device, E, hidden, width)
    x, (ids, w) = cases.make_x(T, device, hidden), cases.make_choice(T, device, E, 2)
    pack = quantise.to_fp4 if activations == "w4a4" else quantise.to_fp8
    w13 = blackwell.Native(torch.cat((at.w1, at.w3), 1), torch.cat((at.w1_scale, at.w3_scale), 1))
    blocks = permute.permute(ids, E, blackwell.PAIRS)
    y = blackwell.up(pack(x), w13, blocks, w, limit=cases.LIMIT)
    rows = blackwell.down(pack(y), blackwell.Native(at.w2, at.w2_scale), blocks, w)
    got = combine.combine(rows.view(T, 2, hidden), ids, E)
    assert_close(got, cases.expected(x, ids, w, at, activations), activations)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int], dict[str, Any]]:
    """What the compiler made of every product of this folder; no GPU is involved."""
    found = [row for arch in TARGETS for row in compiling.rows("moe.compiled", arch)]
    return {(row["name"], row["arch"]): row for row in found}


@pytest.mark.parametrize("arch", [100, 103])
def test_w4a4_and_w4a8_are_the_instructions_that_were_meant(rows: dict[tuple[str, int], Any], arch: int) -> None:
    for name, kind, machine in (("scaled w4a4", "mxf4", "UTCOMMA"), ("scaled w4a8", "mxf8f6f4", "UTCQMMA")):
        for part in ("up", "down"):
            row = rows[f"{name} {part}", arch]
            assert row["matrix"]
            assert all(f".kind::{kind}.block_scale" in instruction for instruction in row["matrix"]), row
            if row["machine"]:  # an older disassembler does not know the newest chips
                assert row["machine"] == [machine], row
            assert row["stack"] == 0, row


@pytest.mark.parametrize("arch", TARGETS)
def test_products_keep_to_their_registers(rows: dict[tuple[str, int], Any], arch: int) -> None:
    here = {name: row for (name, at), row in rows.items() if at == arch and not name.startswith("scaled")}
    assert len(here) == 6
    for row in here.values():
        assert row["stack"] <= 16, row
        assert row["shared"] <= 227 * 1024, row
        if arch == 90:
            wanted = "e4m3.e4m3" if "fp8" in row["name"] else "bf16.bf16"
            assert row["matrix"], row
            assert all(i.startswith("wgmma") and i.endswith(wanted) for i in row["matrix"]), row
