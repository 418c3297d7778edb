"""What a request leaves open is filled in: tools, thinking, effort, and who speaks next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engine.text.tiny import tokenizer

from dsv4.engine.text import render
from dsv4.engine.text.prompt import ASSISTANT, BOS, END_THINK, EOS, THINK, USER, prompt_strings
from dsv4.errors import InvalidRequest
from dsv4.types import ChatRequest, Effort, RenderedChat

DATA = Path(__file__).parents[2] / "data" / "deepseek_v4" / "encoding"
HI: tuple[dict[str, Any], ...] = ({"role": "user", "content": "Hi"},)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}
LONG = 393_216


def rendered(
    messages: tuple[dict[str, Any], ...] = HI,
    *,
    generation: str = "0731",
    default_thinking: bool = True,
    default_effort: Any = "auto",
    max_model_len: int = LONG,
    allow_special_in_content: bool = False,
    **request: Any,
) -> RenderedChat:
    return render(
        ChatRequest(messages=messages, **request),
        tokenizer(),
        generation=generation,
        default_thinking=default_thinking,
        default_effort=default_effort,
        max_model_len=max_model_len,
        allow_special_in_content=allow_special_in_content,
    )


def text(chat: RenderedChat) -> str:
    return tokenizer().decode(chat.token_ids)


@pytest.mark.parametrize(
    ("thinking", "effort", "default", "thinks"),
    [
        (None, None, True, True),
        (None, None, False, False),
        (True, None, False, True),
        (False, None, True, False),
        (False, "max", True, False),
        (None, "none", True, False),
        (True, "none", True, False),
        (None, "high", False, True),
    ],
)
def test_off_beats_every_effort(thinking: bool | None, effort: Effort | None, default: bool, thinks: bool) -> None:
    chat = rendered(thinking=thinking, effort=effort, default_thinking=default)
    assert chat.thinking is thinks
    assert text(chat).endswith(ASSISTANT + (THINK if thinks else END_THINK))


@pytest.mark.parametrize(
    ("generation", "effort", "default", "prefix"),
    [
        ("preview", None, "auto", None),
        ("preview", "low", "auto", None),
        ("preview", "high", "auto", None),
        ("preview", "max", "auto", "max"),
        ("preview", None, "max", "max"),
        ("preview", None, "low", None),
        ("0731", None, "auto", None),
        ("0731", "low", "auto", None),
        ("0731", "high", "auto", "high"),
        ("0731", "max", "auto", "max"),
        ("0731", None, "high", "high"),
        ("0731", "low", "high", None),
    ],
)
def test_efforts_of_both_generations(generation: str, effort: Effort | None, default: str, prefix: str | None) -> None:
    chat = rendered(generation=generation, effort=effort, default_effort=default)
    want = prompt_strings().efforts(generation)[prefix] if prefix is not None else ""
    assert text(chat) == f"{BOS}{want}{USER}Hi{ASSISTANT}{THINK}"
    assert not chat.warnings


@pytest.mark.parametrize("generation", ["preview", "0731"])
def test_effort_max_falls_to_high_where_the_context_is_too_short(generation: str) -> None:
    chat = rendered(generation=generation, effort="max", max_model_len=LONG - 1)
    assert chat.token_ids == rendered(generation=generation, effort="high").token_ids
    assert "393216" in chat.warnings[0]
    assert "393215" in chat.warnings[0]


def test_effort_says_nothing_without_thinking() -> None:
    chat = rendered(effort="max", thinking=False, max_model_len=100)
    assert text(chat) == f"{BOS}{USER}Hi{ASSISTANT}{END_THINK}"
    assert not chat.warnings


def test_tools_go_on_the_first_system_message() -> None:
    system = {"role": "system", "content": "S"}
    there = rendered(({**system, "tools": [TOOL]}, *HI, {"role": "system", "content": "T"}))
    given = rendered((system, *HI, {"role": "system", "content": "T"}), tools=(TOOL,))
    assert given == there
    assert given.tools == {"f": {"type": "object", "properties": {"x": {}}}}


def test_tools_of_the_request_follow_those_of_the_system_message() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    chat = rendered(({"role": "system", "content": "S", "tools": [TOOL]}, *HI), tools=(other,))
    assert chat == rendered(({"role": "system", "content": "S", "tools": [TOOL, other]}, *HI))
    assert list(chat.tools) == ["f", "g"]


def test_tools_without_a_system_message_open_an_empty_one() -> None:
    chat = rendered(tools=(TOOL,))
    assert chat.token_ids == rendered(({"role": "system", "content": "", "tools": [TOOL]}, *HI)).token_ids
    assert text(chat).startswith(f"{BOS}\n\n## Tools")


def test_a_tool_without_parameters_is_declared() -> None:
    assert rendered(tools=({"type": "function", "function": {"name": "now"}},)).tools == {"now": {}}


def test_tools_of_a_developer_message_are_declared() -> None:
    assert "f" in rendered(({"role": "developer", "content": "D", "tools": [TOOL]},)).tools


def test_bad_tools_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(tools=({"type": "function"},))
    assert caught.value.param == "tools[0].function"


def test_message_indices_are_the_clients_when_a_system_message_is_put_before_them() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered((*HI, {"role": "robot"}), tools=(TOOL,))
    assert caught.value.param == "messages[1].role"


@pytest.mark.parametrize("thinking", [True, False])
def test_after_a_last_system_message_the_assistant_speaks(thinking: bool) -> None:
    chat = rendered((*HI, {"role": "system", "content": "S"}), thinking=thinking)
    assert text(chat) == f"{BOS}{USER}HiS{ASSISTANT}{THINK if thinking else END_THINK}"
    assert chat.thinking is thinking


def test_after_a_last_answer_a_new_one_is_opened_with_a_warning() -> None:
    chat = rendered((*HI, {"role": "assistant", "content": "x"}), thinking=False)
    assert text(chat).endswith(f"x{EOS}{ASSISTANT}{END_THINK}")
    assert chat.warnings


def test_an_unfinished_answer_goes_on() -> None:
    chat = rendered((*HI, {"role": "assistant", "content": "x", "wo_eos": True}))
    assert text(chat).endswith(f"{END_THINK}x")
    assert (chat.thinking, chat.warnings) == (False, ())


def test_a_task_is_answered_without_thinking() -> None:
    chat = rendered(({"role": "user", "content": "Hi", "task": "query"},))
    assert text(chat).endswith("Hi<｜query｜>")
    assert chat.thinking is False


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(())
    assert caught.value.param == "messages"


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        rendered(({"role": "user", "content": "a\ud800"},))
    assert caught.value.param == "messages"


def test_control_strings_are_text_unless_allowed() -> None:
    messages = ({"role": "user", "content": EOS},)
    assert tokenizer().eos_id not in rendered(messages).token_ids
    assert tokenizer().eos_id in rendered(messages, allow_special_in_content=True).token_ids


def test_a_request_is_not_changed() -> None:
    messages = tuple(json.loads((DATA / "test_input_4.json").read_text(encoding="utf-8")))
    before = json.dumps(messages)
    rendered(({"role": "system", "content": "S"}, *messages[1:]), tools=(TOOL,))
    assert json.dumps(messages) == before


def test_the_official_first_case_through_a_request() -> None:
    given = json.loads((DATA / "test_input_1.json").read_text(encoding="utf-8"))
    chat = rendered(tuple(given["messages"][:4]), tools=tuple(given["tools"]), generation="preview")
    official = (DATA / "test_output_1.txt").read_text(encoding="utf-8")
    prompt, _, _ = official.partition("Got the weather data.")
    assert text(chat) == prompt
