"""Tokens with paged keys: what a kernel is given, with poison wherever it must not look, and what it must find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsv4.kernels.attention.reference import KEY_BLOCK, Keys, attend
from dsv4.kernels.cache.reference import Layout, gather, store

POISON = 0xFF  # E4M3 NaN, bf16 NaN, E8M0 NaN
NOWHERE = 3  # a slot of block 0, which holds nothing but poison
Kind = Literal["window", "c4", "c128"]
LAYOUTS = {page: Layout("fp8_ds_mla", 512, 64, page) for page in (64, 2)}


@dataclass
class Tokens:
    """One token per request. `window` and `extra` are the slots of each token's keys, in order."""

    positions: list[int]
    q: Tensor
    sink: Tensor
    window_pool: Tensor
    window: list[Tensor]
    extra_pool: Tensor | None
    extra: list[Tensor]
    table: Tensor | None  # C4: slots [T, K]; C128: block table [T, F]
    page: int

    @property
    def window_slots(self) -> Tensor:
        slots = torch.full((len(self.positions), 128), NOWHERE, dtype=torch.int32)
        for t, found in enumerate(self.window):
            slots[t, 128 - len(found) :] = found.int()
        return slots

    def keys(self, t: int) -> Tensor:
        rows = gather(self.window_pool, self.window[t], LAYOUTS[64])
        if self.extra_pool is not None:
            rows = torch.cat((rows, gather(self.extra_pool, self.extra[t], LAYOUTS[self.page])))
        return rows

    def expected(self) -> Tensor:
        """float32 [T, H, 512] by the reference, token by token."""
        out = torch.empty(self.q.shape, dtype=torch.float32)
        for t in range(len(self.positions)):
            keys = self.keys(t)
            padding = -len(keys) % KEY_BLOCK
            rows = torch.nn.functional.pad(keys, (0, 0, 0, padding)).unsqueeze(0)
            visible = (torch.arange(len(keys) + padding) < len(keys)).unsqueeze(0)
            q = self.q[t : t + 1].float()
            out[t] = attend(q, [Keys(rows, visible)], self.sink, 512**-0.5, bf16_weights=True)[0]
        return out


def page_bytes(page: int) -> int:
    return -(-page * 584 // 576) * 576


def _pool(pages: int, page: int, slots: list[Tensor]) -> Tensor:
    """Poison, but for random rows at the slots."""
    pool = torch.full((pages, page_bytes(page)), POISON, dtype=torch.uint8)
    used = torch.unique(torch.cat([torch.zeros(0, dtype=torch.int64), *slots]))
    store(pool, used, torch.randn(len(used), 512), LAYOUTS[page])
    return pool


def tokens(positions: list[int], kind: Kind, *, heads: int = 64, k: int = 512) -> Tokens:
    """Random tokens; block 0 is poison, and the last row of the last page is in use wherever there are enough keys."""
    T = len(positions)
    window, extra = [], []
    pages = torch.randperm(3 * T) + 1
    for t, position in enumerate(positions):
        seen = torch.arange(max(position - 127, 0), position + 1)
        block = seen // 64 - seen[0] // 64
        window.append(pages[3 * t + block] * 64 + seen % 64)
    table, extra_pool, page = None, None, 64
    if kind == "c4":
        num_pages = max(max(positions) // 4 // 64, 1) + 9
        table = torch.full((T, k), NOWHERE, dtype=torch.int32)
        for t, position in enumerate(positions):
            extra.append(
                (num_pages * 64 - 1 - torch.randperm(num_pages * 64 - 64)[: min(k, (position + 1) // 4)]).sort().values
            )
            table[t, : len(extra[t])] = extra[t].int()
        extra_pool = _pool(num_pages, page, extra)
    elif kind == "c128":
        page, width = 2, max(positions) // 256 + 2
        pages = torch.randperm(T * width) + 1
        table = torch.zeros(T, width, dtype=torch.int32)  # block 0 where there is none
        for t, position in enumerate(positions):
            entry = torch.arange((position + 1) // 128)
            used = -(-len(entry) // 2)
            table[t, :used] = pages[t * width : t * width + used].int()
            extra.append(pages[t * width + entry // 2] * 2 + entry % 2)
        extra_pool = _pool(T * width + 1, page, extra)
    q, sink = torch.randn(T, heads, 512).to(torch.bfloat16), torch.randn(heads)
    return Tokens(positions, q, sink, _pool(3 * T + 1, 64, window), window, extra_pool, extra, table, page)
