"""MXFP4 matrices as the CUDA kernel for many tokens reads them: the scales of a row folded into E4M3 codes, exactly.

An E2M1 value has one mantissa bit, so that times a power of two it is a normal E4M3 value from 0.5 x 2^-5 to 6 x 2^6.
Of a row's blocks of 32 channels the one with the largest scale has 2^6, the others less by what their scales are less;
the row keeps one scale. So a row folds if its scales are no more than 2^11 apart; a block of zeros has no say. What
does not fold stays with the other kernels. (Subnormals would allow 2^14, but no table that is a sum with the exponent.)

    tiles  uint8 [E, N / 128, K / 128, 8704]: codes of 64 rows, of the next 64, then a byte per row and 32 channels,
           eight times the exponent + 5
    scale  float32 [E, N]: of the rows, in the order of the tiles

Codes lie as threads expand them: eight of a row to a word, their magnitudes in its nibbles and their signs in the bits
between, so that each half is two table look-ups and one shift away from its four bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.moe.weights import GROUP, Matrix

SPREAD = 11  # powers of two between the scales of a row
TOP = 6  # exponent of the block with the largest scale
TILE_BYTES = 8704  # of 128 rows and 128 channels
AT_ONCE = 1 << 27  # codes, of whole experts
ROWS = 512  # come in multiples of this: two blocks of a cluster do 256 each


class Folded(NamedTuple):
    """One matrix [N, K] of each expert. gated: gate and up rows of w13, side by side."""

    tiles: Tensor
    scale: Tensor
    gated: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N, K."""
        E, _, groups, _ = self.tiles.shape
        return E, self.scale.shape[1], groups * GROUP


def fold(matrix: Matrix, *, gated: bool) -> Folded:
    """Folds `fp8` matrices, some experts at once. Raises Violation if a row's scales are too far apart or NaN."""
    E, N, K = matrix.shape
    expect(
        matrix.operand == "fp8" and N % ROWS == K % GROUP == 0,
        f"{matrix.operand} matrices of {N} x {K}, not of {ROWS} n x {GROUP} k",
    )
    device = matrix.codes.device
    tiles = torch.empty(E, N // GROUP, K // GROUP, TILE_BYTES, dtype=torch.uint8, device=device)
    scale = torch.empty(E, N, device=device)
    place = rows_in_order(gated=gated).to(device)
    step = max(1, AT_ONCE // (N * K))
    for first in range(0, E, step):
        part = slice(first, min(first + step, E))
        codes, scales = _rows_of(matrix, part)
        codes = codes.view(-1, 64, K)[:, place].view(-1, K)
        scales = scales.view(-1, 64, K // 32)[:, place].view(-1, K // 32)
        exponents, of_rows = exponents_of(codes, scales, first, N)
        scale[part] = of_rows.view(-1, N)
        tiles[part] = _tiles(codes, exponents).view(-1, N // GROUP, K // GROUP, TILE_BYTES)
    return Folded(tiles, scale, gated)


def rows_in_order(*, gated: bool) -> Tensor:
    """int64 [64]: the row at each place (warp, lane / 4, first or second row of the thread) of 64 rows.

    gated  the rows of a thread are gate and up of a channel, of 32 gate and 32 up rows; else they are neighbours
    """
    if gated:
        return torch.arange(64).view(2, 32).t().flatten()
    return torch.arange(64)


def exponents_of(codes: Tensor, scales: Tensor, first: int, N: int) -> tuple[Tensor, Tensor]:
    """Eight times the exponent + 5 of each block, uint8 [rows, K / 32], and the scales of the rows, float32 [rows].

    codes   uint8 [rows, K], E2M1: N rows of each expert, from the expert `first` on
    scales  uint8 [rows, K / 32], E8M0
    """

    def refuse(wrong: Tensor, why: str) -> None:
        rows = wrong.nonzero()
        expect(not len(rows), f"expert {first + int(rows[0, 0]) // N if len(rows) else 0}: {why}")

    has = ((codes & 7) > 0).view(len(codes), -1, 32).any(-1)
    bytes_of = scales.int()
    most = torch.where(has, bytes_of, 0).amax(1, keepdim=True)
    least = torch.where(has, bytes_of, 255).amin(1)
    there = has.any(1)
    far = (most[:, 0] - least) * there
    refuse((scales == 255).any(1), "a scale is NaN")
    refuse(far > SPREAD, f"scales of a row are 2^{int(far.max())} apart, more than 2^{SPREAD}")
    refuse(there & (most[:, 0] <= TOP), "a row's scale would be subnormal")
    exponents = torch.where(has, (bytes_of - most + SPREAD) * 8, 0).to(torch.uint8)
    return exponents, torch.where(there, (most[:, 0].float() - 127 - TOP).exp2(), 1.0)


def _rows_of(matrix: Matrix, experts: slice) -> tuple[Tensor, Tensor]:
    """E2M1 codes uint8 [rows, K] and E8M0 bytes [rows, K / 32] of some experts, on top of each other."""
    K = matrix.shape[2]
    packed = matrix.codes[experts].transpose(1, 2)
    codes = torch.stack((packed & 15, packed >> 4), 3).view(-1, K)
    scales = matrix.scales[experts].transpose(1, 2)[..., None] >> torch.arange(0, 32, 8, device=codes.device) & 255
    return codes, scales.reshape(-1, K // 32).to(torch.uint8)


def _tiles(codes: Tensor, exponents: Tensor) -> Tensor:
    """Codes uint8 [N, K] and exponents [N, K / 32] -> uint8 [N / 128, K / 128, 8704]; rows as `rows_in_order` says."""
    N, K = codes.shape
    shape = (N // 128, 2, 4, 8, 2, K // 128, 4, 2, 4, 4)  # tile group warp lane/4 row | step product half lane%4 byte
    by_place = codes.view(shape)
    words = torch.zeros(by_place[..., 0, :, 0].shape, dtype=torch.int32, device=codes.device)
    for half in range(2):
        for j in range(4):
            code = by_place[..., half, :, j].int()
            words |= (code & 7) << (16 * half + 4 * j) | (code >> 3) << (8 * j + 3 + 4 * half)
    # tile group warp lane/4 row step pair-of-products product lane%4 -> tile step group pair warp lane (product row)
    split = words.view(N // 128, 2, 4, 8, 2, K // 128, 2, 2, 4).permute(0, 5, 1, 6, 2, 3, 8, 7, 4)
    in_bytes = split.contiguous().view(N // 128, K // 128, -1).view(torch.uint8)
    shifts = exponents.view(N // 128, 128, K // 128, 4).transpose(1, 2).reshape(N // 128, K // 128, 512)
    return torch.cat((in_bytes, shifts), -1)
