from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels import targets

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
TARGETS = (90, 100, 103)  # Hopper, and the Blackwell chips that nobody here can run
SMALL_FRAME = 8  # bytes of stack that an indexed layout change may take; anything more is a spill


Rows = dict[str, dict[str, int]]


@functools.cache
def rows(arch: int) -> Rows:
    """What every kernel became on this target, all compiled in one process without the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.kernels.targets", str(arch)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["kernel"]: row for row in map(json.loads, done.stdout.splitlines())}


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
