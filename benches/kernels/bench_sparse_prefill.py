"""Sparse attention of a chunk of 8,192 tokens by what serves it, beside FlashMLA's prefill kernel and Triton's.

FlashMLA reads rows that are bf16 in one piece already; gathering and unpacking them is not in its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from benches.kernels.bench_sparse_decode import ROW, SCALE, error_of, pool_of, rows_of
from benches.kernels.harness import Call, Case, Peer
from torch import Tensor

from dsv4.kernels.attention.choice import choice
from dsv4.kernels.attention.sparse_decode import SelectedRows, VisibleRows, checked, launch_triton, sparse_decode
from dsv4.kernels.attention.split import Split, scratch_of
from dsv4.kernels.cuda.choice import CUDA

T, H, D, FIRST = 8192, 64, 512, 8192
KINDS = {"c4": 64, "c128": 2, "window": 0}


class Chunk:
    """One request's tokens FIRST .. FIRST + T, its rows in pages one after the other."""

    def __init__(self, kind: str) -> None:
        self.kind, self.page = kind, KINDS[kind]
        end = FIRST + T
        self.window = pool_of(end, 64)
        self.positions = torch.arange(FIRST, end, device="cuda", dtype=torch.int32)
        self.slots = (self.positions[:, None] - 127 + torch.arange(128, device="cuda")).int()
        self.sink = torch.randn(H, device="cuda")
        self.rows: SelectedRows | VisibleRows | None = None
        if kind == "c4":
            chosen = torch.rand(T, end // 4, device="cuda")
            chosen.masked_fill_(torch.arange(end // 4, device="cuda") >= (self.positions[:, None] + 1) // 4, -1)
            self.rows = SelectedRows(pool_of(end // 4, 64), chosen.topk(512, -1).indices.sort(-1).values.int())
        elif kind == "c128":
            table = torch.arange(end // 256, device="cuda", dtype=torch.int32)[None]
            nobody = torch.zeros(T, device="cuda", dtype=torch.int32)
            self.rows = VisibleRows(pool_of(end // 128, 2), table, nobody)

    def keys(self, t: int) -> Tensor:
        keys = rows_of(self.window, self.slots[t].long(), 64)
        if isinstance(self.rows, SelectedRows):
            return torch.cat((keys, rows_of(self.rows.pool, self.rows.slots[t].long(), 64)))
        if isinstance(self.rows, VisibleRows):
            count = (FIRST + t + 1) // 128
            return torch.cat((keys, rows_of(self.rows.pool, torch.arange(count, device="cuda"), 2)))
        return keys

    def gathered(self) -> tuple[Tensor, Tensor]:
        """All rows [n, 1, D] bf16, and each token's places in them [T, 1, keys] int32, -1 where there is none."""
        end = FIRST + T
        rows, places = [rows_of(self.window, torch.arange(end, device="cuda"), 64)], [self.slots]
        if isinstance(self.rows, SelectedRows):
            rows.append(rows_of(self.rows.pool, torch.arange(end // 4, device="cuda"), 64))
            places.append(self.rows.slots + end)
        elif isinstance(self.rows, VisibleRows):
            entry = torch.arange(end // 128, device="cuda", dtype=torch.int32)
            rows.append(rows_of(self.rows.pool, entry.long(), 2))
            places.append((entry + end).where(entry < ((self.positions + 1) // 128)[:, None], -1))
        return torch.cat(rows).to(torch.bfloat16).unsqueeze(1), torch.cat(places, 1).int().unsqueeze(1)

    def flash(self, sets: list[Tensor]) -> Peer:
        name = "FlashMLA sparse prefill, rows gathered before"
        try:
            import flash_mla  # noqa: PLC0415 - a peer may be absent
        except ImportError:
            return Peer(name)
        rows, places = self.gathered()

        def attend(q: Tensor) -> Tensor:
            out: Tensor = flash_mla.flash_mla_sparse_fwd(
                q, rows, places, SCALE, D, self.sink, None, use_legacy=True, return_log2_lse=False
            )[0]
            return out

        def make(i: int) -> Call:
            error = error_of(attend(sets[i])[T - 1], sets[i][T - 1], self.keys(T - 1), self.sink)
            assert error < 1e-2, f"the peer is called wrongly: error {error}"
            return lambda: attend(sets[i])

        return Peer(name, f"sgl-flash-mla {version('sgl-flash-mla')}", make)

    def triton(self, q: Tensor) -> Tensor:
        """A token a block."""
        whole, out = Split(64, 1), torch.empty_like(q)
        x = checked(q, self.sink, self.window, self.slots, self.positions, self.rows)
        launch_triton(x, out, whole, scratch_of(whole, T, H, 1, q.device))
        return out

    def served(self, q: Tensor) -> Tensor:
        """By what serves."""
        whole = Split(64, 1)
        scratch = scratch_of(whole, T, H, 1, q.device)
        return sparse_decode(q, self.sink, self.window, self.slots, self.positions, self.rows, whole, scratch)

    def check(self) -> None:
        """Some tokens against float64."""
        q = queries()
        out = self.served(q)
        for t in (0, 1, T // 2, T - 1):
            error = error_of(out[t], q[t], self.keys(t), self.sink)
            assert error < 3e-3, f"token {t}: error {error}"


def queries() -> Tensor:
    return torch.randn(T, H, D, device="cuda").to(torch.bfloat16)


def case(kind: str) -> Case:
    chunk = Chunk(kind)
    served = choice(chunk.window.device).name
    sets: list[Tensor] = []

    def calls(way: Callable[[Tensor], Tensor]) -> Callable[[int], Call]:
        return lambda i: lambda: way(sets[i])

    keys = {"c4": 640 * T, "c128": 128 * T + int(((chunk.positions + 1) // 128).sum()), "window": 128 * T}[kind]
    rows = T + 127 + {"c4": (FIRST + T) // 4, "c128": (FIRST + T) // 128, "window": 0}[kind]
    case = Case(
        op="sparse_prefill", shape={"kind": kind, "T": T}, dtype="fp8_ds_mla", make=calls(chunk.served), launches=1,
        served=served, bytes=rows * ROW + T * H * D * 4, flops=4 * H * D * keys, check=chunk.check,
        peers=[chunk.flash(sets), *([Peer("Triton", "this tree", calls(chunk.triton))] if served == CUDA else [])],
    )  # fmt: skip
    sets.extend(queries() for _ in range(case.sets))
    return case


def cases() -> Iterator[Case]:
    for kind in KINDS:
        yield case(kind)
