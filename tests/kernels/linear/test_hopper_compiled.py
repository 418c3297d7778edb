"""What NVRTC makes of fp8_rows.cu for Hopper; no GPU is involved."""

from __future__ import annotations

import re

import pytest
from tests.kernels.cuda.machine_code import code_of, made_of

from dsv4.kernels.cuda.compile import sources
from dsv4.kernels.linear.hopper import SHAPES, SOURCE

ENTRIES = {f"fp8_{shape.kernel}": shape for shape in SHAPES}


@pytest.fixture(scope="module")
def made() -> tuple[bytes, str]:
    return made_of(SOURCE)


@pytest.fixture(scope="module")
def code(made: tuple[bytes, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Machine code by entry."""
    return code_of(made[0], tmp_path_factory.mktemp("cubin"))


def test_registers_do_not_spill(made: tuple[bytes, str]) -> None:
    """At most 168 at launch, so that 384 threads fit; the groups trade them afterwards."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", made[1])
    assert found == [("0", "0")] * len(ENTRIES), made[1]
    assert re.findall(r"Used (\d+) registers", made[1]) == ["168"] * len(ENTRIES), made[1]


def test_products_run_behind_the_program(made: tuple[bytes, str]) -> None:
    assert "serialized" not in made[1], made[1]


def test_a_stage_is_four_products_and_one_fused_sum_per_value(code: dict[str, str]) -> None:
    """As often as stages are under way; a tile of 128 rows starts one more before its loop."""
    assert set(code) == set(ENTRIES)
    for name, text in code.items():
        rows, columns = ENTRIES[name]
        wide, batch = rows * columns // 128, 128 * 128 // (rows * columns)
        assert re.findall(r"QGMMA\.(\w+)\.F32\.E4M3\.E4M3", text) == [f"64x{wide}x32"] * 4 * max(batch, 2), name
        assert len(re.findall(r"\bFFMA\b", text)) == batch * wide // 2, name
        assert "USETMAXREG.TRY_ALLOC" in text
        assert "USETMAXREG.DEALLOC" in text
        assert not re.search(r"\b(LDL|STL)\b", text), "local memory"


def test_descriptors_stay_in_uniform_registers(code: dict[str, str]) -> None:
    """A group is the same in all lanes: a product needs no R2UR in front of it."""
    for name, text in code.items():
        loop = text[text.index("QGMMA") : text.rindex("QGMMA")]
        assert "R2UR" not in loop, name


def test_tiles_come_by_the_copy_engine_and_no_wait_empties_the_cache(code: dict[str, str]) -> None:
    """CCTL.IVALL, in front of which an acquire at the cluster's scope puts it."""
    for name, text in code.items():
        assert "UTMALDG.2D " in text, name
        assert "CCTL.IVALL" not in text, name


def test_a_launch_overlaps_the_one_before(code: dict[str, str]) -> None:
    for text in code.values():
        assert text.index("PREEXIT") < text.index("ACQBULK")


def test_no_fence_of_the_whole_device(code: dict[str, str]) -> None:
    for name, text in code.items():
        assert "MEMBAR" not in text, name


def test_the_shared_memory_that_a_launch_asks_for_is_the_layouts() -> None:
    text = sources(SOURCE)[0]
    for (rows, columns), cost in SHAPES.items():
        assert f"static_assert(Layout<{rows}, {columns}>::BYTES == {cost.shared_bytes})" in text
        assert cost.shared_bytes <= 227 * 1024
