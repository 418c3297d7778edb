"""The experts' CUDA kernel on the CPU's emulator, and its arithmetic written a second time."""

from __future__ import annotations

import ctypes
import functools

import pytest
import torch
from tests.kernels.cuda.emulate import Grid, emulate, tensor_map
from tests.kernels.moe import cases
from torch import Tensor

from dsv4.kernels.moe import hopper
from dsv4.kernels.moe.experts import Chosen
from dsv4.kernels.moe.fold import Folded
from dsv4.kernels.moe.permute import Blocks
from dsv4.kernels.moe.place import PAIRS, Placed
from dsv4.kernels.moe.weights import Experts, empty_experts, put

NAN_BYTE = 0x7F


def pack(at: cases.Checkpoint) -> Experts:
    """A checkpoint's experts in `fp8` order."""
    packed = empty_experts(len(at.w1), at.w1.shape[2] * 2, at.w1.shape[1], "fp8", at.w1.device)
    for e in range(len(at.w1)):
        for name in ("w1", "w2", "w3"):
            put(packed, e, name, getattr(at, name)[e], getattr(at, f"{name}_scale")[e])
    return packed


def ragged(counts: list[int]) -> Blocks:
    """Blocks of experts with so many pairs, pairs in random order, and one block that nobody needs."""
    pairs, order, expert = torch.randperm(sum(counts)).int(), list[Tensor](), list[int]()
    for e, count in enumerate(counts):
        mine, blocks = pairs[:count], -(-count // PAIRS)
        order.append(torch.cat((mine, mine.new_full((blocks * PAIRS - count,), -1))))
        expert += [e] * blocks
        pairs = pairs[count:]
    unused = torch.full((PAIRS,), 12345, dtype=torch.int32)
    return Blocks(torch.cat((*order, unused)), torch.tensor([*expert, -1], dtype=torch.int32), PAIRS)


def there(blocks: Blocks) -> Tensor:
    """Whether a place has a pair."""
    return (blocks.order >= 0) & (blocks.expert >= 0).repeat_interleave(PAIRS)


def in_places(x: Tensor, *, back: bool = False) -> Tensor:
    """Numbers [.., places] in the order of `Placed.scales`, written a second time; or back."""
    columns = [[8 * k + 2 * q + j for k in range(4) for j in range(2)] for q in range(4)]
    order = torch.tensor(columns).flatten()
    from_place = torch.cat([order + first for first in range(0, x.shape[-1], 32)])
    return x[..., from_place.argsort() if back else from_place].contiguous()


def placed(blocks: Blocks, K: int, weights: Tensor | None = None) -> Placed:
    """Random rows; where there is no pair everything is NaN."""
    places, empty = len(blocks.order), ~there(blocks)
    values = (torch.randn(places, K) * 20).to(torch.float8_e4m3fn).view(torch.uint8)
    values[empty] = NAN_BYTE
    scales = torch.randint(-6, 7, (K // 128, places)).float().exp2()
    scales[:, empty] = torch.nan
    return Placed(values, in_places(scales.bfloat16()), weights)


def run(
    kernels: ctypes.CDLL,
    rows: Placed,
    weight: Folded,
    blocks: Blocks,
    out: Tensor,
    limit: float = 0.0,
    *,
    grid: int = 4,
    seed: int = 0,
    eager: bool = False,
) -> Tensor:
    """Fills `out`, of which nothing else is written."""
    last = blocks.order if rows.weights is None else rows.weights
    maps = (
        tensor_map(rows.values, hopper.BOX_PAIRS),
        tensor_map(weight.tiles.view(-1, 128), hopper.BOX_TILE),
        tensor_map(rows.scales.view(torch.uint8).view(-1, 128), hopper.BOX_SCALES),
        tensor_map(last.view(torch.uint8).view(-1, 128), hopper.BOX_LAST),
    )
    arguments = hopper.arguments_of(maps, weight, blocks, out, limit)
    num_blocks = min(grid, hopper.num_blocks(blocks, weight.shape[1], 132))
    emulate(
        kernels, "grouped_up" if weight.gated else "grouped_down", arguments,
        Grid(num_blocks, hopper.THREADS, hopper.SHARED_BYTES, hopper.CLUSTER),
        [rows.values, rows.scales, last, blocks.order, blocks.expert], [out], constants=[weight.tiles, weight.scale],
        seed=seed, eager=eager, early=True,
    )  # fmt: skip
    return out


def emulated_experts(kernels: ctypes.CDLL, x: Tensor, chosen: Chosen, weights: hopper.FoldedExperts) -> Tensor:
    """`hopper.experts` with emulated launches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "launch", functools.partial(run, kernels))
        return hopper.experts(x, chosen, weights, limit=cases.LIMIT)


def products(rows: Placed, dense: Tensor, blocks: Blocks) -> Tensor:
    """float32 [places, N]: rows times dense [E, N, K] of their experts, with the kernel's sums: a power of two of the
    weight changes no bit of them.
    """
    places, K = rows.values.shape
    values, scales = rows.values.view(torch.float8_e4m3fn).float(), in_places(rows.scales.float(), back=True)
    out = torch.full((places, dense.shape[1]), torch.nan)
    for block, e in enumerate(blocks.expert.tolist()):
        if e < 0:
            continue
        part = slice(block * PAIRS, (block + 1) * PAIRS)
        out[part] = 0
        for step in range(K // 128):
            dot = torch.zeros(PAIRS, dense.shape[1])
            for k in range(step * 128, step * 128 + 128):
                dot += values[part, k : k + 1] * dense[e, :, k]
            out[part] += dot * scales[step, part, None]
    return out
