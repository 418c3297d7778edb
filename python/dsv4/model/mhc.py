"""mHC around the sublayers of a block, and in front of the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.linear.reference import column_major
from dsv4.kernels.mhc.reference import head_mix, mixes, post_mix, pre_mix, split
from dsv4.model.numerics import Numerics
from dsv4.model.weights import TensorSource, take_vector


@dataclass(frozen=True, slots=True)
class HyperConnection:
    """One site: streams -> input of the sublayer, and streams + its output -> streams. All of it in float32."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    iters: int
    eps: float
    norm_eps: float
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str) -> HyperConnection:
        """The site whose tensors are `prefix`_fn, `prefix`_base and `prefix`_scale."""
        fn, base, scale = (take_vector(source, f"{prefix}_{name}") for name in ("fn", "base", "scale"))
        return cls(
            column_major(fn), base, scale, config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps, numerics
        )

    def around(self, streams: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """X -> post · sublayer(pre · X) + combᵀ · X. streams [T, N, C]."""
        mixed = mixes(streams, self.fn, self.norm_eps)
        c = split(mixed, self.scale, self.base, streams=streams.shape[1], iters=self.iters, eps=self.eps)
        out = sublayer(self.numerics.rounded(pre_mix(streams, c.pre)))
        return self.numerics.rounded(post_mix(streams, out, c.post, c.comb))


@dataclass(frozen=True, slots=True)
class HyperHead:
    """The streams as the one vector that the final norm reads."""

    fn: Tensor
    base: Tensor
    scale: Tensor
    eps: float
    norm_eps: float
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, prefix: str) -> HyperHead:
        """The head whose tensors are `prefix`_fn, `prefix`_base and `prefix`_scale."""
        fn, base, scale = (take_vector(source, f"{prefix}_{name}") for name in ("fn", "base", "scale"))
        return cls(column_major(fn), base, scale, config.hc_eps, config.rms_norm_eps, numerics)

    def __call__(self, streams: Tensor) -> Tensor:
        """[T, N, C] -> [T, C]."""
        y = head_mix(streams, self.fn, self.scale, self.base, norm_eps=self.norm_eps, eps=self.eps)
        return self.numerics.rounded(y)
