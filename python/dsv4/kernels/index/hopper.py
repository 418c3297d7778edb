"""Index scores of FP4 keys on Hopper: the launch of scores.cu. What is computed is `index_scores`'s to say."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.cuda.compile import cubin
from dsv4.kernels.cuda.device import Kernel, Module

SOURCE = Path(__file__).with_name("scores.cu")
THREADS, SHARED_BYTES = 128, 8192
PAGE, RATIO = 64, 4  # keys of a page, tokens per key
BESIDE = 5  # blocks of a multiprocessor, as the source says
MOST_TILES = 32  # of a block


class Arguments(ctypes.Structure):
    """The source's struct of this name."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("page_bytes", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("token_rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("scores_stride", ctypes.c_int64),
        ("blocks", ctypes.c_int32),
        ("tiles", ctypes.c_int32),
        ("most_skipped", ctypes.c_int32),
        ("ratio", ctypes.c_int32),
    )


class Cut(NamedTuple):
    """How a launch is cut, which never changes a result: blocks of a token, and tiles of a block."""

    blocks: int
    tiles: int


@dataclass(frozen=True, slots=True)
class Kernels:
    """The source's entry on one device."""

    scores: Kernel
    num_sms: int


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Compiles the source, or takes it from disk, and loads it. Raises Violation where that fails."""
    with torch.cuda.device(device):
        kernel = Module(cubin(SOURCE)).kernel("index_scores", THREADS, SHARED_BYTES)
        return Kernels(kernel, torch.cuda.get_device_properties(device).multi_processor_count)


def cut_of(num_tokens: int, num_keys: int, num_sms: int) -> Cut:
    """Blocks of equal work: twice as many as run at once, or with MOST_TILES each (docs/notes/index.md)."""
    tiles = -(-num_keys // PAGE)
    blocks = -(-tiles // max(1, min(MOST_TILES, -(-num_tokens * tiles // (2 * BESIDE * num_sms)))))
    return Cut(blocks, -(-tiles // blocks))


def arguments_of(
    q: Tensor, weights: Tensor, pool: Tensor, table: Tensor, token_rows: Tensor, positions: Tensor, scores: Tensor,
    k: int, cut: Cut,
) -> Arguments:  # fmt: skip
    """The kernel's arguments, of tensors as `index_scores` takes them."""
    paged = (pool.data_ptr(), pool.stride(0), table.data_ptr(), table.stride(0))
    rows = (token_rows.data_ptr(), positions.data_ptr(), scores.data_ptr(), scores.stride(0))
    return Arguments(q.data_ptr(), weights.data_ptr(), *paged, *rows, *cut, k, RATIO)


def launch(
    q: Tensor,
    weights: Tensor,
    pool: Tensor,
    table: Tensor,
    token_rows: Tensor,
    positions: Tensor,
    scores: Tensor,
    k: int,
) -> None:
    """Fills `scores` as `index_scores` says; at least one token and one key."""
    kernels = kernels_on(q.device)
    cut = cut_of(len(q), scores.shape[1], kernels.num_sms)
    arguments = arguments_of(q, weights, pool, table, token_rows, positions, scores, k, cut)
    with torch.cuda.device(q.device):
        kernels.scores.launch(len(q) * cut.blocks, arguments)
