# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""Pairs (token, choice) in order of expert, in blocks of one expert each, without a word to the host.

    ids [T, K]  -->  order [blocks x BN]   pair t K + j of each place, -1 where a block is not full
                     expert [blocks]       the expert of each block, -1 beyond the last one
                     places [T K]          where each pair is, -1 where its id is no expert; for who asks

One program per expert counts all ids (so it knows how many blocks lie before its own) and then writes its own pairs, in
ascending order; where pairs are many, a launch before counts them, one expert per program. `blocks` is the most there
can be for T tokens; programs of blocks that are not there end at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dsv4.kernels.contract import expect


class Blocks(NamedTuple):
    """order int32 [most blocks x size], expert int32 [most blocks]; size is the pairs of a block, a power of two.

    places  int32 [pairs], the other way round
    """

    order: Tensor
    expert: Tensor
    size: int
    places: Tensor | None = None


def most_blocks(num_pairs: int, E: int, size: int) -> int:
    """The most blocks that `num_pairs` pairs of E experts can need: every expert's last block holds one pair."""
    return (num_pairs + min(E, num_pairs) * (size - 1)) // size


MANY = 4096  # pairs from which on they are counted by a launch of their own


@triton.jit
def _count(ids_ptr, counts_ptr, num_pairs, CHUNK: tl.constexpr, PDL: tl.constexpr):
    """Grid (E)."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    lane = tl.arange(0, CHUNK)
    found = tl.zeros([CHUNK], tl.int32)
    for first in range(0, num_pairs, CHUNK):
        ids = tl.load(ids_ptr + first + lane, mask=first + lane < num_pairs, other=-1)
        found += (ids == tl.program_id(0)).to(tl.int32)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(found))


@triton.jit
def _permute(
    ids_ptr,
    counts_ptr,
    order_ptr,
    expert_ptr,
    places_ptr,
    num_pairs,
    most,
    E: tl.constexpr,
    BINS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    COUNTED: tl.constexpr,
    PLACES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (E). BINS is a power of two > E; bin E takes the ids that are no expert."""
    e = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    lane = tl.arange(0, CHUNK)
    bins = tl.arange(0, BINS)
    if COUNTED:
        counts = tl.load(counts_ptr + bins, mask=bins < E, other=0)
    else:
        counts = tl.zeros([BINS], tl.int32)
        for first in range(0, num_pairs, CHUNK):
            ids = tl.load(ids_ptr + first + lane, mask=first + lane < num_pairs, other=-1)
            counts += tl.histogram(tl.where((ids >= 0) & (ids < E), ids, E), BINS)
    blocks = tl.where(bins < E, (counts + SIZE - 1) // SIZE, 0)
    first_block = tl.sum(tl.where(bins < e, blocks, 0))
    num_blocks = tl.sum(tl.where(bins == e, blocks, 0))
    mine = tl.sum(tl.where(bins == e, counts, 0))
    place = first_block * SIZE
    for first in range(0, num_pairs, CHUNK):
        pairs = first + lane
        ids = tl.load(ids_ptr + pairs, mask=pairs < num_pairs, other=-1)
        is_mine = ids == e
        rank = tl.cumsum(is_mine.to(tl.int32), 0)
        tl.store(order_ptr + place + rank - 1, pairs, mask=is_mine)
        if PLACES:
            tl.store(places_ptr + pairs, place + rank - 1, mask=is_mine)
            if e == 0:
                tl.store(places_ptr + pairs, -1, mask=(pairs < num_pairs) & ((ids < 0) | (ids >= E)))
        place += tl.max(rank)
    for first in range(mine, num_blocks * SIZE, CHUNK):
        tl.store(order_ptr + first_block * SIZE + first + lane, -1, mask=first + lane < num_blocks * SIZE)
    for first in range(0, num_blocks, CHUNK):
        tl.store(expert_ptr + first_block + first + lane, e, mask=first + lane < num_blocks)
    if e == E - 1:
        for first in range(first_block + num_blocks, most, CHUNK):
            tl.store(expert_ptr + first + lane, -1, mask=first + lane < most)


def permute(ids: Tensor, E: int, size: int, *, places: bool = False) -> Blocks:
    """Blocks of `size` pairs of one expert each.

    ids   int32 [T, K]; an id outside 0..E (padding, another rank's expert) is in no block
    places  whether to say where each pair is
    cost  4 T K bytes, read by E programs from the L2 cache; one launch, two from 4,097 pairs on
    """
    expect(ids.dtype is torch.int32 and ids.is_contiguous(), f"ids are {ids.dtype} {tuple(ids.shape)}")
    expect(size & (size - 1) == 0, f"blocks of {size}")
    most = most_blocks(ids.numel(), E, size)
    order = torch.empty(most * size, dtype=torch.int32, device=ids.device)
    expert = torch.empty(most, dtype=torch.int32, device=ids.device)
    of_pairs = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device) if places else None
    pairs, pdl, counts = ids.numel(), ids.is_cuda, expert
    if pairs > MANY:
        counts = torch.empty(E, dtype=torch.int32, device=ids.device)
        _count[(E,)](ids, counts, pairs, CHUNK=4096, PDL=pdl, num_warps=8, launch_pdl=pdl)
    if pairs:
        chunk = min(2048, max(64, triton.next_power_of_2(pairs)))
        _permute[(E,)](
            ids, counts, order, expert, of_pairs if places else order, pairs, most,
            E=E, BINS=triton.next_power_of_2(E + 1), SIZE=size, CHUNK=chunk,
            COUNTED=pairs > MANY, PLACES=places, PDL=pdl, num_warps=4 if chunk <= 512 else 8, launch_pdl=pdl,
        )  # fmt: skip
    return Blocks(order, expert, size, of_pairs)
