"""From the messages of a body to the words of the official encoder, checked as far as a door can check them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from dsv4.serve.bodies import ChatBody, given
from dsv4.serve.decoding import check_depth
from dsv4.serve.reasoning import reasoning_of
from dsv4.serve.replies import Refusal, invalid, unsupported
from dsv4.serve.settings import MAX_MESSAGES, MAX_TOOL_BYTES, MAX_TOOLS
from dsv4.types import ChatRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv4.serve.bodies import Message, Part, TokenizeBody, ToolCall
    from dsv4.serve.exchange import Exchange

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "latest_reminder"})
ALWAYS_KEPT = ROLES - {"developer"}
"""Whose content the encoder never leaves out."""

PART_SEPARATOR = "\n\n"
"""Between the text parts of one message, as the encoder joins the blocks of one turn."""

MAX_NAME_CHARS = 256


def chat_request(body: ChatBody | TokenizeBody, exchange: Exchange) -> ChatRequest:
    """The conversation of a body. Raises Refusal naming the message or the tool at fault."""
    messages = body.messages or []
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise invalid(f"messages has {len(messages)} entries; it must have 1 to {MAX_MESSAGES}.", "messages")
    tools = body.tools or []
    check_tools(tools, "tools")
    if isinstance(body, ChatBody) and body.tool_choice == "none":
        tools = []
    thinking, effort = reasoning_of(body, exchange)
    found = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    exchange.door.check_length((message["content"] for message in found if message["role"] in ALWAYS_KEPT), "messages")
    return ChatRequest(
        messages=found,
        tools=tuple(tools),
        thinking=thinking,
        effort=effort,
    )


def _message(message: Message, at: str) -> dict[str, Any]:
    """One message; fields that its role does not have are left out."""
    role = message.role
    if role not in ROLES:
        raise invalid(f"{at}.role is {role[:64]!r}; it is one of {', '.join(sorted(ROLES))}.", f"{at}.role")
    if given(message.function_call):
        raise unsupported(f"{at}.function_call is the old form; use tool_calls.", f"{at}.function_call")
    found: dict[str, Any] = {"role": role, "content": _content(message, at)}
    if role == "assistant":
        reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
        if reasoning is not None:
            found["reasoning_content"] = reasoning
        if message.tool_calls:
            found["tool_calls"] = [_call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
    if role == "tool":
        found["tool_call_id"] = message.tool_call_id or ""
    if message.task is not None:
        found["task"] = message.task
    if message.tools:
        check_tools(message.tools, f"{at}.tools")
        found["tools"] = message.tools
    return found


def _content(message: Message, at: str) -> str:
    content = message.content
    if isinstance(content, list):
        content = PART_SEPARATOR.join(_text(part, f"{at}.content[{index}]") for index, part in enumerate(content))
    if content is None and message.role != "assistant":
        raise invalid(f"{at}.content is missing; a message of role {message.role} needs it.", f"{at}.content")
    if not content and message.role == "developer":
        raise invalid(f"{at}.content is empty; a developer message needs text.", f"{at}.content")
    return content or ""


def _text(part: Part, at: str) -> str:
    if part.type != "text":
        message = f"{at}.type is {part.type[:64]!r}; only parts of type text are served by this text model."
        raise unsupported(message, f"{at}.type")
    if part.text is None:
        raise invalid(f"{at}.text is missing.", f"{at}.text")
    return part.text


def _call(call: ToolCall, at: str) -> dict[str, Any]:
    if call.type not in (None, "function"):
        raise unsupported(f"{at}.type is {call.type[:64]!r}; only function calls are served.", f"{at}.type")
    _check_name(call.function.name, f"{at}.function.name")
    text = _arguments(call.function.arguments)
    try:
        check_depth(text.encode())
    except Refusal as error:
        where = f"{at}.function.arguments"
        raise invalid(f"{where}: {str(error).replace('The body', 'the JSON')}", where) from None
    return {"id": call.id or "", "type": "function", "function": {"name": call.function.name, "arguments": text}}


def _arguments(raw: msgspec.Raw) -> str:
    """Arguments as the text that they are, or of an object that was sent in their place."""
    if not given(raw):
        return "{}"
    found = bytes(raw)
    return msgspec.json.decode(found, type=str) if found.startswith(b'"') else found.decode()


def check_tools(tools: Sequence[dict[str, object]], at: str) -> None:
    """Refuses what is not a list of function tools of a bounded size."""
    if len(tools) > MAX_TOOLS:
        raise invalid(f"{at} has {len(tools)} entries; at most {MAX_TOOLS} are taken.", at)
    num_bytes = len(msgspec.json.encode(tools)) if tools else 0
    if num_bytes > MAX_TOOL_BYTES:
        raise invalid(f"{at} has {num_bytes} bytes; at most {MAX_TOOL_BYTES} are taken.", at)
    for index, tool in enumerate(tools):
        _check_tool(tool, f"{at}[{index}]")


def _check_tool(tool: dict[str, object], at: str) -> None:
    if tool.get("type", "function") != "function":
        raise unsupported(f"{at}.type is {str(tool['type'])[:64]!r}; only function tools are served.", f"{at}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise invalid(f"{at}.function must be an object with a name.", f"{at}.function")
    name = function.get("name")
    if not isinstance(name, str):
        raise invalid(f"{at}.function.name must be a string.", f"{at}.function.name")
    _check_name(name, f"{at}.function.name")
    if not isinstance(function.get("parameters", {}), dict | None):
        raise invalid(f"{at}.function.parameters must be a JSON schema object.", f"{at}.function.parameters")
    if not isinstance(function.get("description", ""), str | None):
        raise invalid(f"{at}.function.description must be a string.", f"{at}.function.description")


def _check_name(name: str, at: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise invalid(f"{at} has {len(name)} characters; it must have 1 to {MAX_NAME_CHARS}.", at)
