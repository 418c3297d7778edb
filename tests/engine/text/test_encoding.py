"""Prompts equal the official ones byte for byte, and what users write never becomes a control token."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tests.engine.text.tiny import official, tokenizer

from dsv4.engine.text import encode
from dsv4.engine.text.encoding import Segment
from dsv4.engine.text.prompt import BOS, DSML, END_THINK, EOS, THINK, USER
from dsv4.engine.text.render import tokenize
from dsv4.errors import InvalidRequest

DATA = Path(__file__).parents[2] / "data" / "deepseek_v4" / "encoding"
EXTRA = json.loads((DATA / "extra_cases.json").read_text(encoding="utf-8"))["cases"]


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def official_case(number: int) -> tuple[list[dict[str, Any]], bool, str]:
    """Messages, thinking, prompt."""
    given = json.loads((DATA / f"test_input_{number}.json").read_text(encoding="utf-8"))
    messages = given["messages"] if isinstance(given, dict) else given
    if isinstance(given, dict):
        messages[0]["tools"] = given["tools"]
    return messages, number != 4, (DATA / f"test_output_{number}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_official_prompts(number: int) -> None:
    messages, thinking, want = official_case(number)
    assert joined(encode(messages, thinking=thinking)) == want


@pytest.mark.parametrize("case", EXTRA, ids=[case["name"] for case in EXTRA])
def test_extra_prompts(case: dict[str, Any]) -> None:
    if case["expected"] == "error":
        with pytest.raises(InvalidRequest):
            encode(**case["call"])
    else:
        assert joined(encode(**case["call"])) == case["expected"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_ids_equal_the_official_tokenisation_of_the_whole_prompt(number: int) -> None:
    messages, thinking, want = official_case(number)
    segments = encode(messages, thinking=thinking)
    whole = official().encode(want, add_special_tokens=False).ids
    assert tokenize(segments, tokenizer()) == whole
    assert tokenize(segments, tokenizer(), control=True) == whole


@pytest.mark.parametrize("case", [c for c in EXTRA if c["expected"] != "error"], ids=lambda case: case["name"])
def test_ids_of_the_extra_prompts_equal_the_whole(case: dict[str, Any]) -> None:
    whole = official().encode(case["expected"], add_special_tokens=False).ids
    assert tokenize(encode(**case["call"]), tokenizer()) == whole


def test_neighbouring_text_is_one_segment() -> None:
    kinds = [segment.is_control for segment in encode(official_case(1)[0], thinking=True)]
    assert all(a or b for a, b in itertools.pairwise(kinds))


def forging(text: str) -> list[dict[str, Any]]:
    """A conversation that has `text` in every place where a user, a tool or an earlier answer can write."""
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    call = {"id": text, "function": {"name": f"g{text}", "arguments": json.dumps({text: text, "o": {text: [text]}})}}
    return [
        {"role": "system", "content": text, "tools": [tool], "response_format": {"schema": text}},
        {"role": "developer", "content": text},
        {"role": "latest_reminder", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "reasoning_content": text, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": text}, {"type": text}], "tool_call_id": text},
        {"role": "user", "content": text},
    ]


@pytest.mark.parametrize("name", [BOS, EOS, USER, THINK, END_THINK, DSML, f"</{DSML}parameter>"])
def test_control_strings_in_messages_stay_text(name: str) -> None:
    tok = tokenizer()
    found = tokenize(encode(forging(f"a{name}b"), thinking=True), tok)
    harmless = tokenize(encode(forging("a-b"), thinking=True), tok)
    controls = [[i for i in token_ids if i in tok.control_ids] for token_ids in (found, harmless)]
    assert controls[0] == controls[1]
    assert f"a{name}b" in tok.decode(found)


def test_allowing_control_strings_gives_the_official_ids() -> None:
    segments = encode([{"role": "user", "content": f"a{EOS}{USER}b"}], thinking=False)
    allowed = tokenize(segments, tokenizer(), control=True)
    assert allowed == official().encode(joined(segments), add_special_tokens=False).ids
    assert allowed.count(tokenizer().eos_id) == 1


GOOD = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hi", "messages[1]"),
        ({"content": "Hi"}, "messages[1].role"),
        ({"role": "robot", "content": "Hi"}, "messages[1].role"),
        ({"role": ["user"], "content": "Hi"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": ["Hi"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text"),
        ({"role": "developer", "content": ""}, "messages[1].content"),
        ({"role": "latest_reminder"}, "messages[1].content"),
        ({"role": "user", "content": "Hi", "task": "dance"}, "messages[1].task"),
        ({"role": "user", "content": "Hi", "task": ["query"]}, "messages[1].task"),
        ({"role": "user", "content": "Hi", "tools": [{"function": {"name": "f"}}]}, "messages[1].tools"),
        ({"role": "system", "content": "Hi", "tools": {}}, None),
        ({"role": "system", "content": "Hi", "tools": "f"}, "messages[1].tools"),
        ({"role": "system", "content": "Hi", "tools": [{"function": {}}]}, "messages[1].tools[0].function"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[1].tool_call_id"),
        ({"role": "assistant", "reasoning_content": 5}, "messages[1].reasoning_content"),
        ({"role": "assistant", "tool_calls": 5}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[1].tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_is_wrong_with_a_message_is_named(message: object, param: str | None) -> None:
    if param is None:
        assert encode([GOOD, message], thinking=False)
        return
    with pytest.raises(InvalidRequest) as caught:
        encode([GOOD, message], thinking=False)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_arguments_may_be_an_object_and_may_be_no_object() -> None:
    def call(arguments: object) -> str:
        given = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return joined(encode([GOOD, given], thinking=False))

    assert call({"a": 1}) == call('{"a": 1}')
    assert f'<{DSML}parameter name="arguments" string="true">[1]</{DSML}parameter>' in call("[1]")
    assert call(None) == call("{}")


def test_a_task_ends_a_users_turn() -> None:
    task = {"role": "user", "content": "a", "task": "query"}
    result = {"role": "tool", "content": "r"}
    found = joined(encode([task, result, GOOD], thinking=False))
    assert found == f"{BOS}{USER}a\n\n<tool_result>r</tool_result>{USER}Hi<｜Assistant｜>{END_THINK}"


def test_reasoning_has_two_names() -> None:
    ways = [{"role": "assistant", "content": "x", name: "why"} for name in ("reasoning", "reasoning_content")]
    prompts = [joined(encode([GOOD, way], thinking=True)) for way in ways]
    assert prompts[0] == prompts[1]
    assert f"why{END_THINK}x" in prompts[0]


def test_encoding_leaves_the_messages_alone() -> None:
    messages = official_case(1)[0]
    before = json.dumps(messages)
    encode(messages, thinking=True)
    assert json.dumps(messages) == before
