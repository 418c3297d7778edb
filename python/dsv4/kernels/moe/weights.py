"""Experts' weights as the kernels read them: the checkpoint's bytes in another order, made once when they are loaded.

The checkpoint packs two E2M1 codes of neighbouring channels into a byte, rows one after the other. A kernel that takes
128 rows and 128 channels at a time wants those together, and the codes that one instruction expands in one word:

    for fp8   uint8 [E, K / 64, N, 32]    byte i of a group of 64 channels holds channel i (low) and 32 + i (high)
    for bf16  int32 [E, K / 128, N, 16]   word c of a group of 128 channels holds channels c, 16 + c, ..., 112 + c
    scales    int32 [E, K / 128, N]       the four E8M0 bytes of a row's 128 channels, lowest channels in the low byte

Gate and up rows alternate in bands of 32, so that one product of 64 rows makes 32 channels of both. A permutation of
rows and nibbles, matrix by matrix: a loader that streams tensors does it in the same pass, in place of a copy.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.contract import expect

GROUP = 128  # channels of one step, and of one word of scales
BAND = 32  # rows of w1, then as many of w3
Operand = Literal["fp8", "bf16"]


class Matrix(NamedTuple):
    """One matrix [N, K] of each expert.

    codes   uint8 [E, K / 64, N, 32] or int32 [E, K / 128, N, 16]
    scales  int32 [E, K / 128, N]
    """

    codes: Tensor
    scales: Tensor

    @property
    def operand(self) -> Operand:
        """What the codes are expanded to."""
        return "fp8" if self.codes.dtype is torch.uint8 else "bf16"

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N, K."""
        E, groups, N = self.scales.shape
        return E, N, groups * GROUP


class Experts(NamedTuple):
    """All experts of a layer: w13 [2 m, C] (bands of 32 gate rows and 32 up rows in turn) and w2 [C, m]."""

    w13: Matrix
    w2: Matrix


def empty_matrix(E: int, N: int, K: int, operand: Operand, device: torch.device | str) -> Matrix:
    """Room for E matrices [N, K], to be filled by `put`. N and K are multiples of 128."""
    expect(N % GROUP == 0 and K % GROUP == 0, f"an expert's matrix of {N} x {K}; both are multiples of {GROUP}")
    shape, dtype = ((K // 64, N, 32), torch.uint8) if operand == "fp8" else ((K // GROUP, N, 16), torch.int32)
    codes = torch.empty(E, *shape, dtype=dtype, device=device)
    return Matrix(codes, torch.empty(E, K // GROUP, N, dtype=torch.int32, device=device))


def empty_experts(E: int, C: int, m: int, operand: Operand, device: torch.device | str) -> Experts:
    """Room for a layer's experts, to be filled by `put`."""
    return Experts(empty_matrix(E, 2 * m, C, operand, device), empty_matrix(E, C, m, operand, device))


def put(experts: Experts, expert: int, name: Literal["w1", "w2", "w3"], packed: Tensor, scale: Tensor) -> None:
    """Puts one matrix of one expert in its place.

    packed  bytes [N, K / 2] as in the checkpoint (low nibble: even channel), int8, uint8 or float4_e2m1fn_x2
    scale   E8M0 bytes [N, K / 32], any one-byte dtype
    """
    matrix = experts.w2 if name == "w2" else experts.w13
    _, rows, K = matrix.shape
    N = rows if name == "w2" else rows // 2
    expect(packed.shape == (N, K // 2) and scale.shape == (N, K // 32), f"{name}: {packed.shape}, {scale.shape}")
    codes, scales = _in_order(packed.view(torch.uint8), scale.view(torch.uint8), matrix.operand)
    into_codes, into_scales = matrix.codes[expert], matrix.scales[expert]
    if name != "w2":
        half = 0 if name == "w1" else 1
        codes, scales = _split_rows(codes, N // BAND, BAND), _split_rows(scales, N // BAND, BAND)
        into_codes = _split_rows(into_codes, N // BAND, 2, BAND)[:, :, half]
        into_scales = _split_rows(into_scales, N // BAND, 2, BAND)[:, :, half]
    into_codes.copy_(codes)
    into_scales.copy_(scales)


def _split_rows(x: Tensor, *parts: int) -> Tensor:
    """A view of x [groups, N, ...] with its rows in parts: [groups, *parts, ...]."""
    return x.view(x.shape[0], *parts, *x.shape[2:])


def _in_order(codes: Tensor, scale: Tensor, operand: Operand) -> tuple[Tensor, Tensor]:
    """Bytes [N, K / 2] and [N, K / 32] -> codes [groups, N, ...] and scales [K / 128, N] as the kernels read them."""
    N, K = codes.shape[0], 2 * codes.shape[1]
    nibbles = torch.stack((codes & 15, codes >> 4), -1).view(N, K)
    words = scale.contiguous().view(torch.int32).transpose(0, 1)
    if operand == "fp8":
        low, high = nibbles.view(N, K // 64, 2, 32).unbind(2)
        return (low | (high << 4)).transpose(0, 1), words
    by_code = nibbles.view(N, K // GROUP, 4, 2, 16)
    two = by_code[:, :, :, 0] | (by_code[:, :, :, 1] << 4)  # [N, groups, 4 bytes of a word, 16 words]
    return two.transpose(2, 3).contiguous().view(torch.int32).squeeze(-1).transpose(0, 1), words
