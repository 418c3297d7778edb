# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""The router: affinities sqrt(softplus(x · gateᵀ)), the choice of K experts, and their weights, in two launches.

    logits   16 tokens, 16 or 64 experts and a quarter of C per program, float32: four partial sums, whose order is part
             of the numerics, because one token alone could not keep enough multiprocessors at the gate
    choose   one token per program: affinities; K times the largest of affinity + bias, or the table's row of its
             token id; then ascending ids and affinity / Σ affinity · factor

A NaN in a token counts as the largest score, as a stable descending sort has it, so even then its K experts are
distinct and only its own weights are NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import dot_bf16
from dsv4.kernels.moe.experts import Chosen

_TOKENS, _CHANNELS, _PARTS = 16, 256, 4


@triton.jit
def _logits(
    x_ptr, gate_ptr, out_ptr, T,
    C: tl.constexpr, E: tl.constexpr, PARTS: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (E / BE, T / BT, PARTS). out [T, PARTS, E]."""
    experts = tl.program_id(0) * BE + tl.arange(0, BE)
    tokens = tl.program_id(1) * BT + tl.arange(0, BT)
    part = tl.program_id(2)
    channels = tl.arange(0, BC)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = x_ptr + tokens.to(tl.int64)[:, None] * C + channels[None, :]
    gate = gate_ptr + experts[:, None] * C + channels[None, :]
    logits = tl.zeros([BT, BE], tl.float32)
    each: tl.constexpr = (C + PARTS * BC - 1) // (PARTS * BC) * BC
    for c in range(part * each, tl.minimum((part + 1) * each, C), BC):
        inside = (c + channels < C)[None, :]
        a = tl.load(x + c, mask=(tokens < T)[:, None] & inside, other=0.0)
        b = tl.load(gate + c, mask=(experts < E)[:, None] & inside, other=0.0)
        logits = dot_bf16(a, tl.trans(b), logits)
    at = out_ptr + (tokens.to(tl.int64)[:, None] * PARTS + part) * E + experts[None, :]
    tl.store(at, logits, mask=(tokens < T)[:, None] & (experts < E)[None, :])


@triton.jit
def _affinity(logits_ptr, experts, live, E: tl.constexpr, PARTS: tl.constexpr):
    """sqrt(softplus) of the sum of a token's partial logits."""
    logits = tl.load(logits_ptr + experts, mask=live, other=0.0)
    for part in tl.static_range(1, PARTS):
        logits += tl.load(logits_ptr + part * E + experts, mask=live, other=0.0)
    u = tl.exp(tl.where(logits > 20.0, 0.0, logits))
    one_u = 1.0 + u
    # log(1 + u) keeps its relative precision for a small u if the error of 1 + u is divided out.
    log1p = tl.where(one_u == 1.0, u, tl.log(one_u) * (u / tl.where(one_u == 1.0, 1.0, one_u - 1.0)))
    return tl.sqrt(tl.where(logits > 20.0, logits, log1p))


@triton.jit
def _choose(
    logits_ptr, bias_ptr, table_ptr, token_ids_ptr, ids_ptr, weights_ptr, factor,
    E: tl.constexpr, EP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PARTS: tl.constexpr,
    HASHED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (T)."""
    t = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, EP)
    slot = tl.arange(0, KP)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    logits_ptr += t * (PARTS * E)
    if HASHED:
        at = tl.load(token_ids_ptr + t).to(tl.int64) * K + slot
        chosen = tl.load(table_ptr + at, mask=slot < K, other=E).to(tl.int32)
    else:
        score = _affinity(logits_ptr, expert, expert < E, E, PARTS) + tl.load(
            bias_ptr + expert, mask=expert < E, other=0.0
        )
        score = tl.where(score != score, float("inf"), score)  # noqa: PLR0124 - a NaN
        score = tl.where(expert < E, score, float("-inf"))
        left = tl.where(expert < E, 1, 0)
        chosen = tl.full([KP], E, tl.int32)
        for k in tl.static_range(K):
            best = tl.max(score, 0)
            first = tl.min(tl.where((score == best) & (left > 0), expert, EP), 0)
            chosen = tl.where(slot == k, first, chosen)
            left = tl.where(expert == first, 0, left)
            score = tl.where(expert == first, float("-inf"), score)
    # Ascending: a place is the number of smaller ids (equal ones, which only a table can hold, by their slots).
    smaller = (chosen[None, :] < chosen[:, None]) | (
        (chosen[None, :] == chosen[:, None]) & (slot[None, :] < slot[:, None])
    )
    place = tl.sum(smaller.to(tl.int32), 1)
    mine = _affinity(logits_ptr, tl.where(slot < K, chosen, 0), slot < K, E, PARTS)
    total = 0.0
    for k in tl.static_range(K):  # in ascending order of ids
        total += tl.sum(tl.where(place == k, mine, 0.0))
    tl.store(ids_ptr + t * K + place, chosen, mask=slot < K)
    tl.store(weights_ptr + t * K + place, mine / total * factor, mask=slot < K)


def _logits_of(x: Tensor, gate: Tensor) -> Tensor:
    T, C = x.shape
    E = gate.shape[0]
    expect(x.dtype is torch.bfloat16 and x.is_contiguous(), f"x is {x.dtype} {tuple(x.shape)}")
    expect(gate.dtype is torch.bfloat16 and gate.shape == (E, C) and gate.is_contiguous(), f"gate {tuple(gate.shape)}")
    out = torch.empty(T, _PARTS, E, dtype=torch.float32, device=x.device)
    if T:
        experts = 16 if T <= 256 else 64
        _logits[(triton.cdiv(E, experts), triton.cdiv(T, _TOKENS), _PARTS)](
            x, gate, out, T, C=C, E=E, PARTS=_PARTS, BT=_TOKENS, BE=experts, BC=_CHANNELS, PDL=x.is_cuda,
            num_warps=4, num_stages=3, launch_pdl=x.is_cuda,
        )  # fmt: skip
    return out


def _chosen(logits: Tensor, bias: Tensor, table: Tensor | None, token_ids: Tensor, k: int, factor: float) -> Chosen:
    T, _, E = logits.shape
    ids = torch.empty(T, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(T, k, dtype=torch.float32, device=logits.device)
    if T:
        pdl = logits.is_cuda
        _choose[(T,)](
            logits, bias, bias if table is None else table, token_ids, ids, weights, factor, E=E,
            EP=triton.next_power_of_2(E), K=k, KP=triton.next_power_of_2(k), PARTS=_PARTS, HASHED=table is not None,
            PDL=pdl, num_warps=1, launch_pdl=pdl,
        )  # fmt: skip
    return Chosen(ids, weights)


def route(x: Tensor, gate: Tensor, bias: Tensor, k: int, factor: float) -> Chosen:
    """The k largest of affinity + bias (ties to the lowest expert), weighed by affinity alone.

    x     bf16 [T, C], contiguous
    gate  bf16 [E, C]
    bias  float32 [E], for the choice only
    out   ids ascending, weights float32
    cost  2 C E bytes of gate once, 2 C per token; two launches
    """
    expect(bias.dtype is torch.float32 and bias.shape == gate.shape[:1], f"bias {bias.dtype} {tuple(bias.shape)}")
    expect(k <= gate.shape[0], f"{k} of {gate.shape[0]} experts")
    return _chosen(_logits_of(x, gate), bias, None, bias, k, factor)


def route_hashed(x: Tensor, gate: Tensor, table: Tensor, token_ids: Tensor, factor: float) -> Chosen:
    """The experts of each token id by table, weighed by affinity.

    table      int64 or int32 [vocab, K], every entry in 0..E
    token_ids  int32 or int64 [T], in 0..vocab
    otherwise  as `route`
    """
    expect(table.dim() == 2 and table.is_contiguous() and not table.is_floating_point(), f"table {tuple(table.shape)}")
    expect(token_ids.shape == x.shape[:1] and token_ids.is_contiguous(), f"token ids {tuple(token_ids.shape)}")
    logits = _logits_of(x, gate)
    return _chosen(logits, logits, table, token_ids, table.shape[1], factor)
