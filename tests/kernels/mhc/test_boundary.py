from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tests.kernels.closeness import assert_bits, assert_close
from torch import Tensor

from dsv4.errors import Violation
from dsv4.kernels.mhc import reference
from dsv4.kernels.norm_rope.reference import rms_norm

if TYPE_CHECKING:
    from dsv4.kernels.mhc.boundary import Site

boundary = pytest.importorskip("dsv4.kernels.mhc.boundary")

C = 128
EPS = 1e-6


def make_site(M: int, device: torch.device, width: int = C) -> Site:
    fn = torch.randn(M, 4 * width, device=device) / width**0.5
    scale = torch.rand(3 if M == 24 else 1, device=device) + 0.5
    site: Site = boundary.Site(fn, scale, torch.randn(M, device=device), torch.rand(width, device=device) + 0.5)
    return site


def make_inputs(T: int, device: torch.device, width: int = C) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    streams = torch.randn(T, 4, width, device=device).to(torch.bfloat16)
    out = torch.randn(T, width, device=device).to(torch.bfloat16)
    comb = reference.sinkhorn(torch.randn(T, 4, 4, device=device), 20, EPS)
    return streams, out, 2 * torch.rand(T, 4, device=device), comb


def expected(streams: Tensor, site: Site) -> tuple[Tensor, reference.Coefficients]:
    """u and coefficients of bf16 streams, by the float32 reference."""
    x = streams.float()
    c = reference.split(reference.mixes(x, site.fn, EPS), site.scale, site.base, streams=4, iters=20, eps=EPS)
    u = reference.pre_mix(x, c.pre).to(torch.bfloat16).float()
    return rms_norm(u, site.weight, EPS), c


@pytest.mark.parametrize("T", [0, 1, 5, 17])
def test_a_boundary_is_post_mix_then_pre_mix_then_norm(T: int, device: torch.device) -> None:
    streams, out, post, comb = make_inputs(T, device)
    site = make_site(24, device)
    got = boundary.boundary(streams, out, post, comb, site)
    assert_close(got.streams, reference.post_mix(streams.float(), out.float(), post, comb), "mhc post")
    u, c = expected(got.streams, site)
    assert_close(got.u, u, "mhc input")
    assert_close(got.post, c.post, "mhc coefficients")
    assert_close(got.comb, c.comb, "mhc coefficients")


def test_the_first_boundary_reads_streams_as_they_are(device: torch.device) -> None:
    streams = make_inputs(3, device)[0]
    site = make_site(24, device)
    got = boundary.first_boundary(streams, site)
    u, c = expected(streams, site)
    assert_close(got.u, u, "mhc input")
    assert_close(got.comb, c.comb, "mhc coefficients")


def test_the_head_has_neither_post_nor_comb(device: torch.device) -> None:
    streams, out, post, comb = make_inputs(3, device)
    site = make_site(4, device)
    new, u = boundary.head_boundary(streams, out, post, comb, site)
    x = new.float()
    y = reference.head_mix(x, site.fn, site.scale, site.base, norm_eps=EPS, eps=EPS).to(torch.bfloat16).float()
    assert_close(u, rms_norm(y, site.weight, EPS), "mhc input")


def test_a_wide_model_whose_groups_are_no_power_of_two(device: torch.device) -> None:
    streams, out, post, comb = make_inputs(2, device, 192)
    site = make_site(24, device, 192)
    got = boundary.boundary(streams, out, post, comb, site)
    u, c = expected(got.streams, site)
    assert_close(got.u, u, "mhc input")
    assert_close(got.comb, c.comb, "mhc coefficients")


def test_no_cut_of_the_work_changes_a_bit(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, site = make_inputs(19, device, 64), make_site(24, device, 64)
    one = boundary.boundary(*inputs, site)
    monkeypatch.setattr(boundary, "blocks_per_program", lambda _: 2)
    for a, b in zip(boundary.boundary(*inputs, site), one, strict=True):
        assert_bits(a, b)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # numpy, about the NaN
def test_a_row_does_not_depend_on_its_neighbours_not_even_on_their_nans(device: torch.device) -> None:
    streams, out, post, comb = make_inputs(18, device)
    site = make_site(24, device)
    alone = boundary.boundary(*(x[3:4].contiguous() for x in (streams, out, post, comb)), site)
    streams[2, 1, 7] = float("nan")
    out[17] = float("inf")
    among = boundary.boundary(streams, out, post, comb, site)
    for a, b in zip(among, alone, strict=True):
        assert_bits(a[3:4], b)
    assert bool(among.u[2].isnan().any())


def test_arguments_outside_the_contract_are_refused(device: torch.device) -> None:
    streams, out, post, comb = make_inputs(2, device)
    site = make_site(24, device)
    with pytest.raises(Violation, match="streams"):
        boundary.boundary(streams.float(), out, post, comb, site)
    with pytest.raises(Violation, match="post"):
        boundary.boundary(streams, out, post[:1], comb, site)
    with pytest.raises(Violation, match="a site"):
        boundary.boundary(streams, out, post, comb, make_site(4, device))
