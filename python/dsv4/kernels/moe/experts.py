# mypy: disable-error-code="import-untyped"
"""Routed experts in MXFP4 as W4A8, W4A16 and W4A4: Σ over a token's experts of w2 · (swiglu(w13 · x) · weight).

    x [T, C]  -- quantise -->  x'                       (w4a8: E4M3 per 128; w4a4: MXFP4 per 32; w4a16: as it is)
    ids [T, K] -- permute -->  blocks of one expert each
    x', blocks -- up      -->  y [T K, m]               (SwiGLU and routing weight)
    y, blocks  -- down    -->  rows [T K, C]            (y quantised as x: MXFP4 inside `up`, E4M3 in a launch between)
    rows       -- combine -->  out [T, C]

W4A4 on Hopper multiplies the rounded values in bf16: its numerics are real, its speed is W4A16's (blackwell.py has the
block-scaled instructions). Deterministic; a token's bits do not depend on the tokens beside it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.moe.combine import combine
from dsv4.kernels.moe.configs import Tile, tiles_of
from dsv4.kernels.moe.grouped import grouped_bf16, grouped_fp8
from dsv4.kernels.moe.permute import Blocks, permute
from dsv4.kernels.moe.quantise import Fp8Rows, round_fp4, to_fp8
from dsv4.kernels.moe.weights import Experts, Matrix

Activations = Literal["w4a16", "w4a8", "w4a4"]


class Chosen(NamedTuple):
    """The experts of each token: ids int32 [T, K], ascending (they are added in this order); weights float32 [T, K]."""

    ids: Tensor
    weights: Tensor


def experts(
    x: Tensor,
    chosen: Chosen,
    weights: Experts,
    activations: Activations,
    *,
    limit: float,
    shared: Tensor | None = None,
    tiles: tuple[Tile, Tile] | None = None,
) -> Tensor:
    """What the routed experts make of x, plus the shared expert's rows.

    x            bf16 [T, C], normalised
    chosen       an id outside 0..E counts as no expert
    weights      `fp8` matrices for w4a8, `bf16` matrices otherwise (weights.py)
    activations  what both products read
    limit        SwiGLU's clamp
    shared       bf16 [T, C], added last
    tiles        how the two products are cut, by default as configs.py says; no choice changes a bit
    out          bf16 [T, C]
    cost         1.6 C m bytes per expert that is hit (13.4 MB for Flash), 6 C m FLOP per pair; 4 launches for w4a16,
                 5 for w4a4, 6 for w4a8
    """
    T, C = x.shape
    E, two_m, K = weights.w13.shape
    expect(x.dtype is torch.bfloat16 and x.is_contiguous() and K == C, f"x is {x.dtype} {tuple(x.shape)} for K = {K}")
    expect(weights.w2.shape == (E, C, two_m // 2), f"w13 {weights.w13.shape}, w2 {weights.w2.shape}")
    want = "fp8" if activations == "w4a8" else "bf16"
    expect(weights.w13.operand == weights.w2.operand == want, f"{activations} needs weights for {want}")
    top = chosen.ids.shape[1]
    expect(chosen.weights.shape == (T, top) and chosen.weights.dtype is torch.float32, "weights are float32 [T, K]")
    if not T:
        return torch.empty_like(x)
    up, down = tiles or tiles_of(activations, T * top, E)
    blocks = permute(chosen.ids, E, up.pairs)
    rows = torch.empty(T, top, C, dtype=torch.bfloat16, device=x.device)
    if activations == "w4a8":
        y = _up_fp8(to_fp8(x), chosen, weights.w13, blocks, up, limit)
        _down_fp8(to_fp8(y), weights.w2, blocks, down, rows)
    else:
        fp4 = activations == "w4a4"
        y = _up_bf16(round_fp4(x) if fp4 else x, chosen, weights.w13, blocks, up, limit, fp4=fp4)
        _down_bf16(y, weights.w2, blocks, down, rows)
    return combine(rows, chosen.ids, E, shared)


def _grid(matrix: Matrix, blocks: Blocks, tile: Tile) -> tuple[int, int]:
    rows = matrix.shape[1]
    expect(rows % tile.rows == 0 and tile.pairs == blocks.size, f"{tile} for {rows} rows, blocks of {blocks.size}")
    return rows // tile.rows, len(blocks.expert)


def _options(tile: Tile, x: Tensor, *, early: bool) -> dict[str, object]:
    """Constants and launch options that only say how the work is cut.

    early  starts programs while the launch before still runs. It saves W4A8 2 us of 54 at one token and costs W4A16 28
           of 53, where the second product follows the first with nothing between them (measured on an H200).
    """
    pdl, ptx = x.is_cuda and early, isinstance(grouped_fp8, triton.JITFunction)
    cut: dict[str, object] = {"BN": tile.pairs, "BM": tile.rows, "STAGES": tile.stages, "PDL": pdl, "PTX": ptx}
    most: dict[str, object] = {"maxnreg": tile.registers} if tile.registers else {}
    return cut | most | {"num_warps": tile.warps, "num_stages": tile.stages, "launch_pdl": pdl}


def _up_fp8(x: Fp8Rows, chosen: Chosen, w13: Matrix, blocks: Blocks, tile: Tile, limit: float) -> Tensor:
    C, m = x.values.shape[1], w13.shape[1] // 2
    y = torch.empty(chosen.ids.numel(), m, dtype=torch.bfloat16, device=x.values.device)
    grouped_fp8[_grid(w13, blocks, tile)](
        x.values, x.steps, x.scale, w13.codes, w13.scales, blocks.order, blocks.expert, chosen.weights, y, limit,
        K=C, WIDTH=m, TOP=chosen.ids.shape[1], GATED=True, **_options(tile, y, early=True),
    )  # fmt: skip
    return y


def _down_fp8(y: Fp8Rows, w2: Matrix, blocks: Blocks, tile: Tile, rows: Tensor) -> None:
    C, m = rows.shape[2], y.values.shape[1]
    grouped_fp8[_grid(w2, blocks, tile)](
        y.values, y.steps, y.scale, w2.codes, w2.scales, blocks.order, blocks.expert, y.scale, rows, 0.0,
        K=m, WIDTH=C, TOP=1, GATED=False, **_options(tile, rows, early=True),
    )  # fmt: skip


def _up_bf16(x: Tensor, chosen: Chosen, w13: Matrix, blocks: Blocks, tile: Tile, limit: float, *, fp4: bool) -> Tensor:
    C, m = x.shape[1], w13.shape[1] // 2
    y = x.new_empty(chosen.ids.numel(), m)
    grouped_bf16[_grid(w13, blocks, tile)](
        x, w13.codes, w13.scales, blocks.order, blocks.expert, chosen.weights, y, limit,
        K=C, WIDTH=m, TOP=chosen.ids.shape[1], GATED=True, FP4=fp4, **_options(tile, y, early=False),
    )  # fmt: skip
    return y


def _down_bf16(y: Tensor, w2: Matrix, blocks: Blocks, tile: Tile, rows: Tensor) -> None:
    C, m = rows.shape[2], y.shape[1]
    grouped_bf16[_grid(w2, blocks, tile)](
        y, w2.codes, w2.scales, blocks.order, blocks.expert, w2.scales, rows, 0.0,
        K=m, WIDTH=C, TOP=1, GATED=False, FP4=False, **_options(tile, rows, early=False),
    )  # fmt: skip
