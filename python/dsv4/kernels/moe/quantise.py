# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""Activations of the experts in E4M3 or MXFP4, with scales that are powers of two by construction.

The exponent of a scale is read from the bits of amax x (1 / limit) and goes up by one if any mantissa bit is set, so no
mantissa can reach a packed E8M0 byte; a finite block never gets byte 255, which is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect
from dsv4.kernels.convert import e4m3_bytes, power_of_two, scale_byte, to_bf16

FP8_BLOCK, FP4_BLOCK = 128, 32


class Fp8Rows(NamedTuple):
    """values float8_e4m3fn [T, C], with one power of two for 128 channels, kept as a product that runs along the row.

    steps  float32 [T, C / 128]: the scale of the block before over this block's (1 for the first)
    scale  float32 [T]: of the last block
    exponents  uint8 [T, C / 128]: the scales themselves, E8M0

    A sum over the blocks in units of the block at hand goes to the next unit by one exact product with its step.
    """

    values: Tensor
    steps: Tensor
    scale: Tensor
    exponents: Tensor


class Fp4Rows(NamedTuple):
    """packed uint8 [T, C / 2], low nibble: even channel; exponents uint8 [T, C / 32], E8M0."""

    packed: Tensor
    exponents: Tensor


@triton.jit
def fp8_scale(top):
    """E8M0 byte, int32, of a block of E4M3 values."""
    return scale_byte(top, 1e-4, 0.002232142857142857)


@triton.jit
def fp4_scale(top):
    """E8M0 byte, int32, of a block of E2M1 values."""
    return scale_byte(top, 7.052966104933725e-38, 0.16666666666666666)


@triton.jit
def amax(x, AXIS: tl.constexpr):
    """Largest magnitude along an axis; NaN if there is one."""
    return tl.where(tl.max((x != x).to(tl.int32), AXIS) > 0, float("nan"), tl.max(tl.abs(x), AXIS))  # noqa: PLR0124


@triton.jit
def e4m3_codes(x, byte):
    """E4M3 codes of x / 2^(byte - 127) as uint8; x is float32, byte int32 broadcast to it."""
    v = x * _inverse(byte)
    v = tl.where(v > 448.0, 448.0, v)  # a NaN stays a NaN
    return e4m3_bytes(tl.where(v < -448.0, -448.0, v))


