"""`run(plan)`: one step of the model on one device. The only caller of the model's forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from dsv4._core import Plan
from dsv4.model.caches import Caches
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.runtime.batch import RESTORE, SAVE, Layout, StepBuffer
from dsv4.runtime.copies import copy_state, zero_blocks
from dsv4.runtime.sample import Sampler
from dsv4.runtime.step import Draw, StepResult


class Network(Protocol):
    """The part of a model that a runner needs."""

    def forward(self, inputs: StepInputs, caches: Caches) -> StepOutput:
        """Its logits are [R, V] float32, those of the sampled rows."""


@contextlib.contextmanager
def threads(num_threads: int | None) -> Iterator[None]:
    """While inside, torch computes with so many threads; afterwards with as many as before, as its host chose them."""
    before = torch.get_num_threads()
    if num_threads is None or num_threads == before:
        yield
        return
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ModelRunner:
    """Turns plans into tokens.

    memories  what the core fills with the arrays of a step, one per step in flight
    network   the model; `caches` are the pools it reads and writes
    num_threads   threads of torch during a step; None leaves them as they are
    """

    def __init__(
        self, network: Network, caches: Caches, layout: Layout, *, num_threads: int | None = None, num_steps: int = 1
    ) -> None:
        self._network: Network | None = network
        self._caches: Caches | None = caches
        self._num_threads = num_threads
        self._buffers = [StepBuffer(layout) for _ in range(num_steps)]
        self._sampled: list[int] = []  # tokens of the step before
        self._sampler = Sampler()

    @property
    def memories(self) -> list[memoryview]:
        """Lent to `Core.plan`, in turn."""
        return [buffer.memory for buffer in self._buffers]

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request was submitted."""
        self._sampler.begin(request_id, draw)

    def end(self, request_id: int) -> None:
        """A request is over."""
        self._sampler.end(request_id)

    def run(self, plan: Plan) -> StepResult:
        """Runs the step that was planned into its memory and samples its rows."""
        if self._network is None or self._caches is None:
            raise RuntimeError("the runner was closed")
        buffer = self._buffers[plan.step_id % len(self._buffers)]
        buffer.forward_tokens(plan, self._sampled)
        # Should this step fail, its tokens are nobody's, but the next one names them.
        self._sampled = [0] * plan.num_samples
        with threads(self._num_threads), torch.inference_mode():
            if plan.num_restores:
                copy_state(self._caches, *buffer.copies(RESTORE, plan.num_restores))
            logits = self._network.forward(buffer.inputs(plan), self._caches).logits
            if plan.num_saves:
                copy_state(self._caches, *buffer.copies(SAVE, plan.num_saves))
            rows = logits.to(torch.float32).contiguous().numpy()
        result = self._sampler.sample(rows, plan.sample_request_ids, plan.sample_positions)
        self._sampled = result.tokens
        return result

    def zero(self, blocks: Sequence[tuple[str, int]]) -> None:
        """Fills blocks, (group, id), with zeros; no step has them."""
        if self._caches is not None:
            zero_blocks(self._caches, blocks)

    def close(self) -> None:
        """Lets go of the model and of the pools."""
        self._network = None
        self._caches = None
