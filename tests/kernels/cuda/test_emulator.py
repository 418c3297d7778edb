"""The emulator: products against the layouts of the PTX ISA, and one planted fault of each kind."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from tests.kernels.cuda.emulate import Grid, compiler, emulate, library, tensor_map
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.cuda.compile import Nvrtc, find_nvrtc
from dsv4.kernels.cuda.device import TensorMap

PROBE = Path(__file__).with_name("probe.cu")
SHARED_BYTES = 8192 * 5
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no g++, which builds emulated kernels")


class Arguments(ctypes.Structure):
    _fields_ = (
        ("map", TensorMap),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("fault", ctypes.c_int32),
        ("padding", ctypes.c_int32 * 9),
    )


def run(
    name: str,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    fault: int = 0,
    *,
    threads: int = 128,
    cluster: int = 1,
    eager: bool = False,
    early: bool = False,
) -> None:
    arguments = Arguments(tensor_map(a, 64), a.data_ptr(), b.data_ptr(), d.data_ptr(), fault)
    grid = Grid(cluster, threads, SHARED_BYTES, cluster)
    emulate(library(PROBE), name, arguments, grid, [a, b], [d], eager=eager, early=early)


def matrix_of(fragments: Tensor) -> Tensor:
    """[128 threads, N / 2] -> [64, N], as the ISA draws the accumulator of wgmma m64nN.

    Warp w has rows 16 w..; lane l holds, of every eight columns, columns 2 (l % 4) and + 1 of row l / 4 in its first
    two registers and of row l / 4 + 8 in the next two.
    """
    threads, half = fragments.shape
    out = torch.empty(64, 2 * half)
    for t in range(threads):
        warp, lane = divmod(t, 32)
        for i in range(half):
            row = 16 * warp + lane // 4 + (8 if i % 4 >= 2 else 0)
            out[row, 8 * (i // 4) + 2 * (lane % 4) + i % 2] = fragments[t, i]
    return out


@needs_compiler
@pytest.mark.parametrize("eager", [False, True])
def test_a_product_from_shared_memory(*, eager: bool) -> None:
    a, b, d = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16(), torch.empty(128, 32)
    run("from_memory", a, b, d, eager=eager)
    assert torch.allclose(matrix_of(d), a.float() @ b.float().T, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("eager", [False, True])
def test_a_product_from_registers_adds_to_what_is_there(*, eager: bool) -> None:
    a, b, d = torch.randn(64, 16).bfloat16(), torch.randn(16, 256).bfloat16(), torch.empty(128, 128)
    run("from_registers", a, b, d, eager=eager)
    assert torch.allclose(matrix_of(d), 1 + a.float() @ b.float(), atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", ["from_copies", "from_registers_and_copies"])
def test_a_product_of_boxes_that_the_copy_engine_brings(name: str, *, eager: bool) -> None:
    """Beyond the last row and column there are zeros."""
    x = torch.randn(100, 160).to(torch.float8_e4m3fn)
    x.view(torch.uint8)[:4] = torch.arange(256).to(torch.uint8).repeat(4)[: 4 * 160].view(4, 160)  # every code
    x.view(torch.uint8)[x.isnan()] = 0
    d = torch.empty(128, 32)
    run(name, x, x, d, eager=eager, early=True)
    box = torch.zeros(64, 32)
    box[:36] = x[64:, 128:].float()
    assert torch.allclose(matrix_of(d), x[:64, :32].float() @ box.T, rtol=1e-5)


COPY_FAULTS = [
    "copy at .* before the launch before has ended",
    "4096 bytes more than its barrier expects",
    "the swizzle's pattern starts at multiples of 1024",
    "there is no barrier at",
    "store at .* no wait for the copy",
    "load at .* no wait for the copy",
    "a copy to blocks 2 of 1",
    "wrote there without a fence",
    "standstill: .*mbarrier x 128",
    "global load at .* before the launch before has ended",
]


@needs_compiler
@pytest.mark.parametrize(("fault", "message"), [*enumerate(COPY_FAULTS)])
def test_a_planted_fault_of_a_copy_is_found(fault: int, message: str) -> None:
    x, d = torch.randn(100, 160).to(torch.float8_e4m3fn), torch.empty(128, 32)
    with pytest.raises(Violation, match=message):
        run("faulty_copy", x, x, d, fault, early=True)


FAULTS = [
    "nobody wrote it",
    "outside shared memory",
    "not aligned to 16",
    "outside what the launch was given",
    "standstill: .*sync_block x 127",
    "there is no barrier at",
    "standstill: .*mbarrier x 128",
    "not aligned to 16",
    "outside what the launch was given",
    "wrote it without a fence",
    "a product without matrix_fence",
    "off the swizzle's pattern",
    "different products",
    "into an operand of a running product",
    "",
    "store at .* no barrier since the store of warp",
    "load at .* no barrier since the store of warp|nobody wrote it",
    "digits of 1800 are not below 8",
]
NAN = FAULTS.index("")


@needs_compiler
@pytest.mark.parametrize(("fault", "message"), [x for x in enumerate(FAULTS) if x[1]])
def test_a_planted_fault_is_found(fault: int, message: str) -> None:
    a, b, d = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16(), torch.empty(128, 32)
    with pytest.raises(Violation, match=message):
        run("faulty", a, b, d, fault)


@needs_compiler
def test_no_more_registers_are_taken_than_were_given_back() -> None:
    a, b, d = torch.zeros(64, 16).bfloat16(), torch.zeros(64, 16).bfloat16(), torch.empty(128, 32)
    run("trade", a, b, d, 1, threads=384)
    with pytest.raises(Violation, match="65536 registers, of 64512 at launch"):
        run("trade", a, b, d, 0, threads=384)


@needs_compiler
def test_a_block_does_not_end_before_what_it_was_told_has_arrived() -> None:
    a, b, d = torch.zeros(64, 16).bfloat16(), torch.zeros(64, 16).bfloat16(), torch.empty(128, 32)
    run("told", a, b, d, 1, cluster=2)
    with pytest.raises(Violation, match="the block may end before"):
        run("told", a, b, d, 0, cluster=2)


@needs_compiler
def test_sums_read_before_they_are_waited_for_are_nan() -> None:
    a, b, d = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16(), torch.empty(128, 32)
    run("faulty", a, b, d, NAN)
    assert d.isnan().all()


def test_a_source_that_does_not_compile_says_why(tmp_path: Path) -> None:
    try:
        find_nvrtc()
    except Violation as error:
        pytest.skip(str(error))
    source = tmp_path / "broken.cu"
    source.write_text("int broken(")
    with pytest.raises(Violation, match="on broken"):
        Nvrtc().cubin(source, "sm_90a")
