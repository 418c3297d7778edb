"""`/v1/completions`: raw prompts in every form, whole and streamed."""

from __future__ import annotations

import pytest
from tests.serve.harness import Served, serving
from tests.serve.stand_in import BOS, StandIn, StandInStream, letters, say_letters

from dsv4.types import Delta

pytestmark = pytest.mark.anyio
PATH = "/v1/completions"


async def test_a_whole_completion_has_openai_s_shape(served: Served) -> None:
    reply = (await served.post(PATH, {"prompt": "Hello", "max_tokens": 3})).json()
    assert (reply["object"], reply["id"][:5]) == ("text_completion", "cmpl-")
    assert reply["choices"] == [
        {"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (5, 3)


async def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(served: Served) -> None:
    reply = (await served.post(PATH, {"prompt": ["one", "three"], "max_tokens": 2, "n": 2})).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in reply["choices"]] == ["ab", "bc", "ab", "bc"]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (3 + 5, 8)


@pytest.mark.parametrize("path", ["whole", "streamed"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "Ho"], ["Hi", "Ho"]),
        ([72, 105], [[72, 105]]),
        ([[72], [105, 33]], [[72], [105, 33]]),
    ],
)
async def test_every_form_of_prompt_reaches_the_engine(prompt: object, expected: list[object], path: str) -> None:
    prompts: list[object] = []

    def script(stream: StandInStream) -> list[list[Delta]]:
        prompts.append(stream.prompt)
        return say_letters(stream)

    async with serving(StandIn(script=script)) as served:
        response = await served.post(PATH, {"prompt": prompt, "max_tokens": 1, "stream": path == "streamed"})
    assert response.status_code == 200
    assert prompts == expected


async def test_a_stream_of_several_prompts_ends_once(served: Served) -> None:
    body = {"prompt": ["x", "yy"], "max_tokens": 4, "stream_options": {"include_usage": True}}
    async with served.events(PATH, body) as events:
        *found, last = await events.rest()
    for index in range(2):
        texts = [part["text"] for event in found for part in event["choices"] if part["index"] == index]
        assert "".join(texts) == letters(4)
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 3, 8)


async def test_echo_puts_the_prompt_before_the_text(served: Served) -> None:
    body = {"prompt": "Say: ", "max_tokens": 2, "n": 2, "echo": True}
    assert [one["text"] for one in (await served.post(PATH, body)).json()["choices"]] == ["Say: ab", "Say: bc"]
    async with served.events(PATH, body) as events:
        found = await events.rest()
    texts = [part["text"] for event in found for part in event["choices"] if part["index"] == 1]
    assert "".join(texts) == "Say: bc"


async def test_logprobs_in_the_completions_form(served: Served) -> None:
    (choice,) = (await served.post(PATH, {"prompt": "x", "max_tokens": 3, "logprobs": 1})).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"a": -1.0}] * 3,
        "text_offset": [0, 1, 2],
    }


async def test_streamed_logprobs_go_on_counting_offsets(served: Served) -> None:
    async with served.events(PATH, {"prompt": "x", "max_tokens": 4, "logprobs": 0}) as events:
        found = await events.rest()
    offsets = [at for event in found for at in event["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3]


async def test_tokens_as_ids(served: Served) -> None:
    body = {"prompt": "x", "max_tokens": 1, "logprobs": 1, "return_tokens_as_token_ids": True}
    (choice,) = (await served.post(PATH, body)).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:97"]


async def test_token_ids_beside_the_text(served: Served) -> None:
    (choice,) = (await served.post(PATH, {"prompt": "x", "max_tokens": 2, "return_token_ids": True})).json()["choices"]
    assert choice["token_ids"] == [97, 98]


async def test_add_special_tokens_puts_bos_first() -> None:
    engine = StandIn()
    async with serving(engine) as served, served.events(PATH, {"prompt": "Hi", "add_special_tokens": True}):
        stream = await engine.opened()
        assert stream.prompt == [BOS, *b"Hi"]
        stream.finish()


async def test_reasoning_fields_are_answered_with_a_warning(served: Served) -> None:
    response = await served.post(PATH, {"prompt": "Hi", "max_tokens": 1, "reasoning_effort": "high"})
    assert response.status_code == 200
    assert "no effect on raw completions" in response.headers["x-dsv4-warning"]
