"""The FP8 product's CUDA kernel on the CPU's emulator, and its arithmetic written a second time."""

from __future__ import annotations

import ctypes

import torch
from tests.kernels.cuda.emulate import Grid, emulate, tensor_map
from torch import Tensor

from dsv4.kernels.linear import hopper
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.linear.quantise import GROUP, Fp8Rows, packed, unpacked


def rows_of(T: int, K: int) -> Fp8Rows:
    """Random rows, each group with a scale of its own."""
    bytes_of_scales = torch.randint(105, 140, (T, K // GROUP)).to(torch.uint8)
    return Fp8Rows((torch.randn(T, K) * 20).to(torch.float8_e4m3fn), packed(bytes_of_scales).t().contiguous())


def weight_of(N: int, K: int) -> Fp8Weight:
    scales = torch.randint(110, 121, (N // GROUP, K // GROUP)).to(torch.uint8)
    return Fp8Weight.of((torch.randn(N, K) * 20).to(torch.float8_e4m3fn), scales)


def run(
    kernels: ctypes.CDLL,
    x: Fp8Rows,
    w: Fp8Weight,
    splits: int,
    cut: hopper.Cut,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    eager: bool = False,
) -> Tensor:
    """[T, N]; whatever the kernel leaves unwritten is NaN."""
    T, K = x.values.shape
    out = torch.full((T, len(w.values)), torch.nan, dtype=dtype)
    maps = tensor_map(x.values, hopper.BOX_ROWS), tensor_map(w.values, hopper.BOX_COLUMNS)
    arguments = hopper.arguments_of(*maps, x.sf, w.sf, out, K, splits)
    grid = Grid(cut.blocks, hopper.THREADS, hopper.SHARED_BYTES[cut.kernel], cut.cluster)
    emulate(
        kernels, f"fp8_{cut.kernel}", arguments, grid, [x.values, x.sf], [out],
        constants=[w.values, w.sf], seed=seed, eager=eager, early=True,
    )  # fmt: skip
    return out


def expected(x: Fp8Rows, w: Fp8Weight, splits: int) -> Tensor:
    """The same float32 operations, in the order of few_rows.py and many_rows.py; inside 128 channels the emulator's."""
    (T, K), N = x.values.shape, len(w.values)
    values, weight = x.values.float(), w.values.float()
    x_scale = power_of(unpacked(x.sf.t(), K // GROUP))
    w_scale = power_of(unpacked(w.sf, K // GROUP)).repeat_interleave(GROUP, 0)
    total, segment = torch.zeros(T, N), torch.zeros(T, N)
    for group in range(K // GROUP):
        dot = torch.zeros(T, N)
        for k in range(group * GROUP, (group + 1) * GROUP):
            dot += values[:, k : k + 1] * weight[:, k]
        segment += dot * (x_scale[:, group : group + 1] * w_scale[:, group])
        if (group + 1) % (K // GROUP // splits) == 0:
            total += segment
            segment = torch.zeros(T, N)
    return total


def power_of(scales: Tensor) -> Tensor:
    """E8M0 bytes -> float32; 255 is NaN."""
    return torch.where(scales == 255, torch.nan, (scales.float() - 127).exp2())
