"""From a conversation to the prompt of the engine, with the settings that the request leaves open filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dsv4.engine.text.encoding import Segment, encode_turns
from dsv4.engine.text.prompt import END_THINK, THINK
from dsv4.engine.text.tokenizer import Tokenizer
from dsv4.engine.text.turns import Turn, checked_tools, read_turns
from dsv4.errors import InvalidRequest
from dsv4.types import ChatRequest, Effort, RenderedChat

MIN_CONTEXT_OF_MAX = 393_216
"""Tokens of context below which the effort "max" falls to the next one: its thinking needs the room."""

DefaultEffort = Literal["auto", "low", "high", "max"]
EFFORTS: dict[str, tuple[Effort, ...]] = {"preview": ("none", "high", "max"), "0731": ("none", "low", "high", "max")}
"""What a request may name, per generation of the checkpoint's encoder; "none" switches thinking off."""


def render(
    request: ChatRequest,
    tokenizer: Tokenizer,
    *,
    generation: str,
    default_thinking: bool,
    default_effort: DefaultEffort,
    max_model_len: int,
    allow_special_in_content: bool = False,
) -> RenderedChat:
    """Encodes a conversation. CPU-bound for long ones: call it off the event loop.

    generation                 "preview" or "0731", the checkpoint's
    default_thinking           for a request that says nothing
    default_effort             the same; "auto" is the checkpoint's own default, no prefix
    allow_special_in_content   names of control tokens in messages become control tokens, as in the official encoder

    Raises InvalidRequest naming the message and the field at fault.
    """
    if not request.messages:
        raise InvalidRequest("messages is empty; a conversation has at least one message", "messages")
    warnings: list[str] = []
    thinking = _thinks(request, default=default_thinking)
    effort = _effort(request.effort, default_effort, generation, max_model_len, warnings) if thinking else None
    turns = _with_tools(read_turns(request.messages), checked_tools(request.tools, "tools"))
    last = turns[-1]
    if last.role == "assistant" and last.task is None and not last.unfinished:
        warnings.append("the last message is the assistant's; a new answer follows it")
    segments = encode_turns(
        turns, thinking=thinking, effort=effort, generation=generation, open_answer=not last.unfinished
    )
    try:
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text, _ in segments)
        tokenizer.check_length(num_bytes, max_model_len)
        token_ids = tokenize(segments, tokenizer, control=allow_special_in_content)
    except InvalidRequest as error:
        raise InvalidRequest(f"messages: {error}", "messages", error.code) from None
    return RenderedChat(
        token_ids=tuple(token_ids),
        thinking=_begins_in_thinking(segments),
        tools=_declared(turns),
        warnings=tuple(warnings),
    )


def tokenize(segments: Sequence[Segment], tokenizer: Tokenizer, *, control: bool = False) -> list[int]:
    """The ids of a prompt. With `control` its joined text is matched as a whole, as the official tokenizer does."""
    if control:
        return tokenizer.encode("".join(segment.text for segment in segments), control=True)
    token_ids: list[int] = []
    for text, is_control in segments:
        if is_control:
            token_ids.append(tokenizer.control_id(text))
        else:
            token_ids += tokenizer.encode(text)
    return token_ids


def _thinks(request: ChatRequest, *, default: bool) -> bool:
    """Off beats every effort; an effort that is named asks for thinking unless something says otherwise."""
    if request.effort == "none" or request.thinking is False:
        return False
    return True if request.thinking or request.effort is not None else default


def _effort(
    named: Effort | None, default: DefaultEffort, generation: str, max_model_len: int, warnings: list[str]
) -> str | None:
    """The effort in the words of the checkpoint's encoder, None for its own default."""
    effort = named if named is not None else None if default == "auto" else default
    if effort == "max" and max_model_len < MIN_CONTEXT_OF_MAX:
        warnings.append(
            f"effort max needs a context of {MIN_CONTEXT_OF_MAX} tokens, this one has {max_model_len}: high is used"
        )
        effort = "high"
    if effort == "low" and generation == "preview":
        return None  # this generation has no word for it, and no prefix means the same
    return effort


def _with_tools(turns: list[Turn], tools: tuple[dict[str, Any], ...]) -> list[Turn]:
    """Puts the tools of the request on the first system message, or on an empty one before everything."""
    if not tools:
        return turns
    first = next((turn for turn in turns if turn.role == "system"), None)
    if first is None:
        return [Turn(role="system", tools=tools), *turns]
    first.tools += tools
    return turns


def _declared(turns: Iterable[Turn]) -> dict[str, dict[str, Any]]:
    """Function name to JSON schema of its parameters, of every tool in the conversation."""
    return {
        tool["function"]["name"]: dict(tool["function"].get("parameters") or {})
        for turn in turns
        for tool in turn.tools
    }


def _begins_in_thinking(segments: Sequence[Segment]) -> bool:
    """Whether the last thinking tag of the prompt is an open one."""
    tags = (segment.text for segment in reversed(segments) if segment.is_control)
    return next((tag == THINK for tag in tags if tag in (THINK, END_THINK)), False)
