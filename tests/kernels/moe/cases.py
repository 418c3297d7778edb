"""Experts with random MXFP4 weights, tokens with random choices, and what the reference makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.moe import reference
from dsv4.kernels.quant.reference import dequantise_mxfp4, fake_fp4, fake_fp8

E, K, C, M = 5, 3, 256, 128
LIMIT = 1.0  # low enough to cut many values


class Checkpoint(NamedTuple):
    """Tensors of a checkpoint, one per expert: bytes [E, N, K / 2] and E8M0 bytes [E, N, K / 32]."""

    w1: Tensor
    w1_scale: Tensor
    w2: Tensor
    w2_scale: Tensor
    w3: Tensor
    w3_scale: Tensor

    def dense(self, expert: int, name: str) -> Tensor:
        """float32 [N, K]."""
        return dequantise_mxfp4(getattr(self, name)[expert], getattr(self, f"{name}_scale")[expert])


def make_checkpoint(device: torch.device, num_experts: int = E, hidden: int = C, width: int = M) -> Checkpoint:
    def byte(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (num_experts, *shape), dtype=torch.uint8).to(device)

    tensors: list[Tensor] = []
    for rows, columns in ((width, hidden), (hidden, width), (width, hidden)):
        tensors += [byte(0, 256, rows, columns // 2), byte(117, 122, rows, columns // 32)]
    return Checkpoint(*tensors)


def make_choice(T: int, device: torch.device, num_experts: int = E, top: int = K) -> tuple[Tensor, Tensor]:
    """ids int32 [T, top], ascending and distinct, and weights float32."""
    ids = torch.rand(T, num_experts).topk(top, -1).indices.sort(-1).values.int()
    return ids.to(device), torch.rand(T, top).to(device) + 0.1


def make_x(T: int, device: torch.device, hidden: int = C) -> Tensor:
    """bf16 rows whose blocks of 128 differ in size by powers of two, so that every scale matters."""
    size = torch.exp2(torch.randint(-3, 4, (T, hidden // 128)).float()).repeat_interleave(128, 1)
    return (torch.randn(T, hidden) * size).to(device, torch.bfloat16)


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def fp8(x: Tensor) -> Tensor:
    return fake_fp8(x, 128)


def fp4(x: Tensor) -> Tensor:
    return fake_fp4(x, 32)


QUANTISED = {"w4a16": rounded, "w4a8": fp8, "w4a4": fp4}


def expected(x: Tensor, ids: Tensor, weights: Tensor, at: Checkpoint, activations: str) -> Tensor:
    """The reference's output for bf16 x, float32."""
    experts = range(len(at.w1))
    w13 = torch.stack([torch.cat((at.dense(e, "w1"), at.dense(e, "w3"))) for e in experts])
    w2 = torch.stack([at.dense(e, "w2") for e in experts])
    quantised = QUANTISED[activations]
    return reference.experts(
        quantised(x.float()),
        reference.Routes(ids.long(), weights),
        w13,
        w2,
        limit=LIMIT,
        rounded=rounded,
        quantised=quantised,
    )
