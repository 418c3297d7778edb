"""What NVRTC makes of the kernels of sparse decode for Hopper; no GPU is involved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.kernels.cuda.machine_code import made_of, said

from dsv4.kernels.attention.hopper import ENTRIES, Entry
from dsv4.kernels.cuda.compile import Nvrtc, cubin

REGISTERS = {1: 168, 2: 128}  # at launch, so that 384 and 512 threads fit; the groups trade them afterwards
SHAPES = {1: {"64x64x16", "64x256x16"}, 2: {"64x64x16", "64x128x16"}}


@pytest.fixture(scope="module", params=[1, 2])
def each(request: pytest.FixtureRequest) -> int:
    """Blocks per token."""
    return int(request.param)


@pytest.fixture(scope="module")
def entry(each: int) -> Entry:
    return ENTRIES[each]


@pytest.fixture(scope="module")
def made(entry: Entry) -> tuple[bytes, str]:
    return made_of(entry.source)


@pytest.fixture(scope="module")
def code(made: tuple[bytes, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The machine code, as nvdisasm writes it."""
    return said("nvdisasm", "-c", made[0], tmp_path_factory.mktemp("cubin"))


def test_registers_do_not_spill(made: tuple[bytes, str], each: int) -> None:
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", made[1]) == [("0", "0")], made[1]
    assert re.findall(r"Used (\d+) registers", made[1]) == [str(REGISTERS[each])], made[1]


def test_products_run_behind_the_program(made: tuple[bytes, str]) -> None:
    assert "serialized" not in made[1], made[1]


def test_the_matrix_units_and_the_trade_of_registers_are_in_the_code(code: str, each: int) -> None:
    assert set(re.findall(r"HGMMA\.(\w+)\.F32\.BF16", code)) == SHAPES[each]
    assert "USETMAXREG.TRY_ALLOC" in code
    assert "USETMAXREG.DEALLOC" in code
    assert not re.search(r"\b(LDL|STL)\b", code), "local memory"


def test_two_blocks_of_a_token_are_a_cluster(made: tuple[bytes, str], each: int, tmp_path: Path) -> None:
    assert ("EIATTR_CTA_PER_CLUSTER" in said("cuobjdump", "-elf", made[0], tmp_path)) == (each == 2)


def test_rows_are_read_sixteen_bytes_at_a_time(code: str) -> None:
    assert len(re.findall(r"LDG\.E\.\S*128", code)) >= 16


def test_the_shared_memory_that_a_launch_asks_for_is_the_sources(entry: Entry) -> None:
    assert f"static_assert(SHARED_BYTES == {entry.shared_bytes})" in entry.source.read_text()
    assert f"THREADS = {entry.threads};" in entry.source.read_text()
    assert entry.shared_bytes <= 227 * 1024


def test_a_cubin_is_made_anew_where_a_header_beside_it_changed(
    made: tuple[bytes, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path / "kept"))
    source, header = tmp_path / "small.cu", tmp_path / "beside.cuh"
    source.write_text('#include "beside.cuh"\nKERNEL(32) small(int x) { if (x == NUMBER) machine::sync_block(); }\n')
    header.write_text('#include "machine.cuh"\nconstexpr int NUMBER = 1;\n')
    first = cubin(source)
    header.write_text('#include "machine.cuh"\nconstexpr int NUMBER = 2;\n')
    assert cubin(source) != first


def test_a_cubin_is_kept_and_found_again(
    made: tuple[bytes, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4_KERNEL_CACHE", str(tmp_path))
    source = tmp_path / "small.cu"
    source.write_text('#include "machine.cuh"\nKERNEL(32) small(int x) { if (x) machine::sync_block(); }\n')
    first = cubin(source)
    assert len(list(tmp_path.glob("*.cubin"))) == 1
    monkeypatch.setattr(Nvrtc, "cubin", None)  # would fail if it were called
    assert cubin(source) == first
