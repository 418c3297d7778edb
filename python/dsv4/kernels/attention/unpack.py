# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202
"""E4M3 codes with a power-of-two scale to bf16, by bits.

The eight bits s eeee mmm of an E4M3 code, moved to the places s 0000 eeee mmm 0000 of a bf16, are its value times
2^-120 (subnormals included), so one bf16 multiply by 2^(120 + e - 127), e the E8M0 byte, makes the exact scaled value
as long as e <= 134: five instructions for two values, where the conversion instructions of sm_90 take a quarter of
the matrix time. The NaN codes 0x7F and 0xFF become +-480 x scale; stores never write them.
"""

from __future__ import annotations

import triton
import triton.language as tl

E4M3_BIAS = 120  # 127 - 7: what the moved exponent is short of

_ASM = tl.constexpr(
    """
    {
    .reg .b32 a, b, s, t;
    prmt.b32 a, $4, 0, 0x1404;
    prmt.b32 b, $4, 0, 0x3424;
    shr.u32 s, a, 4;
    shr.u32 t, b, 4;
    and.b32 s, s, 0x07F007F0;
    and.b32 t, t, 0x07F007F0;
    lop3.b32 a, a, 0x80008000, s, 0xEA;
    lop3.b32 b, b, 0x80008000, t, 0xEA;
    mul.rn.bf16x2 a, a, $5;
    mul.rn.bf16x2 b, b, $5;
    mov.b32 {$0, $1}, a;
    mov.b32 {$2, $3}, b;
    }
    """
)


@triton.jit
def packed_scales(e8m0):
    """int32 E8M0 bytes -> int32 with 2^(120 + e - 127) as bf16 in both halves."""
    return ((e8m0 + 120) << 7) * 65537


@triton.jit
def _value_of_byte(words, scales, SHIFT: tl.constexpr):
    bits = words >> SHIFT
    moved = (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True)
    return moved * (scales & -65536).to(tl.float32, bitcast=True)


@triton.jit
def bf16_of_e4m3(words, scales, PTX: tl.constexpr):
    """int32 [M, N] words of four codes, int32 [M, N] packed scales -> bf16 [M, 4 N] (float32 without PTX)."""
    if PTX:
        v0, v1, v2, v3 = tl.inline_asm_elementwise(
            _ASM,
            "=h,=h,=h,=h,r,r",
            [words, scales],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
    else:
        v0 = _value_of_byte(words, scales, 0)
        v1 = _value_of_byte(words, scales, 8)
        v2 = _value_of_byte(words, scales, 16)
        v3 = _value_of_byte(words, scales, 24)
    return tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), (words.shape[0], 4 * words.shape[1]))


@triton.jit
def _halves(words, PTX: tl.constexpr):
    """int32 [M, N] words of two bf16 -> [M, N, 2] bf16 (float32 without PTX)."""
    lo, hi = words << 16, words & -65536
    if PTX:
        lo = (words & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
        hi = (words >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        lo = lo.to(tl.float32, bitcast=True)
        hi = hi.to(tl.float32, bitcast=True)
    return tl.join(lo, hi)


@triton.jit
def rope_values(first, second, PTX: tl.constexpr):
    """Two int32 [M, 16] of bf16 pairs -> bf16 [M, 64] (float32 without PTX).

    Columns 4 l..4 l + 3 of `first` hold channels 16 l..16 l + 7, those of `second` channels 16 l + 8..16 l + 15: the
    threads that read 16 E4M3 codes of a row read the same channels of its rotary part.
    """
    x = tl.join(_halves(first, PTX), _halves(second, PTX))  # [M, 16, 2, 2]: 4 l + i, half, which
    x = tl.permute(tl.reshape(x, (first.shape[0], 4, 4, 2, 2)), (0, 1, 4, 2, 3))
    return tl.reshape(x, (first.shape[0], 64))
