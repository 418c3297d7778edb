"""One layer: attention and mixture of experts, each inside its hyper-connection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.model.attention import Attention
from dsv4.model.caches import LayerCache
from dsv4.model.mhc import HyperConnection
from dsv4.model.moe import MoE
from dsv4.model.norm_rope import RMSNorm
from dsv4.model.numerics import Numerics
from dsv4.model.step import Step
from dsv4.model.weights import TensorSource


@dataclass(frozen=True, slots=True)
class Block:
    """X -> X, [T, N, C]."""

    hc_attn: HyperConnection
    attn_norm: RMSNorm
    attn: Attention
    hc_ffn: HyperConnection
    ffn_norm: RMSNorm
    ffn: MoE

    @classmethod
    def take(
        cls,
        source: TensorSource,
        config: ModelConfig,
        numerics: Numerics,
        prefix: str,
        *,
        ratio: int,
        hashed: bool,
    ) -> Block:
        """The layer whose tensors are `prefix`.attn.wq_a.weight, ...; hashed: experts by token id."""
        return cls(
            hc_attn=HyperConnection.take(source, config, numerics, f"{prefix}.hc_attn"),
            attn_norm=RMSNorm.take(source, config, numerics, f"{prefix}.attn_norm"),
            attn=Attention.take(source, config, numerics, f"{prefix}.attn", ratio),
            hc_ffn=HyperConnection.take(source, config, numerics, f"{prefix}.hc_ffn"),
            ffn_norm=RMSNorm.take(source, config, numerics, f"{prefix}.ffn_norm"),
            ffn=MoE.take(source, config, numerics, f"{prefix}.ffn", hashed=hashed),
        )

    def __call__(self, streams: Tensor, step: Step, pools: LayerCache, token_ids: Tensor) -> Tensor:
        """The streams [T, N, C] after this layer; writes the rows and the state of the step's tokens."""
        streams = self.hc_attn.around(streams, lambda u: self.attn(self.attn_norm(u), step, pools))
        return self.hc_ffn.around(streams, lambda u: self.ffn(self.ffn_norm(u), token_ids))
