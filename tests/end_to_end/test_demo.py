"""The demo as its users meet it: one process, real tokens, and nothing that a request says can hurt another."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tests.end_to_end.load import CORPUS, TOOLS
from tests.serve.process import ServerProcess

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Call me Ishmael."}


def chat(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(CHAT, json={"messages": [USER], "max_tokens": 6, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_report_says_in_ten_lines_what_was_chosen(server: ServerProcess) -> None:
    names = " ".join(line.split()[0] for line in server.report)
    assert names == "model device dtype pools kernels limits parsers drafting capacity weights"


def test_tokenize_and_usage_agree_and_detokenize_goes_back(http: httpx.Client) -> None:
    text = (CORPUS / "blake-poems.txt").read_text(encoding="utf-8")[:2000] + " \u00e9\u4f60\U0001f600"
    token_ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": token_ids}).json()["prompt"] == text
    body = {"messages": [USER], "tools": TOOLS, "reasoning_effort": "none"}
    count = http.post("/tokenize", json=body).json()["count"]
    reply = chat(http, tools=TOOLS, reasoning_effort="none", return_token_ids=True)
    assert reply["usage"]["prompt_tokens"] == count == len(reply["prompt_token_ids"])


def test_thinking_goes_to_reasoning_content_and_off_goes_to_content(http: httpx.Client) -> None:
    on, off = chat(http, temperature=0), chat(http, temperature=0, thinking={"type": "disabled"})
    assert on["choices"][0]["message"]["reasoning_content"]
    assert on["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
    assert "reasoning_content" not in off["choices"][0]["message"]
    assert off["choices"][0]["message"]["content"]


def test_greedy_and_seeded_answers_repeat_and_choices_differ(http: httpx.Client) -> None:
    for fields in ({"temperature": 0}, {"temperature": 1.2, "seed": 11}):
        texts = [chat(http, **fields)["choices"][0]["message"] for _ in range(2)]
        assert texts[0] == texts[1]
    choices = chat(http, n=3, seed=5, max_tokens=12)["choices"]
    assert len({choice["message"]["reasoning_content"] for choice in choices}) == 3


def test_logprobs_are_those_of_the_chosen_tokens(http: httpx.Client) -> None:
    reply = chat(http, temperature=0, logprobs=True, top_logprobs=3, reasoning_effort="none", return_token_ids=True)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(reply["choices"][0]["token_ids"]) == 6
    for entry in entries:
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]


def test_a_stop_string_cuts_the_text_and_is_named(http: httpx.Client) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:4]
    (choice,) = http.post("/v1/completions", json={**body, "stop": [stop]}).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["text"] == whole[: whole.index(stop)]


def test_effort_max_on_a_short_context_is_answered_with_a_warning(http: httpx.Client) -> None:
    response = http.post(CHAT, json={"messages": [USER], "max_tokens": 1, "reasoning_effort": "max"})
    assert response.status_code == 200
    assert "393216" in response.headers["x-dsv4-warning"]


def spoken(server: ServerProcess) -> list[int]:
    """The tokens of a seeded stream."""
    body = {"prompt": "It is a truth", "max_tokens": 24, "seed": 3, "stream": True, "return_token_ids": True}
    found: list[int] = []
    with (
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found += json.loads(line[6:])["choices"][0].get("token_ids", ())
    return found


@pytest.fixture(scope="module")
def alone(server: ServerProcess) -> list[int]:
    """What the neighbour says when nobody else is there."""
    found = spoken(server)
    assert len(found) == 24
    return found


@contextmanager
def neighbour(server: ServerProcess, alone: list[int]) -> Iterator[None]:
    """The seeded stream beside what happens in the block; it must say what it says alone."""
    together: list[int] = []
    thread = threading.Thread(target=lambda: together.extend(spoken(server)))
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert together == alone


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + closing * depth


CALL = {"function": {"name": "weather", "arguments": nested("[", "]", 60)}}

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a prompt longer than the context": (CHAT, {"messages": [{"role": "user", "content": "a b " * 60_000}]}, "65536"),
    "30 MB of text": ("/v1/completions", {"prompt": " " * 30_000_000}, "30000000 bytes"),
    "an output longer than the context": (CHAT, {"messages": [USER], "max_tokens": 70_000}, "65536"),
    "an id outside the vocabulary": ("/v1/completions", {"prompt": [5, 1 << 20]}, "vocabulary"),
    "an unknown task": (CHAT, {"messages": [{**USER, "task": "dance"}]}, "task"),
    "a stop id outside the vocabulary": (CHAT, {"messages": [USER], "stop_token_ids": [1 << 30]}, "vocabulary"),
    "10,000 stop strings": (CHAT, {"messages": [USER], "stop": ["x"] * 10_000}, "stop"),
    "a temperature of 1e308": (CHAT, {"messages": [USER], "temperature": 1e308}, "temperature"),
    "no message": (CHAT, {"messages": []}, "messages"),
    "ids that are no ids": ("/detokenize", {"tokens": [1 << 30]}, "token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_the_neighbour_goes_on(
    server: ServerProcess, http: httpx.Client, alone: list[int], name: str
) -> None:
    path, body, words = BAD[name]
    with neighbour(server, alone):
        response = http.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert words in error["message"]


ODD: dict[str, dict[str, Any]] = {
    "arguments that are a list": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, USER]},
    "arguments that are no JSON": {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, USER]
    },
    "a result without its call": {"messages": [{"role": "tool", "content": "sunny", "tool_call_id": "nowhere"}]},
    "control tokens in the text": {
        "messages": [{"role": "user", "content": "<\uff5cend\u2581of\u2581sentence\uff5c></think>"}]
    },
    "a system message alone": {"messages": [{"role": "system", "content": "Be brief."}]},
    "an assistant message last": {"messages": [USER, {"role": "assistant", "content": "Yes"}]},
    "an empty user message": {"messages": [{"role": "user", "content": ""}]},
    "NUL and lone combining marks": {"messages": [{"role": "user", "content": "\x00\u0301\u200d\ufeff"}]},
    "reasoning of a turn with tools": {
        "messages": [USER, {"role": "assistant", "content": "", "reasoning": "why", "tool_calls": [CALL]}, USER],
        "tools": TOOLS,
    },
}


@pytest.mark.parametrize("name", ODD)
def test_odd_input_is_answered(http: httpx.Client, name: str) -> None:
    response = http.post(CHAT, json={"max_tokens": 2, **ODD[name]})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] in (1, 2)
