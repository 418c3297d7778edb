"""Index keys in their pages, tokens that see some of them, and what the reference makes of both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dsv4.kernels.cache.reference import Layout, gather, store
from dsv4.kernels.index import logits, reference

Kind = Literal["fp8", "fp4"]
POISON, UNTOUCHED = 0xFF, 12345.0
TOLERANCE = 5e-4  # Hopper's FP8 products keep about 14 bits while they are summed


class Case:
    """Random keys of requests with one token each; poison wherever no key is."""

    def __init__(self, positions: list[int], kind: Kind) -> None:
        T = len(positions)
        self.positions, self.kind, self.layout = positions, kind, Layout(kind, 128, 0, 64)
        width = max(positions) // 256 + 2
        pages = torch.randperm(T * width) + 1
        self.pool = torch.full((T * width + 1, logits.PAGE_BYTES[kind]), POISON, dtype=torch.uint8)
        self.table = torch.zeros(T, width, dtype=torch.int32)  # block 0, all poison, where there is none
        self.slots: list[Tensor] = []
        for t, position in enumerate(positions):
            entry = torch.arange((position + 1) // 4)
            used = -(-len(entry) // 64)
            self.table[t, :used] = pages[t * width : t * width + used].int()
            self.slots.append(pages[t * width + entry // 64] * 64 + entry % 64)
            store(self.pool, self.slots[t], torch.randn(len(entry), 128), self.layout)
        self.q = torch.randn(T, 64, 128).to(torch.float8_e4m3fn)
        self.w = torch.randn(T, 64)

    def run(self, device: torch.device, k: int = 16) -> Tensor:
        T = len(self.positions)
        scores = torch.full((T, 64 * self.table.shape[1]), UNTOUCHED, device=device)
        rows = torch.arange(T, dtype=torch.int32, device=device)
        positions = torch.tensor(self.positions, dtype=torch.int32, device=device)
        q, w, pool, table = (x.to(device) for x in (self.q, self.w, self.pool, self.table))
        logits.index_scores(q, w, pool, table, rows, positions, scores, self.kind, k=k)
        return scores.cpu()

    def expected(self, t: int) -> Tensor:
        keys = gather(self.pool, self.slots[t], self.layout)
        padded = torch.nn.functional.pad(keys, (0, 0, 0, -len(keys) % 64)).unsqueeze(0)
        found = reference.scores(self.q[t : t + 1].float(), self.w[t : t + 1], padded, bf16=False)
        return found[0, : len(keys)]


def far_apart() -> tuple[Case, Tensor]:
    """A token whose FP4 keys have scales up to 2^11 apart, and some 2^12, which count as zeros; its exact scores."""
    case = Case([259], "fp4")
    case.q = torch.randint(-3, 4, (1, 64, 128)).float().to(torch.float8_e4m3fn)
    case.w = torch.ones(1, 64)
    scales = case.pool[int(case.table[0, 0]), 64 * 64 :].view(64, 4)
    scales[:] = torch.tensor([120, 125, 131, 122], dtype=torch.uint8)  # 131 - 120 = 11
    scales[1::2, 0] = 119
    keys = gather(case.pool, case.slots[0], case.layout)
    keys[1:64:2, :32] = 0
    return case, (case.q[0].double() @ keys.double().T).clamp_min(0).sum(0)
