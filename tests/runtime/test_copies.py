"""What happens to blocks between steps: those to be zeroed hold nothing afterwards, and no other block changes."""

from __future__ import annotations

import torch
from tests.model.test_invariance import CONFIG
from torch import Tensor

from dsv4.model.caches import allocate
from dsv4.model.numerics import FLOAT32
from dsv4.runtime.copies import POOLS, zero_blocks

TO_ZERO = [("full", 2), ("swa", 1), ("swa", 5), ("state", 3), ("full", 4)]


def test_blocks_to_zero_are_zero_in_every_layer_and_the_others_are_as_they_were() -> None:
    caches = allocate(CONFIG, FLOAT32, num_full_blocks=4, num_swa_blocks=6, num_slots=3)
    seen = 0
    pools: list[tuple[str, Tensor]] = []
    for layer in caches.layers:
        for group, names in POOLS.items():
            pools += [(group, pool) for name in names if (pool := getattr(layer, name)) is not None]
    for _, pool in pools:
        pool.fill_(7 if pool.dtype == torch.uint8 else torch.nan)
    zero_blocks(caches, TO_ZERO)
    for group, pool in pools:
        zeroed = {block for other, block in TO_ZERO if other == group}
        for block in range(len(pool)):
            is_zero = not pool[block].any()  # NaN counts as something
            assert is_zero == (block in zeroed), (group, block)
            seen += 1
    assert seen > 70


def test_nothing_to_zero_changes_nothing() -> None:
    caches = allocate(CONFIG, FLOAT32, num_full_blocks=1, num_swa_blocks=1, num_slots=1)
    before = [layer.swa.clone() for layer in caches.layers]
    zero_blocks(caches, [])
    assert all(torch.equal(layer.swa, old) for layer, old in zip(caches.layers, before, strict=True))
