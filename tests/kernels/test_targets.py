from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.kernels import compiling, targets
from tests.kernels.compiling import TARGETS

pytest.importorskip("triton")

SMALL_FRAME = 8  # bytes of stack that an indexed layout change may take; anything more is a spill


@functools.cache
def rows(arch: int) -> dict[str, dict[str, Any]]:
    """What every kernel became on this target."""
    return {row["kernel"]: row for row in compiling.rows("targets", arch)}


@pytest.mark.parametrize("name", targets.BUILDS)
@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_compiles_for_every_target_without_spills(name: str, arch: int) -> None:
    row = rows(arch)[name]
    assert row["local"] == 0
    assert row["stack"] <= SMALL_FRAME
    assert row["reg"] < 255


@pytest.mark.parametrize("arch", TARGETS)
def test_a_launch_that_may_begin_early_waits_for_the_one_before(arch: int) -> None:
    assert rows(arch)["post_project"]["griddepcontrol.wait"] == 1
    assert rows(arch)["mix_norm"]["griddepcontrol.wait"] == 1


@pytest.mark.parametrize("arch", TARGETS)
def test_the_instructions_are_the_ones_that_were_meant(arch: int) -> None:
    # Three bf16 products of four streams, 16 channels at a time, and each warp its own 8 outputs.
    assert rows(arch)["post_project"]["mma.sync"] == 4 * 3 * 64 // 16
    for name in ("norm_rope_store", "compress_c4", "compress_c128"):
        assert rows(arch)[name]["cvt.rn.satfinite.e4m3x2"]
    for name in ("norm_rope_store", "compress_c4"):
        assert rows(arch)[name]["st.global.v4"], "values leave in 16-byte stores"
