"""What NVRTC makes of grouped_fp8.cu for Hopper; no GPU is involved."""

from __future__ import annotations

import re

import pytest
from tests.kernels.cuda.machine_code import code_of, made_of

from dsv4.kernels.cuda.compile import sources

pytest.importorskip("triton")
from dsv4.kernels.moe.hopper import SHARED_BYTES, SOURCE

ENTRIES = ["grouped_down", "grouped_up"]


@pytest.fixture(scope="module")
def made() -> tuple[bytes, str]:
    return made_of(SOURCE)


@pytest.fixture(scope="module")
def code(made: tuple[bytes, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Machine code by entry."""
    return code_of(made[0], tmp_path_factory.mktemp("cubin"))


def test_registers_do_not_spill(made: tuple[bytes, str]) -> None:
    """At most 96 at launch, so that 640 threads fit; the groups trade them afterwards."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", made[1])
    assert found == [("0", "0")] * len(ENTRIES), made[1]
    assert re.findall(r"Used (\d+) registers", made[1]) == ["96"] * len(ENTRIES), made[1]


def test_products_run_behind_the_program(made: tuple[bytes, str]) -> None:
    assert "serialized" not in made[1], made[1]


def stages_of(text: str) -> dict[str, list[str]]:
    """Instructions of a stage, by the shape of its products: the shortest loop with four of them."""
    lines, found = text.splitlines(), dict[str, list[str]]()
    labels = {line.strip(" :"): i for i, line in enumerate(lines) if line.startswith(".L_x_")}
    for end, line in enumerate(lines):
        match = re.search(r"BRA `\((\.L_x_\d+)\)", line)
        if match and labels[match[1]] < end:
            stage = [line for line in lines[labels[match[1]] : end] if ";" in line]
            shapes = re.findall(r"QGMMA\.(\w+)\.F32\.E4M3\.E4M3 R\d+, R\d+,", "\n".join(stage))
            if len(shapes) == 4 and len(stage) < len(found.get(shapes[0], lines)):
                found[shapes[0]] = stage
    return found


def test_a_stage_is_short(code: dict[str, str]) -> None:
    """Four products of weights in registers, as many look-ups as they have words, a fused sum per value."""
    assert sorted(code) == ENTRIES
    for text in code.values():
        stages = stages_of(text)
        assert {shape: sum("FFMA" in line for line in stage) for shape, stage in stages.items()} == {
            "64x16x32": 8, "64x32x32": 16, "64x64x32": 32,
        }  # fmt: skip
        for stage in stages.values():
            assert sum(bool(re.search(r"\bPRMT\b", line)) for line in stage) >= 16
            assert len(stage) <= 200
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


def test_no_stage_fences_the_whole_device(code: dict[str, str]) -> None:
    """That would be hundreds of cycles each; a block's end does."""
    for text in code.values():
        assert "MEMBAR" in text
        assert not any("MEMBAR" in line for stage in stages_of(text).values() for line in stage)


def test_the_shared_memory_that_a_launch_asks_for_is_the_sources() -> None:
    assert f"static_assert(BYTES == {SHARED_BYTES});" in sources(SOURCE)[0]
    assert SHARED_BYTES <= 227 * 1024
