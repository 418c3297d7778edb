# mypy: disable-error-code="import-untyped"
"""Sampling on the GPU: the token that the reference takes, for every row, whatever is beside it.

    1 launch    all rows greedy                 scan
    3 launches  any row draws                   scan, mass, settle
    1 more      any row wants log-probabilities

A row's numbers come from that row alone and are added in one order: float64 sums here and in the reference may differ
in the last bits, so a draw can differ where the random number lies within about 1e-13 of an edge between two tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.sample import passes

SEGMENT = 4096
CANDIDATES = 4096
MOST_LOGPROBS = 32
CHUNK = 256
WARPS = 8


class Params(NamedTuple):
    """What every row asked for, one entry per row [B].

    temperature   float64, 0: greedy
    top_k         int32, 0 or less, or V and more: off
    top_p, min_p  float64, 1 and 0: off
    seed, choice, position   int64, as `philox.uniforms` takes them
    penalties     float32 [B, 3]: repetition, presence, frequency
    num_logprobs  int32, -1: none; up to 32 alternatives
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    choice: Tensor
    position: Tensor
    penalties: Tensor
    num_logprobs: Tensor


class Edits(NamedTuple):
    """Ids whose logits change, row after row; an id comes once in a row, in any order.

    starts      int32 [B + 1]: entries starts[b] .. starts[b + 1] are row b's
    ids         int32 [n]
    flags       uint8 [n]: 1 repetition applies, 2 masked, 4 allowed
    counts      float32 [n]: how often the id was generated; presence and frequency apply if above 0
    bias        float32 [n]
    restricted  uint8 [B]: 1 if only ids with flag 4 are allowed
    """

    starts: Tensor
    ids: Tensor
    flags: Tensor
    counts: Tensor
    bias: Tensor
    restricted: Tensor

    @classmethod
    def none(cls, B: int, device: torch.device) -> Edits:
        """No edits for B rows."""
        empty = torch.zeros(1, dtype=torch.int32, device=device)
        zeros = torch.zeros(B + 1, dtype=torch.int32, device=device)
        return cls(zeros, empty, empty.to(torch.uint8), empty.float(), empty.float(), zeros[:B].to(torch.uint8))


class Sampled(NamedTuple):
    """One token per row.

    tokens        int32 [B]; 0 where the status is not 0
    status        int32 [B]: 0 drawn; 1 the logits hold a NaN or an infinity; 2 more than 4,096 ids may survive top-k or
                  top-p, and the row is left to the reference
    logprobs      float32 [B], ranks int32 [B] from 1; top_logprobs float32 and top_ids int32 [B, 32]; only rows that
                  asked, and of those only what they asked for, are written
    """

    tokens: Tensor
    status: Tensor
    logprobs: Tensor
    ranks: Tensor
    top_logprobs: Tensor
    top_ids: Tensor


