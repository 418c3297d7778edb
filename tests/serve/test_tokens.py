"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import pytest
from tests.serve.harness import CHAT, Served
from tests.serve.stand_in import BOS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_text_to_ids_and_back(served: Served, prefix: str) -> None:
    reply = (await served.post(f"{prefix}/tokenize", {"prompt": "H\u00e9!"})).json()
    assert reply == {"tokens": [72, 0xC3, 0xA9, 33], "count": 4, "max_model_len": 4096}
    back = (await served.post(f"{prefix}/detokenize", {"tokens": reply["tokens"]})).json()
    assert back == {"prompt": "H\u00e9!"}


async def test_special_tokens_and_strings_on_request(served: Served) -> None:
    body = {"prompt": "<bos>Hi", "add_special_tokens": True, "return_token_strs": True}
    reply = (await served.post("/tokenize", body)).json()
    assert reply["tokens"] == [BOS, BOS, 72, 105]
    assert reply["token_strs"] == ["<bos>", "<bos>", "H", "i"]


async def test_messages_are_rendered_as_chat_would(served: Served) -> None:
    reply = (await served.post("/tokenize", CHAT)).json()
    assert reply["tokens"] == (await served.chat(max_tokens=1, return_token_ids=True)).json()["prompt_token_ids"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "x", **CHAT},
        {"prompt": 7},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": ""}]},
        {**CHAT, "add_generation_prompt": False},
        {**CHAT, "tools": [{"type": "retrieval"}]},
        {**CHAT, "reasoning_effort": "hardest"},
    ],
)
async def test_bad_bodies_are_refused(served: Served, body: dict[str, object]) -> None:
    response = await served.post("/tokenize", body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_another_model_is_not_found(served: Served) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert (await served.post(path, {**body, "model": "other"})).status_code == 404


@pytest.mark.parametrize("tokens", [[259], [-1], [2**31], ["a"], 5, None])
async def test_ids_outside_the_vocabulary_are_refused(served: Served, tokens: object) -> None:
    response = await served.post("/detokenize", {"tokens": tokens})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith("tokens")


async def test_no_ids_are_no_text(served: Served) -> None:
    assert (await served.post("/detokenize", {"tokens": []})).json() == {"prompt": ""}
