"""What happens to blocks and slots between steps.

Compressor state between a request's slot and a window checkpoint's is copied whole, over all layers:

restore:  checkpoint ─▶ request, before the kernels of the request's first step
save:     request ─▶ checkpoint, after the kernels of the step whose last token ends at the boundary
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dsv4.model.caches import Caches


def copy_state(caches: Caches, sources: Tensor, targets: Tensor) -> None:
    """Copies the slots `sources` ([n] int32) of every state pool over the slots `targets`; no slot is in both."""
    device = caches.layers[0].swa.device
    source, target = sources.to(device).long(), targets.to(device).long()
    for layer in caches.layers:
        for pool in (layer.c4_state, layer.index_state, layer.c128_state):
            if pool is not None:
                pool[target] = pool[source]


POOLS = {
    "full": ("c4", "index", "c128"),
    "swa": ("swa",),
    "state": ("c4_state", "index_state", "c128_state"),
}
"""The pools of each group of the core."""


@torch.inference_mode()
def zero_blocks(caches: Caches, blocks: Iterable[tuple[str, int]]) -> None:
    """Fills blocks, given as (group, id), with zeros in every pool of their group, over all layers."""
    ids: dict[str, list[int]] = {}
    for group, block in blocks:
        ids.setdefault(group, []).append(block)
    for group, of_group in ids.items():
        where = torch.tensor(of_group, device=caches.layers[0].swa.device)
        for layer in caches.layers:
            for name in POOLS[group]:
                pool: Tensor | None = getattr(layer, name)
                if pool is not None:
                    pool[where] = 0
