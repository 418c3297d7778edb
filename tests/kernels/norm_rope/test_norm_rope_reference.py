"""Norm, rotation and the elementwise functions."""

from __future__ import annotations

import torch

from dsv4.kernels.norm_rope.reference import rms_norm, rotate, row_sum, sigmoid, silu, softplus


def test_elementwise_functions_are_what_they_are_called() -> None:
    x = torch.linspace(-60, 60, 2001)
    assert torch.allclose(sigmoid(x), x.sigmoid(), atol=1e-7)
    assert torch.allclose(silu(x), torch.nn.functional.silu(x), atol=1e-5)
    assert torch.allclose(softplus(x), torch.nn.functional.softplus(x), atol=1e-5)
    assert not sigmoid(torch.tensor([-1e4, 1e4])).isnan().any()
    assert not silu(torch.tensor([-1e4, 1e4])).isnan().any()


def test_rms_norm_is_the_formula() -> None:
    x, w = torch.randn(4, 3, 64), torch.randn(64)
    assert torch.allclose(rms_norm(x, w, 1e-6), w * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), atol=1e-6)


def test_rotation_is_a_complex_product_of_neighbouring_pairs() -> None:
    x, angle = torch.randn(5, 2, 96), torch.randn(5, 32)
    pairs = torch.view_as_complex(x[..., 32:].reshape(5, 2, 32, 2).contiguous())
    want = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)
    got = rotate(x, angle.cos(), angle.sin())
    assert torch.equal(got[..., :32], x[..., :32])
    assert torch.allclose(got[..., 32:], want, atol=1e-6)
    assert torch.allclose(rotate(got, angle.cos(), angle.sin(), inverse=True), x, atol=1e-6)


def test_long_rows_add_up() -> None:
    x = torch.randn(3, 100_000)
    assert torch.allclose(row_sum(x), x.double().sum(-1, keepdim=True).float(), rtol=1e-3)
