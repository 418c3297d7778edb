"""One choice's tokens, read: reasoning, content and tool calls, cut at stop strings, complete at the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

import msgspec

from dsv4.engine.text.detokenize import Detokenizer
from dsv4.engine.text.markup import Markup
from dsv4.engine.text.stops import StopAutomaton, StopMatcher
from dsv4.engine.text.tags import DSML_MARK, END_THINK_MARK, THINK_MARK
from dsv4.engine.text.tokenizer import Tokenizer
from dsv4.types import FinishReason, RenderedChat, SamplingParams, ToolCallDelta


def new_call_id() -> str:
    """A name for a tool call: 128 random bits."""
    return f"call_{secrets.token_hex(16)}"


class Piece(msgspec.Struct, frozen=True):
    """What some tokens added to an answer.

    num_tokens      how many of them were read; the rest came after a stop string
    stopped         the stop string that ended the content, on the piece where it was found
    finish_reason   only from `finish`
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    num_tokens: int = 0
    stopped: str | None = None
    finish_reason: FinishReason | None = None


class AnswerReader:
    """Reads the answer to one prompt, for one choice. Not thread-safe; constant time per token.

    chat    the conversation that is answered; None for a raw prompt, whose answer is content and nothing else
    stops   the automaton of `params.stop`, to share between choices

    End of sequence (unless `ignore_eos`) and the stop tokens (unless `include_stop_str_in_output`) leave no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        chat: RenderedChat | None = None,
        stops: StopAutomaton | None = None,
        new_call_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._end_id = None if params.ignore_eos else tokenizer.eos_id
        self._stops = StopMatcher(stops or params.stop, include_stop=params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._markup: Markup | None = None
        marks: dict[int, str] = {}
        if chat is not None:
            marks = {
                tokenizer.think_id: THINK_MARK,
                tokenizer.end_think_id: END_THINK_MARK,
                tokenizer.dsml_id: DSML_MARK,
            }
            # Without tools a newline that ends a stop string is not kept waiting for a block that nobody asked for.
            hold_newlines = bool(chat.tools) or not any("\n" in stop for stop in params.stop)
            self._markup = Markup(
                chat.tools, thinking=chat.thinking, new_call_id=new_call_id, hold_newlines=hold_newlines
            )
        hidden = _hidden(tokenizer, params, is_chat=chat is not None) - marks.keys()
        if not params.include_stop_str_in_output:
            hidden |= frozenset(params.stop_token_ids)
        self._text = Detokenizer(tokenizer, hidden=hidden, marks=marks)
        self._num_undecided = 0  # tokens of what may become a tag
        self.num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the content."""
        return self._stops.matched

    @property
    def oddities(self) -> dict[str, int]:
        """Deviations from the format that were tolerated, by kind."""
        return dict(self._markup.oddities) if self._markup is not None else {}

    def push(self, token_ids: Iterable[int]) -> Piece:
        """What these tokens add; nothing after a stop string was found."""
        content: list[str] = []
        num_before = self.num_tokens
        for token_id in token_ids:
            if self._stops.matched is not None:
                break
            self.num_tokens += 1
            text = self._text.push((token_id,))
            if self._markup is None:
                content.append(self._cut(text))
            else:
                self._read(self._markup, token_id, text, content)
        return self._piece(content, num_tokens=self.num_tokens - num_before, was_stopped=False)

    def finish(self, reason: FinishReason) -> Piece:
        """What was held back, and how the answer ended.

        A call that is still open is completed after "stop" and dropped after anything else. The reason becomes
        "tool_calls" where calls were completed, and "stop" where the text held back completes a stop string.
        """
        was_stopped = self._stops.matched is not None
        content: list[str] = []
        if not was_stopped:
            tail = self._text.finish()
            if self._markup is None:
                content.append(self._cut(tail))
            else:
                if self._markup.in_reasoning:
                    self.num_reasoning_tokens += self._num_undecided
                self._markup.push(tail)
                self._markup.finish(complete=reason == "stop")
                self._drain(self._markup, content)
            content.append(self._stops.finish())
        if self._stops.matched is not None:
            reason = "stop"
        if reason == "stop" and self._markup is not None and self._markup.num_calls:
            reason = "tool_calls"
        return self._piece(content, was_stopped=was_stopped, finish_reason=reason)

    def _read(self, markup: Markup, token_id: int, text: str, content: list[str]) -> None:
        was_reasoning = markup.in_reasoning
        if text:
            markup.push(text)
        if was_reasoning:
            self._count(markup, token_id)
        self._drain(markup, content)

    def _count(self, markup: Markup, token_id: int) -> None:
        """Counts a token of reasoning; those of a tag only once it is clear that it is none."""
        if not markup.in_reasoning:
            self._num_undecided = 0
        elif markup.pending:
            self._num_undecided += 1
        else:
            self.num_reasoning_tokens += self._num_undecided + (token_id != self._end_id)
            self._num_undecided = 0

    def _drain(self, markup: Markup, content: list[str]) -> None:
        if markup.content:
            content += map(self._cut, markup.content)
            markup.content.clear()

    def _cut(self, text: str) -> str:
        return self._stops.push(text, armed=self.num_tokens >= self._min_tokens)

    def _piece(
        self,
        content: list[str],
        *,
        was_stopped: bool,
        num_tokens: int = 0,
        finish_reason: FinishReason | None = None,
    ) -> Piece:
        reasoning = ""
        calls: tuple[ToolCallDelta, ...] = ()
        if self._markup is not None:
            reasoning, calls = "".join(self._markup.reasoning), _joined(self._markup.calls)
            self._markup.reasoning.clear()
            self._markup.calls.clear()
        return Piece(
            content="".join(content),
            reasoning=reasoning,
            tool_calls=calls,
            num_tokens=num_tokens,
            stopped=None if was_stopped else self._stops.matched,
            finish_reason=finish_reason,
        )


def _hidden(tokenizer: Tokenizer, params: SamplingParams, *, is_chat: bool) -> frozenset[int]:
    """Ids without text. In a raw answer only what the checkpoint flags as special; in a chat every control token."""
    hidden: frozenset[int] = frozenset()
    if params.skip_special_tokens:
        hidden = tokenizer.control_ids if is_chat else tokenizer.special_ids
    return hidden if params.ignore_eos else hidden | {tokenizer.eos_id}


def _joined(pieces: list[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Neighbouring pieces of one call's arguments as one; a call's head stays alone."""
    found: list[ToolCallDelta] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last is not None and last.index == piece.index and last.id is None and piece.id is None:
            found[-1] = ToolCallDelta(piece.index, last.arguments + piece.arguments)
        else:
            found.append(piece)
    return tuple(found)
