"""Sparse decode attention at the shapes of Flash's three layer kinds, against FlashMLA's V4 kernels (two launches).

What `choice` says serves is timed; triton_attention.py has the Triton kernel beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import NamedTuple

import torch
from benches.kernels.harness import Call, Case, Peer
from torch import Tensor

from dsv4.kernels.attention import sparse_decode as ours
from dsv4.kernels.attention.choice import choice
from dsv4.kernels.attention.split import Split, SplitScratch, scratch_of, split_of

H, D, WINDOW = 64, 512, 128
ROW, SCALE = 584, 512**-0.5
WINDOW_ROWS, C4_ROWS, C128_ROWS = 131_072, 524_288, 131_072
CHUNK = 65_536
SHAPES = {"c4": (512, 8_191, 64), "c128-8k": (64, 8_191, 2), "c128-64k": (512, 65_535, 2), "window": (0, 8_191, 0)}
BATCHES = (1, 8, 32, 64, 128, 256, 512)


class Inputs(NamedTuple):
    q: Tensor
    window_slots: Tensor
    extra: Tensor | None  # slots [B, K] of a C4 layer, block table [B, K / 2] of a C128 layer
    extra_slots: Tensor | None  # [B, K]: the same keys for the peer


def stride(page: int) -> int:
    return -(-page * ROW // 576) * 576


def pool_of(rows: int, page: int) -> Tensor:
    """Random rows in the packed format."""
    pool = torch.zeros(rows // page, stride(page), dtype=torch.uint8, device="cuda")
    for start in range(0, len(pool), CHUNK // page):
        part = pool[start : start + CHUNK // page]
        x = torch.randn(len(part), page, D, device="cuda")
        groups = x[..., :448].unflatten(-1, (7, 64))
        exponent = (groups.abs().amax(-1).clamp_min(1e-4) / 448).log2().ceil()
        values = part[:, : 576 * page].unflatten(1, (page, 576))
        codes = (groups / exponent.exp2().unsqueeze(-1)).to(torch.float8_e4m3fn)
        values[..., :448] = codes.view(torch.uint8).flatten(2)
        values[..., 448:] = x[..., 448:].to(torch.bfloat16).view(torch.uint8)
        part[:, 576 * page : ROW * page].unflatten(1, (page, 8))[..., :7] = (exponent + 127).to(torch.uint8)
    return pool


def rows_of(pool: Tensor, slots: Tensor, page: int) -> Tensor:
    """float32 rows of slots [n]."""
    block, at = pool[slots // page], slots % page
    data = block[:, : 576 * page].unflatten(1, (page, 576))[torch.arange(len(slots)), at]
    scales = block[:, 576 * page : ROW * page].unflatten(1, (page, 8))[torch.arange(len(slots)), at, :7]
    nope = data[:, :448].view(torch.float8_e4m3fn).float().unflatten(1, (7, 64))
    nope = nope * (scales.float() - 127).exp2().unsqueeze(-1)
    return torch.cat((nope.flatten(1), data[:, 448:].contiguous().view(torch.bfloat16).float()), 1)


def error_of(out: Tensor, q: Tensor, keys: Tensor, sink: Tensor) -> float:
    """Of one token's output [H, D] against attention in float64. q [H, D], keys [n, D], sink [H]."""
    keys = keys.double()
    s = q.double() @ keys.T * SCALE
    most = s.amax(1, keepdim=True)
    p = (s - most).exp()
    want = p / (p.sum(1, keepdim=True) + (sink.double().unsqueeze(1) - most).exp()) @ keys
    return float((out.double() - want).norm() / want.norm())


