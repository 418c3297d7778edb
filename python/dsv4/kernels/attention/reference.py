"""Softmax attention with one shared key-value head, in float32.

Keys come in blocks of KEY_BLOCK rows. Every product is one GEMM per (query, block) of one fixed shape, blocks are added
in order, and a block that a query does not see adds exact zeros: a query's result depends on its own keys alone, not on
how many blocks its neighbours brought.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.linear.reference import paired

KEY_BLOCK = 64


class Keys(NamedTuple):
    """Rows that queries may read; keys are also the values.

    rows     [k, M, D] float32, M a multiple of KEY_BLOCK; k is n (own rows for every query) or 1 (the same for all)
    visible  [n, M] bool: which of them each query reads; the others may hold anything
    """

    rows: Tensor
    visible: Tensor


def against_blocks(q: Tensor, rows: Tensor) -> Tensor:
    """Queries q [n, H, D] times the keys of each block, rows [k, M, D] -> [M / KEY_BLOCK, n, H, KEY_BLOCK]."""
    n, H, D = q.shape
    expect(rows.shape[1] % KEY_BLOCK == 0 and len(rows) in (1, n), f"rows {tuple(rows.shape)} for {n} queries")
    blocks = rows.view(len(rows), -1, KEY_BLOCK, D)
    count = blocks.shape[1]
    if len(rows) == n:  # pairs of one query and one block; a lone query fills its batches with its own blocks
        pairs = q[:, None].expand(n, count, H, D).reshape(n * count, H, D)
        return paired(pairs, blocks.flatten(0, 1), transposed=True).view(n, count, H, KEY_BLOCK).transpose(0, 1)
    return torch.stack([paired(q, blocks[0, i].expand(n, -1, -1), transposed=True) for i in range(count)])


def _weighted(p: Tensor, rows: Tensor) -> Tensor:
    """Σ over the blocks, in order, of p [blocks, n, H, KEY_BLOCK] times rows [k, M, D] -> [n, H, D]."""
    count, n, H, _ = p.shape
    blocks = rows.view(len(rows), count, KEY_BLOCK, -1)
    if len(rows) == n:
        pairs = paired(p.transpose(0, 1).flatten(0, 1), blocks.flatten(0, 1))
        parts = list(pairs.view(n, count, H, -1).unbind(1))
    else:
        parts = [paired(p[i], blocks[0, i].expand(n, -1, -1)) for i in range(count)]
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


def _finite_rows(rows: Tensor) -> Tensor:
    """Rows with a NaN or an infinity as zeros: who sees one has a NaN weight already, others have 0 x NaN."""
    if bool(rows.sum().isfinite()):
        return rows
    return rows.masked_fill(~rows.isfinite().all(-1, keepdim=True), 0)


def attend(q: Tensor, keys: list[Keys], sink: Tensor, scale: float, *, bf16_weights: bool) -> Tensor:
    """o_h = Σ_j p_j k_j with p_j = e^(s_j - m) / (Σ_i e^(s_i - m) + e^(sink_h - m)), s_j = q_h · k_j · scale.

    q             [n, H, D] float32; every query sees at least one key
    sink          [H]
    bf16_weights  e^(s_j - m) is rounded to bf16 before it weighs the values (not in the denominator)
    out           [n, H, D]
    """
    n, H, _ = q.shape
    visible = torch.cat([part.visible for part in keys], 1).view(n, -1, 1, KEY_BLOCK).transpose(0, 1)
    scores = torch.cat([against_blocks(q, part.rows) for part in keys])  # [blocks, n, H, KEY_BLOCK]
    scores = (scores * scale).masked_fill_(~visible, -math.inf)
    m = scores.amax((0, -1), keepdim=True)
    p = (scores - m).exp_()
    total = (sink.view(1, H, 1) - m[0]).exp()
    for block_sum in p.sum(-1, keepdim=True):
        total = total + block_sum
    if bf16_weights:
        p = p.to(torch.bfloat16).float()
    out = torch.zeros_like(q)
    first = 0
    for part in keys:
        end = first + part.rows.shape[1] // KEY_BLOCK
        out = out + _weighted(p[first:end], _finite_rows(part.rows))
        first = end
    return out / total
