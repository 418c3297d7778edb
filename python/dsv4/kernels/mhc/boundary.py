# mypy: disable-error-code="import-untyped"
"""The mHC boundary in two launches: everything between the output of one sublayer and the input of the next.

    first_boundary   streams                            -> u, post, comb           (before the first sublayer)
    boundary         streams, out, post, comb           -> new streams, u, post, comb
    head_boundary    streams, out, post, comb           -> new streams, u           (before the head)

Cost of `boundary` at width C: read 4 C + C, write 4 C + C in bf16 = 20 C bytes per token (80 KiB at 4096), plus fn once
(384 C bytes) and partials of 8 KiB per token that stay in the L2 cache. Deterministic, and the bits of a row do not
depend on the rows beside it: slices, their order and the instructions of a row are the same for every T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dsv4.kernels.contract import expect
from dsv4.kernels.mhc.mix_norm import mix_norm
from dsv4.kernels.mhc.post_project import post_project

N = 4
SLICE = 64  # channels per partial product, and tokens per block: part of the numerics, the same for every T
BLOCK = 16
WARPS = 4  # of both launches: the layout of a sum decides its last bit


class Site(NamedTuple):
    """The parameters of one site: fn [M, 4 C], scale [3] or [1], base [M] float32; weight [C] of the norm that follows.

    M is 24 (pre, post, comb), or 4 (pre alone) for the head. The weight is bf16 or float32.
    """

    fn: Tensor
    scale: Tensor
    base: Tensor
    weight: Tensor


class Boundary(NamedTuple):
    """streams [T, 4, C] bf16, u [T, C] bf16 normalised, post [T, 4] and comb [T, 4, 4] float32 of the new site."""

    streams: Tensor
    u: Tensor
    post: Tensor
    comb: Tensor


class Epsilons(NamedTuple):
    """In every rsqrt (norm: rms_norm_eps), in pre and Sinkhorn (mix: hc_eps); iters Sinkhorn rounds."""

    norm: float = 1e-6
    mix: float = 1e-6
    iters: int = 20


DEFAULT = Epsilons()


def blocks_per_program(T: int) -> int:
    """Blocks of tokens that a program of the first launch goes through: one while latency rules, then fn is reused."""
    if T <= 64:
        return 1
    if T <= 256:
        return 2
    return 4 if T <= 512 else 8


def boundary(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor, site: Site, eps: Epsilons = DEFAULT) -> Boundary:
    """Mixes `out` into the streams, and the streams into the next sublayer's normalised input.

    streams  [T, 4, C] bf16, contiguous, C a multiple of 64
    out      [T, C] bf16, contiguous: what the sublayer returned
    post     [T, 4] float32, comb [T, 4, 4] float32, of the site before that sublayer
    cost     20 C bytes per token, two launches
    """
    _check_streams(streams, site, M=24)
    _check_post(streams, out, post, comb)
    got = _empty(streams, torch.empty_like(streams), M=24)
    if len(streams):
        _combine(got, _project(streams, (out, post, comb), got.streams, site), site, eps)
    return got


def first_boundary(streams: Tensor, site: Site, eps: Epsilons = DEFAULT) -> Boundary:
    """The coefficients and the normalised input of the first sublayer; the streams are returned as they came.

    cost  10 C bytes per token, two launches
    """
    _check_streams(streams, site, M=24)
    got = _empty(streams, streams, M=24)
    if len(streams):
        _combine(got, _project(streams, None, streams, site), site, eps)
    return got


def head_boundary(
    streams: Tensor, out: Tensor, post: Tensor, comb: Tensor, site: Site, eps: Epsilons = DEFAULT
) -> tuple[Tensor, Tensor]:
    """The last boundary: new streams [T, 4, C] and u [T, C], their mix for the head after the final norm, bf16."""
    _check_streams(streams, site, M=4)
    _check_post(streams, out, post, comb)
    got = _empty(streams, torch.empty_like(streams), M=4)
    if len(streams):
        _combine(got, _project(streams, (out, post, comb), got.streams, site), site, eps)
    return got.streams, got.u


def _check_streams(streams: Tensor, site: Site, *, M: int) -> None:
    _, n, C = streams.shape
    expect(streams.dtype is torch.bfloat16 and streams.is_contiguous() and n == N, f"streams {tuple(streams.shape)}")
    expect(C % SLICE == 0, f"a width of {C} is not a multiple of {SLICE}")
    shapes = (tuple(site.fn.shape), tuple(site.base.shape), site.scale.numel(), tuple(site.weight.shape))
    expect(shapes == ((M, N * C), (M,), 3 if M == 24 else 1, (C,)), f"a site of {shapes} for width {C}, {M} mixes")
    expect(site.fn.dtype is torch.float32 and site.fn.is_contiguous(), "fn is float32 and contiguous")


def _check_post(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> None:
    T, n, C = streams.shape
    expect(out.shape == (T, C) and out.dtype is torch.bfloat16 and out.is_contiguous(), f"out {tuple(out.shape)}")
    for name, x, shape in (("post", post, (T, n)), ("comb", comb, (T, n, n))):
        expect(x.shape == shape and x.dtype is torch.float32 and x.is_contiguous(), f"{name} {tuple(x.shape)}")


def _empty(streams: Tensor, new: Tensor, *, M: int) -> Boundary:
    """Room for a boundary's results; a head has no coefficients."""
    T, _, C = streams.shape
    rows = T if M == 24 else 0
    post = streams.new_empty(rows, N, dtype=torch.float32)
    comb = streams.new_empty(rows, N, N, dtype=torch.float32)
    return Boundary(new, streams.new_empty(T, C), post, comb)


def _project(streams: Tensor, mixed: tuple[Tensor, Tensor, Tensor] | None, new: Tensor, site: Site) -> Tensor:
    """First launch. -> partials [T, slices, P] float32; fills `new` where there is something to mix in."""
    T, _, C = streams.shape
    M = len(site.base)
    P = 32 if M == 24 else 16
    partials = streams.new_empty(T, C // SLICE, P, dtype=torch.float32)
    out, post, comb = mixed or (streams, partials, partials)
    blocks, pdl = blocks_per_program(T), streams.is_cuda
    post_project[(C // SLICE, triton.cdiv(T, BLOCK * blocks))](
        streams, out, post, comb, site.fn, new, partials, T, blocks,
        C=C, M=M, P=P, BT=BLOCK, BC=SLICE, POST=mixed is not None, PDL=pdl,
        num_warps=WARPS, num_stages=1, enable_fp_fusion=True, launch_pdl=pdl,
    )  # fmt: skip
    return partials


def _combine(got: Boundary, partials: Tensor, site: Site, eps: Epsilons) -> None:
    """Second launch. Fills u; post and comb if the site has them."""
    T, _, C = got.streams.shape
    M, BM, SLICES = len(site.base), 2, C // SLICE
    mixers, pdl = triton.cdiv(T, BM) if M == 24 else 0, got.u.is_cuda
    mix_norm[(mixers + T,)](
        partials, site.scale, site.base, got.streams, site.weight, got.u, got.post, got.comb, T, eps.norm, eps.mix,
        C=C, CP=triton.next_power_of_2(C), M=M, P=partials.shape[2], SLICES=SLICES,
        SP=triton.next_power_of_2(SLICES), BM=BM, ITERS=eps.iters, PDL=pdl,
        num_warps=WARPS, enable_fp_fusion=True, launch_pdl=pdl,
    )  # fmt: skip
