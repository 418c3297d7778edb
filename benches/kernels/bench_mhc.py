"""mHC boundary at the sizes of Flash and Pro, against DeepGEMM's split-K product with TileKernels' mixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from benches.kernels.harness import Call, Case, Peer
from torch import Tensor

from dsv4.kernels.mhc import reference
from dsv4.kernels.mhc.boundary import Site, boundary, first_boundary, head_boundary
from dsv4.kernels.norm_rope.reference import rms_norm

EPS = 1e-6
FLASH, PRO = 4096, 7168


def site_of(C: int, M: int = 24) -> Site:
    scale = torch.rand(3 if M == 24 else 1, device="cuda") + 0.5
    fn = torch.randn(M, 4 * C, device="cuda") * 0.01
    return Site(fn, scale, torch.randn(M, device="cuda"), (torch.rand(C, device="cuda") + 0.5).to(torch.bfloat16))


def inputs_of(T: int, C: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    streams = torch.randn(T, 4, C, device="cuda").to(torch.bfloat16)
    comb = reference.sinkhorn(torch.randn(T, 4, 4, device="cuda"), 20, EPS)
    return streams, torch.randn(T, C, device="cuda").to(torch.bfloat16), 2 * torch.rand(T, 4, device="cuda"), comb


def error(out: Tensor, want: Tensor) -> float:
    return float((out.double() - want.double()).norm() / want.double().norm())


def check(T: int, C: int) -> None:
    """Fresh inputs against the float64 mixes of the streams that were written, and row bits against a batch of one."""
    (streams, out, post, comb), site = inputs_of(T, C), site_of(C)
    got = boundary(streams, out, post, comb, site)
    worst = error(got.streams, reference.post_mix(streams.float(), out.float(), post, comb))
    assert worst < 3e-3, f"streams {worst}"
    x = got.streams.flatten(1).double()
    mixes = (x @ site.fn.double().T) * (x.square().mean(1, keepdim=True) + EPS).rsqrt()
    c = reference.split(mixes.float(), site.scale, site.base, streams=4, iters=20, eps=EPS)
    u = reference.pre_mix(got.streams.float(), c.pre).to(torch.bfloat16).float()
    errors = (error(got.post, c.post), error(got.comb, c.comb), error(got.u, rms_norm(u, site.weight.float(), EPS)))
    assert max(errors[:2]) < 2e-6, f"post and comb: {errors}"
    assert errors[2] < 3e-3, f"u: {errors}"
    for row in {0, T // 2, T - 1}:
        alone = boundary(*(v[row : row + 1].contiguous() for v in (streams, out, post, comb)), site)
        for a, b in zip(alone, got, strict=True):
            assert torch.equal(a[0], b[row]), f"row {row} of {T} has other bits than alone"
    again = boundary(streams, out, post, comb, site)
    assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True)), "two runs differ"


PEER = "DeepGEMM split-K + TileKernels (3 launches, no RMSNorm)"


def peers(T: int, C: int, sets: list[tuple[tuple[Tensor, ...], Site]]) -> list[Peer]:
    try:
        return [peer(T, C, sets)]
    except Exception as error:  # noqa: BLE001 - a peer that does not load or compile is named in its row
        return [Peer(PEER, missing=f"not available: {error}"[:160])]


def peer(T: int, C: int, sets: list[tuple[tuple[Tensor, ...], Site]]) -> Peer:
    import deep_gemm  # noqa: PLC0415 - a peer may be absent
    from tile_kernels.mhc.post_kernel import mhc_post_fwd  # noqa: PLC0415
    from tile_kernels.mhc.pre_big_fuse_kernel import _mhc_pre_big_fuse  # noqa: PLC0415

    splits = 16 if T <= 256 else 1
    fuse = _mhc_pre_big_fuse(C, EPS, EPS, EPS, 2.0, 20, n_splits=splits, mhc_mult=4)
    d, s = torch.empty(splits, T, 24, device="cuda"), torch.empty(splits, T, device="cuda")
    post, comb = torch.empty(T, 4, device="cuda"), torch.empty(T, 16, device="cuda")
    u = torch.empty(T, C, device="cuda", dtype=torch.bfloat16)
    new = torch.empty(1, T, 4, C, device="cuda", dtype=torch.bfloat16)

    def make(i: int) -> Call:
        (streams, out, p, c), site = sets[i]

        def call() -> None:
            mhc_post_fwd(out[None], streams[None], p.view(1, T, 4, 1), c[None], new)
            deep_gemm.tf32_hc_prenorm_gemm(new.view(T, 4 * C), site.fn, d, s, splits)
            fuse(d, s, site.scale, site.base, new[0], post, comb, u)

        return call

    (streams, out, p, c), site = sets[0]
    make(0)()
    ours = boundary(streams, out, p, c, site)
    worst = max(error(new[0], ours.streams), error(post, ours.post), error(comb.view(T, 4, 4), ours.comb))
    if not worst < 5e-3:
        raise AssertionError(f"its results differ from ours by {worst}")
    return Peer(PEER, f"sgl-deep-gemm {version('sgl-deep-gemm')}, tile-kernels {version('tile-kernels')}", make)


def case(T: int, C: int, name: str, *, with_peer: bool) -> Case:
    moved = T * 20 * C
    sets: list[tuple[tuple[Tensor, ...], Site]] = []

    def make(i: int) -> Call:
        while len(sets) <= i:
            sets.append((inputs_of(T, C), site_of(C)))
        inputs, site = sets[i]
        return lambda: boundary(*inputs, site)  # type: ignore[arg-type]

    result = Case(
        op="mhc_boundary", shape={"model": name, "T": T}, dtype="bf16", bytes=moved + 24 * 16 * C, make=make,
        launches=2, flops=T * 24 * 4 * C * 2, touched=moved + 24 * 16 * C, check=lambda: check(T, C),
    )  # fmt: skip
    if not with_peer:
        return result
    for i in range(result.sets):
        make(i)
    return Case(**{f: getattr(result, f) for f in Case.__slots__} | {"peers": peers(T, C, sets)})


def end(op: str, T: int, C: int, token_bytes: int, M: int, of: Callable[[tuple[Tensor, ...], Site], Call]) -> Case:
    """The boundaries at the two ends of the network, which have no peer."""
    sets: dict[int, tuple[tuple[Tensor, ...], Site]] = {}

    def make(i: int) -> Call:
        return of(*sets.setdefault(i, (inputs_of(T, C), site_of(C, M))))

    moved = T * token_bytes + M * 16 * C
    return Case(op=op, shape={"model": "flash", "T": T}, dtype="bf16", bytes=moved, make=make, launches=2)


def cases() -> Iterator[Case]:
    for T in (1, 8, 16, 32, 64, 128, 256, 1024, 8192):
        yield case(T, FLASH, "flash", with_peer=T in (1, 64, 256, 8192))
    for T in (1, 64, 256, 8192):
        yield case(T, PRO, "pro", with_peer=False)
    yield end("mhc_head", 256, FLASH, 20 * FLASH, 4, lambda x, site: lambda: head_boundary(*x, site))  # type: ignore[arg-type]
    yield end("mhc_first", 256, FLASH, 10 * FLASH, 24, lambda x, site: lambda: first_boundary(x[0], site))
