"""An engine without a model: it accepts what the real validator accepts, and says what a test tells it to say.

    open ─▶ queued ──(a place is there)──▶ running ──script or push──▶ finished
                └──────── the stream's block is left ────────▶ aborted

Nothing here waits for time: a script is a list of steps that are there at once, or the test pushes them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec

from dsv4._core import check_sampling
from dsv4.config.engine import EngineConfig
from dsv4.errors import Dsv4Error, EngineClosed, InvalidRequest, QueueFull, RequestFailed
from dsv4.types import (
    ChatRequest,
    Delta,
    DrainReport,
    EngineInfo,
    Health,
    Prompt,
    RenderedChat,
    SamplingParams,
    TokenLogprob,
)

BOS, EOS, THINK_END = 256, 257, 258
VOCAB_SIZE = 259
NAMES = {BOS: b"<bos>", EOS: b"<eos>", THINK_END: b"</think>"}

Script = Callable[["StandInStream"], Sequence[list[Delta]]]


class ByteTokenizer:
    """One id per byte, and three control tokens."""

    bos_id = BOS
    eos_id = EOS
    vocab_size = VOCAB_SIZE

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        if not control:
            return list(text.encode())
        before, mark, after = text.partition("<bos>")
        return [*before.encode(), *([BOS] if mark else []), *after.encode()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        for token in token_ids:
            if not 0 <= token < VOCAB_SIZE:
                raise InvalidRequest(f"token id {token} is not in the vocabulary of {VOCAB_SIZE}", "tokens")
        kept = [token for token in token_ids if token < BOS or not skip_special_tokens]
        return b"".join(self.token_bytes(token) for token in kept).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return NAMES.get(token_id) or bytes([token_id])


class StandInStream:
    """One request as the test sees it."""

    def __init__(self, engine: StandIn, prompt: Prompt, params: SamplingParams, request_id: str, priority: int) -> None:
        self.prompt = prompt
        self.params = params
        self.request_id = request_id
        self.priority = priority
        self.cache_salt: str | None = None
        self.aborted = asyncio.Event()
        self.left = asyncio.Event()
        self.max_tokens = 0
        self.num_prompt_tokens = 0
        self._engine = engine
        self._steps: list[list[Delta]] = []
        self._error: Dsv4Error | None = None
        self._over = False
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.aborted.set()
        self.left.set()
        self._engine.leave(self)

    async def take(self) -> list[Delta]:
        while not self._steps and self._error is None and not self._over:
            self._ready.clear()
            await self._ready.wait()
        if self._steps:
            return self._steps.pop(0)
        if self._error is not None:
            raise self._error
        return []

    def push(self, *deltas: Delta, over: bool = False) -> None:
        """One step's deltas; `over` when every choice has ended."""
        self._steps.append(list(deltas))
        self._over = self._over or over
        self._ready.set()

    def say(self, text: str, **more: object) -> None:
        """One step of content."""
        self.push(delta(text, num_prompt_tokens=self.num_prompt_tokens, **more))

    def finish(self, reason: str = "stop", text: str = "") -> None:
        self.push(delta(text, num_prompt_tokens=self.num_prompt_tokens, finish_reason=reason), over=True)

    def fail(self, error: Dsv4Error) -> None:
        self._error = error
        self._over = True
        self._ready.set()


