"""Where requests come in, for both doors: validated, made of choices, and handed to the driver."""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
from collections.abc import Callable, Sequence

from dsv4._core import check_sampling
from dsv4.engine.driver import Driver
from dsv4.engine.metrics import Counts
from dsv4.engine.parts import Parts
from dsv4.engine.request import Choice, Request
from dsv4.engine.stream import Sink
from dsv4.engine.text import AnswerReader
from dsv4.engine.text.stops import StopAutomaton
from dsv4.errors import EngineClosed, InvalidRequest, QueueFull, RequestFailed
from dsv4.runtime.step import Draw
from dsv4.types import Health, Prompt, RenderedChat, SamplingParams

RETRY_AFTER_S = 1.0


class Front:
    """One engine as its callers share it.

    parts    without the core and the runner these are facts; the two belong to the driver
    """

    def __init__(self, parts: Parts) -> None:
        self.info = parts.info
        self.tokenizer = parts.tokenizer
        self.render = parts.render
        self.bounds = parts.bounds
        self.facts = parts.facts
        self.plan = parts.plan
        self.driver = Driver(parts.core, parts.runner, Counts(parts.bounds.max_model_len), recording=parts.recording)
        self._seed = parts.seed
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self.closed = False
        self.draining = False

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a child process, whose driver's thread does not exist."""
        return os.getpid() != self._pid

    def check_usable(self) -> None:
        """Raises EngineClosed when nothing can be asked of this engine any more."""
        if self.forked:
            raise EngineClosed("this engine belongs to the process that started it; it cannot be used after a fork")
        if self.closed:
            raise EngineClosed("the engine was closed")
        if self.driver.progress.dead:
            raise EngineClosed("the engine died; its log has the details")

    def health(self) -> Health:
        """Cheap, from any thread."""
        if self.forked:
            return Health(alive=False, ready=False, reason="engine_closed")
        return self.driver.progress.health(self.driver.clock())

    def token_ids(self, prompt: Prompt) -> Sequence[int]:
        """The ids of a prompt; text is encoded here, which takes time in proportion to its length."""
        if isinstance(prompt, RenderedChat):
            return prompt.token_ids
        if isinstance(prompt, str):
            self.tokenizer.check_length(len(prompt.encode("utf-8", "replace")), self.info.max_model_len)
            return self.tokenizer.encode(prompt, control=True)
        given: object = prompt  # from a caller who may not have been checked
        if isinstance(given, Sequence) and {*map(type, given)} <= {int}:
            return given
        raise InvalidRequest("a prompt is text, or a sequence of token ids", "prompt")

    def request(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Request:
        """A request that satisfies the one validator. Raises InvalidRequest, QueueFull or EngineClosed."""
        self.check_usable()
        if self.draining:
            raise EngineClosed("the engine is draining and takes no new requests")
        max_tokens = self._check(token_ids, params)
        number = next(self._numbers)
        eos = () if params.ignore_eos else (self.tokenizer.eos_id,)
        request = Request(
            request_id=request_id if request_id is not None else f"dsv4-{number}",
            prompt=token_ids,
            params=params,
            max_tokens=max_tokens,
            stop_ids=tuple(dict.fromkeys((*eos, *params.stop_token_ids))),
            eos_id=self.tokenizer.eos_id,
            priority=priority,
            cache_salt=cache_salt,
            sink=sink,
            arrived_at=self.driver.clock(),
        )
        seed = self._seed_of(params, number)
        chat = prompt if isinstance(prompt, RenderedChat) else None
        stops = StopAutomaton(params.stop)
        for index in range(params.n):
            draw = Draw(params=params, prompt=token_ids, seed=seed, choice=index, hidden=request.stop_ids)
            reader = AnswerReader(self.tokenizer, params, chat=chat, stops=stops)
            request.choices.append(Choice(request, index, draw, reader))
        return request

    def abort(self, request: Request) -> None:
        """Ends a request whose reader left."""
        if not self.forked:
            message = f"request {request.request_id} was aborted"
            self.driver.abort(request, RequestFailed(message, "aborted"), "client")

    def _check(self, token_ids: Sequence[int], params: SamplingParams) -> int:
        bounds = self.bounds
        max_tokens = check_sampling(
            num_prompt_tokens=len(token_ids),
            max_model_len=bounds.max_model_len,
            max_request_tokens=bounds.max_request_tokens,
            vocab_size=bounds.vocab_size,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            logit_bias=list(params.logit_bias.items()),
            allowed_token_ids=params.allowed_token_ids,
            seed=params.seed,
            n=params.n,
            stop=params.stop,
            stop_token_ids=params.stop_token_ids,
            logprobs=params.logprobs,
            max_logprobs=bounds.max_logprobs,
        )
        for token in (min(token_ids), max(token_ids)):
            if not 0 <= token < bounds.vocab_size:
                message = f"token id {token} is not in the vocabulary of {bounds.vocab_size}"
                raise InvalidRequest(message, "prompt")
        self._check_choice_left(params)
        return max_tokens

    def _check_choice_left(self, params: SamplingParams) -> None:
        """Before min_tokens something must be allowed that does not end the answer."""
        if params.allowed_token_ids is None or params.min_tokens == 0:
            return
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else (self.tokenizer.eos_id,))}
        if ends.issuperset(params.allowed_token_ids):
            message = "allowed_token_ids holds only tokens that end the answer, and min_tokens hides those at first"
            raise InvalidRequest(message, "allowed_token_ids")

    def check_queue(self, num_choices: int) -> None:
        """Refuses at once what the core refused after its last step; the core itself has the last word."""
        stats = self.driver.counts.stats
        waiting = stats.get("num_waiting", 0)
        running = stats.get("num_running", 0)
        if running >= self.bounds.max_running and waiting + num_choices > self.bounds.max_queued:
            counts = self.driver.counts
            counts.add(counts.admission_rejections, "queue_full")
            message = f"{waiting} requests wait, and at most {self.bounds.max_queued} may; try again later"
            raise QueueFull(message, RETRY_AFTER_S)

    def _seed_of(self, params: SamplingParams, number: int) -> int:
        if params.seed is not None:
            return params.seed
        if self._seed is None:
            return secrets.randbits(63)
        digest = hashlib.sha256(f"dsv4 {self._seed} {number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def aborting(front: Front, request: Request) -> Callable[[], None]:
    """What a stream calls when its reader leaves."""
    return lambda: front.abort(request)


def shut(driver: Driver, pid: int) -> None:
    """Ends an engine's thread and waits for it; in a forked child there is no such thread."""
    if os.getpid() == pid:
        driver.stop()
        driver.join()
