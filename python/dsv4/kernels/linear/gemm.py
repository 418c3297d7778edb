# mypy: disable-error-code="import-untyped"
"""x . weight^T on the GPU, for every format of the model, each row's bits independent of the rows beside it.

    fp8_linear      E4M3 rows x E4M3 weight, scales per 128 and per 128 x 128   every projection but wo_a
    mixed_linear    bf16 rows x E4M3 weight, in G groups                        wo_a, whose input is not quantised
    bf16_linear     bf16 rows x bf16 weight                                     head, router, compressors, weights_proj

Products of bf16 numbers are exact in float32 and so is their sum but for its order: with a float32 result
`bf16_linear` is the float32 product that the model asks of a bf16 weight. One launch each: for few rows a weight
streams past them once (`few_rows`), for many, tiles of both go to the matrix units (`many_rows`; on Hopper fp8_rows.cu,
where it is asked for, with a bf16 result).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dsv4.kernels.contract import expect
from dsv4.kernels.cuda.choice import CUDA
from dsv4.kernels.linear import hopper
from dsv4.kernels.linear.choice import FEW, choice
from dsv4.kernels.linear.few_rows import BF16, FP8, MIXED, TO_BF16, TO_F32, TO_FP8, few_rows
from dsv4.kernels.linear.many_rows import many_rows
from dsv4.kernels.linear.quantise import GROUP, Fp8Rows, packed
from dsv4.kernels.linear.tuning import Cut, cut_of, num_splits, row_class

_OUT = {TO_BF16.value: torch.bfloat16, TO_F32.value: torch.float32, TO_FP8.value: torch.float8_e4m3fn}


class Fp8Weight(NamedTuple):
    """values [G N, K] float8_e4m3fn; sf [G N / 128, ceil(K / 512)] int32: four E8M0 bytes in a word (`packed`)."""

    values: Tensor
    sf: Tensor

    @classmethod
    def of(cls, values: Tensor, sf: Tensor) -> Fp8Weight:
        """A weight of the checkpoint: sf [G N / 128, K / 128] E8M0, or uint8 of the same bytes."""
        return cls(values, packed(sf.view(torch.uint8)))


class Workspace:
    """What programs that share a tile leave for each other. One per stream; every launch leaves `arrivals` at zero."""

    def __init__(self, device: torch.device, *, num_bytes: int = 32 << 20, num_tiles: int = 1 << 14) -> None:
        self.partials = torch.empty(num_bytes // 4, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(num_tiles, dtype=torch.int32, device=device)


def fp8_linear(x: Fp8Rows, weight: Fp8Weight, workspace: Workspace, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows x [T, K], weight [N, K] -> [T, N] bf16 or float32.

    weight  N and K multiples of 128
    cost    N K + T K + 2 T N bytes, 2 T N K FLOP in FP8, one launch
    """
    T, K = x.values.shape
    expect(tuple(x.sf.shape) == (_words(K), T), f"scales {tuple(x.sf.shape)} for rows [{T}, {K}]: they are group-major")
    expect(x.values.is_contiguous() and x.sf.is_contiguous(), "quantised rows are contiguous")
    return _product(FP8.value, x.values, x.sf, weight, workspace, _target(dtype), 1)[0]


