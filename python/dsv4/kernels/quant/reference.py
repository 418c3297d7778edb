"""FP8 and FP4 with E8M0 scales, bit-exact. Blocks run along the last dimension.

A block of values x with amax = max |x| gets the scale s = 2^ceil(log2(max(amax, floor) / limit)), where 1 / limit is
the float32 reciprocal and the exponent is read from the bits of the float32 product, so that an amax that is exactly
limit * 2^k gets 2^k. Values are x / s, exact, rounded to nearest even in E4M3 or E2M1. The E8M0 byte is the exponent
plus 127; byte 255 (a block with a NaN or an infinity) makes the whole block NaN again when it is read.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from dsv4.kernels.contract import expect

E4M3_MAX = 448.0
E2M1_MAX = 6.0
FP8_AMAX_FLOOR = 1e-4
FP4_AMAX_FLOOR = 6.0 * 2.0**-126
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WEIGHT_BLOCK = 128
MXFP4_BLOCK = 32
# In float32: a Python number times a float32 tensor is rounded to float32 first, and these already are.
_RECIPROCALS = {limit: float(torch.tensor(1.0 / limit, dtype=torch.float32)) for limit in (E4M3_MAX, E2M1_MAX)}
# Upper edge of each code's interval and whether a value on that edge stays below it (ties go to the even code).
_E2M1_EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def ceil_log2_bytes(v: Tensor) -> Tensor:
    """E8M0 byte of the smallest power of two >= v. v float32, positive -> int32; NaN and inf give 255."""
    bits = v.contiguous().view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    return (exponent + ((bits & 0x7FFFFF) != 0)).clamp_max(255)


def _power_of_two(v: Tensor) -> Tensor:
    """The smallest power of two >= v, as `e8m0_values(ceil_log2_bytes(v))` for a finite v; infinity for NaN and inf."""
    bits = v.nan_to_num(nan=math.inf, posinf=math.inf).view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)  # a mantissa carries into the exponent


def e8m0_values(exponents: Tensor) -> Tensor:
    """2^(byte - 127) as float32; byte 0 is 2^-127 and byte 255 is NaN. Any integer dtype; bytes, never numbers."""
    e = exponents.to(torch.int32)
    value = torch.where(e == 0, 1 << 22, e << 23).view(torch.float32)
    return value.masked_fill(e == 255, math.nan)


def _blocks(x: Tensor, block: int) -> Tensor:
    expect(x.shape[-1] % block == 0, f"a row of {x.shape[-1]} values does not divide into blocks of {block}")
    return x.float().reshape(*x.shape[:-1], x.shape[-1] // block, block)


def _scale_bytes(blocks: Tensor, floor: float, limit: float) -> Tensor:
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(floor)
    return ceil_log2_bytes(amax * _RECIPROCALS[limit])


def pack_fp8(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Values x [..., n] -> E4M3 values [..., n] float8_e4m3fn and E8M0 bytes [..., n / block] uint8."""
    b = _blocks(x, block)
    exponents = _scale_bytes(b, FP8_AMAX_FLOOR, E4M3_MAX)
    values = (b / e8m0_values(exponents)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return values.flatten(-2), exponents.squeeze(-1).to(torch.uint8)


def unpack_fp8(values: Tensor, exponents: Tensor) -> Tensor:
    """The inverse of `pack_fp8`: float32 [..., n]."""
    block = values.shape[-1] // exponents.shape[-1]
    return (_blocks(values, block) * e8m0_values(exponents).unsqueeze(-1)).flatten(-2)


def fake_fp8(x: Tensor, block: int) -> Tensor:
    """Values x as they read back after `pack_fp8`, in float32. A last block may be short (block does not divide)."""
    short = -x.shape[-1] % block
    b = _blocks(torch.nn.functional.pad(x, (0, short)) if short else x, block)
    scale = _power_of_two(b.abs().amax(-1, keepdim=True).clamp_min(FP8_AMAX_FLOOR) * _RECIPROCALS[E4M3_MAX])
    values = (b / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return (values.float() * scale).flatten(-2)[..., : x.shape[-1]]


def e2m1_codes(v: Tensor) -> Tensor:
    """Code 0..7 of the nearest E2M1 magnitude, ties to the even code, plus 8 for a negative sign bit. -> uint8."""
    magnitude = v.abs()
    code = torch.zeros_like(v, dtype=torch.uint8)
    for below, edge in enumerate(_E2M1_EDGES):
        # An even code keeps the value on its upper edge, an odd code gives it to the even one above.
        code += (magnitude > edge) if below % 2 == 0 else (magnitude >= edge)
    return code + (torch.signbit(v).to(torch.uint8) << 3)


@functools.cache
def _e2m1_table(device: torch.device) -> Tensor:
    return torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], dtype=torch.float32, device=device)


