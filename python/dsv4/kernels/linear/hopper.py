"""FP8 products on Hopper: the launch of fp8_rows.cu. What is computed is `fp8_linear`'s to say."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dsv4.kernels.cuda.compile import cubin
from dsv4.kernels.cuda.device import Kernel, Matrix, Module, TensorMap, tensor_map
from dsv4.kernels.linear.quantise import GROUP

SOURCE = Path(__file__).with_name("fp8_rows.cu")
THREADS = 384
SHARED_BYTES = {"whole_64": 221_336, "whole_128": 229_496, "split_64": 229_512, "split_128": 229_464}
"""By entry; the source's Layout::BYTES."""
BOX_ROWS, BOX_COLUMNS = 64, 128  # of x and of the weight, as they are copied
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
        ("wide", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("padding", ctypes.c_int32 * 2),
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """How a launch is cut: never changes a result.

    rows     of a tile, 64 or 128; it has 128 columns
    kind     whole: a block does all segments of K; split: a cluster shares them
    cluster  blocks: of `split` one per segment, of `whole` one or two, which share the rows of two tiles
    """

    rows: int
    kind: Literal["whole", "split"]
    cluster: int
    blocks: int

    @property
    def kernel(self) -> str:
        """The entry of the source that serves this cut."""
        return f"{self.kind}_{self.rows}"


# Cycles, believed and not measured: a stage of 128 channels, what a tile adds to its stages, and an exchange.
STAGE = {64: 400, 128: 560}
TILE, EXCHANGE = 700, 2500


@functools.lru_cache(maxsize=4096)
def cut_of(T: int, N: int, K: int, splits: int, num_sms: int) -> Cut:
    """The cut that is believed to be fastest for rows [T, K] and a weight [N, K] in `splits` segments."""
    return min(cuts(T, N, splits, num_sms), key=lambda cut: cycles(cut, T, N, K, splits, num_sms))


def cuts(T: int, N: int, splits: int, num_sms: int) -> list[Cut]:
    """All that can serve. Blocks of `whole` are no more than run at once; those of `split` do one tile each."""
    found = []
    for rows in (64, 128):
        tiles = -(-T // rows) * (N // GROUP)
        pair = 2 if rows == 128 and N % (2 * GROUP) == 0 else 1
        found.append(Cut(rows, "whole", pair, min(tiles, num_sms // pair * pair)))
        if splits > 1:
            found.append(Cut(rows, "split", splits, tiles * splits))
    return found


def cycles(cut: Cut, T: int, N: int, K: int, splits: int, num_sms: int) -> int:
    """Believed length of a launch, without its start."""
    tiles, stages = -(-T // cut.rows) * (N // GROUP), K // GROUP
    if cut.kind == "split":
        waves = -(-tiles * splits // (num_sms // 8 * 8))  # a cluster needs neighbours
        return waves * (stages // splits * STAGE[cut.rows] + EXCHANGE)
    return -(-tiles // cut.blocks) * (stages * STAGE[cut.rows] + TILE)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The source's entries on one device, by name."""

    entries: dict[str, Kernel]
    num_sms: int


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Compiles the source, or takes it from disk, and loads it. Raises Violation where that fails."""
    with torch.cuda.device(device):
        module = Module(cubin(SOURCE))
        entries = {name: module.kernel(f"fp8_{name}", THREADS, size) for name, size in SHARED_BYTES.items()}
        return Kernels(entries, torch.cuda.get_device_properties(device).multi_processor_count)


def arguments_of(
    x: TensorMap,
    w: TensorMap,
    x_sf: Tensor,
    w_sf: Tensor,
    out: Tensor,
    K: int,
    splits: int,
) -> Arguments:
    """The kernel's arguments; `out` [T, N] bf16 or float32."""
    return Arguments(
        x, w, x_sf.data_ptr(), w_sf.data_ptr(), out.data_ptr(), *out.shape,
        splits, K // GROUP // splits, len(x_sf), BAND, int(out.dtype is torch.float32), 0,
    )  # fmt: skip


def launch(
    x: Tensor, x_sf: Tensor, weight: Tensor, w_sf: Tensor, out: Tensor, splits: int, cut: Cut | None = None
) -> None:
    """Fills `out` [T, N]; at least one row. `cut` is for tests: the launch chooses its own."""
    kernels = kernels_on(x.device)
    (T, K), N = x.shape, len(weight)
    cut = cut or cut_of(T, N, K, splits, kernels.num_sms)
    kernel = kernels.entries[cut.kernel]
    maps = (
        tensor_map(Matrix(x.data_ptr(), T, K, BOX_ROWS)),
        tensor_map(Matrix(weight.data_ptr(), N, K, BOX_COLUMNS)),
    )
    with torch.cuda.device(x.device):
        kernel.launch(cut.blocks, arguments_of(*maps, x_sf, w_sf, out, K, splits), cluster=cut.cluster, early=True)
