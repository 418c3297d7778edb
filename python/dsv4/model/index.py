"""The indexer of C4 layers: which compressed entries a query reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.index.reference import scores, select
from dsv4.kernels.quant.reference import fake_fp4, fake_fp8, hadamard
from dsv4.model.compress import Compressor
from dsv4.model.norm_rope import Angles
from dsv4.model.numerics import Numerics
from dsv4.model.weights import Linear, TensorSource

INDEX_FP4_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Queries:
    """Index queries [T, heads, D], rotated and rounded as their keys are, and the weights of the heads [T, heads]."""

    q: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Indexer:
    """q = FP4(Hadamard(RoPE(wq_b · q_r))), w = weights_proj · x · (D heads)^-1/2; keys from its own compressor."""

    wq_b: Linear
    weights_proj: Linear
    compressor: Compressor
    num_heads: int
    topk: int
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str) -> Indexer:
        """The indexer whose tensors are `prefix`.wq_b.weight, ..."""
        return cls(
            wq_b=Linear.take(source, numerics, f"{prefix}.wq_b"),
            weights_proj=Linear.take(source, numerics, f"{prefix}.weights_proj"),
            compressor=Compressor.take(source, config, numerics, f"{prefix}.compressor", rotated=True),
            num_heads=config.index_n_heads,
            topk=config.index_topk,
            numerics=numerics,
        )

    def queries(self, x: Tensor, q_r: Tensor, angles: Angles) -> Queries:
        """Queries of x [T, C], q_r [T, query rank]."""
        rounded = self.numerics.rounded
        q = self.wq_b(q_r).view(len(x), self.num_heads, -1)
        q = rounded(hadamard(rounded(angles.rotate(q))))
        match self.numerics.index:
            case "fp4":
                q = fake_fp4(q, INDEX_FP4_BLOCK)
            case "fp8":
                q = fake_fp8(q, q.shape[-1])
        scale = q.shape[-1] ** -0.5 * self.num_heads**-0.5
        return Queries(q, rounded(self.weights_proj(x) * scale))

    def select(self, queries: Queries, tokens: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Entries that the queries of a group read: [n, K] int64 ascending, then -1. keys [k, M, D], visible [n, M]."""
        found = scores(queries.q[tokens], queries.weights[tokens], keys, bf16=self.numerics.bf16)
        return select(found, visible, self.topk)
