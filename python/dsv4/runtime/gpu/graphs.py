"""CUDA graphs of decode steps: captured at start for padded numbers of requests, replayed over the same memory.

    start    idle rows ──▶ memory ──▶ one run (compiles) ──▶ capture, for every shape
    step     B rows, and idle ones up to the shape's ──▶ memory ──▶ replay ──▶ the first B rows of its logits

A graph reads the step's arrays where they always lie, so a step only has to be written there. A row is idle by its
position, -1: such a token sees no key, stores no row, closes no group and belongs to no request, so nothing of a cache
is read or written for it, poison included; its logits are nobody's.

How long requests are decides how launches are cut, so a shape also has a length; a capture takes no shortcut that a
longer request of the same shape could not take. Steps that bring prompts or drafts, or more requests than the largest
shape, are launched one kernel at a time, as every step is without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch

from dsv4._core import Plan
from dsv4.model.caches import Caches
from dsv4.model.gpu.step import Bounds
from dsv4.model.model import StepOutput
from dsv4.runtime.gpu.memory import GpuNetwork, StepMemory

LENGTHS = (8_192, 65_536)
"""Longest requests that a graph is made for, beside the limit itself."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What a graph serves: steps of at most so many requests, none longer than this."""

    rows: int
    max_seq_len: int


class Captured(Protocol):
    """A step that can be run again. `output` is memory that every replay fills."""

    @property
    def output(self) -> StepOutput:
        """What the step yields, idle rows included."""

    def replay(self) -> None:
        """Runs the step over what its arrays hold now."""


Capture = Callable[[Callable[[], StepOutput]], Captured]


def buckets(most: int) -> tuple[int, ...]:
    """Padded numbers of requests up to `most`: a step is never padded by more than a third beyond eight."""
    found, rows = [], 1
    while rows < most:
        found.append(rows)
        rows += 1 if rows < 2 else 2 if rows < 4 else 4 if rows < 8 else max(8, rows // 4 // 8 * 8)
    return (*found, most)


class Graphs:
    """The graphs of one model over one memory. Nothing is captured while requests are served."""

    def __init__(
        self,
        network: GpuNetwork,
        caches: Caches,
        memory: StepMemory,
        *,
        max_rows: int,
        max_seq_len: int,
        capture: Capture | None = None,
    ) -> None:
        lengths = (*(length for length in LENGTHS if length < max_seq_len), max_seq_len)
        self.shapes = tuple(sorted(Shape(*of) for of in product(buckets(max_rows), lengths)))
        self.num_replays = 0
        self._captured: dict[Shape, Captured] = {}
        capture = capture or CudaCapture()
        for shape in sorted(self.shapes, reverse=True):  # the largest first: the others fit into its memory
            memory.idle(shape.rows)
            memory.send()
            inputs, bounds = memory.padded_inputs(shape.rows), Bounds(shape.max_seq_len, 1)
            self._captured[shape] = capture(lambda i=inputs, b=bounds: network.forward(i, caches, b))  # type: ignore[misc]

    def shape_of(self, plan: Plan, bounds: Bounds) -> Shape | None:
        """The smallest shape that serves the step; None if none does."""
        if bounds.max_new_tokens != 1 or not plan.num_tokens == plan.num_requests == plan.num_samples:
            return None
        return smallest(self.shapes, plan.num_requests, bounds.max_seq_len)

    def replay(self, shape: Shape) -> StepOutput:
        """Runs the step that its memory holds, padded to `shape`."""
        captured = self._captured[shape]
        captured.replay()
        self.num_replays += 1
        return captured.output


def smallest(shapes: Sequence[Shape], rows: int, max_seq_len: int) -> Shape | None:
    """The first of ascending shapes with the fewest rows, then the least length, that is large enough."""
    return next((s for s in shapes if s.rows >= rows and s.max_seq_len >= max_seq_len), None)


class CudaCapture:
    """Captures on a stream of its own, all graphs in one pool of memory: one runs at a time, in order."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def __call__(self, run: Callable[[], StepOutput]) -> Captured:
        """Runs the step once, so that everything is compiled, and captures it."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = run()
        self._pool = graph.pool()
        return CudaCaptured(graph, output)


@dataclass(frozen=True, slots=True)
class CudaCaptured:
    """A graph, and where its output lies."""

    graph: torch.cuda.CUDAGraph
    output: StepOutput

    def replay(self) -> None:
        """Launches it on the current stream."""
        self.graph.replay()
