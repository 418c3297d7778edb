"""What an engine and a runner say to each other about steps; no torch, so that a runner without a model needs none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dsv4._core import Plan
from dsv4.types import SamplingParams, TokenLogprob

ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step yields, one entry per sampled row of its plan.

    tokens      ids; 0 where the row was not finite
    logprobs    of requests that asked for them, else None
    non_finite  rows with NaN or infinite logits, ascending
    """

    tokens: list[int]
    logprobs: list[TokenLogprob | None]
    non_finite: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How one choice of one request is to be sampled.

    seed     int64; with the choice's index and the position it decides every draw
    hidden   ids that must not come before params.min_tokens: end of sequence and stop ids
    """

    params: SamplingParams
    prompt: Sequence[int]
    seed: int
    choice: int
    hidden: Sequence[int]


class Runner(Protocol):
    """Runs plans, one at a time and in order.

    begin ─▶ [ core.plan(memories[n % len]) ─▶ run(plan) ] ... ─▶ end      close, once, when no step runs

    Where there are two memories, the next step may be planned into the other one while one runs on another thread; it
    takes the tokens from the step before that its `token_sources` name. `begin` may be called meanwhile, and `end` for
    a request that is in no step any more.
    """

    @property
    def memories(self) -> Sequence[memoryview]:
        """What the core fills with the int32 arrays of step n: the one at n % len; writable, aligned to 64 bytes."""

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request of the core that will be sampled."""

    def end(self, request_id: int) -> None:
        """It is over; unknown ids are let through."""

    def run(self, plan: Plan) -> StepResult:
        """Runs a step that was planned into its memory."""

    def zero(self, blocks: Sequence[tuple[str, int]]) -> None:
        """Fills blocks, (group, id), with zeros before any step that is planned from now on; no step has them now."""

    def close(self) -> None:
        """Lets go of the model and of all device memory; idempotent."""


def aligned_memory(num_bytes: int, align_bytes: int = ALIGN_BYTES) -> NDArray[np.int32]:
    """Zeroed int32 memory of `num_bytes` that starts at a multiple of `align_bytes`."""
    raw = np.zeros(num_bytes + align_bytes, dtype=np.uint8)
    start = -raw.ctypes.data % align_bytes
    return raw[start : start + num_bytes].view(np.int32)
