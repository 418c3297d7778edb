"""Mixing of the residual streams."""

from __future__ import annotations

import torch
from tests.kernels.vectors import UNIT

from dsv4.kernels.mhc.reference import expand, head_mix, mixes, post_mix, pre_mix, sinkhorn, split


def test_coefficients_of_the_official_vector() -> None:
    v = {name: torch.tensor(values) for name, values in UNIT["sinkhorn"].items()}
    c = split(v["mixes"][None], v["scale"], v["base"], streams=4, iters=20, eps=1e-6)
    assert (c.pre[0] - v["pre"]).abs().max() <= 1e-6
    assert (c.post[0] - v["post"]).abs().max() <= 1e-6
    assert (c.comb[0].flatten() - v["comb_rowmajor_j_k"]).abs().max() <= 1e-6


def test_sinkhorn_ends_on_columns() -> None:
    """Column sums are exact to eps, row sums only nearly: with few iterations the difference shows."""
    c = sinkhorn(torch.randn(50, 4, 4) * 3, 2, 1e-6)
    assert (c.sum(1) - 1).abs().max() < 1e-5
    assert (c.sum(2) - 1).abs().max() > 1e-3


def test_the_combination_is_transposed() -> None:
    """X'_k sums over the first index of comb; with the other one, streams are mixed by the wrong matrix."""
    streams, comb, post = torch.randn(3, 4, 8), torch.rand(3, 4, 4), torch.rand(3, 4)
    out = torch.randn(3, 8)
    want = post[..., None] * out[:, None] + torch.einsum("tjk,tjc->tkc", comb, streams)
    wrong = post[..., None] * out[:, None] + torch.einsum("tkj,tjc->tkc", comb, streams)
    got = post_mix(streams, out, post, comb)
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.allclose(got, wrong, atol=1e-1)


def test_mixes_normalise_over_all_streams_at_once() -> None:
    streams, fn = torch.randn(5, 4, 16), torch.randn(24, 64)
    v = streams.flatten(1)
    want = (v @ fn.T) * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.allclose(mixes(streams, fn, 1e-6), want, atol=1e-5)


def test_head_mix_is_a_weighted_sum_of_streams() -> None:
    streams, fn, base = torch.randn(5, 4, 16), torch.randn(4, 64), torch.randn(4)
    weights = torch.sigmoid(mixes(streams, fn, 1e-6) * 0.7 + base) + 1e-6
    got = head_mix(streams, fn, torch.tensor([0.7]), base, norm_eps=1e-6, eps=1e-6)
    assert torch.allclose(got, torch.einsum("ti,tic->tc", weights, streams), atol=1e-5)
    assert torch.allclose(pre_mix(expand(got, 4), torch.full((5, 4), 0.25)), got, atol=1e-6)


def test_other_numbers_of_streams() -> None:
    c = split(torch.randn(3, 8), torch.ones(3), torch.zeros(8), streams=2, iters=20, eps=1e-6)
    assert c.comb.shape == (3, 2, 2)
    assert (c.comb.sum(1) - 1).abs().max() < 1e-4
