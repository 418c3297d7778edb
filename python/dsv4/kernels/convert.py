# mypy: disable-error-code="import-untyped, untyped-decorator"
"""Float conversions inside Triton kernels, right on a device and in the interpreter alike.

On a device these are the hardware's instructions. The interpreter's own conversions truncate to bf16 and round E4M3
without a carry, and its tl.dot multiplies bf16 as integers (Triton 3.6 to 3.9), so there the same results are made of
integer arithmetic; which of the two is compiled is decided when this module is imported.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def to_bf16(x: tl.tensor) -> tl.tensor:
    """float32 -> bf16, nearest, ties to even; NaN stays NaN."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)  # noqa: PLR0124 - false for a NaN alone
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:  # noqa: RET505 - Triton compiles one branch, so the other must be one
        return x.to(tl.bfloat16)


@triton.jit
def round_bf16(x: tl.tensor) -> tl.tensor:
    """float32 -> the nearest bf16 value, as float32."""
    return to_bf16(x).to(tl.float32)


@triton.jit
def dot_bf16(a: tl.tensor, b: tl.tensor, accumulator: tl.tensor) -> tl.tensor:
    """Accumulator + a . b of bf16 blocks with float32 accumulation."""
    if INTERPRETED:
        return accumulator + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)
    else:  # noqa: RET505
        return tl.dot(a, b, accumulator, out_dtype=tl.float32)


@triton.jit
def pinned_bf16(x: tl.tensor) -> tl.tensor:
    """x, bf16, in the layout in which it was computed.

    Without this the compiler moves the layout change of a tl.dot operand above the arithmetic that made it, and every
    warp repeats that arithmetic for the whole block (seen with Triton 3.6 and 3.9: 4x the work, and spills).
    """
    if INTERPRETED:
        return x
    else:  # noqa: RET505
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.bfloat16, is_pure=False, pack=2)


@triton.jit
def reciprocal(x: tl.tensor) -> tl.tensor:
    """1 / x within one unit in the last place: one instruction, where a division is eight."""
    if INTERPRETED:
        return 1.0 / x
    else:  # noqa: RET505
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def e4m3_bytes(x: tl.tensor) -> tl.tensor:
    """float32 -> E4M3 as uint8, nearest, ties to even. |x| <= 448, or NaN (byte 127 or 255)."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        magnitude = tl.abs(x)
        low = magnitude.to(tl.uint32, bitcast=True)
        normal = ((low + 0x7FFFF + ((low >> 20) & 1)) >> 20) - ((127 - 7) << 3)
        subnormal = (magnitude * 512.0 + 12582912.0).to(tl.uint32, bitcast=True) - 0x4B400000  # 1.5 x 2^23: to integers
        code = tl.where(magnitude < 0.015625, subnormal, normal)
        code = tl.where(x == x, code, 127)  # noqa: PLR0124
        return (code | ((bits >> 31) << 7)).to(tl.uint8)
    else:  # noqa: RET505
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def power_of_two(byte: tl.tensor) -> tl.tensor:
    """E8M0 byte (int32, 0 .. 255) -> 2^(byte - 127) as float32; 255 is NaN, as in a packed row."""
    value = tl.where(byte == 0, 1 << 22, byte << 23).to(tl.float32, bitcast=True)
    return tl.where(byte == 255, float("nan"), value)


@triton.jit
def scale_byte(amax: tl.tensor, floor: tl.constexpr, reciprocal: tl.constexpr) -> tl.tensor:
    """E8M0 byte of the smallest power of two >= max(amax, floor) x reciprocal, as int32; NaN and infinity give 255.

    The product is float32 and its exponent is read from the bits, so that an amax of limit x 2^k gets 2^k.
    """
    v = tl.where(amax < floor, floor, amax) * reciprocal
    bits = v.to(tl.int32, bitcast=True)
    byte = ((bits >> 23) & 0xFF) + tl.where((bits & 0x7FFFFF) != 0, 1, 0)
    return tl.minimum(byte, 255)
