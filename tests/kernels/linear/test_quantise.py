from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kernels.closeness import assert_bits
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.norm_rope.reference import rms_norm
from dsv4.kernels.quant.reference import fake_fp8, pack_fp8

quantise = pytest.importorskip("dsv4.kernels.linear.quantise")
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about the NaNs


def assert_rows(got: Any, x: Tensor) -> None:
    """Bytes of the reference; a NaN has many bit patterns, so where there is one both must have one."""
    values, sf = pack_fp8(x.float(), 128)
    assert_bits(got.sf, quantise.packed(sf).t().contiguous())
    bad = values.float().isnan()
    assert torch.equal(got.values.float().isnan(), bad)
    codes, wanted = got.values.view(torch.uint8), values.view(torch.uint8)
    assert_bits(codes.masked_fill(bad, 0), wanted.masked_fill(bad, 0))


@pytest.mark.parametrize(("T", "K"), [(0, 128), (1, 128), (3, 384), (20, 1024)])
def test_values_and_scales_are_those_of_the_reference(T: int, K: int, device: torch.device) -> None:
    x = torch.randn(T, K, device=device) * torch.logspace(-6, 4, K, device=device)
    assert_rows(quantise.quantise(x.to(torch.bfloat16)), x.to(torch.bfloat16))


def test_every_bf16_value_and_every_boundary_of_a_scale(device: torch.device) -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(device)
    alone = torch.zeros(len(every), 128, dtype=torch.bfloat16, device=device)
    alone[:, 77] = every
    packed = torch.cat((every.view(512, 128), (every.view(512, 128) * 0.37).to(torch.bfloat16)))
    picked = alone if device.type == "cuda" else alone[torch.arange(0, 65536, 1031)]
    for x in (picked, packed if device.type == "cuda" else packed[::37]):
        got = quantise.quantise(x)
        assert_rows(got, x)
        finite = x.isfinite().all(1)
        byte = got.sf[0] & 255
        assert bool((byte[finite] != 255).all())
        assert bool((byte[~finite] == 255).all()), "a NaN or an infinity is byte 255, never a scale with mantissa"
    edges = torch.tensor([448.0 * 2.0**k for k in range(-20, 21)], device=device)  # exactly a power of two each
    x = torch.zeros(len(edges), 128, dtype=torch.bfloat16, device=device)
    x[:, 0] = edges.to(torch.bfloat16)
    assert (quantise.quantise(x).sf[0] & 255).tolist() == [max(105, 127 + k) for k in range(-20, 21)]


def test_a_nan_marks_its_own_group_alone(device: torch.device) -> None:
    x = torch.randn(3, 256, device=device).to(torch.bfloat16)
    x[1, 200] = float("nan")
    got = quantise.quantise(x)
    assert (quantise.unpacked(got.sf.t(), 2) == 255).tolist() == [[False] * 2, [False, True], [False] * 2]
    assert_rows(got, x)


def test_rows_may_lie_apart_and_nothing_else_is_read(device: torch.device) -> None:
    wide = torch.full((5, 640), float("nan"), dtype=torch.bfloat16, device=device)  # poison beside the rows
    wide[:, :256] = torch.randn(5, 256, device=device).to(torch.bfloat16)
    assert_rows(quantise.quantise(wide[:, :256]), wide[:, :256])


@pytest.mark.parametrize(("T", "K"), [(0, 256), (1, 384), (9, 1024)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_norm_in_front(T: int, K: int, dtype: torch.dtype, device: torch.device) -> None:
    # Values whose squares add up exactly, so that every order of summation gives the same bits.
    x = (torch.randint(-15, 16, (T, K), device=device).float() / 8).to(torch.bfloat16)
    weight = (torch.rand(K, device=device) + 0.5).to(dtype)
    got = quantise.norm_quantise(x, weight, 1e-6)
    normed = rms_norm(x.float(), weight.float(), 1e-6).to(torch.bfloat16)
    back = got.values.float() * (
        quantise.unpacked(got.sf.t(), got.values.shape[1] // 128).float() - 127
    ).exp2().repeat_interleave(128, 1)
    want = fake_fp8(normed.float(), 128)
    # rsqrt differs in its last bit between libraries: a neighbour in bf16 may be a neighbour in E4M3.
    assert float((back - want).norm()) <= 2e-3 * float(want.norm())


def test_swiglu_in_front_with_both_clamps(device: torch.device) -> None:
    x = (torch.randn(4, 512, device=device) * 8).to(torch.bfloat16)
    gate, up = x.float().chunk(2, 1)
    want = torch.nn.functional.silu(gate.clamp_max(10.0)) * up.clamp(-10.0, 10.0)
    got = quantise.swiglu_quantise(x, 10.0)
    back = got.values.float() * (
        quantise.unpacked(got.sf.t(), got.values.shape[1] // 128).float() - 127
    ).exp2().repeat_interleave(128, 1)
    want = fake_fp8(want.to(torch.bfloat16).float(), 128)
    assert float((back - want).norm()) <= 2e-3 * float(want.norm())


def test_arguments_outside_the_contract_are_refused(device: torch.device) -> None:
    with pytest.raises(Violation, match="divide"):
        quantise.quantise(torch.zeros(1, 100, dtype=torch.bfloat16, device=device))
    with pytest.raises(Violation, match="rows"):
        quantise.quantise(torch.zeros(1, 128, device=device))
