# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202 - blocks pass between jitted functions; only launchers have types
"""E2M1 codes in registers to what the matrix units multiply, exactly, by bits.

    to E4M3   sign and three bits move to their places: the value times 2^-6, subnormal included; 7 instructions for 8
    to bf16   the same bits are the value times 2^-126, and one bf16 product by the block's scale makes it right

The scales are E8M0 bytes, four to a word, one word per row and 128 channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

E4M3_SHORT = tl.constexpr(64.0)  # what an expanded E4M3 value is short of
BF16_SHORT = tl.constexpr(9223372036854775808.0)  # 2^63, likewise: bf16 values keep their scale inside its exponent

_TO_E4M3 = tl.constexpr(
    """
    {
    .reg .b32 a, s;
    shl.b32 a, $2, 2;
    shl.b32 s, $2, 4;
    and.b32 s, s, 0x80808080;
    lop3.b32 $0, a, 0x1C1C1C1C, s, 0xEA;
    shr.u32 a, $2, 2;
    and.b32 s, $2, 0x80808080;
    lop3.b32 $1, a, 0x1C1C1C1C, s, 0xEA;
    }
    """
)


def _to_bf16() -> str:
    """Two words of eight codes to eight pairs: code j of both words in one register, times scale j // 2."""
    lines = ["{", ".reg .b32 t, a, b;"]
    places = (
        ("shl.b32 a, t, 12;", "shl.b32 b, t, 6;"),
        ("shl.b32 a, t, 8;", "shl.b32 b, t, 2;"),
        ("shl.b32 a, t, 4;", "shr.u32 b, t, 2;"),
        ("mov.b32 a, t;", "shr.u32 b, t, 6;"),
    )
    for half, bytes_of_both in enumerate(("0x5410", "0x7632")):
        lines.append(f"prmt.b32 t, $8, $9, {bytes_of_both};")
        for n, (sign, magnitude) in enumerate(places):
            j = 4 * half + n
            lines += [sign, magnitude, "and.b32 b, b, 0x01C001C0;", "lop3.b32 a, a, 0x80008000, b, 0xEA;"]
            lines.append(f"mul.rn.bf16x2 ${j}, a, ${10 + 2 * (j // 2)};")
    return "\n".join([*lines, "}"])


_TO_BF16 = tl.constexpr(_to_bf16())
_BF16_REGISTERS = tl.constexpr(",".join(["=r"] * 8 + ["r"] * 10))


@triton.jit
def _value(codes, SHIFT: tl.constexpr):
    """float32 of the code at bit SHIFT of each element."""
    code = codes.to(tl.int32) >> SHIFT
    moved = (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True)
    return moved * 85070591730234615865843651857942052864.0  # 2^126


@triton.jit
def e4m3_of(codes, PTX: tl.constexpr):
    """uint8 of two codes -> (low codes, high codes) as E4M3 times 2^-6 (float32 without PTX)."""
    if PTX:
        low, high = tl.inline_asm_elementwise(
            _TO_E4M3, "=r,=r,r", [codes], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
        )
        return low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)
    else:  # noqa: RET505 - Triton compiles one branch, so the other must be one
        return _value(codes, 0) * 0.015625, _value(codes, 4) * 0.015625


@triton.jit
def scale_of(words, SHIFT: tl.constexpr):
    """2^(byte - 127) of the E8M0 byte at SHIFT of each word, float32. Byte 0 gives zero and byte 255 infinity."""
    if SHIFT == 0:
        bits = words << 23
    elif SHIFT < 24:
        bits = words << (23 - SHIFT)
    else:
        bits = words >> 1
    return (bits & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _scale_pair(words, SHIFT: tl.constexpr):
    """2^(byte - 64) as bf16 in both halves of a word; from byte 192 up infinity."""
    return tl.minimum(((words >> SHIFT) & 0xFF) + 63, 255) * 8388736  # 2^7 + 2^23


@triton.jit
def bf16_of(words, scales, PTX: tl.constexpr):
    """int32 [M, N] of eight codes, int32 [M] of four scales -> eight bf16 [M, N]: code j x scale j // 2 x 2^-63.

    Exact for scale bytes 64 to 191. float32 and without the 2^-63 when there is no PTX.
    """
    if PTX:
        s0, s1 = _scale_pair(scales, 0)[:, None], _scale_pair(scales, 8)[:, None]
        s2, s3 = _scale_pair(scales, 16)[:, None], _scale_pair(scales, 24)[:, None]
        return tl.inline_asm_elementwise(
            _TO_BF16,
            _BF16_REGISTERS,
            [words, s0, s1, s2, s3],
            dtype=(
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
            ),
            is_pure=True,
            pack=2,
        )
    else:  # noqa: RET505
        s0, s1 = scale_of(scales, 0)[:, None], scale_of(scales, 8)[:, None]
        s2, s3 = scale_of(scales, 16)[:, None], scale_of(scales, 24)[:, None]
        return (
            _value(words, 0) * s0,
            _value(words, 4) * s0,
            _value(words, 8) * s1,
            _value(words, 12) * s1,
            _value(words, 16) * s2,
            _value(words, 20) * s2,
            _value(words, 24) * s3,
            _value(words, 28) * s3,
        )
