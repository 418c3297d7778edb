"""What NVRTC makes of sparse_decode.cu for Hopper; no GPU is involved."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dsv4.errors import Violation
from dsv4.kernels.attention.hopper import SHARED_BYTES, SOURCE
from dsv4.kernels.cuda.compile import Nvrtc, cubin, sources

ENTRIES = ["sparse_decode_1", "sparse_decode_2"]


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
    file = tmp_path_factory.mktemp("cubin") / "sparse_decode.cubin"
    file.write_bytes(made[0])
    text = subprocess.run([tool, "-c", file], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.text\.(sparse_decode_\d)\s+-+", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_registers_do_not_spill(made: tuple[bytes, str]) -> None:
    """At most 168 at launch, so that 384 threads fit; the groups trade them afterwards."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", made[1])
    assert found == [("0", "0")] * len(ENTRIES), made[1]
    assert re.findall(r"Used (\d+) registers", made[1]) == ["168"] * len(ENTRIES), made[1]


def test_products_run_behind_the_program(made: tuple[bytes, str]) -> None:
    assert "serialized" not in made[1], made[1]


def test_the_matrix_units_and_the_trade_of_registers_are_in_the_code(code: dict[str, str]) -> None:
    assert sorted(code) == ENTRIES
    shapes = {name: set(re.findall(r"HGMMA\.(\w+)\.F32\.BF16", text)) for name, text in code.items()}
    assert shapes == {"sparse_decode_1": {"64x64x16", "64x256x16"}, "sparse_decode_2": {"64x32x16", "64x128x16"}}
    for text in code.values():
        assert "USETMAXREG.TRY_ALLOC" in text
        assert "USETMAXREG.DEALLOC" in text
        assert not re.search(r"\b(LDL|STL)\b", text), "local memory"


def test_two_blocks_of_a_token_are_a_cluster(made: tuple[bytes, str], tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = tmp_path / "sparse_decode.cubin"
    file.write_bytes(made[0])
    text = subprocess.run([tool, "-elf", file], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.nv\.info\.(sparse_decode_\d)\s*\n", text)
    found = {name: "EIATTR_CTA_PER_CLUSTER" in part for name, part in zip(parts[1::2], parts[2::2], strict=True)}
    assert found == {"sparse_decode_1": False, "sparse_decode_2": True}


def test_rows_are_read_sixteen_bytes_at_a_time(code: dict[str, str]) -> None:
    for name, text in code.items():
        assert len(re.findall(r"LDG\.E\.\S*128", text)) >= 16, name


def test_the_shared_memory_that_a_launch_asks_for_is_the_layouts() -> None:
    text = sources(SOURCE)[0]
    for each, size in SHARED_BYTES.items():
        assert f"static_assert(Layout<{each}>::BYTES == {size})" in text
    assert max(SHARED_BYTES.values()) <= 227 * 1024


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
