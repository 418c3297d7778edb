"""What NVRTC makes of scores.cu for Hopper; no GPU is involved."""

from __future__ import annotations

import re

import pytest
from tests.kernels.cuda.machine_code import made_of

pytest.importorskip("triton")
from dsv4.kernels.index.hopper import BESIDE, SHARED_BYTES, SOURCE, THREADS


@pytest.fixture(scope="module")
def log() -> str:
    return made_of(SOURCE)[1]


def test_blocks_run_beside_each_other_and_nothing_spills(log: str) -> None:
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log) == [("0", "0")], log
    assert all(int(n) * THREADS * BESIDE <= 65_536 for n in re.findall(r"Used (\d+) registers", log)), log


def test_products_run_behind_the_program(log: str) -> None:
    assert "serialized" not in log, log


def test_what_a_launch_asks_for_is_the_sources() -> None:
    text = SOURCE.read_text()
    assert f"static_assert(BYTES == {SHARED_BYTES});" in text
    assert f"THREADS = {THREADS};" in text
    assert f"KERNEL_BESIDE(THREADS, {BESIDE})" in text
