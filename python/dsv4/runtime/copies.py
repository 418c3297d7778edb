"""Compressor state between a request's slot and a window checkpoint's: copied whole, over all layers.

restore:  checkpoint ─▶ request, before the kernels of the request's first step
save:     request ─▶ checkpoint, after the kernels of the step whose last token ends at the boundary
"""

from __future__ import annotations

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