def e2m1_values(codes: Tensor) -> Tensor:
    """Codes 0..15 -> float32."""
    return _e2m1_table(codes.device)[codes.int()]


def round_e2m1(v: Tensor) -> Tensor:
    """The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with v's sign; ties .25, .75, 1.25, ... to the even code; saturates."""
    return e2m1_values(e2m1_codes(v))


def pack_fp4(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Values x [..., n] -> bytes [..., n / 2] uint8 (low nibble: even index) and E8M0 bytes [..., n / block] uint8."""
    b = _blocks(x, block)
    exponents = _scale_bytes(b, FP4_AMAX_FLOOR, E2M1_MAX)
    codes = e2m1_codes((b / e8m0_values(exponents)).clamp(-E2M1_MAX, E2M1_MAX)).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), exponents.squeeze(-1).to(torch.uint8)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Bytes [..., n / 2] -> float32 E2M1 values [..., n]."""
    b = packed.view(torch.uint8)
    return e2m1_values(torch.stack((b & 0xF, b >> 4), -1)).flatten(-2)


def unpack_fp4(packed: Tensor, exponents: Tensor) -> Tensor:
    """The inverse of `pack_fp4`: float32 [..., n]."""
    values = unpack_nibbles(packed)
    block = values.shape[-1] // exponents.shape[-1]
    return (_blocks(values, block) * e8m0_values(exponents).unsqueeze(-1)).flatten(-2)


def fake_fp4(x: Tensor, block: int) -> Tensor:
    """Values x as they read back after `pack_fp4`, in float32."""
    return unpack_fp4(*pack_fp4(x, block))


def dequantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """FP8 weight [N, K] with one scale per 128 x 128 block [ceil(N / 128), ceil(K / 128)] -> float32 [N, K], exact.

    The scale is E8M0 (float8_e8m0fnu, or the same bytes as uint8), or the power of two itself in float32 (Base
    checkpoints).
    """
    rows, columns = weight.shape
    grid = (-(-rows // WEIGHT_BLOCK), -(-columns // WEIGHT_BLOCK))
    expect(tuple(scale.shape) == grid, f"a weight {tuple(weight.shape)} needs scales {grid}, not {tuple(scale.shape)}")
    s = scale if scale.dtype is torch.float32 else e8m0_values(scale.view(torch.uint8))
    out = weight.float()
    for i in range(grid[0]):  # one band of 128 rows at a time, so that no second full-size tensor is made
        band = s[i].repeat_interleave(WEIGHT_BLOCK)[:columns]
        out[i * WEIGHT_BLOCK : (i + 1) * WEIGHT_BLOCK] *= band
    return out


def dequantise_mxfp4(packed: Tensor, scale: Tensor) -> Tensor:
    """MXFP4 weight, bytes [N, K / 2] (int8, uint8, float4_e2m1fn_x2), E8M0 [N, K / 32] -> float32 [N, K], exact."""
    want = (packed.shape[0], packed.shape[1] * 2 // MXFP4_BLOCK)
    expect(tuple(scale.shape) == want, f"a weight of {tuple(packed.shape)} bytes needs scales {want}")
    return unpack_fp4(packed.view(torch.uint8), scale.view(torch.uint8))


def hadamard(x: Tensor) -> Tensor:
    """Natural-order (Sylvester) Hadamard transform of the last dimension (a power of two) times n^-1/2, float32."""
    n = x.shape[-1]
    expect(n & (n - 1) == 0, f"a Hadamard transform needs a power of two, not {n}")
    y, half = x.float().contiguous(), 1
    while half < n:
        a, b = y.view(*x.shape[:-1], n // (2 * half), 2, half).unbind(-2)
        y = torch.stack((a + b, a - b), -2).flatten(-3)
        half *= 2
    return y.mul(n**-0.5)
