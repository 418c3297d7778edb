"""The FP8 product's CUDA kernel on the CPU's emulator, and its arithmetic written a second time."""

from __future__ import annotations

import ctypes

import torch
from tests.kernels.cuda.emulate import Grid, emulate, tensor_map
from torch import Tensor

from dsv4.kernels.linear import hopper
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.linear.quantise import GROUP, Fp8Rows, packed, unpacked


# The later half of K takes away, in another order, what the first has added: a result is what rounding has left, so
# that in bf16, too, it says in which order float32 sums were made.
def rows_of(T: int, K: int) -> Fp8Rows:
    """Random rows, each group with a scale of its own."""
    values, scales = torch.randn(T, _half(K), GROUP) * 20, torch.randint(117, 128, (T, _half(K))).to(torch.uint8)
    values, scales = torch.cat((values, -values.flip(1)), 1), torch.cat((scales, scales.flip(1)), 1)
    groups = K // GROUP
    return Fp8Rows(_e4m3(values[:, :groups]), packed(scales[:, :groups].contiguous()).t().contiguous())


def weight_of(N: int, K: int) -> Fp8Weight:
    values = torch.randn(N, _half(K), GROUP) * 20
    scales = torch.randint(110, 121, (N // GROUP, _half(K))).to(torch.uint8)
    values, scales = torch.cat((values, values.flip(1)), 1), torch.cat((scales, scales.flip(1)), 1)
    groups = K // GROUP
    return Fp8Weight.of(_e4m3(values[:, :groups]), scales[:, :groups].contiguous())


def _half(K: int) -> int:
    return -(-K // GROUP // 2)


def _e4m3(values: Tensor) -> Tensor:
    return values.flatten(1).contiguous().to(torch.float8_e4m3fn)


def run(
    kernels: ctypes.CDLL,
    x: Fp8Rows,
    w: Fp8Weight,
    splits: int,
    cut: hopper.Cut,
    *,
    seed: int = 0,
    eager: bool = False,
) -> Tensor:
    """[T, N] bf16; whatever the kernel leaves unwritten is NaN."""
    T, K = x.values.shape
    shape, blocks = cut
    out = torch.full((T, len(w.values)), torch.nan, dtype=torch.bfloat16)
    maps = tensor_map(x.values, shape.rows), tensor_map(w.values, shape.columns)
    arguments = hopper.arguments_of(*maps, x.sf, w.sf, out, K, splits)
    grid = Grid(blocks, hopper.THREADS, hopper.SHAPES[shape].shared_bytes)
    emulate(
        kernels, f"fp8_{shape.kernel}", arguments, grid, [x.values, x.sf], [out],
        constants=[w.values, w.sf], seed=seed, eager=eager, early=True,
    )  # fmt: skip
    return out


def expected(x: Fp8Rows, w: Fp8Weight, splits: int) -> Tensor:
    """[T, N] bf16: the same float32 operations, in the order of few_rows.py and many_rows.py.

    Inside 128 channels their order is the emulator's.
    """
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
    return total.bfloat16()


def power_of(scales: Tensor) -> Tensor:
    """E8M0 bytes -> float32; 255 is NaN."""
    return torch.where(scales == 255, torch.nan, (scales.float() - 127).exp2())
