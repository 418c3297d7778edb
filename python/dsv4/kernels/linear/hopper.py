"""FP8 products on Hopper: the launch of fp8_rows.cu. What is computed is `fp8_linear`'s to say."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.cuda.compile import cubin
from dsv4.kernels.cuda.device import Kernel, Matrix, Module, TensorMap, tensor_map
from dsv4.kernels.linear.quantise import GROUP

SOURCE = Path(__file__).with_name("fp8_rows.cu")
THREADS = 384
BAND = 8


class Arguments(ctypes.Structure):
    """The source's struct of this name."""

    _fields_ = (
        ("x", TensorMap),
        ("w", TensorMap),
        ("x_sf", ctypes.c_void_p),
        ("w_sf", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int32),
        ("num_columns", ctypes.c_int32),
        ("segments", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("words", ctypes.c_int32),
        ("band", ctypes.c_int32),
        ("timeline", ctypes.c_void_p),
        ("padding", ctypes.c_int32 * 2),
    )


class Shape(NamedTuple):
    """Rows and columns of a tile: an entry of the source."""

    rows: int
    columns: int

    @property
    def kernel(self) -> str:
        """The entry's name."""
        return f"{self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of an entry.

    shared_bytes  the source's Layout::BYTES
    stage, tile   cycles of a stage, and of a tile beside its stages: believed, but what they chose was the fastest of
                  the three at every shape that was measured (docs/notes/gemm.md)
    """

    shared_bytes: int
    stage: int
    tile: int


SHAPES = {
    Shape(64, 64): Cost(211_168, 300, 700),
    Shape(64, 128): Cost(217_248, 450, 700),
    Shape(128, 128): Cost(201_840, 760, 700),
}


class Cut(NamedTuple):
    """How a launch is cut, which never changes a result: blocks that do tile after tile."""

    shape: Shape
    blocks: int


@functools.lru_cache(maxsize=4096)
def cut_of(T: int, N: int, K: int, num_sms: int) -> Cut:
    """The fastest cut for rows [T, K] and a weight [N, K], by `SHAPES`."""

    def cycles(shape: Shape) -> int:
        cost = SHAPES[shape]
        return -(-tiles(shape, T, N) // num_sms) * (K // GROUP * cost.stage + cost.tile)

    return cut_by(min(SHAPES, key=cycles), T, N, num_sms)


def cut_by(shape: Shape, T: int, N: int, num_sms: int) -> Cut:
    """By tiles of this shape; no more blocks than run at once."""
    return Cut(shape, min(tiles(shape, T, N), num_sms))


def tiles(shape: Shape, T: int, N: int) -> int:
    """How many there are of rows [T, ...] and a weight [N, ...]."""
    return -(-T // shape.rows) * (N // shape.columns)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The source's entries on one device."""

    entries: dict[Shape, Kernel]
    num_sms: int


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Compiles the source, or takes it from disk, and loads it. Raises Violation where that fails."""
    with torch.cuda.device(device):
        module = Module(cubin(SOURCE))
        entries = {s: module.kernel(f"fp8_{s.kernel}", THREADS, cost.shared_bytes) for s, cost in SHAPES.items()}
        return Kernels(entries, torch.cuda.get_device_properties(device).multi_processor_count)


def arguments_of(x: TensorMap, w: TensorMap, x_sf: Tensor, w_sf: Tensor, out: Tensor, K: int, splits: int) -> Arguments:
    """The kernel's arguments; `out` [T, N] bf16."""
    steps = K // GROUP // splits
    return Arguments(x, w, x_sf.data_ptr(), w_sf.data_ptr(), out.data_ptr(), *out.shape, splits, steps, len(x_sf), BAND)


def launch(
    x: Tensor, x_sf: Tensor, weight: Tensor, w_sf: Tensor, out: Tensor, splits: int, cut: Cut | None = None
) -> None:
    """Fills `out` [T, N] bf16; at least one row. `cut` is for tests: the launch chooses its own."""
    kernels = kernels_on(x.device)
    (T, K), N = x.shape, len(weight)
    shape, blocks = cut or cut_of(T, N, K, kernels.num_sms)
    maps = (
        tensor_map(Matrix(x.data_ptr(), T, K, shape.rows)),
        tensor_map(Matrix(weight.data_ptr(), N, K, shape.columns)),
    )
    with torch.cuda.device(x.device):
        kernels.entries[shape].launch(blocks, arguments_of(*maps, x_sf, w_sf, out, K, splits), early=True)
