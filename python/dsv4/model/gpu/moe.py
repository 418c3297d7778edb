"""Mixture of experts on the GPU: router, routed experts over MXFP4 weights, shared expert over FP8."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.contract import present
from dsv4.kernels.linear.gemm import Fp8Weight, Workspace, fp8_linear
from dsv4.kernels.linear.quantise import quantise, swiglu_quantise
from dsv4.kernels.moe.choice import experts, prepared
from dsv4.kernels.moe.experts import Chosen
from dsv4.kernels.moe.hopper import FoldedExperts
from dsv4.kernels.moe.route import route, route_hashed
from dsv4.kernels.moe.weights import Experts
from dsv4.model.gpu.weights import Shelf


@dataclass(frozen=True, slots=True)
class Router:
    """Which experts a token goes to. Exactly one of bias (by score) and table (by token id) is there."""

    gate: Tensor
    bias: Tensor | None
    table: Tensor | None
    num_chosen: int
    factor: float

    @classmethod
    def take(cls, shelf: Shelf, config: ModelConfig, prefix: str, *, hashed: bool) -> Router:
        """The router whose tensors are `prefix`.weight, and .tid2eid or .bias."""
        return cls(
            gate=shelf.bf16(f"{prefix}.weight"),
            bias=None if hashed else shelf.vector(f"{prefix}.bias"),
            table=shelf.table(f"{prefix}.tid2eid") if hashed else None,
            num_chosen=config.num_experts_per_tok,
            factor=config.routed_scaling_factor,
        )

    def __call__(self, u: Tensor, token_ids: Tensor) -> Chosen:
        """The experts of u [T, C] bf16 and their weights."""
        if self.table is not None:
            return route_hashed(u, self.gate, self.table, token_ids, self.factor)
        return route(u, self.gate, present(self.bias, "router bias"), self.num_chosen, self.factor)


@dataclass(frozen=True, slots=True)
class MoE:
    """Σ of the chosen experts' outputs and the shared expert's; W4A8, which is how the official code computes."""

    router: Router
    experts: Experts | FoldedExperts
    shared_w13: Fp8Weight
    shared_w2: Fp8Weight
    limit: float
    workspace: Workspace

    @classmethod
    def take(cls, shelf: Shelf, config: ModelConfig, workspace: Workspace, prefix: str, *, hashed: bool) -> MoE:
        """The experts whose tensors are `prefix`.gate.weight, `prefix`.experts.0.w1.weight, ..."""
        shared = f"{prefix}.shared_experts"
        return cls(
            router=Router.take(shelf, config, f"{prefix}.gate", hashed=hashed),
            experts=prepared(shelf.experts(f"{prefix}.experts", config, "fp8"), f"{prefix}.experts"),
            shared_w13=shelf.fp8(f"{shared}.w1", f"{shared}.w3"),
            shared_w2=shelf.fp8(f"{shared}.w2"),
            limit=config.swiglu_limit,
            workspace=workspace,
        )

    def __call__(self, u: Tensor, token_ids: Tensor) -> Tensor:
        """Runs the experts on u [T, C] bf16, normalised -> [T, C] bf16."""
        gate_up = fp8_linear(quantise(u), self.shared_w13, self.workspace)
        shared = fp8_linear(swiglu_quantise(gate_up, self.limit), self.shared_w2, self.workspace)
        return experts(u, self.router(u, token_ids), self.experts, limit=self.limit, shared=shared)
