"""How sparse decode deals a token's work to blocks, and where blocks that share a token leave their parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIM = 512


@dataclass(frozen=True, slots=True)
class Split:
    """How the work of a token is dealt to blocks: heads per block, blocks per head group. Never changes a result."""

    heads: int
    splits: int


WHOLE = Split(64, 1)
"""One block per token and 64 heads, which leaves nothing to fold; CUDA C++ takes no other."""


@dataclass(frozen=True, slots=True)
class SplitScratch:
    """Where blocks that share a token leave their parts; one for all layers, as launches follow each other.

    partial   float32 [T x H x units x 512]
    stats     float32 [T x H x units x 2]
    arrivals  int32, one for each head group of a token that is split; zeros; a launch leaves zeros
    """

    partial: Tensor
    stats: Tensor
    arrivals: Tensor


def split_of(num_tokens: int, num_heads: int, num_units: int, num_sms: int) -> Split:
    """The split for a launch of so many tokens on `num_sms` multiprocessors (one block each at a time).

    Narrow head groups cost no more time per key and make the parts that the last block folds smaller, so they come
    first. From a third of the multiprocessors in use (an eighth with two units) folding takes longer than it saves.

    num_units  the most units that a token of this launch can have
    """
    blocks = num_tokens * num_heads // 64
    if num_units == 1 or blocks * (3 if num_units > 2 else 8) > num_sms:
        return Split(64, 1)
    for heads in (4, 8, 16, 32):
        if blocks * (64 // heads) * num_units <= num_sms:
            return Split(heads, num_units)
    return Split(32, min(num_units, num_sms // (2 * blocks)))


def scratch_of(
    split: Split, num_tokens: int, num_heads: int, num_units: int, device: torch.device, arrivals: Tensor | None = None
) -> SplitScratch:
    """Memory for launches of at most so many tokens and units: 2,056 bytes per token, head and unit.

    arrivals  zeros that other launches of the stream also leave at zero; without them new ones, which is a launch more
    """
    rows = num_tokens * num_heads * num_units if split.splits > 1 else 0
    if arrivals is None:
        arrivals = torch.zeros(num_tokens * num_heads // split.heads, dtype=torch.int32, device=device)
    return SplitScratch(
        torch.empty(rows * DIM, dtype=torch.float32, device=device),
        torch.empty(rows * 2, dtype=torch.float32, device=device),
        arrivals,
    )