class StandIn:
    """The engine: at most `max_running` requests run, at most `max_queued` wait.

    script   what a running request says by itself; None leaves it to the test
    """

    def __init__(
        self,
        *,
        generation: str = "preview",
        max_model_len: int = 4096,
        max_request_tokens: int = 2048,
        max_running: int = 64,
        max_queued: int = 64,
        script: Script | None = None,
    ) -> None:
        efforts = ("high", "max") if generation == "preview" else ("low", "high", "max")
        self.info = EngineInfo(
            served_name="stand-in",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            generation=generation,
            efforts=efforts,
            default_effort="none" if generation == "preview" else "low",
            fingerprint="fp_stand_in",
            report=(("model", "stand-in"), ("device", "none")),
        )
        self.tokenizer = ByteTokenizer()
        self.max_request_tokens = max_request_tokens
        self.max_running = max_running
        self.max_queued = max_queued
        self.script = script
        self.state = Health(alive=True, ready=True)
        self.rendered: list[ChatRequest] = []
        self.running: list[StandInStream] = []
        self.waiting: list[StandInStream] = []
        self.rendering: asyncio.Event | None = None
        self.render_error: BaseException | None = None
        self.warnings: tuple[str, ...] = ()
        self.closed = False
        self._opened: asyncio.Queue[StandInStream] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._idle.set()

    async def render(self, request: ChatRequest) -> RenderedChat:
        self.rendered.append(request)
        if self.rendering is not None:
            await self.rendering.wait()
        if self.render_error is not None:
            raise self.render_error
        text = "".join(f"{message['role']}:{message['content']}\n" for message in request.messages)
        thinking = request.thinking is not False
        return RenderedChat(token_ids=(BOS, *text.encode()), thinking=thinking, warnings=self.warnings)

    async def open(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> StandInStream:
        if self.closed:
            raise EngineClosed("the engine was closed")
        stream = StandInStream(self, prompt, params, request_id or "", priority)
        stream.cache_salt = cache_salt
        stream.num_prompt_tokens = len(self._ids(prompt))
        stream.max_tokens = self._check(stream.num_prompt_tokens, params)
        if len(self.running) >= self.max_running and len(self.waiting) >= self.max_queued:
            raise QueueFull(f"{len(self.waiting)} requests wait, and at most {self.max_queued} may", retry_after_s=2.5)
        self._idle.clear()
        self.waiting.append(stream)
        if self.script is None:
            self._opened.put_nowait(stream)
        self._fill()
        return stream

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, control=True)
        return prompt.token_ids if isinstance(prompt, RenderedChat) else prompt

    def _check(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        fields = msgspec.structs.asdict(params)
        fields["logit_bias"] = list(params.logit_bias.items())
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            del fields[name]
        return check_sampling(
            num_prompt_tokens=num_prompt_tokens,
            max_model_len=self.info.max_model_len,
            max_request_tokens=self.max_request_tokens,
            vocab_size=VOCAB_SIZE,
            **fields,
        )

    def _fill(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            stream = self.waiting.pop(0)
            self.running.append(stream)
            if self.script is not None:
                steps = self.script(stream)
                for number, step in enumerate(steps):
                    stream.push(*step, over=number == len(steps) - 1)

    def leave(self, stream: StandInStream) -> None:
        """A stream's block was left, with or without an end."""
        for group in (self.running, self.waiting):
            if stream in group:
                group.remove(stream)
        self._fill()
        if not self.running and not self.waiting:
            self._idle.set()

    async def opened(self) -> StandInStream:
        """The next request that the door opened while there was no script."""
        return await asyncio.wait_for(self._opened.get(), 10)

    def health(self) -> Health:
        return self.state

    def metrics_text(self) -> bytes:
        return b'dsv4:num_requests_running{model_name="stand-in",engine="0"} %d\n' % len(self.running)

    async def drain(self, timeout: float) -> DrainReport:  # noqa: ASYNC109
        num_open = len(self.running) + len(self.waiting)
        self.state = Health(alive=True, ready=False, reason="draining")
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            left = [*self.running, *self.waiting]
            for stream in left:
                stream.fail(RequestFailed("the engine was drained", "aborted"))
            return DrainReport(num_open - len(left), len(left), timeout)
        return DrainReport(num_open, 0, 0.0)


@asynccontextmanager
async def running(_config: EngineConfig, engine: StandIn | None = None) -> AsyncIterator[StandIn]:
    """In the place of `AsyncEngine.running`."""
    engine = engine or StandIn(script=say_letters)
    try:
        yield engine
    finally:
        engine.closed = True


def delta(text: str = "", **fields: object) -> Delta:
    """A delta of content; ids are the bytes of the text."""
    token_ids = tuple(text.encode())
    given = {"index": 0, "content": text, "token_ids": token_ids, "num_generated_tokens": len(token_ids), **fields}
    return msgspec.convert(given, Delta)


def say_letters(stream: StandInStream) -> list[list[Delta]]:
    """One letter per step and choice, "abc...", up to max_tokens, at most 100; log-probabilities where asked for."""
    num_tokens = min(stream.max_tokens, 100)
    steps = []
    for position in range(num_tokens):
        last = position == num_tokens - 1
        steps.append([_letter(stream, position, choice, last=last) for choice in range(stream.params.n)])
    return steps


def _letter(stream: StandInStream, position: int, choice: int, *, last: bool) -> Delta:
    token = ord("a") + (position + choice) % 26
    logprobs: tuple[TokenLogprob, ...] = ()
    if stream.params.logprobs is not None:
        top = tuple((ord("a") + rank, -1.0 - rank) for rank in range(stream.params.logprobs))
        logprobs = (TokenLogprob(token, -0.5, 1, top),)
    return Delta(
        index=choice,
        content=chr(token),
        token_ids=(token,),
        logprobs=logprobs,
        finish_reason="length" if last else None,
        num_prompt_tokens=stream.num_prompt_tokens,
        num_cached_tokens=stream.num_prompt_tokens // 2,
        num_generated_tokens=position + 1,
    )


def letters(num_tokens: int, choice: int = 0) -> str:
    """What `say_letters` says."""
    return "".join(chr(ord("a") + (position + choice) % 26) for position in range(num_tokens))
