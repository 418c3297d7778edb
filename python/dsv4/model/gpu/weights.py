"""From the tensors of a checkpoint to the device, in the form that the kernels read: FP8 and MXFP4 stay packed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.errors import CheckpointError
from dsv4.kernels.linear.gemm import Fp8Weight
from dsv4.kernels.moe.weights import Experts, Operand, empty_experts, put
from dsv4.model.weights import TensorSource

EXPERT_PARTS: tuple[Literal["w1", "w3", "w2"], ...] = ("w1", "w3", "w2")


class Shelf:
    """Takes tensors one at a time and puts them on `device`."""

    def __init__(self, source: TensorSource, device: torch.device) -> None:
        self._source = source
        self.device = device

    def vector(self, name: str) -> Tensor:
        """A small tensor as float32: biases, sinks, ape, mHC."""
        return self._source.take(name).float().to(self.device)

    def bf16(self, *names: str) -> Tensor:
        """The named bf16 matrices, or vectors, on top of each other."""
        parts = [self._source.take(name) for name in names]
        for name, part in zip(names, parts, strict=True):
            if part.dtype is not torch.bfloat16:
                raise CheckpointError(f"{name} is {part.dtype}; the GPU's kernels take it as bfloat16, as released")
        return torch.cat(parts).to(self.device) if len(parts) > 1 else parts[0].to(self.device)

    def fp8(self, *names: str) -> Fp8Weight:
        """The named FP8 matrices, their scales as E8M0 bytes, on top of each other."""
        values, scales = zip(*(self._fp8(name) for name in names), strict=True)
        return Fp8Weight.of(_stacked(values, self.device), _stacked(scales, self.device))

    def table(self, name: str) -> Tensor:
        """A table of ids, int32."""
        return self._source.take(name).int().to(self.device)

    def experts(self, prefix: str, config: ModelConfig, operand: Operand) -> Experts:
        """`prefix`.0.w1 and so on, all experts of a layer."""
        E, C, m = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        room = empty_experts(E, C, m, operand, self.device)
        for expert in range(E):
            for part in EXPERT_PARTS:
                name = f"{prefix}.{expert}.{part}"
                packed = self._source.take(f"{name}.weight")
                if packed.dtype is torch.float8_e4m3fn or not self._source.has(f"{name}.scale"):
                    raise CheckpointError(f"{name}.weight is {packed.dtype}; the GPU's kernels take MXFP4 experts")
                scale = self._source.take(f"{name}.scale")
                put(room, expert, part, packed.to(self.device), scale.to(self.device))
        return room

    def _fp8(self, name: str) -> tuple[Tensor, Tensor]:
        values = self._source.take(f"{name}.weight")
        scaled = self._source.has(f"{name}.scale")
        scale = self._source.take(f"{name}.scale") if scaled else values
        if values.dtype is not torch.float8_e4m3fn or scale.element_size() != 1:
            raise CheckpointError(
                f"{name}.weight is {values.dtype}{f' with {scale.dtype} scales' if scaled else ''}; the GPU's kernels "
                "take FP8 with one E8M0 scale per 128 x 128, as released"
            )
        return values, scale.view(torch.uint8)


def _stacked(parts: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """cat, which does not know every one-byte dtype."""
    dtype = parts[0].dtype
    return torch.cat([part.view(torch.uint8) for part in parts]).to(device).view(dtype)
