"""Bad bodies: each is refused in OpenAI's shape, and a neighbour who streams meanwhile notices nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.serve.harness import CHAT, Served, serving, undisturbed
from tests.serve.stand_in import StandIn, StandInStream

from dsv4.errors import CheckpointError, QueueFull, RequestFailed
from dsv4.serve.settings import MAX_JSON_DEPTH, MAX_JSON_STRINGS, ServeSettings
from dsv4.types import Delta

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


def chat(**fields: object) -> bytes:
    return json.dumps({**CHAT, "max_tokens": 1, **fields}).encode()


def chat_with(literal: str) -> bytes:
    """A chat whose temperature is written as given, JSON or not."""
    return chat()[:-1] + f', "temperature": {literal}}}'.encode()


BAD_VALUES: tuple[tuple[dict[str, object], str], ...] = (
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": -1}, "n"),
    ({"n": 2**62}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"min_tokens": 5000, "max_tokens": None}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [999]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "lucky"}, "seed"),
    ({"stop": ["x"] * 10_000}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x" * 1025]}, "stop"),
    ({"stop": 7}, "stop"),
    ({"stop_token_ids": [999]}, "stop_token_ids"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"user": ""}, "user"),
    ({"user": "x" * 129}, "user"),
    ({"cache_salt": "sn\u00f6"}, "cache_salt"),
    ({"session_id": "a\nb"}, "session_id"),
    ({"request_id": "x" * 129}, "request_id"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"thinking": True}, "thinking"),
    ({"reasoning_effort": "hardest"}, "reasoning_effort"),
    ({"response_format": "json"}, "response_format"),
)

UNSERVED: tuple[tuple[dict[str, object], str], ...] = (
    ({"use_beam_search": True}, "use_beam_search"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "text", "schema": {}}}}, "response_format"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": "a"}, "guided_grammar"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"bootstrap_room": 5}, "bootstrap_room"),
    ({"audio": {"voice": "alto"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"function_call": "auto"}, "function_call"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
)

BAD_BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "no JSON": (b"Hi", "not valid JSON"),
    "cut off": (chat()[:-5], "not valid JSON"),
    "two objects": (chat() * 2, "not valid JSON"),
    "a list": (b"[]", "Expected `object`"),
    "null": (b"null", "Expected `object`"),
    "NaN temperature": (chat_with("NaN"), "not valid JSON"),
    "infinite temperature": (chat_with("Infinity"), "not valid JSON"),
    "overflowing temperature": (chat_with("1e999"), ""),
    "invalid UTF-8 in a text": (chat().replace(b"Hi", b"\xff\xfe"), "not UTF-8"),
    "invalid UTF-8 in an unknown field": (chat(other="Hi").replace(b'"other": "Hi"', b'"other": "\xc3"'), "not UTF-8"),
    "half a surrogate pair": (chat().replace(b"Hi", b"\\ud800"), "\\ud800"),
    "arrays nested 100,000 deep": (chat()[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64 levels"),
    "arrays opened 100,000 deep": (b"[" * 100_000, "64 levels"),
    "objects nested 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "64 levels"),
    "messages nested 100,000 deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64 levels"),
    "a schema one level too deep": (
        chat(tools=[{"function": {"name": "f", "parameters": 0}}]).replace(
            b"0", b'{"a":' * (MAX_JSON_DEPTH - 3) + b"1" + b"}" * (MAX_JSON_DEPTH - 3), 1
        ),
        "64 levels",
    ),
    "a million numbers in arrays": (chat()[:-1] + b', "x": [' + b"[1]," * 300_000 + b"[1]]}", "objects and arrays"),
    "a number of a million digits": (chat()[:-1] + b', "seed": ' + b"9" * 1_000_000 + b"}", "seed"),
    "too many strings": (chat()[:-1] + b', "x": [' + b'"",' * MAX_JSON_STRINGS + b"[" * 65 + b'""]}', "strings"),
}


async def check_refusal(served: Served, body: bytes) -> dict[str, Any]:
    """Posts bytes beside a neighbour; returns the error object."""
    async with undisturbed(served):
        response = await served.client.post(PATH, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
    (name, error), *others = response.json().items()
    assert (name, others) == ("error", [])
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400
    assert "Traceback" not in error["message"]
    return dict(error)


@pytest.mark.parametrize(("fields", "param"), BAD_VALUES, ids=lambda value: json.dumps(value)[:48])
async def test_a_bad_value_is_refused_by_the_name_of_its_field(
    served: Served, fields: dict[str, object], param: str
) -> None:
    error = await check_refusal(served, chat(**fields))
    assert error["param"] == param
    assert param.split("[", maxsplit=1)[0].split(".", maxsplit=1)[0] in error["message"]


@pytest.mark.parametrize(("fields", "param"), UNSERVED, ids=lambda value: json.dumps(value)[:48])
async def test_what_is_not_served_is_said_to_be_unsupported(
    served: Served, fields: dict[str, object], param: str
) -> None:
    error = await check_refusal(served, chat(**fields))
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize("name", BAD_BYTES)
async def test_bad_bytes_are_refused(served: Served, name: str) -> None:
    body, expected = BAD_BYTES[name]
    error = await check_refusal(served, body)
    assert expected in error["message"]


async def test_depth_just_within_the_limit_is_decoded(served: Served) -> None:
    deep = b"[" * (MAX_JSON_DEPTH - 1) + b"]" * (MAX_JSON_DEPTH - 1)
    body = chat()[:-1] + b', "x": ' + deep + b"}"
    response = await served.client.post(PATH, content=body)
    assert response.status_code == 200
    assert response.headers["x-dsv4-warning"] == "ignored unknown fields: 'x'"


async def test_brackets_inside_strings_do_not_count_as_depth(served: Served) -> None:
    messages = [{"role": "user", "content": '[{"' * 500}]
    assert (await served.chat(max_tokens=1, messages=messages)).status_code == 200


async def test_a_prompt_longer_than_the_pool_is_refused_with_the_numbers(served: Served) -> None:
    async with undisturbed(served):
        response = await served.chat(messages=[{"role": "user", "content": "x" * 3000}], max_tokens=16)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    num_prompt = 1 + len("user:\n") + 3000
    assert str(num_prompt) in error["message"]
    assert "2048" in error["message"]


async def test_a_prompt_that_fits_and_an_output_that_does_not_is_refused_with_the_numbers(served: Served) -> None:
    response = await served.chat(max_tokens=2048)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "2048" in error["message"]


async def test_unknown_fields_are_ignored_with_a_warning(served: Served) -> None:
    response = await served.chat(max_tokens=1, foo=1, **{f"bar{i}": {} for i in range(9)})
    assert response.status_code == 200
    assert response.headers["x-dsv4-warning"].startswith("ignored unknown fields: 'foo', 'bar0'")
    assert "and 2 more" in response.headers["x-dsv4-warning"]


async def test_unknown_fields_are_refused_under_strict_fields() -> None:
    async with serving(settings=ServeSettings(strict_fields=True)) as served:
        error = (await served.chat(foo=1)).json()["error"]
    assert (error["param"], error["code"]) == ("foo", "unknown_parameter")


async def test_fields_without_effect_are_taken_quietly(served: Served) -> None:
    quiet = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me", "verbosity": "low",
             "prompt_cache_key": "k", "safety_identifier": "s", "response_format": {"type": "text"}}  # fmt: skip
    response = await served.chat(max_tokens=1, **quiet)
    assert response.status_code == 200, response.text
    assert "x-dsv4-warning" not in response.headers


async def test_a_model_that_is_not_served_is_not_found(served: Served) -> None:
    response = await served.chat(model="gpt-oss")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (404, "not_found_error", "model_not_found")
    assert "stand-in" in error["message"]
    assert (await served.chat(model="stand-in", max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "route_not_found"),
        ("GET", "/", 404, "route_not_found"),
        ("POST", "/v1/chat/completions/", 404, "route_not_found"),
        ("GET", "/v1/embeddings", 404, "route_not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("DELETE", PATH, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("PUT", "/metrics", 405, "method_not_allowed"),
    ],
)
async def test_unknown_routes_and_methods(served: Served, method: str, path: str, status: int, code: str) -> None:
    async with undisturbed(served):
        response = await served.client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.openai+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-16", 415),
    ],
)
async def test_only_json_in_utf8_is_taken(served: Served, content_type: str, status: int) -> None:
    response = await served.client.post(PATH, content=chat(), headers={"content-type": content_type})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (RequestFailed("logits were not finite", "numerical_error"), 500, "server_error", "numerical_error"),
        (RequestFailed("aborted", "aborted"), 503, "server_error", "aborted"),
        (RequestFailed("the reader was too slow", "slow_consumer"), 500, "server_error", "slow_consumer"),
        (CheckpointError("secret detail"), 500, "server_error", "internal_error"),
    ],
)
async def test_a_request_that_fails_is_answered_and_harms_nobody(error: Any, status: int, kind: str, code: str) -> None:
    engine = StandIn()
    async with serving(engine) as served, undisturbed(served):
        async with served.events(PATH, CHAT) as events:
            stream = await engine.opened()
            stream.say("half ")
            assert await events.next() is not None
            assert await events.next() is not None
            stream.fail(error)
            (frame,) = await events.rest()
        assert (frame["error"]["type"], frame["error"]["code"]) == (kind, code)
        assert "secret" not in frame["error"]["message"]

        def broken(one: StandInStream) -> list[list[Delta]]:
            one.fail(error)
            return []

        engine.script = broken
        response = await served.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


class Panic(BaseException):
    """As an extension module raises it."""


@pytest.mark.parametrize("error", [ZeroDivisionError("secret detail"), Panic("secret detail")], ids=["bug", "panic"])
async def test_a_bug_is_a_500_without_details(
    served: Served, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    served.engine.render_error = error
    async with undisturbed_completion(served):
        response = await served.chat()
    found = response.json()["error"]
    assert (response.status_code, found["type"], found["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in found["message"]
    (record,) = caplog.records
    assert record.exc_info is not None


def undisturbed_completion(served: Served) -> Any:
    """A neighbour who is already streaming when rendering breaks."""
    return undisturbed(served, path="/v1/completions")


async def test_a_full_queue_is_429_with_retry_after() -> None:
    engine = StandIn(max_running=1, max_queued=0)
    async with serving(engine) as served, undisturbed(served):
        response = await served.chat()
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert response.headers["retry-after"] == "3"
    assert issubclass(QueueFull, Exception)


async def test_of_several_prompts_all_are_accepted_or_none() -> None:
    engine = StandIn(max_running=1, max_queued=1)
    async with serving(engine) as served:
        response = await served.post("/v1/completions", {"prompt": ["a", "b", "c"]})
        assert response.status_code == 429
        for _ in range(2):
            await served.engine.opened()
        assert (engine.running, engine.waiting) == ([], [])


COMPLETION_BODIES: tuple[tuple[dict[str, object], str], ...] = (
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [2**31]}, "prompt[0]"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 3}, "best_of"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "n": 99}, "n"),
)


@pytest.mark.parametrize(("body", "param"), COMPLETION_BODIES, ids=lambda value: json.dumps(value)[:48])
async def test_bad_completions_are_refused(served: Served, body: dict[str, object], param: str) -> None:
    async with undisturbed(served):
        response = await served.post("/v1/completions", body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
