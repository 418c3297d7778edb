# ruff: noqa: ARG002 - a null engine takes what an engine takes, and looks at none of it
"""The model's place in the benches of the server: every step gives every open stream one word, at once.

Both servers are fed by the same `Steps`, so what differs between them is what they do with a word.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from dsv4.config.engine import EngineConfig
from dsv4.serve.launch import run
from dsv4.types import (
    ChatRequest,
    Delta,
    DrainReport,
    EngineInfo,
    FinishReason,
    Health,
    Prompt,
    RenderedChat,
    SamplingParams,
)

WORD = " hello"
TOKEN = 33310


class Words:
    """One stream: how many words have arrived and were not taken. Every word makes one frame."""

    def __init__(self, num_words: int) -> None:
        self.num_left = num_words
        self._num_ready = 0
        self._ready = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether the last word was taken."""
        return not self.num_left and not self._num_ready

    def step(self) -> None:
        """One more word."""
        self._num_ready += 1
        self.num_left -= 1
        self._ready.set()

    async def take(self) -> bool:
        """One word; false once all were taken."""
        if self.over:
            return False
        if not self._num_ready:
            self._ready.clear()
            await self._ready.wait()
        self._num_ready -= 1
        return True


class Steps:
    """The driver's loop without a model: one step, then everybody else's turn."""

    def __init__(self) -> None:
        self._open: set[Words] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self, num_words: int) -> Words:
        words = Words(num_words)
        self._open.add(words)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return words

    def close(self, words: Words) -> None:
        self._open.discard(words)

    async def _run(self) -> None:
        while self._open:
            for words in [*self._open]:
                words.step()
                if not words.num_left:
                    self._open.discard(words)
            await asyncio.sleep(0)


class NullStream:
    """What the door takes from an engine, made of words."""

    def __init__(self, steps: Steps, num_words: int) -> None:
        self._steps = steps
        self._words = steps.open(num_words)
        self._num_taken = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.close(self._words)

    async def take(self) -> list[Delta]:
        if not await self._words.take():
            return []
        self._num_taken += 1
        finish: FinishReason | None = "length" if self._words.over else None
        return [Delta(0, WORD, token_ids=(TOKEN,), finish_reason=finish, num_generated_tokens=self._num_taken)]


class NullTokenizer:
    """Never asked for anything that matters here."""

    bos_id = 0
    eos_id = 1
    vocab_size = 2

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        return [0] * len(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return WORD * len(token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return WORD.encode()


class NullEngine:
    """An engine as the door sees it."""

    def __init__(self) -> None:
        self._steps = Steps()
        self.tokenizer = NullTokenizer()
        self.info = EngineInfo(
            served_name="null",
            max_model_len=1 << 20,
            vocab_size=2,
            generation="preview",
            efforts=("high",),
            default_effort="high",
            fingerprint="fp_null",
            report=(),
        )

    async def render(self, request: ChatRequest) -> RenderedChat:
        return RenderedChat(token_ids=(0,) * 8)

    async def open(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> NullStream:
        return NullStream(self._steps, params.max_tokens or 1)

    def health(self) -> Health:
        return Health(alive=True, ready=True)

    def metrics_text(self) -> bytes:
        return b""

    async def drain(self, timeout: float) -> DrainReport:  # noqa: ASYNC109
        return DrainReport(0, 0, 0.0)


@asynccontextmanager
async def null_engine(_config: EngineConfig) -> AsyncIterator[NullEngine]:
    """In the place of `AsyncEngine.running`."""
    yield NullEngine()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ, null_engine))
