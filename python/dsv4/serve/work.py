"""From an open stream of the engine to frames or to one reply; the same way for every route that generates."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dsv4.serve.frames import Tally
from dsv4.serve.replies import Refusal, invalid
from dsv4.types import Delta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from dsv4.serve.bodies import SamplingFields
    from dsv4.serve.engine import RequestStream
    from dsv4.serve.exchange import Exchange
    from dsv4.serve.frames import Frames
    from dsv4.types import Prompt, SamplingParams

Result = TypeVar("Result")

_REAL_ID = "{}-{}"


async def within(seconds: float | None, work: Coroutine[Any, Any, Result]) -> Result:
    """Work under the request's own deadline. Raises Refusal (504)."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        message = f"The request was not finished within its timeout of {seconds:g} s."
        raise Refusal(504, "deadline_exceeded", message, param="timeout") from None


@contextlib.asynccontextmanager
async def opened(
    exchange: Exchange, prompts: Sequence[Prompt], params: SamplingParams, body: SamplingFields
) -> AsyncIterator[list[RequestStream]]:
    """One stream per prompt. All are accepted or none is; leaving the block aborts what still runs."""
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for number, prompt in enumerate(prompts):
            request_id = exchange.request_id if len(prompts) == 1 else _REAL_ID.format(exchange.request_id, number)
            priority = body.priority if body.priority is not None else 0
            salt = exchange.door.salt(exchange, body.cache_salt)
            stream = await exchange.door.engine.open(
                prompt, params, request_id=request_id, priority=priority, cache_salt=salt
            )
            streams.append(await stack.enter_async_context(stream))
        yield streams


async def pump(
    exchange: Exchange, streams: Sequence[RequestStream], frames: Frames, tally: Tally, num_choices: int
) -> None:
    """Sends a stream of events: headers at once, then one send per stream and step, then the end."""
    await exchange.start_stream()
    if len(streams) == 1:
        await _pump_one(exchange, streams[0], frames, tally, prompt=0, num_choices=num_choices)
    else:
        await _all_of(
            _pump_one(exchange, stream, frames, tally, prompt=number, num_choices=num_choices)
            for number, stream in enumerate(streams)
        )
    await exchange.end_stream(frames.last())


async def _pump_one(
    exchange: Exchange, stream: RequestStream, frames: Frames, tally: Tally, *, prompt: int, num_choices: int
) -> None:
    interval = exchange.door.settings.stream_interval
    first_choice = prompt * num_choices
    held: list[Delta] = []
    num_held = 0
    num_frames = 0
    begun = False
    try:
        while deltas := await stream.take():
            if interval > 1:
                held += deltas
                num_held += sum(len(delta.token_ids) for delta in deltas)
                if begun and num_held < interval and all(delta.finish_reason is None for delta in deltas):
                    continue
                deltas, held, num_held = held, [], 0
            begun = True
            parts = []
            for delta in deltas if len(deltas) == 1 else merged(deltas):
                choice = first_choice + delta.index
                tally.note(delta, prompt=prompt, choice=choice)
                parts.append(frames.of(delta, choice))
            if data := b"".join(parts):
                num_frames += data.count(b"\n\ndata: ") + 1
                await exchange.write(data)
    finally:
        exchange.door.metrics.stream_frames.inc(num_frames)


async def gather(streams: Sequence[RequestStream], tally: Tally, num_choices: int) -> list[Delta]:
    """Everything of every choice as one delta each, in the order of the choices."""
    found: list[list[Delta]] = await _all_of(_gather_one(stream) for stream in streams)
    whole: list[Delta] = []
    for prompt, deltas in enumerate(found):
        for delta in sorted(merged(deltas), key=lambda delta: delta.index):
            choice = prompt * num_choices + delta.index
            tally.note(delta, prompt=prompt, choice=choice)
            whole.append(msgspec.structs.replace(delta, index=choice))
    return whole


async def _gather_one(stream: RequestStream) -> list[Delta]:
    found: list[Delta] = []
    while deltas := await stream.take():
        found += deltas
    return found


async def _all_of(works: Any) -> list[Any]:  # noqa: ANN401
    """Runs coroutines side by side; the first error cancels the others and is raised as it is."""
    works = list(works)
    if len(works) == 1:
        return [await works[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """One delta per choice, in order of appearance; joined they say the same."""
    by_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.index, []).append(delta)
    return [parts[0] if len(parts) == 1 else _joined(parts) for parts in by_choice.values()]


def _joined(parts: Sequence[Delta]) -> Delta:
    return msgspec.structs.replace(
        parts[-1],
        content="".join(part.content for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        tool_calls=tuple(call for part in parts for call in part.tool_calls),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
    )


def check_not_empty(found: Sequence[object], what: str) -> None:
    """Refuses a list without entries."""
    if not found:
        raise invalid(f"{what} is empty; it needs at least one entry.", what)
