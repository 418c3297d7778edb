# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Σ of a token's rows in the order of its choices, then the shared expert's row: float32 sums, bf16 result."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import to_bf16


@triton.jit
def _combine(
    rows_ptr, ids_ptr, shared_ptr, out_ptr,
    E: tl.constexpr, C: tl.constexpr, TOP: tl.constexpr, BC: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (C / BC, T)."""
    t = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = channels < C
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([BC], tl.float32)
    for j in tl.static_range(TOP):
        expert = tl.load(ids_ptr + t * TOP + j)
        width = tl.where((expert >= 0) & (expert < E), C, 0)  # nothing of a row that nobody wrote
        total += tl.load(rows_ptr + (t * TOP + j) * C + channels, mask=channels < width, other=0.0).to(tl.float32)
    if SHARED:
        total += tl.load(shared_ptr + t * C + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * C + channels, to_bf16(total), mask=inside)


def combine(rows: Tensor, ids: Tensor, E: int, shared: Tensor | None = None) -> Tensor:
    """One bf16 row per token.

    rows    bf16 [T, K, C]: what each choice's expert made, its weight included; rows of ids outside 0..E are not read
    ids     int32 [T, K]
    shared  bf16 [T, C], added last
    out     bf16 [T, C]
    cost    2 C (K + 1) bytes per token, 2 C more with `shared`; one launch
    """
    T, K, C = rows.shape
    expect(rows.dtype is torch.bfloat16 and rows.is_contiguous(), f"rows are {rows.dtype} {tuple(rows.shape)}")
    expect(ids.shape == (T, K) and ids.dtype is torch.int32 and ids.is_contiguous(), f"ids {tuple(ids.shape)}")
    expect(shared is None or (shared.shape == (T, C) and shared.is_contiguous()), "the shared expert's rows")
    out = rows.new_empty(T, C)
    if T:
        block = min(triton.next_power_of_2(C), 1024 if T < 1024 else 2048)
        pdl = rows.is_cuda
        _combine[(triton.cdiv(C, block), T)](
            rows, ids, out if shared is None else shared, out, E=E, C=C, TOP=K, BC=block, SHARED=shared is not None,
            PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    return out