class Workspace:
    """What programs of one row leave for each other, for up to B rows of V logits. One per stream."""

    def __init__(self, B: int, V: int, device: torch.device) -> None:
        S = -(-V // SEGMENT)
        self.shape = (B, V)
        self.masked = torch.empty(B, V, device=device)
        self.arrivals = torch.zeros(3, B, dtype=torch.int32, device=device)
        self.ints = torch.empty(3, B, S, dtype=torch.int32, device=device)
        self.floats = torch.empty(2, B, S, device=device)
        self.sums = torch.empty(2, B, S, dtype=torch.float64, device=device)
        self.bins = torch.empty(B, S, passes.BINS.value, dtype=torch.int32, device=device)
        self.row_max = torch.empty(B, device=device)
        self.row_norm = torch.empty(B, dtype=torch.float64, device=device)
        self.left_logits = torch.empty(B, CANDIDATES, device=device)
        self.left_ids = torch.empty(B, CANDIDATES, dtype=torch.int32, device=device)
        self.best_logits = torch.empty(B, S, MOST_LOGPROBS, device=device)
        self.best_ids = torch.empty(B, S, MOST_LOGPROBS, dtype=torch.int32, device=device)


def sample(
    logits: Tensor, params: Params, edits: Edits, workspace: Workspace, *, draws: bool = True, logprobs: bool = False
) -> Sampled:
    """One token per row of logits [B, V] float32, which are left as they are.

    draws     whether any row has a temperature; known to the caller, who made the parameters on the host
    logprobs  whether any row wants log-probabilities
    cost      4 V bytes a row and launch, from memory once where 4 B V bytes fit the L2 cache; launches as above
    """
    B, V = logits.shape
    _check(logits, params, edits, workspace)
    got = _empty(B, logits.device)
    if not B:
        return got
    S, w = -(-V // SEGMENT), workspace
    grid, cut = (B, S), {"SEGMENT": SEGMENT, "SEGMENTS": S}
    SP = triton.next_power_of_2(S)
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    row = (logits, logits.stride(0), w.masked, V)
    passes.scan[grid](
        *row, edits.ids, edits.flags, edits.counts, edits.bias, edits.starts, edits.restricted, params.penalties,
        params.num_logprobs, w.floats[0], w.ints[0], w.ints[1], w.floats[1], w.sums[0], w.arrivals[0], w.row_max,
        w.row_norm, got.tokens, got.status, SP=SP, CHUNK=CHUNK, **cut, **options,
    )  # fmt: skip
    if draws:
        filters = (params.temperature, params.top_k, params.top_p, params.min_p)
        passes.mass[grid](
            *row, edits.starts, edits.restricted, *filters, w.row_max, got.status, w.sums[1], w.bins, **cut, **options
        )
        passes.settle[grid](
            *row, edits.starts, edits.restricted, *filters, params.seed, params.choice, params.position, w.row_max,
            w.sums[1], w.bins, w.left_logits, w.left_ids, w.arrivals[1], got.tokens, got.status,
            SP=SP, CANDIDATES=CANDIDATES, **cut, **options,
        )  # fmt: skip
    if logprobs:
        passes.logprobs[grid](
            logits, logits.stride(0), V, params.num_logprobs, got.tokens, got.status, w.row_norm, w.ints[2],
            w.best_logits, w.best_ids, w.arrivals[2], got.logprobs, got.ranks, got.top_logprobs, got.top_ids,
            SP=SP, MOST=MOST_LOGPROBS, **cut, **options,
        )  # fmt: skip
    return got


def _check(logits: Tensor, params: Params, edits: Edits, workspace: Workspace) -> None:
    B, V = logits.shape
    expect(logits.dtype is torch.float32 and logits.stride(1) == 1, f"logits are {logits.dtype}")
    expect(workspace.shape[0] >= B and workspace.shape[1] == V, f"a workspace of {workspace.shape} for {B} x {V}")
    kinds = (torch.float64, torch.int32, torch.float64, torch.float64, torch.int64, torch.int64, torch.int64,
             torch.float32, torch.int32)  # fmt: skip
    for name, x, kind in zip(Params._fields, params, kinds, strict=True):
        shape = (B, 3) if name == "penalties" else (B,)
        expect(x.dtype is kind and tuple(x.shape) == shape and x.is_contiguous(), f"{name} {x.dtype} {tuple(x.shape)}")
    expect(tuple(edits.starts.shape) == (B + 1,) and tuple(edits.restricted.shape) == (B,), "edits of other rows")
    for name, x, kind in zip(Edits._fields, edits, (torch.int32, torch.int32, torch.uint8, torch.float32,
                                                    torch.float32, torch.uint8), strict=True):  # fmt: skip
        expect(x.dtype is kind and x.is_contiguous(), f"{name} is {x.dtype}")


def _empty(B: int, device: torch.device) -> Sampled:
    return Sampled(
        torch.empty(B, dtype=torch.int32, device=device),
        torch.empty(B, dtype=torch.int32, device=device),
        torch.empty(B, device=device),
        torch.empty(B, dtype=torch.int32, device=device),
        torch.empty(B, MOST_LOGPROBS, device=device),
        torch.empty(B, MOST_LOGPROBS, dtype=torch.int32, device=device),
    )
