"""`LLM`: an engine for code that blocks. It runs in this process, and needs no event loop."""

from __future__ import annotations

import os
import queue
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dsv4.config.engine import EngineConfig
from dsv4.engine.blocking import Gathering, SyncDeltas, SyncStream
from dsv4.engine.front import Front, aborting, shut
from dsv4.engine.gather import completions, prompts_of
from dsv4.engine.parts import Parts
from dsv4.engine.request import Request
from dsv4.engine.start import configured, start
from dsv4.engine.text import Tokenizer
from dsv4.errors import Misuse, QueueFull
from dsv4.types import ChatRequest, ChatResult, Completion, Effort, EngineInfo, Health, Prompt, SamplingParams

if TYPE_CHECKING:
    from dsv4.runtime.plan import ServingPlan

Messages = Sequence[dict[str, Any]]


class LLM:
    """An engine for ordinary code: it blocks, and needs no event loop. Safe to share between threads.

        with LLM("demo") as llm:
            print(llm.generate("Once", SamplingParams(max_tokens=16))[0].text)

    model       a directory in the official format, or "demo"
    config      settings; `overrides` are fields of EngineConfig and win over it
    """

    def __init__(self, model: str | None = None, *, config: EngineConfig | None = None, **overrides: Any) -> None:  # noqa: ANN401
        self._begin(Front(start(configured(config, model, overrides))))

    def _begin(self, front: Front) -> None:
        self._front = front
        front.driver.start()
        self._finalizer = weakref.finalize(self, shut, front.driver, os.getpid())

    @classmethod
    def over(cls, parts: Parts) -> Self:
        """The same over parts that exist already: any core, any runner. Both are the engine's from here on."""
        llm = cls.__new__(cls)
        llm._begin(Front(parts))  # noqa: SLF001 - its own
        return llm

    @property
    def info(self) -> EngineInfo:
        """What is known once it runs."""
        return self._front.info

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._front.tokenizer

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continues prompts, together, and returns when all are done: n completions for each, in order.

        prompts   one or several: text, token ids, or encoded conversations
        params    for all of them, or one for each

        Raises InvalidRequest before anything runs; RequestFailed when one fails, and the others are aborted.
        """
        several = prompts_of(prompts)
        params_of = _params_of(params, len(several))
        finished: queue.SimpleQueue[Gathering] = queue.SimpleQueue()
        waiting: deque[tuple[Gathering, Request]] = deque()
        for index, (prompt, each) in enumerate(zip(several, params_of, strict=True)):
            sink = Gathering(index, finished)
            waiting.append((sink, self._request(prompt, each, sink)))
        running: dict[Gathering, Request] = {}
        done: dict[int, list[Completion]] = {}
        try:
            while waiting or running:
                self._submit_some(waiting, running)
                gathered = finished.get()
                del running[gathered]
                if gathered.error is not None:
                    raise gathered.error
                done[gathered.prompt_index] = completions(gathered.deltas, gathered.prompt_index)
        finally:
            for request in running.values():
                self._front.abort(request)
        return [completion for index in sorted(done) for completion in done[index]]

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
        effort: Effort | None = None,
    ) -> ChatResult:
        """Answers a conversation. `messages` and `tools` as OpenAI's API writes them. Raises as `generate` does."""
        self._front.check_usable()
        request = ChatRequest(messages=tuple(messages), tools=tuple(tools), thinking=thinking, effort=effort)
        rendered = self._front.render(request)
        return ChatResult(choices=tuple(self.generate(rendered, params)), warnings=rendered.warnings)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> SyncDeltas:
        """An iterator of deltas. Leaving the `for`, closing or dropping the iterator aborts the request.

        Raises InvalidRequest or QueueFull at once, RequestFailed while iterating. A reader that takes nothing for
        `max_output_queue_items` tokens is cut off ("slow_consumer").
        """
        params = params or SamplingParams()
        stream = SyncStream(self._front.bounds.max_output_items * max(1, params.n))
        request = self._request(prompt, params, stream)
        stream.abort = aborting(self._front, request)
        try:
            self._front.driver.submit(request).result()
        except BaseException:
            stream.abort()
            raise
        return SyncDeltas(stream)

    def stats(self) -> dict[str, int]:
        """Counters and gauges of the core: running, waiting, and blocks by group and state."""
        self._front.check_usable()
        return self._front.driver.ask(lambda core: core.stats()).result()

    def explain_recipe(self) -> str:
        """Which limits are in force at the present load, since when and why, and when they change."""
        self._front.check_usable()
        return self._front.driver.ask(lambda core: core.explain_recipe()).result()

    def plan(self) -> ServingPlan:
        """What the pools hold and serve: the numbers of `--dry-run`. Raises Misuse over parts that have no plan."""
        if self._front.plan is None:
            raise Misuse("these parts were not made from a configuration, so nothing was planned")
        return self._front.plan

    def audit(self) -> None:
        """Proves that every block of the core is in exactly one place. Raises Violation."""
        self._front.check_usable()
        self._front.driver.ask(lambda core: core.audit()).result()

    def health(self) -> Health:
        """Cheap, from any thread."""
        return self._front.health()

    def close(self) -> None:
        """Aborts what runs, waits for the device, lets go of the model and the pools. Idempotent."""
        self._front.closed = True
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, prompt: Prompt, params: SamplingParams, sink: Gathering | SyncStream) -> Request:
        self._front.check_usable()
        return self._front.request(prompt, self._front.token_ids(prompt), params, sink)

    def _submit_some(self, waiting: deque[tuple[Gathering, Request]], running: dict[Gathering, Request]) -> None:
        """Submits as many as the queue takes; the rest waits here until one of ours is done."""
        while waiting:
            sink, request = waiting[0]
            running[sink] = request
            try:
                self._front.driver.submit(request).result()
            except QueueFull:
                del running[sink]
                if not running:
                    raise
                return
            waiting.popleft()


def _params_of(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Iterable[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} params for {count} prompts")
    return params
