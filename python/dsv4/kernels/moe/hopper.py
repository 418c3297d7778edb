"""Routed experts as W4A8 on Hopper: the launches of grouped_fp8.cu and what lies between them.

    ids [T, K]  -- permute -->  blocks of 64 pairs of one expert each
    x, blocks   -- place   -->  E4M3 rows in their places, routing weights
    rows        -- up      -->  y [places, m]            (SwiGLU and routing weight)
    y           -- place   -->  E4M3 rows
    rows        -- down    -->  [T K, C]
                -- combine -->  out [T, C]

A pair's sum has one order whatever lies beside it and however many pairs a tile has; it is another order than that of
`grouped_fp8` (which adds every 32 channels), so that one of the two serves a layer in all steps.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.cuda.compile import cubin
from dsv4.kernels.cuda.device import Kernel, Matrix, Module, TensorMap, tensor_map
from dsv4.kernels.moe.combine import combine
from dsv4.kernels.moe.experts import Chosen
from dsv4.kernels.moe.fold import TILE_BYTES, Folded, fold
from dsv4.kernels.moe.permute import Blocks, permute
from dsv4.kernels.moe.place import PAIRS, Placed, place
from dsv4.kernels.moe.weights import GROUP, Experts

SOURCE = Path(__file__).with_name("grouped_fp8.cu")
THREADS, TILE_ROWS = 640, 256
CLUSTER = 2  # blocks of one, as the source says
SHARED_BYTES = 229_504
"""The source's BYTES."""
# Rows of 128 bytes that one copy brings: of pairs, of weights, of scales, of weights or numbers of pairs.
BOX_PAIRS, BOX_TILE, BOX_SCALES, BOX_LAST = PAIRS // 2, TILE_BYTES // 128, PAIRS // 64, PAIRS // 32


class FoldedExperts(NamedTuple):
    """All experts of a layer."""

    w13: Folded
    w2: Folded


class Arguments(ctypes.Structure):
    """The source's struct of this name."""

    _fields_ = (
        ("x", TensorMap),
        ("w", TensorMap),
        ("sf", TensorMap),
        ("last", TensorMap),
        ("w_sf", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("expert", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("limit", ctypes.c_float),
        ("num_blocks", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("timeline", ctypes.c_void_p),
        ("padding", ctypes.c_int32 * 2),
    )


@dataclass(frozen=True, slots=True)
class Kernels:
    """The source's entries on one device."""

    up: Kernel
    down: Kernel
    num_sms: int


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Compiles the source, or takes it from disk, and loads it. Raises Violation where that fails."""
    with torch.cuda.device(device):
        module = Module(cubin(SOURCE))
        up, down = (module.kernel(f"grouped_{name}", THREADS, SHARED_BYTES) for name in ("up", "down"))
        return Kernels(up, down, torch.cuda.get_device_properties(device).multi_processor_count)


def folded(weights: Experts) -> FoldedExperts:
    """Experts for these kernels. Raises Violation if a row's scales are too far apart (fold.py)."""
    return FoldedExperts(fold(weights.w13, gated=True), fold(weights.w2, gated=False))


def matrices(rows: Placed, weight: Folded, blocks: Blocks) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """What the copy engine reads: pairs, tiles of weights, scales, and weights or numbers of pairs."""
    places, K = rows.values.shape
    last = blocks.order if rows.weights is None else rows.weights
    return (
        Matrix(rows.values.data_ptr(), places, K, BOX_PAIRS),
        Matrix(weight.tiles.data_ptr(), weight.tiles.numel() // 128, 128, BOX_TILE),
        Matrix(rows.scales.data_ptr(), rows.scales.numel() // 64, 128, BOX_SCALES),
        Matrix(last.data_ptr(), places // 32, 128, BOX_LAST),
    )


def arguments_of(maps: Sequence[TensorMap], weight: Folded, blocks: Blocks, out: Tensor, limit: float) -> Arguments:
    """The kernel's arguments."""
    _, N, K = weight.shape
    pointers = (weight.scale.data_ptr(), blocks.order.data_ptr(), blocks.expert.data_ptr(), out.data_ptr())
    return Arguments(*maps, *pointers, limit, len(blocks.expert), N, K // GROUP)


def num_blocks(blocks: Blocks, N: int, num_sms: int) -> int:
    """Thread blocks of a launch: pairs of them, no more than run at once."""
    return min(len(blocks.expert) * N // TILE_ROWS, num_sms // CLUSTER * CLUSTER)


def launch(rows: Placed, weight: Folded, blocks: Blocks, out: Tensor, limit: float = 0.0) -> None:
    """Fills `out`: y [places, N / 2] of gated rows, else [pairs, N]."""
    kernels = kernels_on(out.device)
    maps = [tensor_map(matrix) for matrix in matrices(rows, weight, blocks)]
    kernel = kernels.up if weight.gated else kernels.down
    with torch.cuda.device(out.device):
        grid = num_blocks(blocks, weight.shape[1], kernels.num_sms)
        kernel.launch(grid, arguments_of(maps, weight, blocks, out, limit), early=True)


def experts(x: Tensor, chosen: Chosen, weights: FoldedExperts, *, limit: float, shared: Tensor | None = None) -> Tensor:
    """What the routed experts make of x, as `experts.experts` says; six launches, seven from 4,097 pairs on."""
    T, C = x.shape
    E, two_m, K = weights.w13.shape
    top = chosen.ids.shape[1]
    expect(K == C and weights.w2.shape == (E, C, two_m // 2), f"w13 {weights.w13.shape} and w2 {weights.w2.shape}")
    expect(chosen.weights.shape == (T, top) and chosen.weights.dtype is torch.float32, "weights are float32 [T, K]")
    if not T:
        return torch.empty_like(x)
    blocks = permute(chosen.ids, E, PAIRS, places=True)
    y = x.new_empty(len(blocks.order), two_m // 2)
    launch(place(x, blocks, weights=chosen.weights), weights.w13, blocks, y, limit)
    rows = x.new_empty(T, top, C)
    launch(place(y, blocks), weights.w2, blocks, rows)
    return combine(rows, chosen.ids, E, shared)
