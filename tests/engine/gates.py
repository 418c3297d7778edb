"""What the tests of the engine share: parts without a model, a gate in front of every step, a tiny model."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from dsv4._core import Plan
from dsv4.config.directory import DEMO
from dsv4.engine.engine import AsyncEngine
from dsv4.engine.null import null_parts
from dsv4.engine.parts import Parts
from dsv4.engine.stream import AsyncStream
from dsv4.engine.text import Tokenizer
from dsv4.runtime.step import Draw
from dsv4.types import Delta, SamplingParams

Result = TypeVar("Result")

LIMIT_S = 20.0
"""No wait in a test is longer; reaching it is a failure."""

TOKENIZER = Tokenizer.load(DEMO)
EOS = TOKENIZER.eos_id
SPELL = {
    byte: next(i for i in range(TOKENIZER.vocab_size) if TOKENIZER.token_bytes(i) == bytes([byte]))
    for byte in range(256)
}
"""Byte to the token that stands for it alone."""


class Gate:
    """Stands in front of every step of one driver, and lets it through when it is told to.

    fault   raised by the next step that is let through, once
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.plans: list[Plan] = []
        self.fault: Exception | None = None
        self._changed = threading.Condition()
        self._num_allowed = 0
        self._is_open = is_open

    def __call__(self, plan: Plan) -> None:
        with self._changed:
            self.plans.append(plan)
            number = len(self.plans)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._is_open or self._num_allowed >= number, LIMIT_S):
                raise TimeoutError("the test never let this step through")
            fault, self.fault = self.fault, None
        if fault is not None:
            raise fault

    def arrived(self) -> None:
        """Waits until a step stands before the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.plans) > self._num_allowed, LIMIT_S), "no step came"

    def allow(self) -> None:
        """Lets the step through that stands there."""
        with self._changed:
            self._num_allowed = len(self.plans)
            self._changed.notify_all()

    def step(self) -> None:
        """Waits for a step, and lets it through. What was posted before is obeyed before the next one."""
        self.arrived()
        self.allow()

    def open(self) -> None:
        """From now on nothing waits."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


async def posted(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A call to an engine that has put its command into the driver's inbox, and waits for the answer."""
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def opened(engine: AsyncEngine, gate: Gate, token_ids: list[int], params: SamplingParams) -> AsyncStream:
    """A request that is opened while a step of another one stands before the gate; that step is let through."""
    task = await posted(engine.open(token_ids, params))
    gate.step()
    return await task


def spelling(text: str, *, then: int = EOS) -> Callable[[Draw, int], int]:
    """Every request says this text, byte by byte, then one token for ever."""
    tokens = [SPELL[byte] for byte in text.encode()]
    return lambda draw, position: tokens[position] if position < len(tokens) else then


def letters(draw: Draw, position: int) -> int:
    """ "abc...", shifted by the choice's index."""
    return SPELL[97 + (position + draw.choice) % 26]


def parts(next_token: Callable[[Draw, int], int] = letters, **changes: Any) -> Parts:
    return null_parts(next_token, tokenizer=TOKENIZER, **changes)


async def whole(stream: AsyncStream) -> list[Delta]:
    """Everything of one stream."""
    found: list[Delta] = []
    async with stream:
        while deltas := await stream.take():
            found += deltas
    return found


def text_of(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.content for delta in deltas if delta.index == index)


async def assert_all_blocks_free(engine: AsyncEngine) -> None:
    """Every block is in one place, and nobody holds it."""
    await engine.audit()
    assert_free(await engine.stats())


def assert_free(stats: dict[str, int]) -> None:
    assert stats["num_running"] == stats["num_waiting"] == 0
    for group in ("full", "swa", "state"):
        unused = stats[f"{group}_free"] + stats[f"{group}_cached"]
        assert unused == stats[f"{group}_capacity"], stats


def tiny_model(directory: Path, **changes: Any) -> Path:
    """A model directory without weights, for load_format="dummy": three small layers, the demo's tokenizer."""
    config = json.loads((DEMO / "config.json").read_text())
    config |= {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "compress_ratios": [0, 4, 128],
        "num_hash_layers": 1,
        "num_attention_heads": 2,
        "o_groups": 1,
        "o_lora_rank": 32,
        "q_lora_rank": 32,
        "head_dim": 128,
        "index_head_dim": 64,
        "index_n_heads": 2,
        "index_topk": 16,
        "sliding_window": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "hc_mult": 2,
    }
    config |= changes
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    return directory
