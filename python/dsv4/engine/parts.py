"""What an engine is made of once everything is loaded: the seam between starting one and running one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsv4._core import Core
from dsv4.engine.metrics import Facts
from dsv4.engine.text import Tokenizer
from dsv4.engine.trace import Recording
from dsv4.runtime.step import Runner
from dsv4.types import ChatRequest, EngineInfo, RenderedChat

if TYPE_CHECKING:
    from dsv4.runtime.plan import ServingPlan

Render = Callable[[ChatRequest], RenderedChat]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What requests are checked against.

    max_request_tokens   the longest request that the pools hold alone
    max_queued           requests that may wait; one more is refused
    max_output_items     deltas that may wait for a reader, per choice
    """

    max_model_len: int
    max_request_tokens: int
    vocab_size: int
    max_running: int
    max_queued: int
    max_output_items: int = 256
    max_logprobs: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that `AsyncEngine.over` and `LLM.over` need; `dsv4.engine.start` makes it from a configuration.

    core, runner   given to the driver's thread, which shuts both down
    seed           seeds the draws of requests that bring none, together with their number; None: random
    plan           what the pools serve; None for parts that were not made from a configuration
    recording      where the trace of the core goes, if one is made
    """

    core: Core
    runner: Runner
    tokenizer: Tokenizer
    render: Render
    info: EngineInfo
    bounds: Bounds
    seed: int | None = None
    facts: Facts = field(default_factory=lambda: Facts(served_name="none"))
    plan: ServingPlan | None = None
    recording: Recording | None = None

    def close(self) -> None:
        """Lets go of everything; for parts that no engine took."""
        self.core.shutdown()
        self.runner.close()
        if self.recording is not None:
            self.recording.close()
