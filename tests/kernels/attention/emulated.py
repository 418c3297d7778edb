"""Sparse decode's CUDA kernel on the CPU's emulator, for tokens of paged.py."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from tests.kernels.attention.paged import Tokens
from tests.kernels.cuda.emulate import Grid, emulate, library
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


class Pair(NamedTuple):
    """Both kernels, by blocks per token."""

    one: ctypes.CDLL
    two: ctypes.CDLL


def built() -> Pair:
    return Pair(*(library(hopper.ENTRIES[each].source) for each in (1, 2)))


def run(kernels: Pair, x: Tokens, each: int = 1, *, teams: int = 1, seed: int = 0, eager: bool = False) -> Tensor:
    """All tokens by so many teams of `each` blocks; whatever the kernel leaves unwritten is NaN."""
    i, entry = inputs_of(x), hopper.ENTRIES[each]
    out = torch.full_like(x.q, torch.nan)
    grid = Grid(each * teams, entry.threads, entry.shared_bytes, each)
    reads = (i.q, i.sink, i.window_pool, i.window_slots, i.positions, i.extra_pool, i.extra, i.token_rows)
    emulate(kernels[each - 1], entry.name, i.arguments(out, SCALE), grid, reads, [out], seed=seed, eager=eager)
    return out