def mixed_linear(
    x: Tensor, weight: Fp8Weight, groups: int, workspace: Workspace, *, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Rows x [T, G K] bf16, weight [G N, K]: piece g of a row by block g of the weight -> [T, G N].

    cost  G N K + 2 T G (K + N) bytes, 2 T G N K FLOP in bf16, one launch
    """
    return _product(MIXED.value, x, x, weight, workspace, _target(dtype), groups)[0]


def mixed_linear_quantised(x: Tensor, weight: Fp8Weight, groups: int, workspace: Workspace) -> Fp8Rows:
    """`mixed_linear` rounded to bf16 and quantised for the next product in the same launch: z for wo_b.

    G N is a multiple of 512, so that every word of scales is written.
    """
    expect(len(weight.values) % (4 * GROUP) == 0, f"{len(weight.values)} outputs do not fill words of scales")
    return Fp8Rows(*_product(MIXED.value, x, x, weight, workspace, TO_FP8.value, groups))


def bf16_linear(x: Tensor, weight: Tensor, workspace: Workspace, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows x [T, K] bf16, weight [N, K] bf16 -> [T, N] float32 or bf16; K a multiple of 64.

    cost  2 N K + 2 T K + 4 T N bytes, 2 T N K FLOP in bf16, one launch
    """
    expect(weight.dtype is torch.bfloat16 and weight.is_contiguous(), f"the weight is {weight.dtype}")
    return _product(BF16.value, x, x, Fp8Weight(weight, weight), workspace, _target(dtype), 1)[0]


def _words(channels: int) -> int:
    return -(-channels // (4 * GROUP))


def _target(dtype: torch.dtype) -> int:
    expect(dtype in (torch.bfloat16, torch.float32), f"a product is bfloat16 or float32, not {dtype}")
    return int(TO_BF16.value if dtype is torch.bfloat16 else TO_F32.value)


def _check(kind: int, x: Tensor, weight: Fp8Weight, groups: int) -> tuple[int, int, int]:
    """-> T, N, K."""
    T, N, K = x.shape[0], weight.values.shape[0] // groups, weight.values.shape[1]
    expect(x.dim() == 2 and x.shape[1] == groups * K, f"x {tuple(x.shape)} for a weight {tuple(weight.values.shape)}")
    wanted = torch.float8_e4m3fn if kind == FP8.value else torch.bfloat16
    expect(x.dtype is wanted and x.stride(1) == 1 and x.stride(0) % 16 == 0, f"x is {x.dtype}, strides {x.stride()}")
    expect(x.data_ptr() % 16 == 0 and weight.values.data_ptr() % 16 == 0, "x and the weight are aligned to 16 bytes")
    if kind == BF16.value:
        expect(K % 64 == 0, f"K is {K}, not a multiple of 64")
        return T, N, K
    expect(weight.values.dtype is torch.float8_e4m3fn and weight.values.is_contiguous(), f"{weight.values.dtype}")
    expect(N % GROUP == 0 and K % GROUP == 0, f"a weight of {groups} x [{N}, {K}] is not made of blocks of {GROUP}")
    expect(tuple(weight.sf.shape) == (groups * N // GROUP, _words(K)), f"weight scales {tuple(weight.sf.shape)}")
    expect(weight.sf.dtype is torch.int32 and weight.sf.is_contiguous(), "scales are packed E8M0 bytes, never numbers")
    return T, N, K


def _product(
    kind: int, x: Tensor, x_sf: Tensor, weight: Fp8Weight, workspace: Workspace, target: int, groups: int
) -> tuple[Tensor, Tensor]:
    T, N, K = _check(kind, x, weight, groups)
    out = torch.empty(T, groups * N, dtype=_OUT[target], device=x.device)
    out_sf = torch.empty(_words(groups * N) if target == TO_FP8.value else 0, T, dtype=torch.int32, device=x.device)
    if kind == FP8.value and target == TO_BF16.value and T > FEW and choice(x.device).name == CUDA:
        hopper.launch(x, x_sf, weight.values, weight.sf, out, num_splits(N, K, groups))
    elif T:
        cut = cut_of(kind, N, K, groups, row_class(T))
        if target == TO_FP8.value:
            cut = cut._replace(bn=GROUP)
        launch = _launch_many if cut.band else _launch_few
        launch(cut, kind, target, groups, num_splits(N, K, groups), x, x_sf, weight, out, out_sf, workspace)
    return out, out_sf


def _launch_few(
    cut: Cut, kind: int, target: int, groups: int, splits: int, x: Tensor, x_sf: Tensor, weight: Fp8Weight,
    out: Tensor, out_sf: Tensor, workspace: Workspace,
) -> None:  # fmt: skip
    T, N, K = len(x), len(weight.values) // groups, weight.values.shape[1]
    grid = (triton.cdiv(N, cut.bn) * groups, splits, triton.cdiv(T, cut.bt))
    if cut.serial:
        grid = (grid[0], 1, grid[2])
    elif splits > 1:
        expect(grid[0] * grid[2] <= workspace.arrivals.numel(), f"a workspace for {grid[0] * grid[2]} tiles is needed")
        needed = grid[0] * grid[2] * splits * cut.bn * cut.bt
        expect(needed <= workspace.partials.numel(), f"a workspace of {4 * needed} bytes is needed")
    few_rows[grid](
        x, x_sf, weight.values, weight.sf, out, out_sf.view(torch.uint8), workspace.partials, workspace.arrivals,
        T, x.stride(0), groups * N, N, K=K, GROUPS=groups, SPLITS=splits, KIND=kind, OUT=target,
        BN=cut.bn, BT=cut.bt, BK=cut.bk, STAGES=cut.stages, SERIAL=cut.serial == 1,
        PDL=x.is_cuda, num_warps=cut.warps, launch_pdl=x.is_cuda,
    )  # fmt: skip


def _launch_many(
    cut: Cut, kind: int, target: int, groups: int, splits: int, x: Tensor, x_sf: Tensor, weight: Fp8Weight,
    out: Tensor, out_sf: Tensor, workspace: Workspace,
) -> None:  # fmt: skip
    del workspace  # tiles keep their sums to themselves
    T, N, K = len(x), len(weight.values) // groups, weight.values.shape[1]
    tiles = triton.cdiv(T, cut.bt) * triton.cdiv(N, cut.bn)
    many_rows[(tiles, groups)](
        TensorDescriptor.from_tensor(x, [cut.bt, cut.bk]), x_sf,
        TensorDescriptor.from_tensor(weight.values, [cut.bn, cut.bk]), weight.sf, out, out_sf.view(torch.uint8),
        T, groups * N, N, K=K, SPLITS=splits, KIND=kind, OUT=target,
        BN=cut.bn, BT=cut.bt, BK=cut.bk, BAND=cut.band, STAGES=cut.stages,
        PDL=x.is_cuda, num_warps=cut.warps, launch_pdl=x.is_cuda,
    )  # fmt: skip
