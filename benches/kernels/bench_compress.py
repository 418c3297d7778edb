"""KV compression: C4 rows with index rows, and online C128, in decode and in a prefill chunk.

Projections are float32 inputs here, as the compressors' GEMM leaves them. Decode is one token per request, a quarter of
the requests closing a C4 group; the chunk is one request of T tokens from position 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benches.kernels.harness import Call, Case
from torch import Tensor

from dsv4.kernels.cache import reference as cache
from dsv4.kernels.compress import reference
from dsv4.kernels.compress.c4 import Compressor, compress_c4
from dsv4.kernels.compress.c128_online import OnlineCompressor, compress_c128
from dsv4.kernels.compress.plan import C4Plan, C128Plan, Requests, plan_c4, plan_c128
from dsv4.kernels.norm_rope.reference import rms_norm, rotate
from dsv4.kernels.quant.reference import hadamard

EPS = 1e-6
KV = cache.Layout("fp8_ds_mla", 512, 64, 64)
KV128 = cache.Layout("fp8_ds_mla", 512, 64, 2)
INDEX = cache.Layout("fp4", 128, 64, 64)


def ints(x: Tensor) -> Tensor:
    return x.to(device="cuda", dtype=torch.int32)


def decode_step(B: int, ratio: int) -> tuple[Requests, Tensor, Tensor]:
    """One token per request at staggered positions; closing tokens and the slots of their rows."""
    positions = 4096 + torch.arange(B) % ratio
    starts = torch.arange(B + 1)
    closing = ((positions + 1) % ratio == 0).nonzero().squeeze(1)
    at = Requests(ints(positions), ints(starts[:-1]), ints(starts), ints(1 + torch.arange(B)), ints(torch.zeros(B)))
    return at, ints(closing), ints(closing)


def chunk_step(T: int, ratio: int) -> tuple[Requests, Tensor, Tensor]:
    """One request of T tokens that begins here."""
    positions = torch.arange(T)
    closing = ((positions + 1) % ratio == 0).nonzero().squeeze(1)
    one = torch.ones(1)
    at = Requests(ints(positions), ints(torch.zeros(T)), ints(torch.tensor([0, T])), ints(one), ints(one))
    return at, ints(closing), ints(closing // ratio)


def pool_of(layout: cache.Layout, rows: int) -> Tensor:
    return torch.full((-(-rows // layout.page_rows) + 1, layout.page_bytes), 0xA5, dtype=torch.uint8, device="cuda")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


def finish(pooled: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, rotated: bool) -> Tensor:
    def bf16(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).float()

    out = bf16(rotate(bf16(rms_norm(bf16(pooled), weight, EPS)), cos, sin))
    return bf16(hadamard(out)) if rotated else out


def compare(pool: Tensor, slots: Tensor, rows: Tensor, layout: cache.Layout) -> None:
    """Quantised rows by relative error: exp and the sums differ in a last bit, which may reach a neighbour in E4M3."""
    if not len(slots):
        return
    got = cache.gather(pool, slots.long(), layout)
    want = cache.unpack_rows(*cache.pack_rows(rows, layout), layout)
    error = float((got - want).norm() / want.norm())
    assert error < 2e-3, f"{layout.kind} rows: {error}"


def c4_inputs(T: int, slots: int, rows: int) -> tuple[Compressor, Compressor]:
    kv = Compressor(
        randn(T, 2, 1024),
        randn(4, 1024),
        torch.rand(512, device="cuda") + 0.5,
        randn(slots, 8, 2, 1024),
        pool_of(KV, rows),
    )
    index = Compressor(
        randn(T, 2, 256),
        randn(4, 256),
        torch.rand(128, device="cuda") + 0.5,
        randn(slots, 8, 2, 256),
        pool_of(INDEX, rows),
    )
    return kv, index


def c4_expected(part: Compressor, plan: C4Plan, old: Tensor, *, rotated: bool) -> Tensor:
    """Rows of the groups that close, gathered row by row from the step and from the state before it."""
    D = part.projected.shape[2] // 2
    token, first, slot, position = plan.entries.long().unbind(1)
    back = torch.arange(-7, 1, device="cuda")
    at, here = position[:, None] + back, token[:, None] + back
    new = part.projected.clone()
    state = old.clone()
    rows = torch.where(
        (here >= first[:, None])[..., None, None], new[here.clamp_min(0)], state[slot[:, None].clamp_min(0), at % 8]
    )
    score = rows[:, :, 1] + torch.where((here >= first[:, None])[..., None], part.ape[at % 4], 0)
    absent = (at < 0) | ((here < first[:, None]) & (slot < 0)[:, None])
    score = score.masked_fill(absent[..., None], -torch.inf)
    kv = rows[:, :, 0].masked_fill(absent[..., None], 0)
    halves = [torch.cat((x[:, :4, :D], x[:, 4:, D:]), 1) for x in (kv, score)]
    return finish(reference.pool(*halves), part.weight, plan.cos, plan.sin, rotated=rotated)


def c4_case(T: int, *, decode: bool) -> Case:
    at, closing, slots = decode_step(T, 4) if decode else chunk_step(T, 4)
    frequencies = 10000.0 ** (-torch.arange(32, device="cuda") / 32)
    plan = plan_c4(at, closing, slots, frequencies)
    new, state_slots, rows = 1 if decode else T, T + 1 if decode else 2, T if decode else T // 4
    sets: dict[int, tuple[Compressor, Compressor]] = {}

    def check() -> None:
        kv, index = c4_inputs(T, state_slots, rows)
        old = kv.state.clone(), index.state.clone()
        compress_c4(kv, index, plan, fp4=True, max_new_tokens=new)
        compare(kv.pool, plan.slots, c4_expected(kv, plan, old[0], rotated=False), KV)
        compare(index.pool, plan.slots, c4_expected(index, plan, old[1], rotated=True), INDEX)
        tokens, ring = plan.kept.flatten(0, 1).long().unbind(1)
        tokens, ring = tokens[tokens >= 0], ring[tokens >= 0]
        want = kv.projected[tokens, 1] + kv.ape[at.positions[tokens].long() % 4]
        assert torch.equal(kv.state.flatten(0, 1)[ring, 1], want), "the rows that are kept"

    def make(i: int) -> Call:
        kv, index = sets.setdefault(i, c4_inputs(T, state_slots, rows))
        return lambda: compress_c4(kv, index, plan, fp4=True, max_new_tokens=new)

    n, row = len(closing), (1024 + 256) * 2 * 4
    moved = (T * 2 * row + n * (7 * row // 2 + 652)) if decode else T * row + n * 652
    return Case(
        op="compress_c4", shape={"T": T, "step": "decode" if decode else "chunk"}, dtype="fp32>fp8,fp4", bytes=moved,
        make=make, launches=1 if decode else 2, check=check,
    )  # fmt: skip


def c128_case(T: int, *, decode: bool) -> Case:
    at, closing, slots = decode_step(T, 128) if decode else chunk_step(T, 128)
    frequencies = 10000.0 ** (-torch.arange(32, device="cuda") / 32)
    plan: C128Plan = plan_c128(at, closing, slots, frequencies)
    new, state_slots, rows = 1 if decode else T, T + 1 if decode else 2, T if decode else T // 128
    sets: dict[int, OnlineCompressor] = {}

    def inputs() -> OnlineCompressor:
        state = randn(state_slots, 1, 3, 512).abs() + 0.1
        weight = torch.rand(512, device="cuda") + 0.5
        return OnlineCompressor(randn(T, 2, 512), randn(128, 512), weight, state, pool_of(KV128, rows))

    def check() -> None:
        part = inputs()
        old = part.state.clone()
        compress_c128(part, plan, max_new_tokens=new)
        if decode:
            place = at.positions.long() % 128
            before = reference.Running(*(x.clone() for x in old[1:, 0].unbind(1)))
            empty = reference.Running.empty(T, 512, old.device)
            begun = reference.Running(
                *(torch.where((place > 0)[:, None], a, b) for a, b in zip(before, empty, strict=True))
            )
            grown = reference.accumulate(begun, part.projected[:, 0], part.projected[:, 1] + part.ape[place])
            pooled = grown.pooled[closing.long()]
            kept = torch.stack(grown, 1)[place < 127]
            got = part.state[1:, 0][place < 127]
            assert float((got - kept).norm() / kept.norm()) < 1e-6, "the state of open groups"
        else:
            score = part.projected[:, 1] + part.ape[at.positions.long() % 128]
            pooled = reference.pool(part.projected[:, 0].view(-1, 128, 512), score.view(-1, 128, 512))
        compare(part.pool, plan.slots, finish(pooled, part.weight, plan.cos, plan.sin, rotated=False), KV128)

    def make(i: int) -> Call:
        part = sets.setdefault(i, inputs())
        return lambda: compress_c128(part, plan, max_new_tokens=new)

    n = len(closing)
    moved = (T * (4096 + 12288) + n * 584) if decode else T * 4096 + n * 584
    return Case(
        op="compress_c128", shape={"T": T, "step": "decode" if decode else "chunk"}, dtype="fp32>fp8", bytes=moved,
        make=make, launches=1 if decode else 2, check=check,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for T in (1, 64, 256):
        yield c4_case(T, decode=True)
    yield c4_case(8192, decode=False)
    for T in (1, 128, 256):
        yield c128_case(T, decode=True)
    yield c128_case(8192, decode=False)
