"""`run(plan)` on one GPU: one copy there, the kernels of the step, one copy back.

Core.plan(memory) ──▶ pinned int32 ──copy──▶ device ──views──▶ StepInputs ──▶ model ──▶ sampler ──▶ tokens
                                        └── idle rows ──▶ graph of its shape ──┘
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4._core import Plan
from dsv4.model.caches import Caches
from dsv4.runtime.batch import Layout
from dsv4.runtime.copies import copy_state
from dsv4.runtime.gpu.graphs import Capture, Graphs
from dsv4.runtime.gpu.memory import GpuNetwork, StepMemory
from dsv4.runtime.gpu.sample import GpuSampler
from dsv4.runtime.step import Draw, StepResult


class GpuRunner:
    """Turns plans into tokens on one GPU.

    max_rows   most samples of one step
    """

    def __init__(
        self, network: GpuNetwork, caches: Caches, layout: Layout, *, max_rows: int, vocab_size: int, num_steps: int = 1
    ) -> None:
        self._network: GpuNetwork | None = network
        self._caches: Caches | None = caches
        first = StepMemory(layout, network.device)
        self._steps = [first, *(StepMemory(layout, network.device, first.there) for _ in range(num_steps - 1))]
        self._graphs: Graphs | None = None
        self._sampled = torch.zeros(max_rows, dtype=torch.int32, device=network.device)
        self._sampler = GpuSampler(max_rows, vocab_size, network.device)

    @torch.inference_mode()
    def capture(self, *, max_seq_len: int, by: Capture | None = None) -> Graphs:
        """Captures decode steps of every shape, before the first request; `by` CUDA, unless a test says otherwise."""
        if self._network is None or self._caches is None:
            raise RuntimeError("the runner was closed")
        memory, most = self._steps[0], len(self._sampled)
        self._graphs = Graphs(self._network, self._caches, memory, max_rows=most, max_seq_len=max_seq_len, capture=by)
        return self._graphs

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
        bounds = step.bounds(plan)
        shape = self._graphs.shape_of(plan, bounds) if self._graphs else None
        if shape:
            step.pad(plan, shape.rows)
        step.send()
        inputs = step.inputs(plan)
        if plan.num_forwarded:
            sources = step.array("token_sources", plan.num_tokens)
            known = sources < 0
            inputs.token_ids.copy_(torch.where(known, inputs.token_ids, self._sampled[sources.clamp_min(0).long()]))
        self._sampled.zero_()  # should this step fail, its tokens are nobody's, but the next one names them
        if plan.num_restores:
            self._copy(step, "restore", plan.num_restores)
        if self._graphs and shape:
            logits = self._graphs.replay(shape).logits[: plan.num_samples]
        else:
            logits = self._network.forward(inputs, self._caches, bounds).logits
        if plan.num_saves:
            self._copy(step, "save", plan.num_saves)
        result = self._sampler.sample(logits, plan.sample_request_ids, plan.sample_positions)
        self._sampled[: len(result.tokens)] = torch.tensor(result.tokens, dtype=torch.int32).to(self._sampled.device)
        return result

    def _copy(self, step: StepMemory, when: str, count: int) -> None:
        if self._caches is not None:
            copy_state(self._caches, step.array(f"{when}_sources", count), step.array(f"{when}_targets", count))

    def close(self) -> None:
        """Lets go of the model and of the pools."""
        self._network = None
        self._caches = None
        self._graphs = None
