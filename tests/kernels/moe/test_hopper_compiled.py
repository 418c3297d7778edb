"""What NVRTC makes of grouped_fp8.cu for Hopper; no GPU is involved."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dsv4.errors import Violation
from dsv4.kernels.cuda.compile import Nvrtc, sources

pytest.importorskip("triton")
from dsv4.kernels.moe.hopper import SHARED_BYTES, SOURCE

ENTRIES = ["grouped_down", "grouped_up"]


@pytest.fixture(scope="module")
def made() -> tuple[bytes, str]:
    try:
        return Nvrtc().cubin(SOURCE, "sm_90a")
    except Violation as error:
        if "there is no NVRTC" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def code(made: tuple[bytes, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Machine code by entry, as nvdisasm writes it."""
    triton = pytest.importorskip("triton", reason="nvdisasm comes with triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    file = tmp_path_factory.mktemp("cubin") / "grouped_fp8.cubin"
    file.write_bytes(made[0])
    text = subprocess.run([tool, "-c", file], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.text\.(grouped_\w+)\s+-+", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_registers_do_not_spill(made: tuple[bytes, str]) -> None:
    """At most 168 at launch, so that 384 threads fit; the groups trade them afterwards."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", made[1])
    assert found == [("0", "0")] * len(ENTRIES), made[1]
    assert re.findall(r"Used (\d+) registers", made[1]) == ["168"] * len(ENTRIES), made[1]


def test_products_run_behind_the_program(made: tuple[bytes, str]) -> None:
    assert "serialized" not in made[1], made[1]


def stage_of(text: str) -> list[str]:
    """Instructions of a wide tile's loop: from the branch's target before its first product to the branch."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "QGMMA.64x128x32" in line)
    labels = {line.strip(" :"): i for i, line in enumerate(lines) if line.startswith(".L_x_")}
    branches = (
        (labels.get(match[1], first), i)
        for i in range(first, len(lines))
        if (match := re.search(r"BRA `\((\.L_x_\d+)\)", lines[i]))
    )
    start, end = next((to, at) for to, at in branches if to < first)
    return [line for line in lines[start:end] if ";" in line]


def test_weights_are_expanded_while_products_run(code: dict[str, str]) -> None:
    """A stage is four products of weights in registers, the look-ups of the next one, and a fused sum per value."""
    assert sorted(code) == ENTRIES
    for text in code.values():
        assert re.findall(r"QGMMA\.(\w+)\.F32\.E4M3\.E4M3 R\d+, R\d+,", text) == ["64x64x32"] * 4 + ["64x128x32"] * 4
        stage = stage_of(text)
        issued = max(i for i, line in enumerate(stage) if "QGMMA" in line)
        waited = next(i for i, line in enumerate(stage) if "WARPGROUP.DEPBAR" in line)
        between = "\n".join(stage[issued:waited])
        assert len(re.findall(r"\bPRMT\b", between)) >= 32
        assert len(re.findall(r"\bLDS\.128\b", between)) == 3
        assert sum("FFMA" in line for line in stage) == 64
        assert len(stage) <= 250, "eight warps on four schedulers: 512 cycles of products are 256 instructions"
        assert "USETMAXREG.TRY_ALLOC" in text
        assert "USETMAXREG.DEALLOC" in text
        assert not re.search(r"\b(LDL|STL)\b", text), "local memory"


def test_tiles_come_by_the_copy_engine_and_pairs_are_shared(code: dict[str, str]) -> None:
    for text in code.values():
        assert "UTMALDG.2D " in text
        assert "UTMALDG.2D.MULTICAST" in text


def test_a_launch_overlaps_the_one_before(code: dict[str, str]) -> None:
    for text in code.values():
        assert text.index("PREEXIT") < text.index("ACQBULK")


def test_no_fence_of_the_whole_device(code: dict[str, str]) -> None:
    """A release at the cluster's scope is one, hundreds of cycles long."""
    for text in code.values():
        assert "MEMBAR" not in text


def test_the_shared_memory_that_a_launch_asks_for_is_the_sources() -> None:
    assert f"static_assert(BYTES == {SHARED_BYTES});" in sources(SOURCE)[0]
    assert SHARED_BYTES <= 227 * 1024
