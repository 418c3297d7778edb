"""RMSNorm with its weight, and the two tables of rotary frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig, RopeScaling
from dsv4.kernels.norm_rope.reference import rms_norm, rotate
from dsv4.model.numerics import Numerics
from dsv4.model.weights import TensorSource, take_vector


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """weight · x · rsqrt(mean(x²) + eps) over the last dimension, rounded to the activations' dtype."""

    weight: Tensor
    eps: float
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, config: ModelConfig, numerics: Numerics, name: str) -> RMSNorm:
        """The norm whose weight is `name`.weight."""
        return cls(take_vector(source, f"{name}.weight"), config.rms_norm_eps, numerics)

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of x [..., n]."""
        return self.numerics.rounded(rms_norm(x, self.weight, self.eps))


def inverse_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """theta^(-2i / dim) for i < dim / 2, float32 [dim / 2]; with `scaling`, YaRN's blend of it and its 1 / factor.

    YaRN (arXiv 2309.00071): pairs that turn more than beta_fast times in the original context keep their frequency,
    those that turn less than beta_slow times get 1 / factor of it, a ramp in between. No attention factor: the softmax
    scale stays.
    """
    base = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return base

    def pair_turning(rotations: float) -> float:
        wavelengths = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return base * (1 - ramp) + base / scaling.factor * ramp


def window_frequencies(config: ModelConfig) -> Tensor:
    """The table of window layers and draft layers: never scaled."""
    return inverse_frequencies(config.qk_rope_head_dim, config.rope_theta)


def compressed_frequencies(config: ModelConfig) -> Tensor:
    """The table of everything in C4 and C128 layers."""
    return inverse_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling)


@dataclass(frozen=True, slots=True)
class Angles:
    """cos and sin of position · frequency, float32 [T, rotary channels / 2]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor) -> Angles:
        """The angles of positions [T]."""
        angle = positions.float()[:, None] * frequencies
        return cls(angle.cos(), angle.sin())

    def rotate(self, x: Tensor, *, inverse: bool = False) -> Tensor:
        """Rows x [T, ..., D] with their trailing channels rotated."""
        return rotate(x, self.cos, self.sin, inverse=inverse)
