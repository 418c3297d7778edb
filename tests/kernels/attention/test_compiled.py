from __future__ import annotations

from typing import Any

import pytest
from tests.kernels import compiling


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What the compiler made of the attention and index kernels for sm_90, sm_100 and sm_103; no GPU is involved."""
    pytest.importorskip("triton", reason="this torch comes without triton")
    return [row for arch in compiling.TARGETS for row in compiling.rows("attention.compiled", arch)]


def test_every_kernel_compiles_to_machine_code_for_hopper_and_blackwell(rows: list[dict[str, Any]]) -> None:
    names = ["attention", "fp8 scores", "fp4 scores", "topk"]
    assert [(row["arch"], row["name"]) for row in rows] == [(arch, name) for arch in (90, 100, 103) for name in names]
    for row in rows:
        assert row["shared"] <= 227 * 1024, row
        assert row["ptx"] > 20_000, f"{row}: where tensor memory overflows, the compiler leaves a trap and nothing else"


def test_the_matrix_units_are_in_use(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["name"] == "topk":
            assert row["matrix"] == []
        elif row["arch"] == 90:
            wanted = "m64n64k16.f32.bf16.bf16" if row["name"] == "attention" else "m64n64k32.f32.e4m3.e4m3"
            assert row["matrix"] == [f"wgmma.mma_async.sync.aligned.{wanted}"], row
        else:
            kind = "kind::f16" if row["name"] == "attention" else "kind::f8f6f4"
            assert row["matrix"], row
            assert all(kind in instruction for instruction in row["matrix"]), row


def test_registers_hardly_spill(rows: list[dict[str, Any]]) -> None:
    """Bytes a thread. On sm_90 Triton 3.6 leaves 48 for attention and 3.9 leaves 200; the score kernels have none."""
    for row in rows:
        limit = 256 if row["name"] == "attention" else 16 if row["arch"] > 90 else 0
        assert row["stack"] <= limit, row
