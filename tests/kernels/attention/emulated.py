"""Sparse decode's CUDA kernel on the CPU's emulator, for tokens of paged.py."""

from __future__ import annotations

import ctypes

import torch
from tests.kernels.attention.paged import Tokens
from tests.kernels.cuda.emulate import Grid, emulate
from torch import Tensor

from dsv4.kernels.attention import hopper
from dsv4.kernels.attention.sparse_decode import SCALE


def inputs_of(x: Tokens) -> hopper.Inputs:
    T = len(x.positions)
    positions, token_rows = torch.tensor(x.positions, dtype=torch.int32), torch.arange(T, dtype=torch.int32)
    fixed = (x.q, x.sink, x.window_pool, x.window_slots, positions)
    if x.extra_pool is None or x.table is None:
        return hopper.Inputs(*fixed, 0, x.window_pool, positions.view(-1, 1), positions, 64, 0, 1)
    if x.page == 64:
        return hopper.Inputs(*fixed, 1, x.extra_pool, x.table, positions, 64, x.table.shape[1], 4)
    return hopper.Inputs(*fixed, 2, x.extra_pool, x.table, token_rows, 2, 2 * x.table.shape[1], 128)


def run(
    kernels: ctypes.CDLL, x: Tokens, each: int = 1, *, pairs: int = 1, seed: int = 0, eager: bool = False
) -> Tensor:
    """All tokens by `pairs` teams of `each` blocks; whatever the kernel leaves unwritten is NaN."""
    i = inputs_of(x)
    out = torch.full_like(x.q, torch.nan)
    grid = Grid(each * pairs, hopper.THREADS, hopper.SHARED_BYTES[each], each)
    reads = (i.q, i.sink, i.window_pool, i.window_slots, i.positions, i.extra_pool, i.extra, i.token_rows)
    arguments = i.arguments(out, SCALE)
    emulate(kernels, f"sparse_decode_{each}", arguments, grid, reads, [out], seed=seed, eager=eager)
    return out
