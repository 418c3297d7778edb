"""A request as the driver sees it: one prompt, one sink, and a choice per answer, each a request of the core.

submitted ─▶ waiting ─▶ planned ─▶ first token ─▶ ... ─▶ ended          from every state: failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsv4.engine.stream import Sink
from dsv4.engine.text import AnswerReader
from dsv4.runtime.step import Draw
from dsv4.types import SamplingParams


@dataclass(slots=True, eq=False)
class Choice:
    """One answer.

    core_id        the core's id of it; None before it is submitted
    reader         makes text of its tokens
    last_token_at  seconds on the driver's clock
    """

    request: Request
    index: int
    draw: Draw
    reader: AnswerReader
    core_id: int | None = None
    num_generated: int = 0
    last_token_at: float = 0.0
    ended: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One prompt on its way. Built by the front, then the driver's alone.

    max_tokens    resolved by the validator
    stop_ids      what ends a choice: end of sequence unless it is ignored, and the request's own
    eos_id        the end of sequence, which is no stop_reason
    cache_salt    whose prefixes it shares; None: those of all requests without one
    num_cached_tokens   tokens of the prompt that the first choice to run found in the prefix cache
    arrived_at, planned_at, first_token_at   seconds on the driver's clock
    """

    request_id: str
    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    stop_ids: tuple[int, ...]
    eos_id: int
    priority: int
    cache_salt: str | None
    sink: Sink
    arrived_at: float
    choices: list[Choice] = field(default_factory=list)
    planned_at: float | None = None
    first_token_at: float | None = None
    num_cached_tokens: int = 0
    ended: bool = False

    @property
    def num_generated(self) -> int:
        """Tokens of all choices."""
        return sum(choice.num_generated for choice in self.choices)
