"""The prompt of a conversation, byte for byte as the official encoder writes it (there is no template file).

The prompt is a list of segments, and each says whether it is a control token: what a user, a tool or an earlier answer
wrote never is, whatever it spells. The picture:

    BOS [effort] system text + tools  <｜User｜> blocks  <｜Assistant｜><think> reasoning </think> content calls EOS
                                                        └─ transition, printed by the turn before the answer
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dsv4.engine.text.prompt import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    REMINDER,
    THINK,
    USER,
    prompt_strings,
)
from dsv4.engine.text.turns import PART_SEPARATOR, Block, Call, Turn, forget_thinking, last_user, merge, order_results
from dsv4.engine.text.turns import read_turns as _read
from dsv4.errors import InvalidRequest

_PLACEHOLDER = re.compile(r"\{(dsml_token|thinking_start_token|thinking_end_token|tool_schemas)\}")
_CONTROL_OF = {"dsml_token": DSML, "thinking_start_token": THINK, "thinking_end_token": END_THINK}


class Segment(NamedTuple):
    """A run of the prompt: one control token, or text between two of them."""

    text: str
    is_control: bool


class _Writer:
    """Collects segments; neighbouring text is one segment, because it must be tokenised as one run."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._text: list[str] = []

    def text(self, text: str) -> None:
        self._text.append(text)

    def control(self, name: str) -> None:
        self._close_text()
        self._segments.append(Segment(name, is_control=True))

    def segments(self) -> list[Segment]:
        self._close_text()
        return self._segments

    def _close_text(self) -> None:
        if text := "".join(self._text):
            self._segments.append(Segment(text, is_control=False))
        self._text.clear()


def encode(
    messages: Iterable[object],
    *,
    thinking: bool,
    context: Iterable[object] = (),
    drop_thinking: bool = True,
    bos: bool = True,
    effort: str | None = None,
    generation: str = "preview",
) -> list[Segment]:
    """The segments of a prompt that ends where the answer begins.

    context         messages that an earlier prompt already encoded; they are not written again
    drop_thinking   reasoning of before the last user turn is left out, unless the conversation has tools
    effort          a word of the checkpoint's generation, or None for no prefix

    Raises InvalidRequest naming the message and the field at fault.
    """
    return encode_turns(
        _read(messages),
        thinking=thinking,
        context=_read(context, "context"),
        drop_thinking=drop_thinking,
        bos=bos,
        effort=effort,
        generation=generation,
    )


def encode_turns(
    turns: Sequence[Turn],
    *,
    thinking: bool,
    context: Sequence[Turn] = (),
    drop_thinking: bool = True,
    bos: bool = True,
    effort: str | None = None,
    generation: str = "preview",
    open_answer: bool = False,
) -> list[Segment]:
    """As `encode`, from turns that were read. `open_answer`: the assistant speaks next, whoever spoke last."""
    before = merge(context)
    full = before + merge(turns)
    order_results(full)
    start = len(before)
    drop = drop_thinking and not any(turn.tools for turn in full)
    if thinking and drop:
        start = len(forget_thinking(before))
        full = forget_thinking(full)
    writer = _Writer()
    if bos and not before:
        writer.control(BOS)
    if thinking and full and start == 0:
        writer.text(effort_prefix(effort, generation))
    _Printer(writer, full, thinking=thinking, drop=drop).print_from(start, open_answer=open_answer)
    return writer.segments()


def effort_prefix(effort: str | None, generation: str) -> str:
    """What a reasoning effort puts before everything else. Raises InvalidRequest for a word of another generation."""
    if effort is None:
        return ""
    table = prompt_strings().efforts(generation)
    if effort not in table:
        known = ", ".join(table)
        raise InvalidRequest(
            f"reasoning effort is {effort!r}; checkpoint generation {generation} has {known}", "effort"
        )
    return table[effort]


