"""Scales that are powers of two: ceil on the bits, and never a mantissa in a packed byte."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.closeness import assert_bits
from torch import Tensor

from dsv4.kernels.quant import reference

quantise = pytest.importorskip("dsv4.kernels.moe.quantise")
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about NaN and infinity


def rows(width: int, device: torch.device) -> Tensor:
    """amax / limit on a power of two, just above and below one, with every mantissa bit set, zero, tiny and huge."""
    limit = 448.0 if width == 128 else 6.0
    tops = [
        limit,
        limit * 1.0078125,
        limit * 0.99609375,
        limit * 1.9921875,
        1.0,
        0.0,
        1e-7,
        3e38,
        1e-30,
        limit * 2.0**-9,
    ]
    x = torch.randn(len(tops), 2 * width).clamp(-1, 1)
    x *= torch.tensor(tops)[:, None]
    x[:, 3] = x[:, width + 5] = torch.tensor(tops)
    return x.to(device, torch.bfloat16)


def scales_of(x: Tensor) -> Tensor:
    """The scale of every block of 128, from the steps that run along the row."""
    packed = quantise.to_fp8(x)
    after = packed.steps.flip(1).cumprod(1).flip(1).roll(-1, 1)
    after[:, -1] = 1
    out: Tensor = after * packed.scale[:, None]
    return out


def test_fp8_values_and_scales_are_those_of_the_reference(device: torch.device) -> None:
    x = rows(128, device)
    values, exponents = reference.pack_fp8(x.float(), 128)
    assert_bits(quantise.to_fp8(x).values.view(torch.uint8), values.view(torch.uint8))
    assert_bits(scales_of(x), reference.e8m0_values(exponents))


def test_fp4_codes_and_exponents_are_those_of_the_reference(device: torch.device) -> None:
    x = rows(32, device)
    packed, exponents = reference.pack_fp4(x.float(), 32)
    got = quantise.to_fp4(x)
    assert_bits(got.packed, packed)
    assert_bits(got.exponents, exponents)
    assert_bits(quantise.round_fp4(x), reference.fake_fp4(x.float(), 32).to(torch.bfloat16))


def test_a_scale_with_mantissa_bits_never_reaches_a_packed_byte(device: torch.device) -> None:
    """amax / 6 of every bf16 mantissa: the byte is that of the next power of two, and a finite block is never NaN."""
    mantissas = torch.arange(128, dtype=torch.int32)
    for exponent in (64, 127, 190):
        top = ((mantissas << 16) | (exponent << 23)).view(torch.float32)
        x = torch.zeros(4, 32, 32)
        x[:, :, 31] = -top.view(4, 32)
        got = quantise.to_fp4(x.flatten(1).to(device, torch.bfloat16))
        ratio = (top.double() / 6 / 2.0 ** (got.exponents.flatten().cpu().double() - 127)).log2()
        assert bool((ratio > -1 - 1e-6).all())
        assert bool((ratio <= 1e-6).all())
        assert int(got.exponents.max()) < 255
        assert bool(reference.unpack_fp4(got.packed.cpu(), got.exponents.cpu()).isfinite().all())


def test_nan_and_infinity_mark_their_block_alone(device: torch.device) -> None:
    x = torch.randn(3, 256).to(device, torch.bfloat16)
    clean = quantise.to_fp4(x)
    x[0, 40], x[1, 130] = float("nan"), float("inf")
    got = quantise.to_fp4(x)
    assert got.exponents[0, 1] == got.exponents[1, 4] == 255
    assert int((got.exponents == 255).sum()) == 2
    assert_bits(got.packed[2], clean.packed[2])
    back = quantise.round_fp4(x)
    assert bool(back[0, 40].isnan())
    assert bool(back[1, 128:160].isnan().all())
    assert int(back.isnan().sum()) <= 64
    bad = quantise.to_fp8(x)
    assert bool(bad.values.float()[0].isnan().any())
    assert bool(bad.scale[1].isnan())
    assert bool(bad.scale[2].isfinite())


def test_no_rows(device: torch.device) -> None:
    x = torch.zeros(0, 256, dtype=torch.bfloat16, device=device)
    assert quantise.to_fp8(x).values.shape == (0, 256)
    assert quantise.to_fp4(x).packed.shape == (0, 128)
    assert quantise.round_fp4(x).shape == (0, 256)
