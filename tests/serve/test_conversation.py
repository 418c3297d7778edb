"""Messages and tools on their way to the encoder: what is passed on, in which words, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.serve.harness import Served

from dsv4.serve.settings import MAX_MESSAGES, MAX_TOOL_BYTES, MAX_TOOLS

pytestmark = pytest.mark.anyio

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}},
}
USER: dict[str, Any] = {"role": "user", "content": "Hi"}


async def rendered(
    served: Served, messages: Sequence[Mapping[str, Any]], **fields: object
) -> tuple[dict[str, Any], ...]:
    response = await served.chat(max_tokens=1, messages=messages, **fields)
    assert response.status_code == 200, response.text
    return served.engine.rendered[-1].messages


async def refused(served: Served, **fields: object) -> dict[str, Any]:
    response = await served.chat(**fields)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


async def test_every_role_passes(served: Served) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "developer", "content": "D"},
        {"role": "latest_reminder", "content": "R"},
        USER,
        {"role": "assistant", "content": "A"},
        {"role": "tool", "content": "T", "tool_call_id": "call_1"},
    ]
    assert await rendered(served, messages) == tuple(messages)


async def test_parts_of_text_are_joined(served: Served) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    for role in ("system", "developer", "user", "assistant", "latest_reminder"):
        (message,) = await rendered(served, [{"role": role, "content": parts}])
        assert message["content"] == "one\n\ntwo"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_earlier_reasoning_comes_in_under_both_names(served: Served, name: str) -> None:
    messages = [USER, {"role": "assistant", "content": "A", name: "because"}, USER]
    assert (await rendered(served, messages))[1]["reasoning_content"] == "because"


async def test_reasoning_content_wins_over_reasoning(served: Served) -> None:
    messages = [USER, {"role": "assistant", "content": "A", "reasoning_content": "x", "reasoning": "y"}]
    assert (await rendered(served, messages))[1]["reasoning_content"] == "x"


async def test_tool_calls_pass_with_their_arguments_untouched(served: Served) -> None:
    arguments = '{"b": 1.0, "a": "\\u00e9"}'
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    found = (await rendered(served, messages))[1]
    assert found == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("given", "expected"), [({"b": 1.0, "a": [2]}, '{"b":1.0,"a":[2]}'), (None, "{}"), ("not json", "not json")]
)
async def test_arguments_that_are_no_string_become_one(served: Served, given: object, expected: str) -> None:
    call = {"function": {"name": "add", "arguments": given}}
    (_, message) = await rendered(served, [USER, {"role": "assistant", "tool_calls": [call]}])
    assert message["tool_calls"][0]["function"]["arguments"] == expected


async def test_a_task_passes(served: Served) -> None:
    (message,) = await rendered(served, [{**USER, "task": "action"}])
    assert message["task"] == "action"


async def test_tools_keep_the_order_of_their_keys(served: Served) -> None:
    await rendered(served, [USER], tools=[TOOL])
    (tool,) = served.engine.rendered[-1].tools
    assert tool == TOOL
    assert list(tool["function"]["parameters"]["properties"]) == ["b", "a"]


async def test_tool_choice_none_hides_the_tools(served: Served) -> None:
    await rendered(served, [USER], tools=[TOOL], tool_choice="none")
    assert served.engine.rendered[-1].tools == ()
    await rendered(served, [USER], tools=[TOOL], tool_choice="auto")
    assert len(served.engine.rendered[-1].tools) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
async def test_a_forced_tool_choice_is_refused_because_it_needs_grammars(served: Served, choice: object) -> None:
    error = await refused(served, tools=[TOOL], tool_choice=choice)
    assert (error["param"], error["code"]) == ("tool_choice", "unsupported_parameter")
    assert "grammar" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([USER, {"role": "User", "content": "x"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "developer", "content": ""}], "messages[0].content"),
        ([{"role": "tool", "content": None, "tool_call_id": "x"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
         "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"content": "x"}], "messages[0].role"),
        (["Hi"], "messages[0]"),
        ("Hi", "messages"),
        (None, "messages"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}],
         "messages[1].tool_calls[0].function.name"),
        ([USER, {"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}],
         "messages[1].tool_calls[0].type"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}],
         "messages[1].tool_calls[0].function.arguments"),
        ([USER, {"role": "assistant", "content": "", "function_call": {"name": "f"}}], "messages[1].function_call"),
        ([USER] * (MAX_MESSAGES + 1), "messages"),
    ],
)  # fmt: skip
async def test_a_bad_message_is_refused_by_name(served: Served, messages: object, param: str) -> None:
    error = await refused(served, messages=messages)
    assert error["param"] == param
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "retrieval"}], "tools[0].type"),
        ([TOOL, {"type": "function"}], "tools[1].function"),
        ([{"type": "function", "function": "add"}], "tools[0].function"),
        ([{"function": {"name": 5}}], "tools[0].function.name"),
        ([{"function": {"name": ""}}], "tools[0].function.name"),
        ([{"function": {"name": "x" * 257}}], "tools[0].function.name"),
        ([{"function": {"name": "f", "parameters": []}}], "tools[0].function.parameters"),
        ([{"function": {"name": "f", "description": 1}}], "tools[0].function.description"),
        ([TOOL] * (MAX_TOOLS + 1), "tools"),
        ([{"function": {"name": "f", "description": "x" * MAX_TOOL_BYTES}}], "tools"),
        ("add", "tools"),
    ],
)
async def test_a_bad_tool_is_refused_by_name(served: Served, tools: object, param: str) -> None:
    assert (await refused(served, tools=tools))["param"] == param


async def test_as_many_messages_and_tools_as_allowed_pass(served: Served) -> None:
    served.engine.max_request_tokens = served.engine.info.max_model_len
    small = {"function": {"name": "f"}}
    assert (
        await served.post("/tokenize", {"messages": [{"role": "user", "content": ""}] * MAX_MESSAGES})
    ).status_code == 200
    assert (await served.chat(max_tokens=1, tools=[small] * MAX_TOOLS)).status_code == 200
