"""What follows the q and kv projections in one launch, and the rotation back of attention's output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benches.kernels.harness import Call, Case
from torch import Tensor

from dsv4.kernels.cache import reference as cache
from dsv4.kernels.norm_rope import reference
from dsv4.kernels.norm_rope.query_store import norm_rope_store, rotate_back

H, D, EPS = 64, 512, 1e-6
LAYOUT = cache.Layout("fp8_ds_mla", D, 64, 64)
Inputs = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor]


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def inputs_of(T: int, *, exact: bool = False) -> Inputs:
    """q, kv, weight, angles, pool, slots; `exact` values have squares that add up to the same bits in any order."""

    def values(*shape: int) -> Tensor:
        x = torch.randint(-15, 16, shape, device="cuda") / 8 if exact else torch.randn(shape, device="cuda")
        return x.to(torch.bfloat16)

    angle = torch.rand(T, 32, device="cuda") * 6
    blocks = -(-T // 64) + 8
    pool = torch.full((blocks, LAYOUT.page_bytes), 0xA5, dtype=torch.uint8, device="cuda")
    slots = torch.randperm(blocks * 64, device="cuda")[:T].int()
    weight = (torch.rand(D, device="cuda") + 0.5).to(torch.bfloat16)
    return values(T, H, D), values(T, D), weight, (angle.cos(), angle.sin()), pool, slots


def check(T: int) -> None:
    """Bits of q and bytes of the pool against the reference, poison everywhere else."""
    q, kv, weight, angles, pool, slots = inputs_of(T, exact=True)
    x = q.float()
    x = bf16(x * bf16(bf16(bf16(bf16(x * x).sum(-1, keepdim=True) / D) + EPS).rsqrt()))
    want_q = reference.rotate(x, *angles).to(torch.bfloat16)
    rows = bf16(reference.rotate(bf16(reference.rms_norm(kv.float(), weight.float(), EPS)), *angles))
    want = pool.clone()
    cache.store(want, slots.long(), rows, LAYOUT)
    norm_rope_store(q, kv, weight, angles, pool, slots, page_rows=64)
    assert torch.equal(q.view(torch.int16), want_q.view(torch.int16)), f"{int((q != want_q).sum())} values of q differ"
    assert torch.equal(pool, want), f"{int((pool != want).sum())} bytes of the pool differ"


def check_back(T: int) -> None:
    o, angles = torch.randn(T, H, D, device="cuda").to(torch.bfloat16), inputs_of(T)[3]
    want = reference.rotate(o.float(), *angles, inverse=True).to(torch.bfloat16)
    rotate_back(o, angles)
    assert torch.equal(o.view(torch.int16), want.view(torch.int16)), f"{int((o != want).sum())} values of o differ"


def case(T: int) -> Case:
    sets: dict[int, Inputs] = {}

    def make(i: int) -> Call:
        q, kv, weight, angles, pool, slots = sets.setdefault(i, inputs_of(T))
        return lambda: norm_rope_store(q, kv, weight, angles, pool, slots, page_rows=64)

    moved = T * ((2 * H + 1) * 1024 + 584 + 256)
    return Case(
        op="norm_rope_store", shape={"H": H, "T": T}, dtype="bf16", bytes=moved, make=make, launches=1,
        check=lambda: check(T),
    )  # fmt: skip


def back(T: int) -> Case:
    sets: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    def make(i: int) -> Call:
        if i not in sets:
            sets[i] = torch.randn(T, H, D, device="cuda").to(torch.bfloat16), inputs_of(T)[3]
        o, angles = sets[i]
        return lambda: rotate_back(o, angles)

    return Case(
        op="rotate_back", shape={"H": H, "T": T}, dtype="bf16", bytes=T * (H * 256 + 256), make=make, launches=1,
        touched=T * H * 1024, check=lambda: check_back(T),
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for T in (1, 64, 256, 1024, 8192):
        yield case(T)
    for T in (1, 64, 256, 8192):
        yield back(T)
