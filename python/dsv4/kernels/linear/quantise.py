# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call, possibly-undefined"
# ruff: noqa: ANN001, ANN201, ANN202 - jitted functions pass blocks and pointers; only launchers have types
"""Activations for an FP8 product: E4M3 values and one power of two per row and 128 channels, bit-exact.

    plain    x                          the input of a projection
    norm     RMSNorm(x), then bf16      q_norm in front of wq_b: the normalised row is never written
    swiglu   silu(gate) up, then bf16   the input of a shared expert's w2

The scale is an exponent and nothing else: `scale_byte` rounds the float32 product up to a power of two on its bits, so
no mantissa bit can reach the byte. A group with a NaN or an infinity gets byte 255 and is NaN again in the product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import e4m3_bytes, power_of_two, round_bf16, scale_byte

GROUP = 128
PLAIN, NORM, SWIGLU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Fp8Rows(NamedTuple):
    """values [T, K] float8_e4m3fn; sf [ceil(K / 512), T] int32: the E8M0 bytes of four groups of 128 in a word.

    The first group is in the low byte, words are group-major: the order is part of the type, and Blackwell's too.
    """

    values: Tensor
    sf: Tensor


@triton.jit
def encode(v):
    """Float32 [groups, 128] -> E4M3 bytes [groups, 128], E8M0 bytes [groups] as int32."""
    byte = scale_byte(largest(v, 1), 1e-4, 0.002232142857142857)
    return e4m3_bytes(v * inverse_scale(byte)[:, None]), byte


@triton.jit
def _larger(a, b):
    """The larger of two magnitudes; a NaN wins."""
    return tl.where((a > b) | (a != a), a, b)  # noqa: PLR0124


@triton.jit
def largest(v, AXIS: tl.constexpr):
    """Largest magnitude along an axis; NaN if there is one."""
    return tl.reduce(tl.abs(v), AXIS, _larger)


@triton.jit
def inverse_scale(byte):
    """E8M0 byte (105 .. 247, or 255) -> 2^(127 - byte), exact; 255 gives NaN."""
    return tl.where(byte == 255, float("nan"), power_of_two(tl.maximum(254 - byte, 0)))


@triton.jit
def _quantise(
    x,
    weight,
    values,
    sf,
    T,
    x_row,
    eps,
    limit,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KIND: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (T, groups of a row / GROUPS); a norm needs the whole row in one program."""
    t = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = groups[:, None] * 128 + tl.arange(0, 128)[None, :]
    live = (groups < K // 128)[:, None]
    if KIND == NORM:
        scale = tl.load(weight + at, mask=live, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    v = tl.load(x + t * x_row + at, mask=live, other=0.0).to(tl.float32)
    if KIND == NORM:
        v = round_bf16(v * tl.rsqrt(tl.sum(v * v) / K + eps) * scale)
    if KIND == SWIGLU:
        up = tl.load(x + t * x_row + K + at, mask=live, other=0.0).to(tl.float32)
        gate = tl.where(v > limit, limit, v)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        v = round_bf16(gate / (1.0 + tl.exp(-gate)) * up)
    codes, byte = encode(v)
    tl.store(values.to(tl.pointer_type(tl.uint8)) + t * K + at, codes, mask=live)
    byte = tl.where(groups < K // 128, byte, 127)  # of the groups that fill the last word
    tl.store(sf + (groups // 4 * T + t) * 4 + groups % 4, byte.to(tl.uint8), mask=groups < (K + 511) // 512 * 4)


def packed(sf: Tensor) -> Tensor:
    """E8M0 bytes [n, groups] uint8 -> words [n, ceil(groups / 4)] int32, the missing ones 127."""
    expect(sf.dtype is torch.uint8, f"scales are {sf.dtype}: E8M0 bytes, never numbers")
    return torch.nn.functional.pad(sf, (0, -sf.shape[1] % 4), value=127).contiguous().view(torch.int32)


def unpacked(sf: Tensor, groups: int) -> Tensor:
    """The inverse of `packed`."""
    return sf.reshape(-1).view(torch.uint8).view(len(sf), 4 * sf.shape[1])[:, :groups]


def quantise(x: Tensor) -> Fp8Rows:
    """Rows x [T, K] bf16, K a multiple of 128, rows may be apart. One launch, 3 K bytes a row."""
    return _launch(x, x, x.shape[1], PLAIN)


def norm_quantise(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Fp8Rows:
    """RMSNorm of rows x [T, K] bf16 with weight [K] bf16 or float32, rounded to bf16, then quantised. One launch."""
    expect(weight.shape == x.shape[1:] and weight.is_contiguous(), f"a norm weight {tuple(weight.shape)}")
    return _launch(x, weight, x.shape[1], NORM, eps=eps)


def swiglu_quantise(x: Tensor, limit: float = 10.0) -> Fp8Rows:
    """Rows x [T, 2 K] bf16, gate then up: silu(min(gate, limit)) clamp(up, limit), bf16, quantised -> K. One launch."""
    return _launch(x, x, x.shape[1] // 2, SWIGLU, limit=limit)


def _launch(x: Tensor, weight: Tensor, K: int, kind: tl.constexpr, *, eps: float = 0.0, limit: float = 0.0) -> Fp8Rows:
    T, groups = len(x), K // GROUP
    expect(x.dim() == 2 and x.dtype is torch.bfloat16 and x.stride(1) == 1, f"rows are {x.dtype} {tuple(x.shape)}")
    expect(K > 0 and K % GROUP == 0, f"a row of {K} values does not divide into groups of {GROUP}")
    rows = Fp8Rows(
        torch.empty(T, K, dtype=torch.float8_e4m3fn, device=x.device),
        torch.empty(-(-groups // 4), T, dtype=torch.int32, device=x.device),
    )
    if T:
        whole = kind.value == NORM.value
        each = max(4, triton.next_power_of_2(groups if whole else min(groups, 32 if T >= 64 else 8)))
        _quantise[(T, -(-groups // each))](
            x, weight, rows.values, rows.sf.view(torch.uint8), T, x.stride(0), eps, limit,
            K=K, GROUPS=each, KIND=kind, PDL=x.is_cuda, num_warps=min(8, max(1, each // 4)), launch_pdl=x.is_cuda,
        )  # fmt: skip
    return rows
