"""Runs a CUDA kernel of ours on the CPU, block by block, and refuses what a device would do wrong (emulated.h)."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.cuda.compile import HERE, cache_folder, sources
from dsv4.kernels.cuda.device import TensorMap

FLAGS = ("-std=c++20", "-ffp-contract=off", "-fno-ipa-icf", "-Wall", "-Wextra", "-shared", "-fPIC")
EMULATOR = Path(__file__).with_name("emulated.h")
MESSAGE_BYTES = 4096


class _Range(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint32),
        ("constant", ctypes.c_uint32),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("eager", ctypes.c_uint32),
        ("early", ctypes.c_uint32),
        ("num_ranges", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("ranges", ctypes.POINTER(_Range)),
    )


def compiler() -> str | None:
    """The C++ compiler that builds emulated kernels, if there is one."""
    return shutil.which("g++")


def library(source: Path, optimise: str = "-O3") -> ctypes.CDLL:
    """The kernels of a source as a shared library, built once per content."""
    found = compiler()
    if found is None:
        raise Violation("there is no g++, which the emulator needs")
    content = "\0".join((*FLAGS, optimise, *sources(source), EMULATOR.read_text()))
    path = cache_folder() / f"{source.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            folders = (f"-I{HERE}", f"-I{EMULATOR.parent}", f"-I{source.parent}")
            command = [found, *FLAGS, optimise, *folders, "-x", "c++", str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Violation(f"g++ on {source.name}: {done.stderr[-2000:]}")
            made.rename(path)  # whole or not there
    return ctypes.CDLL(str(path))


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks of a launch, in clusters of so many."""

    blocks: int
    threads: int
    shared_bytes: int
    cluster: int = 1


def _range(x: Tensor, *, writable: bool = False, constant: bool = False) -> _Range:
    return _Range(x.data_ptr(), x.untyped_storage().nbytes(), int(writable), int(constant))


def tensor_map(x: Tensor, rows: int) -> TensorMap:
    """What the emulator takes for a tensor map: boxes of `rows` x 128 bytes of a matrix of bytes."""
    return TensorMap((x.data_ptr(), *x.shape, x.stride(0), rows, 128))


def emulate(
    kernels: ctypes.CDLL,
    name: str,
    arguments: ctypes.Structure,
    grid: Grid,
    reads: Iterable[Tensor],
    writes: Iterable[Tensor],
    *,
    constants: Iterable[Tensor] = (),
    seed: int = 0,
    eager: bool = False,
    early: bool = False,
) -> None:
    """Runs a kernel that may touch these tensors and nothing else. Raises Violation with what it did wrong.

    constants  tensors to read that no launch writes
    seed       0 runs threads in order; others shuffle them and switch between them inside the code
    eager      products run when they are issued, not when they are waited for
    early      the launch starts before the one before it has ended: what is no constant has to wait
    """
    ranges = [_range(x) for x in reads] + [_range(x, writable=True) for x in writes]
    ranges += [_range(x, constant=True) for x in constants]
    table = (_Range * len(ranges))(*ranges)
    cut = (grid.blocks, grid.threads, grid.cluster, grid.shared_bytes)
    launch = _Launch(*cut, seed, int(eager), int(early), len(ranges), 0, table)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    run = getattr(kernels, f"emulate_{name}")
    if run(ctypes.byref(arguments), ctypes.byref(launch), message, MESSAGE_BYTES):
        raise Violation(f"{name}: {message.value.decode()}")
