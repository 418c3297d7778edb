"""Every published spelling of reasoning, for both generations of effort."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from tests.serve.harness import Served, serving
from tests.serve.stand_in import StandIn, say_letters

from dsv4.serve.reasoning import EFFORTS
from dsv4.serve.settings import ServeSettings

pytestmark = pytest.mark.anyio

WORDS = {
    "minimal": ("high", "low"),
    "low": ("high", "low"),
    "medium": ("high", "high"),
    "high": ("high", "high"),
    "xhigh": ("max", "high"),
    "max": ("max", "max"),
    "ultra": ("max", "max"),
}
"""Word -> what the preview's and the 0731 encoder are told."""

SPELLINGS = (
    lambda word: {"reasoning_effort": word},
    lambda word: {"reasoning": {"effort": word, "summary": "auto"}},
    lambda word: {"output_config": {"effort": word}},
    lambda word: {"chat_template_kwargs": {"reasoning_effort": word}},
)

SWITCHES: tuple[tuple[Mapping[str, object], bool], ...] = (
    ({"chat_template_kwargs": {"thinking": True}}, True),
    ({"chat_template_kwargs": {"thinking": False}}, False),
    ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ({"chat_template_kwargs": {"enable_thinking": False}}, False),
    ({"thinking": {"type": "enabled"}}, True),
    ({"thinking": {"type": "adaptive"}}, True),
    ({"thinking": {"type": "disabled"}}, False),
    ({"think": True}, True),
    ({"think": False}, False),
)


def engine_of(generation: str) -> StandIn:
    return StandIn(generation=generation, script=say_letters)


async def asked(served: Served, fields: Mapping[str, object]) -> tuple[bool | None, str | None]:
    """What the engine is asked for; chat and tokenize must agree."""
    response = await served.chat(max_tokens=1, **fields)
    assert response.status_code == 200, response.text
    chat = served.engine.rendered[-1]
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    assert (await served.post("/tokenize", body)).status_code == 200
    assert served.engine.rendered[-1] == chat
    return chat.thinking, chat.effort


def test_the_table_knows_the_words_of_both_generations() -> None:
    assert {word: (EFFORTS["preview"][word], EFFORTS["0731"][word]) for word in EFFORTS["0731"]} == WORDS


@pytest.mark.parametrize("generation", ["preview", "0731"])
async def test_every_effort_in_every_spelling(generation: str) -> None:
    async with serving(engine_of(generation)) as served:
        for spelling, word in itertools.product(SPELLINGS, WORDS):
            expected = WORDS[word][generation == "0731"]
            assert await asked(served, spelling(word)) == (True, expected), (spelling(word), expected)


@pytest.mark.parametrize("generation", ["preview", "0731"])
async def test_effort_none_is_off_in_every_spelling(generation: str) -> None:
    async with serving(engine_of(generation)) as served:
        for spelling in SPELLINGS:
            assert await asked(served, spelling("none")) == (False, None)


@pytest.mark.parametrize("generation", ["preview", "0731"])
async def test_every_switch(generation: str) -> None:
    async with serving(engine_of(generation)) as served:
        for fields, on in SWITCHES:
            assert await asked(served, fields) == (on, None), fields


@pytest.mark.parametrize("generation", ["preview", "0731"])
async def test_off_beats_every_effort(generation: str) -> None:
    async with serving(engine_of(generation)) as served:
        for (fields, on), word in itertools.product(SWITCHES, ("high", "max")):
            expected = (True, WORDS[word][generation == "0731"]) if on else (False, None)
            assert await asked(served, {**fields, "reasoning_effort": word}) == expected, fields


async def test_nothing_said_follows_the_engine() -> None:
    async with serving(engine_of("0731")) as served:
        assert await asked(served, {}) == (None, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"chat_template_kwargs": {"thinking": True}, "thinking": {"type": "disabled"}}, (True, None)),
        ({"chat_template_kwargs": {"thinking": False}, "thinking": {"type": "enabled"}}, (False, None)),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, (True, None)),
        ({"think": True, "reasoning_effort": "none"}, (True, None)),
        ({"chat_template_kwargs": {"reasoning_effort": "none"}, "think": True}, (False, None)),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "max"}, (True, "low")),
        ({"reasoning_effort": "high", "output_config": {"effort": "low"}}, (True, "high")),
        ({"chat_template_kwargs": {"thinking": None}, "think": False}, (False, None)),
        ({"chat_template_kwargs": {"unknown": 1}}, (None, None)),
    ],
)
async def test_template_kwargs_beat_thinking_and_thinking_beats_effort(
    fields: Mapping[str, object], expected: tuple[bool | None, str | None]
) -> None:
    async with serving(engine_of("0731")) as served:
        assert await asked(served, fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "disabled"}, "reasoning_effort": "high"},
        {"think": True, "reasoning_effort": "none"},
        {"think": True, "chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high", "reasoning": {"effort": "low"}},
    ],
)
async def test_a_contradiction_is_refused_under_strict_fields_and_only_there(fields: Mapping[str, object]) -> None:
    async with serving(engine_of("0731"), ServeSettings(strict_fields=True)) as served:
        response = await served.chat(**fields)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "contradiction")
    async with serving(engine_of("0731")) as served:
        assert (await served.chat(max_tokens=1, **fields)).status_code == 200


async def test_agreement_in_several_spellings_is_no_contradiction() -> None:
    fields = {"think": True, "reasoning_effort": "high", "chat_template_kwargs": {"thinking": True}}
    async with serving(engine_of("preview"), ServeSettings(strict_fields=True)) as served:
        assert await asked(served, fields) == (True, "high")


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_an_unknown_effort_is_refused_with_the_known_ones(spelling: object) -> None:
    async with serving(engine_of("preview")) as served:
        response = await served.chat(**spelling("hardest"))  # type: ignore[operator]
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].endswith(("reasoning_effort", "effort"))
    assert "hardest" in error["message"]
    assert "ultra" in error["message"]


async def test_a_budget_is_answered_with_a_warning_or_refused(served: Served) -> None:
    response = await served.chat(max_tokens=1, thinking={"type": "enabled", "budget_tokens": 1024})
    assert "not enforced" in response.headers["x-dsv4-warning"]
    assert (await served.chat(max_tokens=1, thinking_token_budget=-1)).status_code == 200
    assert (await served.chat(max_tokens=1, thinking_token_budget=100)).status_code == 400


async def test_warnings_of_the_encoder_reach_the_client(served: Served) -> None:
    served.engine.warnings = ("reasoning of an earlier turn is missing",)
    response = await served.chat(max_tokens=1)
    assert response.headers["x-dsv4-warning"] == "reasoning of an earlier turn is missing"
