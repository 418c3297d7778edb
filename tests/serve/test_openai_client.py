"""The `openai` package against the door: its types parse our replies, its exceptions match our errors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from tests.serve.harness import Served, aborted, serving
from tests.serve.stand_in import StandIn, delta, letters

from dsv4.serve.settings import ServeSettings
from dsv4.types import ToolCallDelta

pytestmark = pytest.mark.anyio

USER: openai.types.chat.ChatCompletionUserMessageParam = {"role": "user", "content": "Hi"}


def client_of(served: Served, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(served) as one:
        yield one


async def test_a_whole_chat(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="stand-in", messages=[USER], max_tokens=4, logprobs=True, top_logprobs=1
    )
    assert reply.choices[0].message.content == letters(4)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert [entry.token for entry in reply.choices[0].logprobs.content] == list(letters(4))


async def test_a_streamed_chat_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="stand-in", messages=[USER], max_tokens=5, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [letters(5, 0), letters(5, 1)]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10


async def test_completions(client: openai.AsyncOpenAI) -> None:
    reply = await client.completions.create(model="stand-in", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.text for choice in reply.choices] == ["abc", "abc"]
    stream = await client.completions.create(model="stand-in", prompt="a", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "abc"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["stand-in"]
    assert (await client.models.retrieve("stand-in")).owned_by == "dsv4"


async def test_reasoning_and_tool_calls_are_where_clients_look_for_them() -> None:
    engine = StandIn(
        script=lambda _: [
            [delta(reasoning="why not")],
            [delta(tool_calls=(ToolCallDelta(0, id="call_1", name="add"),))],
            [delta(tool_calls=(ToolCallDelta(0, '{"a": 1}'),), finish_reason="tool_calls")],
        ]
    )
    async with serving(engine) as served, client_of(served) as client:
        reply = await client.chat.completions.create(model="stand-in", messages=[USER])
        message = reply.choices[0].message
        assert message.model_extra == {"reasoning_content": "why not"}
        assert message.tool_calls is not None
        call = message.tool_calls[0]
        assert call.type == "function"
        assert (call.id, call.function.name, call.function.arguments) == ("call_1", "add", '{"a": 1}')


async def test_our_errors_are_its_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="stand-in", messages=[USER], n=99)
    assert (bad.value.param, bad.value.code, bad.value.type) == ("n", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="other", messages=[USER])
    async with serving(StandIn(max_running=0, max_queued=0)) as full, client_of(full) as client_of_full:
        with pytest.raises(openai.RateLimitError):
            await client_of_full.chat.completions.create(model="stand-in", messages=[USER])
    async with serving(settings=ServeSettings(api_keys=("sk-1",))) as locked, client_of(locked, "sk-2") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_closing_a_stream_aborts() -> None:
    engine = StandIn()
    async with serving(engine) as served, client_of(served) as client:
        stream = await client.chat.completions.create(
            model="stand-in", messages=[USER], stream=True, extra_body={"return_token_ids": True, "top_k": 5}
        )
        request = await engine.opened()
        assert request.params.top_k == 5
        request.say("x")
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await aborted(request)
