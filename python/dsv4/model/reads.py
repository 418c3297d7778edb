"""Which rows each query of a step reads and writes: index arithmetic over the step's arrays, once for all layers.

Queries are handled in groups. A request with several tokens in the step makes groups of its own, whose queries share
their keys; the requests with one token each are grouped together, every query with keys of its own:

    prefill  a a a a a a a a  ->  [a a a a] [a a a a]      k = 1 set of keys, n queries
    decode   b, c, d          ->  [b c d]                  k = n sets of keys

Keys are laid out in blocks that are aligned to the positions of the request, so that a query meets the same blocks in
every group it may land in. Where there is no row, another row of the group is read in its place and no query sees it:
poison blocks and rows that were never written are not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dsv4.kernels.attention.reference import KEY_BLOCK
from dsv4.kernels.cache import reference as cache
from dsv4.kernels.cache.reference import Layout
from dsv4.model.caches import BLOCK_TOKENS, SWA_BLOCK_TOKENS
from dsv4.model.inputs import StepInputs

MAX_SHARED_QUERIES = 64
MAX_SINGLE_QUERIES = 32


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a paged pool for k sets of keys, M places each, M a multiple of KEY_BLOCK.

    slots    [k, M] int64
    visible  [n, M] bool: which places each query reads
    most     the largest number of rows that a query sees is at most this
    """

    slots: Tensor
    visible: Tensor
    most: int

    def gather(self, pool: Tensor, layout: Layout) -> Tensor:
        """float32 [k, M, D]."""
        return cache.gather(pool, self.slots.flatten(), layout).view(*self.slots.shape, layout.dim)


@dataclass(frozen=True, slots=True)
class Group:
    """n queries of a step and the rows they may read.

    tokens    [n] int64, indices in 0..T
    window    rows of the sliding window
    entries   ratio -> compressed rows, entry e of the request in place e
    """

    tokens: Tensor
    window: Rows
    entries: dict[int, Rows]


def _places(last: Tensor, first_block: Tensor) -> Tensor:
    """Positions [k, M] of whole key blocks that reach from first_block [k] to position last [k] of every set."""
    num_blocks = int((last // KEY_BLOCK - first_block).max()) + 1
    return first_block[:, None] * KEY_BLOCK + torch.arange(num_blocks * KEY_BLOCK, device=last.device)


def _in_table(table: Tensor, block: Tensor, offset: Tensor, rows: int, exists: Tensor) -> Tensor:
    """Slots: table [k, F] at block [k, M] times rows per block plus offset; where no row exists, one that does."""
    slots = table.gather(1, block.where(exists, 0)) * rows + offset
    return slots.where(exists, slots[exists][0])


def _window(inputs: StepInputs, requests: Tensor, first: Tensor, last: Tensor, t: Tensor, window: int) -> Rows:
    """Rows of positions first - window + 1 ..= last of each request, for queries at t [n]."""
    low = (first - window + 1).clamp_min(0)
    at = _places(last, low // KEY_BLOCK)
    exists = (at >= low[:, None]) & (at <= last[:, None])
    table = inputs.block_table_swa[requests].long()
    block = at // SWA_BLOCK_TOKENS - inputs.swa_first_block[requests].long()[:, None]
    slots = _in_table(table, block, at % SWA_BLOCK_TOKENS, SWA_BLOCK_TOKENS, exists)
    return Rows(slots, (at <= t[:, None]) & (at > t[:, None] - window), window)


def _entries(inputs: StepInputs, requests: Tensor, last: Tensor, t: Tensor, ratio: int) -> Rows | None:
    """Compressed rows of each request; an entry is visible from the token that closes it on. None: there is none."""
    count = (last + 1) // ratio
    most = int(count.max())
    if not most:
        return None
    at = _places(torch.full_like(count, most - 1), torch.zeros_like(count))
    exists, page_rows = at < count[:, None], BLOCK_TOKENS // ratio
    table = inputs.block_table_full[requests].long()
    slots = _in_table(table, at // page_rows, at % page_rows, page_rows, exists)
    return Rows(slots, at < (t[:, None] + 1) // ratio, most)


def query_groups(inputs: StepInputs, positions: Tensor, window: int, ratios: set[int]) -> list[Group]:
    """Every token of the step in exactly one group. positions [T] int64; ratios: those that have compressed rows."""
    starts = inputs.query_starts.tolist()
    requests = [(b, first, end) for b, (first, end) in enumerate(pairwise(starts))]
    singles = [(b, first) for b, first, end in requests if end - first == 1]
    spans = [
        (b, i, min(i + MAX_SHARED_QUERIES, end))
        for b, first, end in requests
        if end - first > 1
        for i in range(first, end, MAX_SHARED_QUERIES)
    ]
    device = positions.device

    def group(requests: list[int], tokens: Tensor, first: Tensor, last: Tensor) -> Group:
        of, t = torch.tensor(requests, device=device), positions[tokens]
        rows = {ratio: _entries(inputs, of, last, t, ratio) for ratio in sorted(ratios)}
        found = {ratio: r for ratio, r in rows.items() if r is not None}
        return Group(tokens, _window(inputs, of, first, last, t, window), found)

    groups = []
    for b, first, end in spans:
        tokens = torch.arange(first, end, device=device)
        groups.append(group([b], tokens, positions[first : first + 1], positions[end - 1 : end]))
    for i in range(0, len(singles), MAX_SINGLE_QUERIES):
        part = singles[i : i + MAX_SINGLE_QUERIES]
        tokens = torch.tensor([token for _, token in part], device=device)
        groups.append(group([b for b, _ in part], tokens, positions[tokens], positions[tokens]))
    return groups


def chosen(rows: Rows, selected: Tensor) -> Rows:
    """The selected places only: for n queries with rows of their own. selected [n, K] int64, -1 for none."""
    return Rows(rows.slots.gather(1, selected.clamp_min(0)), selected >= 0, selected.shape[1])
