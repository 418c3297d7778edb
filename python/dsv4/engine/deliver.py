"""From a token to a delta in its reader's hands, counted on the way; one terminal event per request."""

from __future__ import annotations

from dsv4.engine.metrics import Counts
from dsv4.engine.request import Choice, Request
from dsv4.engine.stream import LoopWake
from dsv4.errors import Dsv4Error
from dsv4.types import Delta, FinishReason, TokenLogprob

LENGTH = 2
"""What `Outcome.finished` says of a choice that has its most tokens."""


class Delivery:
    """The driver's way out. Not thread-safe: the driver's thread is its only caller."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._wakes: dict[LoopWake, None] = {}

    def deliver(
        self, choice: Choice, token: int, finished: int, now: float, logprob: TokenLogprob | None
    ) -> tuple[bool, bool]:
        """One token (-1: none) of a choice to its reader: whether the choice ended with it, and whether it was taken.

        finished   0 goes on, 1 stop token, 2 length, 3 stopped; a stop string in the text ends the choice as well
        now        seconds on the driver's clock
        """
        request, reader = choice.request, choice.reader
        token_ids = () if token < 0 else (token,)
        if token_ids:
            self._count_token(choice, now)
        piece = reader.push(token_ids)
        content, reasoning, tool_calls, stopped = piece.content, piece.reasoning, piece.tool_calls, piece.stopped
        finish_reason: FinishReason | None = None
        stop_reason: str | int | None = None
        if finished or stopped is not None:
            rest = reader.finish("length" if finished == LENGTH else "stop")
            content += rest.content
            reasoning += rest.reasoning
            tool_calls += rest.tool_calls
            finish_reason = rest.finish_reason
            stop_reason = reader.stopped
            if stop_reason is None and finished != LENGTH and token in request.params.stop_token_ids:
                stop_reason = None if token == request.eos_id else token
            self._counts.add(self._counts.request_success, finish_reason or "stop")
        sink = request.sink
        took = sink.put(
            Delta(
                index=choice.index,
                content=content,
                reasoning=reasoning,
                tool_calls=tool_calls,
                token_ids=token_ids,
                logprobs=() if logprob is None else (logprob,),
                finish_reason=finish_reason,
                stop_reason=stop_reason,
                num_prompt_tokens=len(request.prompt),
                num_cached_tokens=request.num_cached_tokens,
                num_generated_tokens=choice.num_generated,
                num_reasoning_tokens=reader.num_reasoning_tokens,
            )
        )
        if sink.wake is not None:
            self._wakes[sink.wake] = None
        return finish_reason is not None, took

    def end(self, request: Request, error: Dsv4Error | None, now: float) -> None:
        """Nothing follows for this request; called exactly once."""
        counts = self._counts
        counts.e2e.observe(now - request.arrived_at)
        if request.first_token_at is not None:
            counts.decode.observe(now - request.first_token_at)
        counts.request_prompt.observe(len(request.prompt))
        counts.request_generation.observe(request.num_generated)
        request.sink.end(error)
        if request.sink.wake is not None:
            self._wakes[request.sink.wake] = None

    def flush(self) -> list[LoopWake]:
        """Wakes every loop once that has something to read; those that were closed come back."""
        if not self._wakes:
            return []
        gone = [wake for wake in self._wakes if not wake.flush()]
        self._wakes.clear()
        return gone

    def _count_token(self, choice: Choice, now: float) -> None:
        counts, request = self._counts, choice.request
        choice.num_generated += 1
        counts.generation_tokens += 1
        if choice.num_generated > 1:
            counts.itl.observe(now - choice.last_token_at)
        elif request.first_token_at is None:
            request.first_token_at = now
            counts.prompt_tokens += len(request.prompt)
            counts.prompt_tokens_cached += request.num_cached_tokens
            counts.ttft.observe(now - request.arrived_at)
            if request.planned_at is not None:
                counts.prefill.observe(now - request.planned_at)
        choice.last_token_at = now
