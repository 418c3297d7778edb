"""Mixture of experts: a router by score or by token id, the routed experts, and one shared expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.contract import present
from dsv4.kernels.linear.reference import column_major
from dsv4.kernels.moe.reference import Routes, affinities, choose, experts, swiglu, weigh
from dsv4.model.numerics import Numerics
from dsv4.model.weights import Linear, TensorSource, take_matrix, take_vector


@dataclass(frozen=True, slots=True)
class Router:
    """Which experts a token goes to. Exactly one of bias (by score) and table (by token id) is there.

    gate   [E, C] float32
    bias   [E], for the choice only
    table  [vocab, K] int64
    """

    gate: Tensor
    bias: Tensor | None
    table: Tensor | None
    num_chosen: int
    factor: float

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, prefix: str, *, hashed: bool) -> Router:
        """The router whose tensors are `prefix`.weight, and .tid2eid or .bias."""
        return cls(
            gate=column_major(take_vector(source, f"{prefix}.weight")),
            bias=None if hashed else take_vector(source, f"{prefix}.bias"),
            table=source.take(f"{prefix}.tid2eid").long() if hashed else None,
            num_chosen=config.num_experts_per_tok,
            factor=config.routed_scaling_factor,
        )

    def __call__(self, x: Tensor, token_ids: Tensor) -> Routes:
        """The experts of x [T, C], normalised, and their weights."""
        affinity = affinities(x, self.gate)
        if self.table is not None:
            return weigh(affinity, self.table[token_ids], self.factor)
        chosen = choose(affinity, present(self.bias, "router bias"), self.num_chosen)
        return weigh(affinity, chosen, self.factor)


def _take_experts(source: TensorSource, config: ModelConfig, prefix: str) -> tuple[Tensor, Tensor, bool]:
    """w1 on w3 [E, 2 m, C] and w2 [E, C, m] of all experts, float32, column-major, filled one matrix at a time."""
    E, C, m = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    w13, w2 = torch.empty(E, C, 2 * m).transpose(1, 2), torch.empty(E, m, C).transpose(1, 2)
    quantised = False
    for e in range(E):
        for name, place in (("w1", w13[e, :m]), ("w3", w13[e, m:]), ("w2", w2[e])):
            weight, quantised = take_matrix(source, f"{prefix}.{e}.{name}")
            place.copy_(weight)
    return w13, w2, quantised


@dataclass(frozen=True, slots=True)
class MoE:
    """Σ of the chosen experts' outputs (float32) + the shared expert; SwiGLU clamped in all of them."""

    router: Router
    w13: Tensor
    w2: Tensor
    quantised: bool
    shared_w13: Linear
    shared_w2: Linear
    limit: float
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str, *, hashed: bool) -> MoE:
        """The experts whose tensors are `prefix`.gate.weight, `prefix`.experts.0.w1.weight, ..."""
        w13, w2, quantised = _take_experts(source, config, f"{prefix}.experts")
        shared = f"{prefix}.shared_experts"
        return cls(
            router=Router.take(source, config, f"{prefix}.gate", hashed=hashed),
            w13=w13,
            w2=w2,
            quantised=quantised,
            shared_w13=Linear.take(source, numerics, f"{shared}.w1", f"{shared}.w3"),
            shared_w2=Linear.take(source, numerics, f"{shared}.w2"),
            limit=config.swiglu_limit,
            numerics=numerics,
        )

    def __call__(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Runs the experts on x [T, C], normalised -> [T, C]."""
        rounded = self.numerics.rounded
        shared = self.shared_w2(rounded(swiglu(self.shared_w13(x), self.limit)))
        return rounded(self.routed(x, token_ids) + shared)

    def routed(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """The routed experts' part alone, before its rounding. [T, C] -> [T, C]."""
        rounded, quantised = self.numerics.rounded, self.numerics.expert_input if self.quantised else _unchanged
        routes = self.router(x, token_ids)
        return experts(quantised(x), routes, self.w13, self.w2, limit=self.limit, rounded=rounded, quantised=quantised)


def _unchanged(x: Tensor) -> Tensor:
    return x
