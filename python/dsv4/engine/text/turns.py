"""From the messages of a request to the turns that the encoder prints: checked, merged, ordered, trimmed.

A tool's result is part of the user's turn, results follow the order of the calls, and without tools the thinking of
earlier turns is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsv4.engine.text.prompt import prompt_strings
from dsv4.errors import InvalidRequest

Role = Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool", "latest_reminder")
PART_SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a user's turn; `call_id` is None for text, and the call that a tool's result answers."""

    text: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """An earlier tool call; `arguments` in the order in which they were written."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Turn:
    """One message, or several merged ones; only user turns have blocks, all others have content."""

    role: Role
    content: str = ""
    blocks: list[Block] = field(default_factory=list)
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: object = None
    task: str | None = None
    unfinished: bool = False


def read_turns(messages: Iterable[object], at: str = "messages") -> list[Turn]:
    """One turn per message. Raises InvalidRequest naming the message and the field at fault."""
    return [_Reader(message, f"{at}[{index}]").turn() for index, message in enumerate(messages)]


class _Reader:
    """Reads one message, and says where it is wrong."""

    def __init__(self, message: object, at: str) -> None:
        self._at = at
        if not isinstance(message, Mapping):
            raise self._refused("", f"must be an object, not {type(message).__name__}")
        self._message = message

    def turn(self) -> Turn:
        role = self._message.get("role")
        if role not in ROLES:
            shown = repr(role[:64]) if isinstance(role, str) else f"a {type(role).__name__}"
            raise self._refused("role", f"is {shown}; it is one of {', '.join(ROLES)}")
        turn = Turn(role=role, content=self._content(role), tools=self._tools(role), task=self._task())
        if role == "user":
            turn.blocks = [Block(turn.content)]
        elif role == "tool":
            turn.blocks = [Block(turn.content, self._string("tool_call_id"))]
        if role == "assistant":
            turn.reasoning = self._string("reasoning_content") or self._string("reasoning")
            turn.calls = self._calls()
            turn.unfinished = bool(self._message.get("wo_eos"))
        elif role in ("system", "developer"):
            turn.response_format = self._message.get("response_format")
        if role == "developer" and not turn.content:
            raise self._refused("content", "is empty; a developer message needs text")
        return turn

    def _refused(self, name: str, why: str) -> InvalidRequest:
        where = f"{self._at}.{name}" if name else self._at
        return InvalidRequest(f"{where} {why}", where)

    def _string(self, name: str) -> str:
        value = self._message.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._refused(name, f"must be a string, not {type(value).__name__}")
        return value

    def _content(self, role: Role) -> str:
        content = self._message.get("content")
        if content is None and role not in ("assistant", "tool", "system"):
            raise self._refused("content", f"is missing; a message of role {role} needs it")
        if not isinstance(content, Sequence) or isinstance(content, str):
            return self._string("content")
        return PART_SEPARATOR.join(self._part(part, index, role) for index, part in enumerate(content))

    def _part(self, part: object, index: int, role: Role) -> str:
        where = f"content[{index}]"
        if not isinstance(part, Mapping):
            raise self._refused(where, f"must be an object with a type, not {type(part).__name__}")
        kind = part.get("type")
        if kind != "text":
            if role == "tool":
                return f"[Unsupported {kind}]"
            raise self._refused(f"{where}.type", f"is {str(kind)[:64]!r}; this model reads only parts of type text")
        text = part.get("text", "")
        if not isinstance(text, str):
            raise self._refused(f"{where}.text", f"must be a string, not {type(text).__name__}")
        return text

    def _tools(self, role: Role) -> tuple[dict[str, Any], ...]:
        tools = self._message.get("tools")
        if not tools:
            return ()
        if role not in ("system", "developer"):
            raise self._refused("tools", f"is on a {role} message; only system and developer messages declare tools")
        return checked_tools(tools, f"{self._at}.tools")

    def _task(self) -> str | None:
        task = self._message.get("task")
        known = prompt_strings().task_tokens
        if task is not None and (not isinstance(task, str) or task not in known):
            raise self._refused("task", f"is {str(task)[:64]!r}; it is one of {', '.join(known)}")
        return task

    def _calls(self) -> tuple[Call, ...]:
        calls = self._message.get("tool_calls") or ()
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise self._refused("tool_calls", f"must be a list, not {type(calls).__name__}")
        return tuple(self._call(call, f"tool_calls[{index}]") for index, call in enumerate(calls))

    def _call(self, call: object, where: str) -> Call:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping):
            raise self._refused(f"{where}.function", "must be an object with a name and arguments")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise self._refused(f"{where}.function.name", "must be a string that is not empty")
        call_id = call.get("id") or function.get("id") or ""
        return Call(str(call_id), name, self._arguments(function.get("arguments"), f"{where}.function.arguments"))

    def _arguments(self, written: object, where: str) -> Mapping[str, Any]:
        """The arguments as an object; text that is none becomes one string argument named `arguments`."""
        if written is None:
            return {}
        if isinstance(written, Mapping):
            return written
        if not isinstance(written, str):
            raise self._refused(where, f"must be a string of JSON, not {type(written).__name__}")
        try:
            found = json.loads(written)
        except ValueError:
            found = None
        except RecursionError:
            raise self._refused(where, "is nested too deeply") from None
        return found if isinstance(found, dict) else {"arguments": written}


def checked_tools(tools: object, at: str) -> tuple[dict[str, Any], ...]:
    """Tools as the API writes them: objects with a `function` that has a name. Raises InvalidRequest."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidRequest(f"{at} must be a list, not {type(tools).__name__}", at)
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            where = f"{at}[{index}].function"
            raise InvalidRequest(f"{where} must be an object with a name", where)
    return tuple(tools)


def merge(turns: Sequence[Turn]) -> list[Turn]:
    """Tool results and consecutive user messages share one turn; after a user message with a task a new one opens."""
    found: list[Turn] = []
    for turn in turns:
        if turn.role not in ("user", "tool"):
            found.append(turn)
            continue
        last = found[-1] if found and found[-1].role == "user" else None
        if last is not None and (turn.role == "tool" or last.task is None):
            last.blocks.extend(turn.blocks)
        else:
            task = turn.task if turn.role == "user" else None
            found.append(replace(turn, role="user", task=task, blocks=list(turn.blocks)))
    return found


def order_results(turns: Sequence[Turn]) -> None:
    """Puts the results of each user turn into the order of the latest calls, in place; text blocks stay."""
    rank: dict[str, int] = {}
    for turn in turns:
        if turn.calls:
            rank = {call.id: index for index, call in enumerate(turn.calls) if call.id}
        elif turn.role == "user":
            results = [block for block in turn.blocks if block.call_id is not None]
            if len(results) > 1 and rank:
                ordered = iter(sorted(results, key=lambda block: rank.get(block.call_id or "", 0)))
                turn.blocks = [block if block.call_id is None else next(ordered) for block in turn.blocks]


def last_user(turns: Sequence[Turn]) -> int:
    """Index of the last turn that asks for an answer, or -1."""
    return max((index for index, turn in enumerate(turns) if turn.role in ("user", "developer")), default=-1)


def forget_thinking(turns: Sequence[Turn]) -> list[Turn]:
    """Without the reasoning, and without the developer messages, of before the last user turn."""
    last = last_user(turns)
    return [
        replace(turn, reasoning="") if index < last and turn.role == "assistant" else turn
        for index, turn in enumerate(turns)
        if index >= last or turn.role != "developer"
    ]