class Bench:
    """Pools, and the cases that read them."""

    def __init__(self) -> None:
        self.window = pool_of(WINDOW_ROWS, 64)
        self.peer_window = pool_of(WINDOW_ROWS, 256)
        self.pools = {64: pool_of(C4_ROWS, 64), 2: pool_of(C128_ROWS, 2)}
        self.sink = torch.randn(H, device="cuda")
        self.num_sms = torch.cuda.get_device_properties(0).multi_processor_count

    def inputs(self, shape: str, B: int) -> Inputs:
        extra, _, page = SHAPES[shape]
        q = torch.randn(B, H, D, device="cuda").to(torch.bfloat16)
        ring = (torch.arange(WINDOW, device="cuda") + torch.randint(0, WINDOW, (B, 1), device="cuda")) % WINDOW
        window = (torch.randint(0, WINDOW_ROWS // WINDOW, (B, 1), device="cuda") * WINDOW + ring).int()
        if shape == "c4":
            pages = torch.randint(0, C4_ROWS // 64, (B, 32), device="cuda")
            chosen = torch.rand(B, 2048, device="cuda").topk(extra, -1).indices
            slots = (pages.gather(1, chosen // 64) * 64 + chosen % 64).int()
            return Inputs(q, window, slots, slots)
        if not extra:
            return Inputs(q, window, None, None)
        table = torch.randint(0, C128_ROWS // 2, (B, extra // 2), device="cuda").int()
        entry = torch.arange(extra, device="cuda")
        return Inputs(q, window, table, (table[:, entry // page] * page + entry % page).int())

    def rows(self, shape: str, x: Inputs) -> ours.SelectedRows | ours.VisibleRows | None:
        if x.extra is None:
            return None
        if shape == "c4":
            return ours.SelectedRows(self.pools[64], x.extra)
        return ours.VisibleRows(self.pools[2], x.extra, torch.arange(len(x.q), device="cuda").int())

    def call(self, shape: str, x: Inputs, split: Split, scratch: SplitScratch) -> Call:
        B = len(x.q)
        positions = torch.full((B,), SHAPES[shape][1], dtype=torch.int32, device="cuda")
        rows = self.rows(shape, x)
        return lambda: ours.sparse_decode(x.q, self.sink, self.window, x.window_slots, positions, rows, split, scratch)

    def peer(self, shape: str, sets: list[Inputs]) -> Peer:
        name = "FlashMLA V4 (2 launches)"
        try:
            import flash_mla  # noqa: PLC0415 - a peer may be absent
        except ImportError:
            return Peer(name)
        page = SHAPES[shape][2]

        def view(pool: Tensor, page: int) -> Tensor:
            strides = (pool.stride(0), ROW, ROW, 1)
            return pool.as_strided((len(pool), page, 1, ROW), strides).view(torch.float8_e4m3fn)

        def make(i: int) -> Call:
            x, plan = sets[i], flash_mla.get_mla_metadata()[0]
            q, window = x.q.unsqueeze(1), x.window_slots.unsqueeze(1)
            pool = view(self.pools[page], page) if page else None
            more = x.extra_slots.unsqueeze(1) if x.extra_slots is not None else None
            main = view(self.peer_window, 256)
            return lambda: flash_mla.flash_mla_with_kvcache(
                q, main, None, None, D, plan, softmax_scale=SCALE, is_fp8_kvcache=True, indices=window,
                attn_sink=self.sink, extra_k_cache=pool, extra_indices_in_kvcache=more, use_legacy=True,
            )  # fmt: skip

        return Peer(name, f"sgl-flash-mla {version('sgl-flash-mla')}", make)

    def error(self, shape: str, x: Inputs, out: Tensor, t: int) -> float:
        """Of one token, against float64."""
        keys = rows_of(self.window, x.window_slots[t].long(), 64)
        if x.extra_slots is not None:
            page = SHAPES[shape][2]
            keys = torch.cat((keys, rows_of(self.pools[page], x.extra_slots[t].long(), page)))
        return error_of(out[t], x.q[t], keys, self.sink)

    def check(self, shape: str, B: int, split: Split, scratch: SplitScratch) -> None:
        """Some tokens against float64, all of them against the bits of another split and of a batch of one."""
        x = self.inputs(shape, B)
        out = self.call(shape, x, split, scratch)()
        assert isinstance(out, Tensor)
        for t in {0, B // 2, B - 1}:
            error = self.error(shape, x, out, t)
            assert error < 3e-3, f"token {t} of {B}: error {error}"
            one = Inputs(*(v[t : t + 1].contiguous() if v is not None else None for v in x))  # type: ignore[arg-type]
            units = 64
            alone = split_of(1, H, units, self.num_sms)
            small = scratch_of(alone, 1, H, units, x.q.device)
            got = self.call(shape, one, alone, small)()
            assert isinstance(got, Tensor)
            assert torch.equal(got[0], out[t]), f"token {t} of {B} has other bits alone"

    def case(self, shape: str, B: int) -> Case:
        """What serves, against FlashMLA."""
        extra = SHAPES[shape][0]
        sets: list[Inputs] = []
        units = -(-(WINDOW + extra) // ours.UNIT)
        split = split_of(B, H, units, self.num_sms)
        scratch = scratch_of(split, B, H, units, torch.device("cuda"))

        def make(i: int) -> Call:
            return self.call(shape, sets[i], split, scratch)

        keys = WINDOW + extra
        probe = self.inputs(shape, B)
        distinct = probe.window_slots.unique().numel()
        distinct += probe.extra_slots.unique().numel() if probe.extra_slots is not None else 0
        case = Case(
            op="sparse_decode", shape={"kind": shape, "B": B}, dtype="fp8_ds_mla", make=make, launches=1,
            served=choice(self.window.device).name,
            bytes=distinct * ROW + B * H * D * 4, flops=4 * B * H * keys * D,
            check=lambda: self.check(shape, B, split, scratch),
        )  # fmt: skip
        sets.extend(self.inputs(shape, B) for _ in range(case.sets))
        return replace(case, peers=[self.peer(shape, sets)])


def cases() -> Iterator[Case]:
    bench = Bench()
    for shape in SHAPES:
        for B in BATCHES:
            yield bench.case(shape, B)
