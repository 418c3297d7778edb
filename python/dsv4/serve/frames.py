"""Server-sent events of one request, built from bytes that are prepared once: a frame costs one string to encode.

    data: {"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,"choices":[{"index":0,"delta":{"content":
    └──────────────────────────── head, once per request ──────────────────────────┘└── opener, once per choice ──┘
    "text"},"logprobs":null,"finish_reason":null}],"usage":null}
    └ new ┘└──────────────── tail, once per request ────────────┘

Frames that carry more than text (a finish, a tool call, log-probabilities, token ids) are encoded as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import UNSET

from dsv4.serve.bodies import (
    CalledFunction,
    CallPiece,
    ChatChunkChoice,
    ChatDelta,
    CompletionDetails,
    PromptDetails,
    TextChoice,
    Usage,
    encode,
)
from dsv4.serve.replies import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dsv4.serve.logprobs import LogprobForm
    from dsv4.types import Delta, ToolCallDelta

DONE = b"data: [DONE]\n\n"


class Tally:
    """Tokens of one HTTP request so far, over its prompts and choices."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._choices: dict[int, tuple[int, int]] = {}

    def note(self, delta: Delta, *, prompt: int, choice: int) -> None:
        """Takes over the running totals of a choice."""
        self._prompts[prompt] = (delta.num_prompt_tokens, delta.num_cached_tokens)
        self._choices[choice] = (delta.num_generated_tokens, delta.num_reasoning_tokens)

    def usage(self) -> Usage:
        """The totals in the words of the API."""
        num_prompt = sum(tokens for tokens, _ in self._prompts.values())
        num_cached = sum(cached for _, cached in self._prompts.values())
        num_generated = sum(tokens for tokens, _ in self._choices.values())
        return Usage(
            num_prompt,
            num_generated,
            num_prompt + num_generated,
            PromptDetails(num_cached),
            CompletionDetails(sum(reasoning for _, reasoning in self._choices.values())),
            num_cached,
            num_prompt - num_cached,
        )


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same in every frame or reply of one request, and what the client wants to see.

    reply_id                 the `id` of the reply
    include_usage            a last frame with usage, null on the others
    continuous_usage         running usage on every frame
    show_reasoning           reasoning text goes out
    show_token_ids           token ids go out beside the text
    """

    reply_id: str
    object: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool = False
    continuous_usage: bool = False
    show_reasoning: bool = True
    show_token_ids: bool = False

    def head(self) -> bytes:
        """The frame up to its choices."""
        fields = {
            "id": self.reply_id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return b"data: " + encode(fields)[:-1] + b',"choices":['


class Frames(Protocol):
    """Builds the frames of one request."""

    def of(self, delta: Delta, choice: int) -> bytes:
        """The frames of one delta; empty when it has nothing to show."""

    def last(self) -> bytes:
        """What ends the stream."""


class _Base:
    """What both doors share: the head, the running usage, the end."""

    def __init__(self, shape: Shape, tally: Tally, logprobs: LogprobForm | None) -> None:
        self._shape = shape
        self._tally = tally
        self._logprobs = logprobs
        self._head = shape.head()
        self._close = b',"usage":null}\n\n' if shape.include_usage and not shape.continuous_usage else b"}\n\n"
        self._plain = logprobs is None and not shape.show_token_ids and not shape.continuous_usage

    def _frame(self, choice: ChatChunkChoice | TextChoice) -> bytes:
        close = self._close
        if self._shape.continuous_usage:
            close = b',"usage":' + encode(self._tally.usage()) + b"}\n\n"
        return b"".join((self._head, encode(choice), b"]", close))

    def last(self) -> bytes:
        """The frame with usage, if it was asked for, and the end mark."""
        if not self._shape.include_usage:
            return DONE
        return b"".join((self._head, b'],"usage":', encode(self._tally.usage()), b"}\n\n", DONE))


class ChatFrames(_Base):
    """Frames of `chat.completion.chunk`."""

    def __init__(self, shape: Shape, tally: Tally, logprobs: LogprobForm | None) -> None:
        super().__init__(shape, tally, logprobs)
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._close
        self._openers: dict[int, tuple[bytes, bytes]] = {}

    def of(self, delta: Delta, choice: int) -> bytes:
        """The role first; then reasoning, content and tool calls, each in its own frame; the last has the finish."""
        parts: list[bytes] = []
        openers = self._openers.get(choice)
        if openers is None:
            openers = self._open(choice)
            parts.append(self._role(choice))
        content, reasoning = delta.content, delta.reasoning if self._shape.show_reasoning else ""
        if self._plain and delta.finish_reason is None and not delta.tool_calls:
            if reasoning:
                parts += (openers[1], encode(reasoning), self._tail)
            if content:
                parts += (openers[0], encode(content), self._tail)
            return b"".join(parts)
        parts += self._full(delta, choice, content, reasoning)
        return b"".join(parts)

    def _open(self, choice: int) -> tuple[bytes, bytes]:
        head = b'%s{"index":%d,"delta":{' % (self._head, choice)
        openers = (head + b'"content":', head + b'"reasoning_content":')
        self._openers[choice] = openers
        return openers

    def _role(self, choice: int) -> bytes:
        close = self._close
        if self._shape.continuous_usage:
            close = b',"usage":' + encode(self._tally.usage()) + b"}\n\n"
        head = b'%s{"index":%d,"delta":{"role":"assistant","content":""' % (self._head, choice)
        return head + b'},"logprobs":null,"finish_reason":null}]' + close

    def _full(self, delta: Delta, choice: int, content: str, reasoning: str) -> Iterable[bytes]:
        """Frames with everything that may be on them; log-probabilities and ids ride on the first one."""
        deltas: list[ChatDelta] = []
        if reasoning:
            deltas.append(ChatDelta(reasoning_content=reasoning))
        if content:
            deltas.append(ChatDelta(content=content))
        if delta.tool_calls:
            deltas.append(ChatDelta(tool_calls=call_pieces(delta.tool_calls)))
        if delta.finish_reason is not None and not deltas:
            deltas.append(ChatDelta())
        logprobs = self._logprobs.chat(delta) if self._logprobs is not None and delta.logprobs else None
        token_ids: list[int] | msgspec.UnsetType = list(delta.token_ids) if self._shape.show_token_ids else UNSET
        if not deltas and (logprobs is not None or (token_ids is not UNSET and delta.token_ids)):
            deltas.append(ChatDelta())
        for number, part in enumerate(deltas):
            finished = number == len(deltas) - 1 and delta.finish_reason is not None
            yield self._frame(
                ChatChunkChoice(
                    choice,
                    part,
                    logprobs if number == 0 else None,
                    delta.finish_reason if finished else None,
                    delta.stop_reason if finished else UNSET,
                    token_ids if number == 0 else UNSET,
                )
            )


class TextFrames(_Base):
    """Frames of `text_completion`. `echoes` holds the prompt text per prompt, when it is to be repeated."""

    def __init__(
        self, shape: Shape, tally: Tally, logprobs: LogprobForm | None, echoes: Sequence[str] | None, num_choices: int
    ) -> None:
        super().__init__(shape, tally, logprobs)
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._close
        self._openers: dict[int, bytes] = {}
        self._echoes = echoes
        self._num_choices = num_choices

    def of(self, delta: Delta, choice: int) -> bytes:
        """One frame, unless there is nothing to show."""
        text = delta.content
        opener = self._openers.get(choice)
        if opener is None:
            opener = b'%s{"index":%d,"text":' % (self._head, choice)
            self._openers[choice] = opener
            if self._echoes is not None:
                text = self._echoes[choice // self._num_choices] + text
        if self._plain and delta.finish_reason is None:
            return b"".join((opener, encode(text), self._tail)) if text else b""
        logprobs = self._logprobs.completion(delta, choice) if self._logprobs is not None and delta.logprobs else None
        shown = self._shape.show_token_ids and bool(delta.token_ids)
        if not text and delta.finish_reason is None and logprobs is None and not shown:
            return b""
        finished = delta.finish_reason is not None
        return self._frame(
            TextChoice(
                choice,
                text,
                logprobs,
                delta.finish_reason,
                delta.stop_reason if finished else UNSET,
                list(delta.token_ids) if self._shape.show_token_ids else UNSET,
            )
        )


def call_pieces(calls: Sequence[ToolCallDelta]) -> list[CallPiece]:
    """Pieces of tool calls in the words of the API."""
    return [
        CallPiece(
            CalledFunction(call.name if call.name is not None else UNSET, call.arguments),
            call.index,
            call.id if call.id is not None else UNSET,
            "function" if call.id is not None else UNSET,
        )
        for call in calls
    ]


def error_frames(refusal: Refusal) -> bytes:
    """An error after the headers: one frame with the error object, then the end mark."""
    return b"data: " + refusal.body() + b"\n\n" + DONE
