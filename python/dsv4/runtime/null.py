"""A runner without a model: tokens come from a function. For tests of the engine and benches of what is above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dsv4._core import Plan
from dsv4.runtime.step import Draw, StepResult, aligned_memory
from dsv4.types import TokenLogprob

NextToken = Callable[[Draw, int], int]
"""The token of a request at a position (how many it had generated before)."""


class Sized(Protocol):
    """The part of a core that this needs."""

    @property
    def step_bytes(self) -> int:
        """Bytes of the arrays of a step."""


class NullRunner:
    """Answers every plan at once with `next_token(draw, position)`; a request that asks for log-probabilities gets 0.0.

    before_step   called with every plan before it is answered: a gate, a count, or a fault
    num_steps     most steps in flight
    """

    def __init__(
        self,
        layout: Sized,
        next_token: NextToken,
        *,
        before_step: Callable[[Plan], None] | None = None,
        num_steps: int = 1,
    ) -> None:
        self.memories = [aligned_memory(layout.step_bytes).data for _ in range(num_steps)]
        self._next_token = next_token
        self._before_step = before_step
        self.draws: dict[int, Draw] = {}
        self.zeroed: list[tuple[str, int]] = []
        self.closed = False

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request was submitted."""
        self.draws[request_id] = draw

    def end(self, request_id: int) -> None:
        """A request is over."""
        self.draws.pop(request_id, None)

    def run(self, plan: Plan) -> StepResult:
        """One token per sampled row, without a model."""
        if self._before_step is not None:
            self._before_step(plan)
        draws, next_token = self.draws, self._next_token
        ids, positions = plan.sample_request_ids, plan.sample_positions
        tokens = [next_token(draws[row], position) for row, position in zip(ids, positions, strict=True)]
        logprobs = [
            None if draws[row].params.logprobs is None else TokenLogprob(token, 0.0, 1)
            for row, token in zip(ids, tokens, strict=True)
        ]
        return StepResult(tokens, logprobs, [])

    def zero(self, blocks: Sequence[tuple[str, int]]) -> None:
        """There are no blocks; `zeroed` keeps which they would have been."""
        self.zeroed.extend(blocks)

    def close(self) -> None:
        """Nothing is held."""
        self.closed = True
