# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
"""Rows as kernels pack them, against the reference, for every mantissa that a block's largest value can have."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from tests.kernels.closeness import assert_bits
from torch import Tensor

from dsv4.kernels.cache import pack_rows
from dsv4.kernels.cache import reference as cache

ROWS = 16


@triton.jit
def _store_kv(x, data, halves, slots, R: tl.constexpr, PAGE: tl.constexpr, STRIDE: tl.constexpr):  # noqa: ANN001, ANN202
    at = tl.program_id(0) * R + tl.arange(0, R)
    values = tl.load(x + at[:, None] * 512 + tl.arange(0, 512)[None, :])
    target = tl.load(slots + at)
    pack_rows.store_kv_rows(values, data, halves, target, target >= 0, R, PAGE, STRIDE)


@triton.jit
def _store_index(  # noqa: ANN202
    x, data, words, slots, R: tl.constexpr, FP4: tl.constexpr, PAGE: tl.constexpr, STRIDE: tl.constexpr  # noqa: ANN001
):  # fmt: skip
    at = tl.program_id(0) * R + tl.arange(0, R)
    values = tl.load(x + at[:, None] * 128 + tl.arange(0, 128)[None, :])
    target = tl.load(slots + at)
    pack_rows.store_index_rows(values, data, words, target, target >= 0, R, FP4, PAGE, STRIDE)


def every_mantissa(width: int, block: int, exponent: int) -> Tensor:
    """bf16 rows [128, width] whose blocks each have a largest value of another mantissa: all 128 of them."""
    top = ((torch.arange(128) << 16) | (exponent << 23)).to(torch.int32).view(torch.float32)
    x = (torch.rand(128, width // block, block) - 0.5) * top.view(128, 1, 1)
    for i in range(width // block):
        x[:, i, 7 * i % block] = top.roll(11 * i) * (-1 if i % 2 else 1)
    return x.flatten(1).to(torch.bfloat16).float()


@pytest.mark.parametrize("exponent", [112, 127, 132])
@pytest.mark.parametrize("kind", ["fp8_ds_mla", "fp4", "fp8"])
def test_a_scale_with_mantissa_bits_never_reaches_a_packed_byte(kind: str, exponent: int, device: torch.device) -> None:
    width, block = {"fp8_ds_mla": (512, 64), "fp4": (128, 32), "fp8": (128, 128)}[kind]
    layout = cache.Layout(kind, width, 64 if width == 512 else 0, 64)  # type: ignore[arg-type]
    x, slots = every_mantissa(width, block, exponent), torch.randperm(192)[:128]
    want = torch.full((3, layout.page_bytes), 0xA5, dtype=torch.uint8)
    got = want.clone().to(device)
    cache.store(want, slots, x, layout)
    shape = {"R": ROWS, "PAGE": 64, "STRIDE": layout.page_bytes}
    at, rows = slots.to(device), x.to(device)
    if kind == "fp8_ds_mla":
        _store_kv[(128 // ROWS,)](rows, got, got.view(torch.bfloat16), at, **shape)
    else:
        _store_index[(128 // ROWS,)](rows, got, got.view(torch.float32), at, FP4=kind == "fp4", **shape)
    assert_bits(got, want)
    back = cache.gather(got.cpu(), slots, layout)
    assert bool(back.isfinite().all()), "no finite block becomes NaN"
    error = (back - x).abs().view(128, -1, block).amax(2) / x.abs().view(128, -1, block).amax(2)
    assert float(error.max()) <= (1 / 4 if kind == "fp4" else 1 / 16), "and none is scaled down by less than it needs"
