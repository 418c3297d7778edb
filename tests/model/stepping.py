"""A naive planner: hands out blocks and makes StepInputs for any chunking and batch, straight from the definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.cache.reference import Layout
from dsv4.model.caches import BLOCK_TOKENS, SWA_BLOCK_TOKENS, Caches, allocate
from dsv4.model.inputs import StepInputs
from dsv4.model.numerics import Numerics


@dataclass
class Request:
    """What the planner knows of one request."""

    state_slot: int
    num_computed: int = 0
    full: list[int] = field(default_factory=list)
    swa: dict[int, int] = field(default_factory=dict)  # block of the window -> id; those behind the window are gone


class Pool:
    """Ids 1..count, given in an order that is not theirs, so that nobody gets away with assuming one."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.ids: list[int] = (1 + torch.randperm(count, generator=torch.Generator().manual_seed(seed))).tolist()

    def take(self) -> int:
        return self.ids.pop()

    def give_back(self, ids: Iterable[int]) -> None:
        self.ids[:0] = ids  # reused as late as possible, but reused


class Planner:
    """Requests, their blocks, and the next step's arrays."""

    def __init__(self, window: int, *, full: int, swa: int, slots: int, seed: int = 0) -> None:
        self.window = window
        self.full, self.swa, self.slots = Pool(full, seed), Pool(swa, seed + 1), Pool(slots, seed + 2)
        self.requests: dict[str, Request] = {}

    def step(self, work: Sequence[tuple[str, Sequence[int]]], *, sample: str = "last") -> StepInputs:
        """The step that appends tokens to each named request; sample "last" token of each, or "all"."""
        rows = [self._advance(name, tokens) for name, tokens in work]
        starts = [0]
        for _, tokens in work:
            starts.append(starts[-1] + len(tokens))
        positions = [p for r, (_, tokens) in zip(rows, work, strict=True) for p in _last(r.num_computed, len(tokens))]
        token_rows = [b for b, (_, tokens) in enumerate(work) for _ in tokens]
        c4 = [i for i, p in enumerate(positions) if p % 4 == 3]
        c128 = [i for i, p in enumerate(positions) if p % 128 == 127]

        def slot(i: int, ratio: int) -> int:
            block, offset = divmod(positions[i], BLOCK_TOKENS)
            return rows[token_rows[i]].full[block] * (BLOCK_TOKENS // ratio) + offset // ratio

        first = [min(r.swa) for r in rows]
        inputs = StepInputs(
            token_ids=_int32([t for _, tokens in work for t in tokens]),
            positions=_int32(positions),
            token_rows=_int32(token_rows),
            query_starts=_int32(starts),
            seq_lens=_int32([r.num_computed for r in rows]),
            block_table_full=_table([r.full for r in rows]),
            block_table_swa=_table([[r.swa[b] for b in sorted(r.swa)] for r in rows]),
            swa_first_block=_int32(first),
            swa_slots=_int32([self._swa_slot(rows[b], p) for b, p in zip(token_rows, positions, strict=True)]),
            state_slots=_int32([r.state_slot for r in rows]),
            state_resets=_int32([int(r.num_computed == len(t)) for r, (_, t) in zip(rows, work, strict=True)]),
            c4_tokens=_int32(c4),
            c4_slots=_int32([slot(i, 4) for i in c4]),
            c128_tokens=_int32(c128),
            c128_slots=_int32([slot(i, 128) for i in c128]),
            sample_tokens=_int32([end - 1 for end in starts[1:]] if sample == "last" else list(range(starts[-1]))),
        )
        for r in rows:
            self._slide(r)
        return inputs

    def finish(self, name: str) -> None:
        """Gives the request's blocks and slot back."""
        request = self.requests.pop(name)
        self.full.give_back(request.full)
        self.swa.give_back(request.swa.values())
        self.slots.give_back([request.state_slot])

    def _advance(self, name: str, tokens: Sequence[int]) -> Request:
        if name not in self.requests:
            self.requests[name] = Request(self.slots.take())
        request = self.requests[name]
        for position in range(request.num_computed, request.num_computed + len(tokens)):
            if position // BLOCK_TOKENS == len(request.full):
                request.full.append(self.full.take())
            if position // SWA_BLOCK_TOKENS not in request.swa:
                request.swa[position // SWA_BLOCK_TOKENS] = self.swa.take()
        request.num_computed += len(tokens)
        return request

    def _slide(self, request: Request) -> None:
        """The next query sees the last `window` positions, itself included."""
        lowest = max(0, request.num_computed - self.window + 1) // SWA_BLOCK_TOKENS
        for block in [b for b in request.swa if b < lowest and len(request.swa) > 1]:
            self.swa.give_back([request.swa.pop(block)])

    @staticmethod
    def _swa_slot(request: Request, position: int) -> int:
        return request.swa[position // SWA_BLOCK_TOKENS] * SWA_BLOCK_TOKENS + position % SWA_BLOCK_TOKENS


def _last(end: int, count: int) -> range:
    return range(end - count, end)


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _table(rows: list[list[int]]) -> Tensor:
    """Rows padded with the poison block, at least one column wider than needed."""
    width = 1 + max((len(row) for row in rows), default=0)
    padded = [row + [0] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int32).view(len(rows), width)


def chunks(tokens: Sequence[int], sizes: Iterable[int]) -> list[Sequence[int]]:
    """tokens cut into pieces of these sizes, then one by one."""
    found: list[Sequence[int]] = []
    first = 0
    for size in sizes:
        found.append(tokens[first : first + size])
        first += size
    found += [[t] for t in tokens[first:]]
    return [piece for piece in found if len(piece)]


def make_caches(
    config: ModelConfig, numerics: Numerics, planner: Planner, num_draft_layers: int = 0, draft_tokens: int = 0
) -> Caches:
    """Caches as large as the planner's pools, every row of them poisoned: a read of what was not written shows."""
    caches = allocate(
        config,
        numerics,
        num_full_blocks=planner.full.count,
        num_swa_blocks=planner.swa.count,
        num_slots=planner.slots.count,
        num_draft_layers=num_draft_layers,
        draft_tokens=draft_tokens,
    )
    for layer in caches.layers:
        for pool in (layer.swa, layer.c4, layer.index, layer.c128):
            if pool is not None:
                pool.fill_(0xFF)
        for state in (layer.c4_state, layer.index_state, layer.c128_state):
            if state is not None:
                state.fill_(torch.nan)
    return caches


def raw_rows(pool: Tensor, slots: Sequence[int], layout: Layout) -> Tensor:
    """The stored bytes of these rows, data and scales: [len(slots), row bytes] uint8."""
    n, data, scale = layout.page_rows, layout.data_bytes, layout.scale_bytes
    at = torch.tensor(slots, dtype=torch.int64)
    block, offset = (at // n)[:, None], (at % n)[:, None]
    values = pool[block, offset * data + torch.arange(data)]
    return torch.cat((values, pool[block, n * data + offset * scale + torch.arange(scale)]), 1)


def owned(planner: Planner, caches: Caches, name: str) -> dict[str, Tensor]:
    """Everything that a later step of this request may read, by layer and kind, bit for bit."""
    request, layouts = planner.requests[name], caches.layouts
    end = request.num_computed
    window = range(max(0, end - planner.window + 1), end)
    found: dict[str, Tensor] = {}

    def entries(ratio: int) -> list[int]:
        rows = BLOCK_TOKENS // ratio
        return [request.full[e // rows] * rows + e % rows for e in range(end // ratio)]

    for i, layer in enumerate(caches.layers):
        found[f"{i} window"] = raw_rows(layer.swa, [planner._swa_slot(request, p) for p in window], layouts.swa)
        if layer.c4 is not None and layer.index is not None:
            found[f"{i} c4"] = raw_rows(layer.c4, entries(4), layouts.c4)
            found[f"{i} index"] = raw_rows(layer.index, entries(4), layouts.index)
            ring = [p % 8 for p in range(max(0, end // 4 * 4 - 4), end)]
            for kind, state in (("c4", layer.c4_state), ("index", layer.index_state)):
                assert state is not None
                found[f"{i} {kind} state"] = state[request.state_slot][ring].view(torch.int32)
        if layer.c128 is not None and layer.c128_state is not None:
            found[f"{i} c128"] = raw_rows(layer.c128, entries(128), layouts.c128)
            if end % 128:
                found[f"{i} c128 state"] = layer.c128_state[request.state_slot, 0].view(torch.int32)
    return found