class _Printer:
    """Prints turns in order; what one says depends on whether it is before or after the last user turn."""

    def __init__(self, writer: _Writer, turns: Sequence[Turn], *, thinking: bool, drop: bool) -> None:
        self._writer = writer
        self._turns = turns
        self._thinking = thinking
        self._drop = drop
        self._last_user = last_user(turns)

    def print_from(self, start: int, *, open_answer: bool) -> None:
        for index in range(start, len(self._turns)):
            self._turn(index)
            self._transition(index)
        last = self._turns[-1] if self._turns else None
        if open_answer and last is not None and last.role in ("system", "assistant") and last.task is None:
            self._open(thinking=self._thinking)

    def _turn(self, index: int) -> None:
        turn, writer = self._turns[index], self._writer
        match turn.role:
            case "system":
                writer.text(turn.content)
                self._extras(turn)
            case "developer":
                writer.control(USER)
                writer.text(turn.content)
                self._extras(turn)
            case "latest_reminder":
                writer.control(REMINDER)
                writer.text(turn.content)
            case "assistant":
                self._assistant(index)
            case _:
                writer.control(USER)
                writer.text(PART_SEPARATOR.join(map(_block_text, turn.blocks)))

    def _assistant(self, index: int) -> None:
        turn, writer = self._turns[index], self._writer
        after_task = index > 0 and self._turns[index - 1].task is not None
        if self._thinking and not after_task and (not self._drop or index > self._last_user):
            writer.text(turn.reasoning)
            writer.control(END_THINK)
        writer.text(turn.content)
        if turn.calls:
            self._calls(turn.calls)
        if not turn.unfinished:
            writer.control(EOS)

    def _transition(self, index: int) -> None:
        """What follows a turn, if it is the last one or the assistant is next."""
        turn = self._turns[index]
        if index + 1 < len(self._turns) and self._turns[index + 1].role not in ("assistant", "latest_reminder"):
            return
        if turn.task is not None:
            if turn.task == "action":
                self._open(thinking=self._thinking)
            self._writer.control(prompt_strings().task_tokens[turn.task])
        elif turn.role in ("user", "developer"):
            self._open(thinking=self._thinking and (not self._drop or index >= self._last_user))

    def _open(self, *, thinking: bool) -> None:
        self._writer.control(ASSISTANT)
        self._writer.control(THINK if thinking else END_THINK)

    def _extras(self, turn: Turn) -> None:
        """Tools and response format, after the text of a system or developer turn."""
        if turn.tools:
            self._writer.text("\n\n")
            self._tools(turn)
        if turn.response_format:
            block = prompt_strings().response_format_template.replace("{schema}", _json(turn.response_format))
            self._writer.text("\n\n" + block)

    def _tools(self, turn: Turn) -> None:
        # Odd pieces are names of placeholders. Only the template's own tags are control tokens, not what schemas spell.
        for position, piece in enumerate(_PLACEHOLDER.split(prompt_strings().tools_template)):
            if position % 2 == 0:
                self._writer.text(piece)
            elif piece == "tool_schemas":
                self._writer.text("\n".join(_json(tool["function"]) for tool in turn.tools))
            else:
                self._writer.control(_CONTROL_OF[piece])

    def _calls(self, calls: Sequence[Call]) -> None:
        self._writer.text("\n\n")
        self._tag("<", "tool_calls>\n")
        for index, call in enumerate(calls):
            self._tag("\n<" if index else "<", f'invoke name="{call.name}">\n')
            for position, (key, value) in enumerate(call.arguments.items()):
                is_text = isinstance(value, str)
                flag = "true" if is_text else "false"
                self._tag("\n<" if position else "<", f'parameter name="{key}" string="{flag}">')
                self._writer.text(value if is_text else _json(value))
                self._tag("</", "parameter>")
            self._tag("\n</", "invoke>")
        self._tag("\n</", "tool_calls>")

    def _tag(self, before: str, after: str) -> None:
        self._writer.text(before)
        self._writer.control(DSML)
        self._writer.text(after)


def _block_text(block: Block) -> str:
    return block.text if block.call_id is None else f"<tool_result>{block.text}</tool_result>"


def _json(value: object) -> str:
    """As Python writes it: separators ", " and ": ", keys in order, non-ASCII as it is, 1.0 stays 1.0."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"tools, response_format or arguments cannot be written as JSON: {error}") from error
