"""The arrays of a step on the device: pinned memory that the core fills, one copy, views. Addresses never move."""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsv4._core import Field, Plan
from dsv4.model.caches import Caches
from dsv4.model.gpu.step import Bounds
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.runtime.batch import Layout, length_of
from dsv4.runtime.step import ALIGN_BYTES

IDLE = {
    "seq_lens": 0,
    "swa_first_block": 0,
    "swa_slots": -1,
    "state_slots": 0,
    "state_resets": 1,
    "c4_tokens": -1,
    "c4_slots": 0,
    "c128_tokens": -1,
    "c128_slots": 0,
    "sample_tokens": 0,
    "state_banks": 0,
    "bank_writes": -1,
}
"""What a row that pads a step holds: a request of no tokens, since `query_starts` end with the real ones; a token that
stores nothing, closes nothing and is sampled for nobody."""

FIRST = ("token_ids", "positions", "token_rows")
"""Of the first real token, in each that pads the step: it reads what that one reads, and goes to the same experts."""


class GpuNetwork(Protocol):
    """The part of a model that a runner needs."""

    device: torch.device

    def forward(self, inputs: StepInputs, caches: Caches, bounds: Bounds) -> StepOutput:
        """Its logits are [R, V] float32, those of the sampled rows."""


class _Nobody:
    """The numbers of a step of no requests."""

    num_tokens = num_requests = num_samples = num_c4 = num_c128 = 0


class StepMemory:
    """The arrays of one step: pinned, where the core writes them, and on the device, where kernels read them.

    there  the device's part, which steps share: they are copied and run one after the other
    """

    def __init__(self, layout: Layout, device: torch.device, there: Tensor | None = None) -> None:
        words = layout.step_bytes // 4
        pinned = torch.zeros(words + ALIGN_BYTES // 4, dtype=torch.int32, pin_memory=device.type == "cuda")
        start = -pinned.data_ptr() % ALIGN_BYTES // 4
        self._host = pinned[start : start + words]
        self.there = torch.zeros(words, dtype=torch.int32, device=device) if there is None else there
        self._fields = {field.name: field for field in layout.step_fields}

    @property
    def memory(self) -> memoryview:
        """Lent to `Core.plan`."""
        return self._host.numpy().data

    def send(self) -> None:
        """Copies everything to the device: one copy, in the order of the stream."""
        self.there.copy_(self._host, non_blocking=True)

    def array(self, name: str, length: int) -> Tensor:
        """The used part of an array, on the device."""
        return _view(self.there, self._fields[name])[:length]

    def inputs(self, plan: Plan) -> StepInputs:
        """The arrays of the step on the device."""
        names = [item.name for item in fields(StepInputs)]
        return StepInputs(**{name: self.array(name, length_of(name, plan)) for name in names})

    def padded_inputs(self, rows: int) -> StepInputs:
        """The same for a step of one token for each of `rows` requests, idle ones included."""
        names = [item.name for item in fields(StepInputs)]
        return StepInputs(**{name: self.array(name, self._padded(name, rows)) for name in names})

    def pad(self, plan: Plan | type[_Nobody], rows: int) -> None:
        """Writes idle rows behind those of a step of one token per request; before it is sent."""
        for name, value in IDLE.items():
            _view(self._host, self._fields[name])[length_of(name, plan) : self._padded(name, rows)] = value
        for name in FIRST:
            array = _view(self._host, self._fields[name])
            array[plan.num_tokens : rows] = array[0] if plan.num_tokens else 0
        _view(self._host, self._fields["query_starts"])[plan.num_requests : rows + 1] = plan.num_tokens

    def idle(self, rows: int) -> None:
        """Writes a step of idle rows alone, which read the poison block and nothing else."""
        self.pad(_Nobody, rows)
        for name in ("block_table_full", "block_table_swa"):
            _view(self._host, self._fields[name])[:1] = 0
        self._host[-2:] = 0  # the tables are no longer as the core left them: it clears them, and writes all it needs

    def bounds(self, plan: Plan) -> Bounds:
        """How far the requests of the step reach, from the host's copy."""
        starts = _view(self._host, self._fields["query_starts"])[: plan.num_requests + 1].numpy()
        return Bounds(plan.max_seq_len, int(np.diff(starts).max(initial=0)))

    def _padded(self, name: str, rows: int) -> int:
        """Entries of an array in a step of so many requests, each of which may close a group; not beyond its room."""
        return min(rows + (name == "query_starts"), self._fields[name].shape[0])


def _view(words: Tensor, field: Field) -> Tensor:
    start = field.offset // 4
    return words[start : start + int(np.prod(field.shape))].view(field.shape)
