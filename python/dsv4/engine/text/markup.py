"""Splits an answer into reasoning, content and tool calls, however the model bends the format.

    REASONING ──</think>──▶ CONTENT ──tool_calls──▶ BLOCK ◀──/invoke── INVOKE ◀──/parameter── VALUE
        └──────────tool_calls────────────────────────▲ │ └──invoke────▶  │ └───parameter──────▶
                                                      │ └/tool_calls▶ AFTER └──────"{"────────▶ BODY

Tolerated: a missing </think>; thinking tags where they have no meaning; other spellings of tool_calls, or none around
an invoke; several blocks; every missing closing tag, each of which the next tag implies; a JSON object instead of
parameters. Inside VALUE and BODY only tags made with the ｜DSML｜ control token count, unless the body itself was
opened with a tag in letters: a file about DSML that the model copies into an argument stays data.
DSML never reaches content, reasoning or arguments, and text after a block is dropped.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dsv4.engine.text.arguments import CallWriter
from dsv4.engine.text.prompt import END_THINK, THINK
from dsv4.engine.text.tags import DSML_MARK, END_THINK_MARK, THINK_MARK, Tag, TagScanner
from dsv4.types import ToolCallDelta

_MAX_LAYOUT_NEWLINES = 2  # before a block they are layout, not content
_TEXT_OF_MARK = {THINK_MARK: THINK, END_THINK_MARK: END_THINK}


class State(enum.Enum):
    """Where in an answer we are; the picture is at the top."""

    REASONING = enum.auto()
    CONTENT = enum.auto()
    BLOCK = enum.auto()
    AFTER = enum.auto()
    INVOKE = enum.auto()
    VALUE = enum.auto()
    BODY = enum.auto()


class Markup:
    """Reads one answer. What was found since the last look is in `reasoning`, `content` and `calls`; the reader clears.

    tools           declared functions; tags in letters are only looked for when there are some
    hold_newlines   keep up to two newlines back until it is known whether they belong to a block
    oddities        what was tolerated, by kind
    """

    def __init__(
        self,
        tools: Mapping[str, dict[str, Any]],
        *,
        thinking: bool,
        new_call_id: Callable[[], str],
        hold_newlines: bool = True,
    ) -> None:
        self._tools = tools
        self._new_call_id = new_call_id
        self._max_newlines = _MAX_LAYOUT_NEWLINES if hold_newlines else 0
        self._scanner = TagScanner()
        self._state = State.REASONING if thinking else State.CONTENT
        self._newlines = ""
        self._blanks: str | None = None  # whitespace in text between invokes; None before its first other character
        self._call: CallWriter | None = None
        self._has_stray_text = False  # in the open call, since its last tag
        self._is_wrapped = False
        self._is_body_spelled = False
        self._body: list[str] = []
        self.num_calls = 0
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ToolCallDelta] = []
        self.oddities: Counter[str] = Counter()

    @property
    def in_reasoning(self) -> bool:
        """Whether the thinking text has not ended."""
        return self._state is State.REASONING

    @property
    def pending(self) -> bool:
        """Whether something is held that may become a tag."""
        return self._scanner.pending

    def push(self, text: str) -> None:
        """Reads more of the answer; control tokens in it are marks."""
        self._scanner.push(text)
        self._read(final=False)

    def finish(self, *, complete: bool) -> None:
        """The answer is over. A call that is still open is closed if the model ended by itself, and dropped if not."""
        self._read(final=True)
        if self._state in (State.REASONING, State.CONTENT):
            self._show("", final=True)
        if self._call is None:
            return
        if complete:
            self._end_body(by_own_tag=False)
            self._close_call(State.AFTER)
            self.oddities["unclosed_call"] += 1
        else:
            self._call = None
            self.oddities["unfinished_call"] += 1

    def _read(self, *, final: bool) -> None:
        while True:
            text, event = self._scanner.take(spelled=self._accepts_letters(), final=final)
            if text:
                self._on_text(text)
            if event is None:
                break
            if isinstance(event, Tag):
                self._on_tag(event)
            elif event:
                self._on_mark(event)
        if self._call is not None:
            self.calls += self._call.take()

    def _accepts_letters(self) -> bool:
        """Whether a tag may be made of ordinary tokens here."""
        if self._state in (State.VALUE, State.BODY):
            return self._is_body_spelled
        return bool(self._tools) and self._state is not State.REASONING

    def _on_text(self, text: str) -> None:
        match self._state:
            case State.REASONING | State.CONTENT:
                self._show(text)
            case State.BLOCK:
                self._show_stray(text)
            case State.VALUE:
                assert self._call is not None, "a value belongs to a call"  # noqa: S101
                self._call.value(text)
            case State.BODY:
                self._body.append(text)
            case State.INVOKE:
                self._on_text_in_invoke(text)
            case State.AFTER:
                pass

    def _on_text_in_invoke(self, text: str) -> None:
        """Between parameters there is layout, or the arguments as a JSON object."""
        stripped = text.lstrip()
        if not stripped or self._has_stray_text:
            return
        if stripped.startswith("{") and self._call is not None and self._call.is_empty:
            self._state = State.BODY
            self._body = [stripped]
        else:
            self._has_stray_text = True
            self.oddities["text_in_call"] += 1

    def _on_mark(self, mark: str) -> None:
        if mark == DSML_MARK:
            self.oddities["stray_markup"] += 1
        elif self._state in (State.VALUE, State.BODY):
            self._on_text(_TEXT_OF_MARK[mark])
        elif mark == END_THINK_MARK and self._state is State.REASONING:
            self._show("", final=True)
            self._state = State.CONTENT
        else:
            self.oddities["stray_think"] += 1

    def _on_tag(self, tag: Tag) -> None:
        self._has_stray_text = False
        if self._state in (State.REASONING, State.CONTENT):
            self._open_block(tag)
            return
        if self._state in (State.VALUE, State.BODY):
            by_own_tag = tag.kind == "parameter" and tag.closing
            self._end_body(by_own_tag=by_own_tag)
            if by_own_tag:
                return
        if self._state is State.INVOKE and tag.kind == "parameter":
            self._open_parameter(tag)
        else:
            self._on_structure(tag)

    def _open_block(self, tag: Tag) -> None:
        """The first tag of a block; any other tag here means nothing."""
        opens = not tag.closing and (tag.kind == "tool_calls" or (tag.kind == "invoke" and tag.name is not None))
        if opens:
            if self._state is State.REASONING:
                self.oddities["call_in_reasoning"] += 1
            self._newlines = ""
            self._on_structure(tag)
        elif tag.spelled:
            self._show(tag.raw)
        else:
            self.oddities["stray_markup"] += 1

    def _on_structure(self, tag: Tag) -> None:
        """A tag around or between calls; it ends an open one."""
        if tag.kind == "parameter" or (tag.kind == "invoke" and not tag.closing and tag.name is None):
            self.oddities["stray_markup"] += 1
            return
        self._blanks = None
        if self._call is not None:
            self._close_call(State.BLOCK if self._is_wrapped else State.AFTER)
        if tag.kind == "tool_calls":
            self._is_wrapped = not tag.closing
            self._state = State.AFTER if tag.closing else State.BLOCK
        elif not tag.closing and tag.name is not None:
            self._open_call(tag.name, spelled=tag.spelled)
            if tag.self_closing:
                self._close_call(State.BLOCK if self._is_wrapped else State.AFTER)

    def _open_call(self, name: str, *, spelled: bool) -> None:
        if name not in self._tools:
            self.oddities["unknown_tool"] += 1
        self._call = CallWriter(self.num_calls, self._new_call_id(), name, self._tools.get(name))
        self._state = State.INVOKE
        self._is_body_spelled = spelled

    def _close_call(self, state: State) -> None:
        assert self._call is not None, "only an open call closes"  # noqa: S101
        self._call.close()
        self.calls += self._call.take()
        self._call = None
        self.num_calls += 1
        self._state = state

    def _open_parameter(self, tag: Tag) -> None:
        assert self._call is not None, "a parameter belongs to a call"  # noqa: S101
        if tag.closing or tag.name is None:
            self.oddities["stray_markup"] += 1
            return
        self._call.begin(tag.name, tag.attributes.get("string"))
        self._state = State.VALUE
        self._is_body_spelled = tag.spelled
        if tag.self_closing:
            self._end_body(by_own_tag=True)

    def _end_body(self, *, by_own_tag: bool) -> None:
        """The open value or JSON body ends."""
        assert self._call is not None, "a body belongs to a call"  # noqa: S101
        if self._state is State.VALUE:
            self._call.end(by_own_tag=by_own_tag)
        elif self._state is State.BODY:
            self._call.body("".join(self._body).rstrip())
            self._body = []
        self._state = State.INVOKE

    def _show(self, text: str, *, final: bool = False) -> None:
        """Reasoning or content, except for newlines that may be a block's."""
        text = self._newlines + text
        kept = len(text)
        while not final and kept > 0 and len(text) - kept < self._max_newlines and text[kept - 1] == "\n":
            kept -= 1
        self._newlines = text[kept:]
        if kept:
            (self.reasoning if self.in_reasoning else self.content).append(text[:kept])

    def _show_stray(self, text: str) -> None:
        """Text between invokes is content, without the whitespace around it."""
        if self._blanks is None:
            text = text.lstrip()
            if not text:
                return
            self._blanks = ""
            self.oddities["text_in_block"] += 1
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        if shown:
            self.content.append(shown)
