"""`run(plan)` on one GPU: one copy there, the kernels of the step, one copy back.

Core.plan(memory) ──▶ pinned int32 ──copy──▶ device ──views──▶ StepInputs ──▶ model ──▶ sampler ──▶ tokens
"""

from __future__ import annotations

from collections.abc import Sequence
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
from dsv4.runtime.copies import copy_state, zero_blocks
from dsv4.runtime.gpu.sample import GpuSampler
from dsv4.runtime.step import ALIGN_BYTES, Draw, StepResult


class GpuNetwork(Protocol):
    """The part of a model that a runner needs."""

    device: torch.device

    def forward(self, inputs: StepInputs, caches: Caches, bounds: Bounds) -> StepOutput:
        """Its logits are [R, V] float32, those of the sampled rows."""


class StepMemory:
    """The arrays of one step: pinned, where the core writes them, and on the device, where kernels read them."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        words = layout.step_bytes // 4
        pinned = torch.zeros(words + ALIGN_BYTES // 4, dtype=torch.int32, pin_memory=device.type == "cuda")
        start = -pinned.data_ptr() % ALIGN_BYTES // 4
        self._host = pinned[start : start + words]
        self._there = torch.zeros(words, dtype=torch.int32, device=device)
        self._fields = {field.name: field for field in layout.step_fields}

    @property
    def memory(self) -> memoryview:
        """Lent to `Core.plan`."""
        return self._host.numpy().data

    def send(self) -> None:
        """Copies everything to the device: one copy, in the order of the stream."""
        self._there.copy_(self._host, non_blocking=True)

    def array(self, name: str, length: int) -> Tensor:
        """The used part of an array, on the device."""
        return _view(self._there, self._fields[name])[:length]

    def inputs(self, plan: Plan) -> StepInputs:
        """The arrays of the step on the device."""
        names = [item.name for item in fields(StepInputs)]
        return StepInputs(**{name: self.array(name, length_of(name, plan)) for name in names})

    def bounds(self, plan: Plan) -> Bounds:
        """How far the requests of the step reach, from the host's copy."""
        starts = _view(self._host, self._fields["query_starts"])[: plan.num_requests + 1].numpy()
        return Bounds(plan.max_seq_len, int(np.diff(starts).max(initial=0)))


def _view(words: Tensor, field: Field) -> Tensor:
    start = field.offset // 4
    return words[start : start + int(np.prod(field.shape))].view(field.shape)


class GpuRunner:
    """Turns plans into tokens on one GPU.

    max_rows   most samples of one step
    """

    def __init__(
        self, network: GpuNetwork, caches: Caches, layout: Layout, *, max_rows: int, vocab_size: int, num_steps: int = 1
    ) -> None:
        self._network: GpuNetwork | None = network
        self._caches: Caches | None = caches
        self._steps = [StepMemory(layout, network.device) for _ in range(num_steps)]
        self._sampled = torch.zeros(max_rows, dtype=torch.int32, device=network.device)
        self._sampler = GpuSampler(max_rows, vocab_size, network.device)

    @property
    def memories(self) -> Sequence[memoryview]:
        """Lent to `Core.plan`, in turn."""
        return [step.memory for step in self._steps]

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request was submitted."""
        self._sampler.requests.begin(request_id, draw)

    def end(self, request_id: int) -> None:
        """A request is over."""
        self._sampler.requests.end(request_id)

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepResult:
        """Runs the step that was planned into its memory and samples its rows."""
        if self._network is None or self._caches is None:
            raise RuntimeError("the runner was closed")
        step = self._steps[plan.step_id % len(self._steps)]
        step.send()
        inputs = step.inputs(plan)
        if plan.num_forwarded:
            sources = step.array("token_sources", plan.num_tokens)
            known = sources < 0
            inputs.token_ids.copy_(torch.where(known, inputs.token_ids, self._sampled[sources.clamp_min(0).long()]))
        self._sampled.zero_()  # should this step fail, its tokens are nobody's, but the next one names them
        if plan.num_restores:
            self._copy(step, "restore", plan.num_restores)
        logits = self._network.forward(inputs, self._caches, step.bounds(plan)).logits
        if plan.num_saves:
            self._copy(step, "save", plan.num_saves)
        result = self._sampler.sample(logits, plan.sample_request_ids, plan.sample_positions)
        self._sampled[: len(result.tokens)] = torch.tensor(result.tokens, dtype=torch.int32).to(self._sampled.device)
        return result

    def _copy(self, step: StepMemory, when: str, count: int) -> None:
        if self._caches is not None:
            copy_state(self._caches, step.array(f"{when}_sources", count), step.array(f"{when}_targets", count))

    def zero(self, blocks: Sequence[tuple[str, int]]) -> None:
        """Fills blocks, (group, id), with zeros; no step has them."""
        if self._caches is not None:
            zero_blocks(self._caches, blocks)

    def close(self) -> None:
        """Lets go of the model and of the pools."""
        self._network = None
        self._caches = None
