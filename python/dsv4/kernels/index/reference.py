"""Index scores and their top-k in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsv4.kernels.attention.reference import KEY_BLOCK, against_blocks


def scores(q: Tensor, weights: Tensor, keys: Tensor, *, bf16: bool) -> Tensor:
    """I[t, s] = Σ_h w[t, h] · max(q[t, h] · k[s], 0).

    q        [n, H, D] float32
    weights  [n, H] float32, of either sign
    keys     [k, M, D] float32, M a multiple of 64; k is n (own keys for every query) or 1 (the same for all)
    bf16     products, weighted products and their sum are rounded to bf16, as the official code computes them
    out      [n, M]
    """
    s = against_blocks(q, keys).relu_()
    if bf16:
        s = s.to(torch.bfloat16).float()
    s = (s * weights[None, :, :, None]).transpose(2, 3).contiguous()  # heads last: one sum over a row for each key
    if bf16:
        s = s.to(torch.bfloat16).float()
    total = s.sum(-1).transpose(0, 1).flatten(1)
    return total.to(torch.bfloat16).float() if bf16 else total


def select(score: Tensor, visible: Tensor, k: int) -> Tensor:
    """The min(k, number visible) entries of the largest score, ties to the lowest index.

    score    [n, M] float32
    visible  [n, M] bool
    out      [n, K] int64, K = k rounded up to a multiple of 64: ascending indices, then -1
    """
    n, M = score.shape
    masked = score.masked_fill(~visible, -math.inf)
    chosen = visible
    if k < M:
        kth = masked.topk(k, -1).values[:, -1:]
        above, level = visible & masked.gt(kth), visible & masked.eq(kth)
        chosen = above | (level & (level.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    width = -(-k // KEY_BLOCK) * KEY_BLOCK
    column = torch.where(chosen, chosen.cumsum(-1) - 1, width)
    out = torch.full((n, width + 1), -1, dtype=torch.int64, device=score.device)
    out.scatter_(1, column, torch.arange(M, device=score.device).expand(n, M))
    return out[:, :width]
