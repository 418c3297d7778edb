"""From the tensors of a checkpoint to float32 matrices, one tensor at a time.

Every weight is dequantised once, exactly: an FP8 or FP4 value times a power of two is a float32. The dtypes of the file
decide, never the config: a weight with a `.scale` is quantised, I8, U8 or F4 is MXFP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dsv4.errors import CheckpointError
from dsv4.kernels.linear.reference import column_major, grouped_linear, linear
from dsv4.kernels.quant.reference import dequantise_fp8, dequantise_mxfp4
from dsv4.model.numerics import Numerics


class TensorSource(Protocol):
    """Where a model takes its tensors from, by official name."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        ...

    def take(self, name: str) -> Tensor:
        """One tensor, raw as in the file. The caller holds one at a time."""
        ...


def take_vector(source: TensorSource, name: str) -> Tensor:
    """A small tensor (norm weight, bias, sink, ape, mHC) as float32."""
    return source.take(name).float()


def take_matrix(source: TensorSource, name: str) -> tuple[Tensor, bool]:
    """`name`.weight dequantised to float32 [N, K], and whether it was quantised."""
    weight = source.take(f"{name}.weight")
    if not source.has(f"{name}.scale"):
        if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise CheckpointError(f"{name}.weight is {weight.dtype} and has no {name}.scale")
        return weight.float(), False
    scale = source.take(f"{name}.scale")
    if weight.dtype is torch.float8_e4m3fn:
        return dequantise_fp8(weight, scale), True
    return dequantise_mxfp4(weight, scale), True


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x · weightᵀ as the checkpoint means it: [T, K] -> [T, N].

    weight     [N, K] float32
    quantised  FP8 or FP4 in the checkpoint: the input is simulated in FP8 where activations are bf16
    """

    weight: Tensor
    quantised: bool
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, numerics: Numerics, *names: str) -> Linear:
        """The named matrices on top of each other: one product where several read the same input."""
        parts = [take_matrix(source, name) for name in names]
        if len({quantised for _, quantised in parts}) > 1:
            raise CheckpointError(f"some of {', '.join(names)} are quantised and some are not")
        weight = parts[0][0] if len(parts) == 1 else torch.cat([weight for weight, _ in parts])
        return cls(column_major(weight), parts[0][1], numerics)

    def exact(self, x: Tensor) -> Tensor:
        """The product in float32, its output not rounded."""
        return linear(self.numerics.quantised(x) if self.quantised else x, self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """The product, rounded to the activations' dtype."""
        return self.numerics.rounded(self.exact(x))


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """G independent products [T, G, K] -> [T, G, N]; the input is never quantised (the weight may be)."""

    weight: Tensor
    numerics: Numerics

    @classmethod
    def take(cls, source: TensorSource, numerics: Numerics, name: str, groups: int) -> GroupedLinear:
        """A matrix [G N, K] as G blocks of rows."""
        weight, _ = take_matrix(source, name)
        return cls(column_major(weight.view(groups, -1, weight.shape[1])), numerics)

    def __call__(self, x: Tensor) -> Tensor:
        """The products, rounded to the activations' dtype."""
        return self.numerics.rounded(grouped_linear(x, self.weight))
