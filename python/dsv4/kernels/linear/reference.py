"""x · Wᵀ, so that a row's result depends on that row alone.

A BLAS picks its kernel and its division among threads, and with them the order of the additions, by the number of
rows and the size of a batch. Measured on MKL with 1 and 2 threads: torch.mm of one shape gives a row the same bits at
every place in the tile, beside any neighbours; torch.bmm of the same matrices gives other bits for a batch of 1 than
for 4 (8 x 24 x 2048 with 2 threads), and other bits for a transposed operand than for the same numbers in order. Every
product here is therefore a sequence of calls of one shape and one layout: TILE_ROWS rows for a weight, BATCH matrices
where each has a partner of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4.kernels.contract import expect

TILE_ROWS = 8
BATCH = 4


def column_major(weight: Tensor) -> Tensor:
    """A weight [N, K] with its columns contiguous: the order in which a GEMM of few rows reads it twice as fast."""
    return weight.transpose(-1, -2).contiguous().transpose(-1, -2)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Rows x [T, K] float32, weight [N, K] float32 -> x · weightᵀ [T, N] float32, bitwise independent of T."""
    expect(x.dim() == 2 and x.shape[1] == weight.shape[1], f"x {tuple(x.shape)} for a weight {tuple(weight.shape)}")
    T, K = x.shape
    if not T:
        return x.new_empty(0, weight.shape[0])
    padding = -T % TILE_ROWS
    tiles = torch.cat((x, x.new_zeros(padding, K))) if padding else x.contiguous()
    out = x.new_empty(T + padding, weight.shape[0])
    for first in range(0, T + padding, TILE_ROWS):
        torch.mm(tiles[first : first + TILE_ROWS], weight.t(), out=out[first : first + TILE_ROWS])
    return out[:T]


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Rows x [T, G, K], weight [G, N, K] -> [T, G, N]: each group by its own weight."""
    return torch.stack([linear(x[:, g], weight[g]) for g in range(len(weight))], 1)


def paired(a: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
    """Products a [n, P, K] · b [n, K, N] -> [n, P, N], bitwise independent of n and of the place in it.

    transposed  b is [n, N, K], its rows contiguous: to be multiplied as bᵀ, and told so, because a transposed operand
                takes another path through the BLAS than the same numbers in order
    """
    n = a.shape[0]
    if n < BATCH:
        a = torch.cat((a, a.new_zeros(BATCH - n, *a.shape[1:])))
        b = torch.cat((b, b[:1].expand(BATCH - n, -1, -1)))
    factor = b.transpose(1, 2) if transposed else b
    count = max(n, BATCH)
    out = a.new_empty(count, a.shape[1], factor.shape[2])
    for i in range(0, count, BATCH):
        first = min(i, count - BATCH)  # the last call may do some of the pairs once more
        part = slice(first, first + BATCH)
        torch.bmm(a[part], factor[part], out=out[part])
    return out[:n]
