"""The CUDA kernel of index scores on the CPU's emulator, for cases.py."""

from __future__ import annotations

import ctypes

import torch
from tests.kernels.cuda.emulate import Grid, emulate
from tests.kernels.index.cases import UNTOUCHED, Case
from torch import Tensor

from dsv4.kernels.index import hopper


def run(kernels: ctypes.CDLL, x: Case, k: int = 16, *, tiles: int = 2, seed: int = 0, eager: bool = False) -> Tensor:
    """Scores of all tokens, whose keys are FP4, by blocks of so many tiles."""
    T, keys = len(x.positions), 64 * x.table.shape[1]
    scores = torch.full((T, keys), UNTOUCHED)
    rows, positions = torch.arange(T, dtype=torch.int32), torch.tensor(x.positions, dtype=torch.int32)
    cut = hopper.Cut(-(-x.table.shape[1] // tiles), tiles)
    arguments = hopper.arguments_of(x.q, x.w, x.pool, x.table, rows, positions, scores, k, cut)
    emulate(
        kernels, "index_scores", arguments, Grid(T * cut.blocks, hopper.THREADS, hopper.SHARED_BYTES),
        [x.q, x.w, x.pool, x.table, rows, positions], [scores], seed=seed, eager=eager,
    )  # fmt: skip
    return scores
