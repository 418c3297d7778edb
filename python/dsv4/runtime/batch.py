"""The lent step buffer: the core writes the arrays of a step into it, the model reads them there. Nothing is copied.

    Core.plan(buffer.memory) ──fills──▶ [ token_ids | positions | ... ]  ◀──views── StepInputs

One buffer belongs to one step in flight: the core may fill it again only after that step was reported done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4._core import Field, Plan
from dsv4.errors import Violation
from dsv4.model.inputs import StepInputs
from dsv4.runtime.step import aligned_memory

_LENGTHS: dict[str, str] = {  # array -> the scalar of the plan that says how much of it a step uses
    "token_ids": "num_tokens",
    "positions": "num_tokens",
    "token_rows": "num_tokens",
    "query_starts": "num_requests + 1",
    "seq_lens": "num_requests",
    "block_table_full": "num_requests",
    "block_table_swa": "num_requests",
    "swa_first_block": "num_requests",
    "swa_slots": "num_tokens",
    "state_slots": "num_requests",
    "state_resets": "num_requests",
    "c4_tokens": "num_c4",
    "c4_slots": "num_c4",
    "c128_tokens": "num_c128",
    "c128_slots": "num_c128",
    "sample_tokens": "num_samples",
    "state_banks": "num_requests",
    "bank_writes": "num_tokens",
}


RESTORE, SAVE = "restore", "save"


class Layout(Protocol):
    """The part of a core that a buffer needs."""

    @property
    def step_fields(self) -> list[Field]:
        """The arrays of a step."""

    @property
    def step_bytes(self) -> int:
        """Their size together."""


class StepBuffer:
    """Memory for one step, and views of it.

    memory   int32, contiguous, aligned to 64 bytes: what `Core.plan` fills
    """

    def __init__(self, layout: Layout) -> None:
        array = aligned_memory(layout.step_bytes)
        self.memory = array.data
        self._arrays = views(array, layout.step_fields)
        self._copies = copy_views(array, layout.step_fields)
        self._sources = source_view(array, layout.step_fields)

    def forward_tokens(self, plan: Plan, sampled: Sequence[int]) -> None:
        """Writes the ids that were not known when the step was planned: `sampled` are those of the step before."""
        if not plan.num_forwarded:
            return
        sources = self._sources[: plan.num_tokens]
        forwarded = sources >= 0
        tokens = torch.tensor(sampled, dtype=torch.int32)
        self._arrays["token_ids"][: plan.num_tokens][forwarded] = tokens[sources[forwarded].long()]

    def inputs(self, plan: Plan) -> StepInputs:
        """The arrays of the step that was planned into this buffer, as tensors over the same memory."""
        return StepInputs(**{name: array[: length_of(name, plan)] for name, array in self._arrays.items()})

    def copies(self, when: str, count: int) -> tuple[Tensor, Tensor]:
        """Slots of the state pools to copy, sources and targets: int32 [count] each.

        when   RESTORE, before the step's kernels, or SAVE, after them
        """
        sources, targets = self._copies[when]
        return sources[:count], targets[:count]


def copy_views(memory: NDArray[np.int32], step_fields: Sequence[Field]) -> dict[str, tuple[Tensor, Tensor]]:
    """Sources and targets of restores and of saves; none for a layout without them."""
    by_name = {field.name: field for field in step_fields}
    whole = torch.from_numpy(memory)

    def view(name: str) -> Tensor:
        field = by_name.get(name)
        return whole[:0] if field is None else whole[field.offset // 4 :][: field.shape[0]]

    return {when: (view(f"{when}_sources"), view(f"{when}_targets")) for when in (RESTORE, SAVE)}


def source_view(memory: NDArray[np.int32], step_fields: Sequence[Field]) -> Tensor:
    """Which sample of the step before each token is, [T]; none for a layout without forwarded tokens."""
    whole = torch.from_numpy(memory)
    for field in step_fields:
        if field.name == "token_sources":
            return whole[field.offset // 4 :][: field.shape[0]]
    return whole[:0]


def views(memory: NDArray[np.int32], step_fields: Sequence[Field]) -> dict[str, Tensor]:
    """Every array of StepInputs at its full capacity. Raises Violation where the core's layout lacks one."""
    whole = torch.from_numpy(memory)
    found = {}
    by_name = {field.name: field for field in step_fields}
    for item in fields(StepInputs):
        field = by_name.get(item.name)
        if field is None:
            raise Violation(f"the core's step layout has no array {item.name!r}; it has {sorted(by_name)}")
        start = field.offset // 4
        count = int(np.prod(field.shape))
        found[item.name] = whole[start : start + count].view(field.shape)
    return found


def length_of(name: str, plan: object) -> int:
    """How many leading entries of an array a step uses. plan: its numbers."""
    scalar, _, more = _LENGTHS[name].partition(" + ")
    used: int = getattr(plan, scalar)
    return used + int(more or 0)
