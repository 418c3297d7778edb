"""Index scores over FP8 and FP4 pages against DeepGEMM's FP8 kernel, and top-k against torch.topk."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Literal

import torch
from benches.kernels.harness import Call, Case, Peer
from torch import Tensor

from dsv4.kernels.index import logits, reference, topk

H, D, PAGE, PAGES = 64, 128, 64, 32_768
KEYS, BATCHES = (2_048, 16_384), (1, 8, 32, 64, 128, 256)
CANDIDATES, MOST = (2_048, 4_096, 16_384, 65_536, 262_144), 1 << 24
K = 512


def fp8_pool() -> Tensor:
    x = torch.randn(PAGES, PAGE, D, device="cuda")
    scale = (x.abs().amax(-1, keepdim=True) / 448).log2().ceil().exp2()
    values = (x / scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.cat((values.flatten(1), scale.view(torch.uint8).flatten(1)), 1).contiguous()


def fp4_pool() -> Tensor:
    """Random codes, scales within a factor of eight of each other."""
    codes = torch.randint(0, 256, (PAGES, PAGE * D // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(122, 126, (PAGES, PAGE * 4), device="cuda").to(torch.uint8)
    return torch.cat((codes, scales), 1).contiguous()


def keys_of(pool: Tensor, pages: Tensor, kind: str) -> Tensor:
    """float64 [keys, 128] of pages [n]."""
    raw = pool[pages.long()]
    if kind == "fp8":
        values = raw[:, : PAGE * D].contiguous().view(torch.float8_e4m3fn).double().view(-1, D)
        return values * raw[:, PAGE * D :].contiguous().view(torch.float32).double().view(-1, 1)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device="cuda", dtype=torch.float64)
    codes = raw[:, : PAGE * D // 2].reshape(-1, D // 2)
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()
    values = table[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0)
    scales = (raw[:, PAGE * D // 2 :].reshape(-1, 4).double() - 127).exp2()
    return (values.unflatten(1, (4, 32)) * scales.unsqueeze(-1)).flatten(1)


class Scores:
    """Pools of both kinds, and the cases that read them."""

    def __init__(self) -> None:
        self.pools = {"fp8": fp8_pool(), "fp4": fp4_pool()}

    def case(self, kind: Literal["fp8", "fp4"], keys: int, B: int) -> Case:
        positions = torch.full((B,), 4 * keys - 1, dtype=torch.int32, device="cuda")
        rows, out = torch.arange(B, device="cuda").int(), torch.empty(B, keys, device="cuda")
        pool, sets = self.pools[kind], list[tuple[Tensor, Tensor, Tensor]]()

        def call(q: Tensor, w: Tensor, table: Tensor) -> Call:
            return lambda: logits.index_scores(q, w, pool, table, rows, positions, out, kind, k=K)

        def inputs() -> tuple[Tensor, Tensor, Tensor]:
            q = torch.randn(B, H, D, device="cuda").to(torch.float8_e4m3fn)
            table = torch.randint(0, PAGES, (B, keys // PAGE), device="cuda", dtype=torch.int32)
            return q, torch.randn(B, H, device="cuda"), table

        def check() -> None:
            q, w, table = inputs()
            call(q, w, table)()
            for t in {0, B // 2, B - 1}:
                s = q[t].double() @ keys_of(pool, table[t], kind).T
                want = (s.clamp_min(0) * w[t].double().unsqueeze(1)).sum(0)
                error = float((out[t].double() - want).norm() / want.norm())
                assert error < 1e-3, f"token {t} of {B}: error {error}"

        row = {"fp8": 132, "fp4": 68}[kind]
        case = Case(
            op="index_scores", shape={"keys": keys, "B": B}, dtype=kind, launches=1, make=lambda i: call(*sets[i]),
            bytes=B * (keys * (row + 4) + H * D), touched=B * keys * row, check=check,
        )  # fmt: skip
        sets.extend(inputs() for _ in range(case.sets))
        return Case(**{f: getattr(case, f) for f in Case.__slots__} | {"peers": [self.peer(keys, B, sets)]})

    def peer(self, keys: int, B: int, sets: list[tuple[Tensor, Tensor, Tensor]]) -> Peer:
        """DeepGEMM's kernel knows FP8 pages only; it is the peer of both kinds."""
        name = "DeepGEMM fp8_paged_mqa_logits"
        try:
            import deep_gemm  # noqa: PLC0415 - a peer may be absent
        except ImportError:
            return Peer(name)
        pool = self.pools["fp8"].view(PAGES, PAGE, 1, D + 4)
        num_sms = torch.cuda.get_device_properties(0).multi_processor_count
        lengths = torch.full((B, 1), keys, dtype=torch.int32, device="cuda")

        def make(i: int) -> Call:
            q, w, table = sets[i]
            plan = deep_gemm.get_paged_mqa_logits_metadata(lengths, PAGE, num_sms)
            plan = plan if isinstance(plan, Tensor) else torch.from_dlpack(plan)
            q = q.unsqueeze(1)
            return lambda: deep_gemm.fp8_paged_mqa_logits(q, pool, w, lengths, table, plan, keys, False)  # noqa: FBT003

        return Peer(name, f"sgl-deep-gemm {version('sgl-deep-gemm')}", make)


def select(candidates: int, B: int) -> Case:
    positions = torch.full((B,), 4 * candidates - 1, dtype=torch.int32, device="cuda")
    workspace = topk.Workspace(B, candidates, K, torch.device("cuda"))
    sets: list[Tensor] = []

    def check() -> None:
        x = (torch.randn(B, candidates, device="cuda") * 64).round() / 64  # many ties
        got = topk.select_topk(x, positions, K, workspace)
        for t in {0, B - 1}:
            want = reference.select(x[t : t + 1], torch.ones(1, candidates, dtype=torch.bool, device="cuda"), K)
            assert torch.equal(got[t].long(), want[0]), f"row {t} of {B}"

    case = Case(
        op="topk", shape={"candidates": candidates, "B": B}, dtype="float32", launches=1, check=check,
        make=lambda i: lambda: topk.select_topk(sets[i], positions, K, workspace),
        bytes=4 * B * (candidates + K),
    )  # fmt: skip
    case = Case(**{f: getattr(case, f) for f in Case.__slots__} | {"touched": max(case.bytes, 8_000_000)})
    sets.extend(torch.randn(B, candidates, device="cuda") for _ in range(case.sets))
    peer = Peer("torch.topk, unsorted", torch.__version__, lambda i: lambda: torch.topk(sets[i], K, -1, sorted=False))
    return Case(**{f: getattr(case, f) for f in Case.__slots__} | {"peers": [peer]})


def cases() -> Iterator[Case]:
    scores = Scores()
    for keys in KEYS:
        for B in BATCHES:
            yield scores.case("fp8", keys, B)
            yield scores.case("fp4", keys, B)
    for candidates in CANDIDATES:
        for B in (1, 8, 64, 256):
            if B * candidates <= MOST:
                yield select(candidates, B)