@triton.jit
def e2m1_codes(x, byte):
    """E2M1 codes of x / 2^(byte - 127) as int32: nearest, ties to the even code, saturating."""
    v = x * _inverse(byte)
    a = tl.abs(v)
    code = (a > 0.25).to(tl.int32) + (a >= 0.75).to(tl.int32) + (a > 1.25).to(tl.int32) + (a >= 1.75).to(tl.int32)
    code += (a > 2.5).to(tl.int32) + (a >= 3.5).to(tl.int32) + (a > 5.0).to(tl.int32)
    return code | ((v.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def _inverse(byte):
    """2^(127 - byte) as float32; bytes 254 and 255 (a block with a NaN or an infinity) give 2^-127."""
    return tl.where(byte >= 254, 1 << 22, (254 - byte) << 23).to(tl.float32, bitcast=True)


@triton.jit
def e2m1_rounded(x, byte):
    """What x reads back as from MXFP4, float32: the code's value times 2^(byte - 127); NaN if byte is 255."""
    code = e2m1_codes(x, byte)
    moved = (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True)
    return moved * 85070591730234615865843651857942052864.0 * power_of_two(byte)  # 2^126


@triton.jit
def _to_fp8(
    x_ptr, values_ptr, steps_ptr, scale_ptr, exponents_ptr, C: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Grid (T, C / 128 / BLOCKS)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    live = block < C // 128
    at = row * C + block[:, None] * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(x_ptr + at, mask=live[:, None], other=0.0).to(tl.float32)
    byte = fp8_scale(amax(x, 1))
    tl.store(values_ptr + at, e4m3_codes(x, byte[:, None]), mask=live[:, None])
    tl.store(exponents_ptr + row * (C // 128) + block, byte.to(tl.uint8), mask=live)
    before = tl.load(x_ptr + at - 128, mask=(live & (block > 0))[:, None], other=0.0).to(tl.float32)
    byte_before = tl.where(block > 0, fp8_scale(amax(before, 1)), byte)
    scale = power_of_two(byte)
    tl.store(steps_ptr + row * (C // 128) + block, power_of_two(byte_before) / scale, mask=live)
    tl.store(scale_ptr + row + tl.zeros_like(block), scale, mask=block == C // 128 - 1)


@triton.jit
def _to_fp4(
    x_ptr,
    packed_ptr,
    exponents_ptr,
    values_ptr,
    C: tl.constexpr,
    BLOCKS: tl.constexpr,
    PACK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (T, C / 32 / BLOCKS). PACK: codes and exponents; otherwise the rounded values in bf16."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    live = (block < C // 32)[:, None]
    at = row * C + block[:, None] * 32
    if PACK:
        pairs = at + 2 * tl.arange(0, 16)[None, :]
        even = tl.load(x_ptr + pairs, mask=live, other=0.0).to(tl.float32)
        odd = tl.load(x_ptr + pairs + 1, mask=live, other=0.0).to(tl.float32)
        byte = tl.maximum(fp4_scale(amax(even, 1)), fp4_scale(amax(odd, 1)))
        codes = e2m1_codes(even, byte[:, None]) | (e2m1_codes(odd, byte[:, None]) << 4)
        tl.store(packed_ptr + pairs // 2, codes.to(tl.uint8), mask=live)
        tl.store(exponents_ptr + row * (C // 32) + block, byte.to(tl.uint8), mask=block < C // 32)
    else:
        at += tl.arange(0, 32)[None, :]
        x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
        byte = fp4_scale(amax(x, 1))
        tl.store(values_ptr + at, to_bf16(e2m1_rounded(x, byte[:, None])), mask=live)


def _rows(x: Tensor, block: int) -> tuple[int, int]:
    T, C = x.shape
    expect(x.dtype is torch.bfloat16 and x.is_contiguous() and C % block == 0, f"x is {x.dtype} {tuple(x.shape)}")
    return T, C


def to_fp8(x: Tensor) -> Fp8Rows:
    """Rows x bf16 [T, C] in E4M3, one scale for 128 channels. Bytes: 2 C read, C written per row; one launch."""
    T, C = _rows(x, FP8_BLOCK)
    values = torch.empty(T, C, dtype=torch.uint8, device=x.device)
    steps = torch.empty(T, C // FP8_BLOCK, dtype=torch.float32, device=x.device)
    scale = torch.empty(T, dtype=torch.float32, device=x.device)
    exponents = torch.empty(T, C // FP8_BLOCK, dtype=torch.uint8, device=x.device)
    if T:
        _to_fp8[(T, triton.cdiv(C, 1024))](
            x, values, steps, scale, exponents, C=C, BLOCKS=8, PDL=x.is_cuda, num_warps=2, launch_pdl=x.is_cuda
        )
    return Fp8Rows(values.view(torch.float8_e4m3fn), steps, scale, exponents)


def to_fp4(x: Tensor) -> Fp4Rows:
    """Rows x bf16 [T, C] in MXFP4, one scale for 32 channels; a block with a NaN gets exponent 255. One launch."""
    T, C = _rows(x, FP4_BLOCK)
    packed = torch.empty(T, C // 2, dtype=torch.uint8, device=x.device)
    exponents = torch.empty(T, C // FP4_BLOCK, dtype=torch.uint8, device=x.device)
    if T:
        _to_fp4[(T, triton.cdiv(C, 1024))](
            x, packed, exponents, x, C=C, BLOCKS=32, PACK=True, PDL=x.is_cuda, num_warps=2, launch_pdl=x.is_cuda
        )
    return Fp4Rows(packed, exponents)


def round_fp4(x: Tensor) -> Tensor:
    """Rows x bf16 [T, C] as they read back from MXFP4, exact in bf16. One launch."""
    T, C = _rows(x, FP4_BLOCK)
    out = torch.empty_like(x)
    if T:
        _to_fp4[(T, triton.cdiv(C, 1024))](
            x, x, x, out, C=C, BLOCKS=32, PACK=False, PDL=x.is_cuda, num_warps=2, launch_pdl=x.is_cuda
        )
    return out
