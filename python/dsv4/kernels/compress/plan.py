"""Which rows a step compresses and where they come from: small int32 tables, computed once and shared by all layers.

Everything is made of array operations on the device, so a captured step can make its plan inside the graph; numbers of
rows are the callers' (padded entries have token -1 and do nothing). Building it twice gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.kernels.contract import expect

C4_ROWS = 8
C128_ROWS = 128


@dataclass(frozen=True, slots=True)
class Requests:
    """The arrays of a step that a plan is made of. T tokens, B requests.

    positions, token_rows          [T] int32
    query_starts                   [B + 1] int32
    state_slots, state_resets      [B] int32
    state_banks                    [B] int32: the bank that each request's C128 state is read from; None: bank 0
    bank_writes                    [T] int32: the bank that takes the state behind a token, -1: none. The last tokens of
                                   a request have 0, 1, ..; None: the last token alone has one
    ring                           rows of a C4 state, a multiple of 8
    banks                          copies of a C128 state
    """

    positions: Tensor
    token_rows: Tensor
    query_starts: Tensor
    state_slots: Tensor
    state_resets: Tensor
    state_banks: Tensor | None = None
    bank_writes: Tensor | None = None
    ring: int = C4_ROWS
    banks: int = 1


@dataclass(frozen=True, slots=True)
class C4Plan:
    """n closing groups (their last tokens) and T tokens.

    entries  [n, 4] int32: last token (-1: none), first token of its request, state slot (-1: nothing precedes) and
             position of the last token
    slots    [n] int64: where the C4 row and the index row go
    cos, sin [n, 32] float32, of the position of the group's first token
    kept     [B, ring, 2] int32: the last tokens of each request, latest first (-1: none), and the state row, slot x
             ring + position % ring, that each is kept in
    """

    entries: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    kept: Tensor


@dataclass(frozen=True, slots=True)
class C128Plan:
    """n runs that close a group, in the order of the step's entries, then one run per request for what stays open.

    closing  [n, 4] int32: first token (-1: none), tokens, place of the first in its group, state row, slot x banks +
             bank (-1: it begins empty)
    slots    [n] int64, cos, sin [n, 32] float32: of the entries
    open     [B, 6] int32: as `closing`, the run ending with the first token whose state is kept (no tokens where that
             one closes a group); the state row that takes it; and how many tokens follow whose states go to the rows
             behind that
    """

    closing: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    open: Tensor
    banks: int = 1


def _angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    angle = positions.float()[:, None] * frequencies
    return angle.cos(), angle.sin()


def _precedes(at: Requests, rows: Tensor) -> Tensor:
    """The state slots of requests `rows`, -1 where nothing precedes this step."""
    return torch.where(at.state_resets[rows] != 0, -1, at.state_slots[rows])


def _bank_before(at: Requests, rows: Tensor) -> Tensor:
    """The rows of C128 states before requests `rows`, -1 where nothing precedes this step."""
    row = at.state_slots[rows] * at.banks
    if at.state_banks is not None:
        row = row + at.state_banks[rows]
    return torch.where(at.state_resets[rows] != 0, -1, row)


def plan_c4(at: Requests, tokens: Tensor, slots: Tensor, frequencies: Tensor) -> C4Plan:
    """From the step's closing tokens [n] and where their rows go [n]; frequencies [32] of the compressed table."""
    expect(len(tokens) == len(slots), f"{len(tokens)} closing tokens, {len(slots)} slots")
    closing = tokens.clamp_min(0).long()
    rows = at.token_rows[closing].long()
    positions = at.positions[closing]
    entries = torch.stack((tokens, at.query_starts[rows], _precedes(at, rows), positions), 1).int().contiguous()
    cos, sin = _angles(positions - 3, frequencies)
    return C4Plan(entries, slots.long(), cos, sin, _kept_rows(at))


def _kept_rows(at: Requests) -> Tensor:
    """[B, ring, 2]: what the ring of each request holds after the step."""
    starts, ends = at.query_starts[:-1, None], at.query_starts[1:, None]
    tokens = ends - 1 - torch.arange(at.ring, device=ends.device, dtype=torch.int32)
    ring = at.positions[tokens.clamp_min(0).long()] % at.ring
    here = tokens >= starts
    kept = torch.stack((torch.where(here, tokens, -1), at.state_slots[:, None] * at.ring + ring), 2)
    return kept.int().contiguous()


def plan_c128(at: Requests, tokens: Tensor, slots: Tensor, frequencies: Tensor) -> C128Plan:
    """From the step's closing tokens [n] and where their rows go [n]; frequencies [32] of the compressed table."""
    expect(len(tokens) == len(slots), f"{len(tokens)} closing tokens, {len(slots)} slots")
    closing = tokens.clamp_min(0).long()
    rows = at.token_rows[closing].long()
    starts = at.query_starts[rows]
    first = torch.maximum(starts, tokens - (C128_ROWS - 1))
    place = C128_ROWS - 1 - (tokens - first)
    prior = torch.where(place > 0, _bank_before(at, rows), -1)
    runs = torch.stack((torch.where(tokens < 0, -1, first), tokens - first + 1, place, prior), 1).int().contiguous()
    cos, sin = _angles(at.positions[closing] - (C128_ROWS - 1), frequencies)
    return C128Plan(runs, slots.long(), cos, sin, _open_runs(at), at.banks)


def _open_runs(at: Requests) -> Tensor:
    """[B, 6]: the tokens of each request up to the first whose state is kept, and how many follow."""
    starts, ends = at.query_starts[:-1], at.query_starts[1:]
    rows = torch.arange(len(starts), device=starts.device)
    last = (ends - 1).clamp_min(0).long()
    more = torch.zeros_like(starts) if at.bank_writes is None else at.bank_writes[last].clamp_min(0)
    kept = (ends - 1 - more).clamp_min(0)
    pending = (at.positions[kept.long()] + 1) % C128_ROWS
    first = torch.maximum(starts, kept + 1 - pending)
    none = (ends <= starts) | ((pending == 0) & (more == 0))
    count = kept + 1 - first
    place = torch.where(pending == 0, 0, pending - count)
    prior = torch.where(place > 0, _bank_before(at, rows), -1)
    runs = (torch.where(none, -1, first), count, place, prior, at.state_slots * at.banks, more)
    return torch.stack(runs, 1).int().contiguous()
