"""`/v1/chat/completions`, whole and streamed."""

from __future__ import annotations

import pytest
from tests.serve.harness import CHAT, Served, content, serving
from tests.serve.stand_in import StandIn, delta, letters

from dsv4.serve.settings import ServeSettings
from dsv4.types import ToolCallDelta

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_has_openai_s_shape(served: Served) -> None:
    response = await served.chat(max_tokens=5)
    reply = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert (reply["object"], reply["model"], reply["system_fingerprint"]) == (
        "chat.completion",
        "stand-in",
        "fp_stand_in",
    )
    assert reply["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "abcde"}
    assert (choice["index"], choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == (
        0,
        "length",
        None,
        None,
    )


async def test_usage_counts_prompt_once_and_names_cached_tokens_in_both_words(served: Served) -> None:
    usage = (await served.chat(max_tokens=4, n=3)).json()["usage"]
    num_prompt = 1 + len("user:Hi\n")
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 12,
        "total_tokens": num_prompt + 12,
        "prompt_tokens_details": {"cached_tokens": num_prompt // 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_cache_hit_tokens": num_prompt // 2,
        "prompt_cache_miss_tokens": num_prompt - num_prompt // 2,
    }


async def test_choices_come_in_order(served: Served) -> None:
    reply = (await served.chat(max_tokens=3, n=3)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["abc", "bcd", "cde"]


async def test_a_stream_begins_with_the_role_and_ends_with_finish_and_done(served: Served) -> None:
    async with served.events("/v1/chat/completions", {**CHAT, "max_tokens": 6}) as events:
        assert events.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert events.response.headers["cache-control"] == "no-cache"
        assert events.response.headers["x-accel-buffering"] == "no"
        found = await events.rest()
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content(found) == letters(6)
    assert [event["choices"][0]["finish_reason"] for event in found] == [None] * (len(found) - 1) + ["length"]
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert len({event["id"] for event in found}) == 1
    assert all("usage" not in event for event in found)


async def test_streamed_choices_are_interleaved_and_each_is_whole(served: Served) -> None:
    async with served.events("/v1/chat/completions", {**CHAT, "max_tokens": 6, "n": 3}) as events:
        found = await events.rest()
    assert [content(found, choice) for choice in range(3)] == [letters(6, choice) for choice in range(3)]
    finishes = [choice["index"] for event in found for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(finishes) == [0, 1, 2]


async def test_include_usage_adds_a_last_frame_and_nulls_before(served: Served) -> None:
    options = {"include_usage": True}
    async with served.events("/v1/chat/completions", {**CHAT, "max_tokens": 3, "stream_options": options}) as events:
        *found, last = await events.rest()
    assert all(event["usage"] is None for event in found)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


async def test_continuous_usage_rides_on_every_frame(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with served.events("/v1/chat/completions", {**CHAT, "max_tokens": 3, "stream_options": options}) as events:
        found = await events.rest()
    assert [event["usage"]["completion_tokens"] for event in found] == [1, 1, 2, 3, 3]


async def test_reasoning_comes_apart_and_is_counted() -> None:
    engine = StandIn(
        script=lambda _: [
            [delta(reasoning="Let me", num_reasoning_tokens=2, num_generated_tokens=2)],
            [delta(reasoning=" see", num_reasoning_tokens=4, num_generated_tokens=4)],
            [delta("Yes", num_reasoning_tokens=4, num_generated_tokens=7, finish_reason="stop")],
        ]
    )
    async with serving(engine) as served:
        reply = (await served.chat()).json()
        assert reply["choices"][0]["message"] == {
            "role": "assistant",
            "content": "Yes",
            "reasoning_content": "Let me see",
        }
        assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
        async with served.events("/v1/chat/completions", CHAT) as events:
            deltas = [event["choices"][0]["delta"] for event in await events.rest()]
        assert deltas == [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Let me"},
            {"reasoning_content": " see"},
            {"content": "Yes"},
        ]


async def test_include_reasoning_false_hides_the_text_and_counts_the_tokens() -> None:
    engine = StandIn(
        script=lambda _: [
            [delta(reasoning="secret", num_reasoning_tokens=6, num_generated_tokens=6)],
            [delta("open", num_reasoning_tokens=6, num_generated_tokens=10, finish_reason="stop")],
        ]
    )
    async with serving(engine) as served:
        reply = (await served.chat(include_reasoning=False)).json()
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": "open"}
        assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}
        async with served.events("/v1/chat/completions", {**CHAT, "include_reasoning": False}) as events:
            assert "secret" not in str(await events.rest())


CALLS = [
    [delta("Look. ")],
    [delta(tool_calls=(ToolCallDelta(0, id="call_a", name="weather"),))],
    [delta(tool_calls=(ToolCallDelta(0, '{"city": '), ToolCallDelta(0, '"Rome"}')))],
    [delta(tool_calls=(ToolCallDelta(1, id="call_b", name="time"),))],
    [delta(tool_calls=(ToolCallDelta(1, "{}"),), finish_reason="tool_calls")],
]


async def test_tool_calls_are_put_together_in_a_whole_answer() -> None:
    async with serving(StandIn(script=lambda _: CALLS)) as served:
        (choice,) = (await served.chat()).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Look. ",
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }


async def test_an_answer_of_calls_alone_has_null_content() -> None:
    async with serving(StandIn(script=lambda _: CALLS[1:])) as served:
        (choice,) = (await served.chat()).json()["choices"]
    assert choice["message"]["content"] is None


async def test_streamed_tool_calls_name_themselves_once_and_arguments_join() -> None:
    async with (
        serving(StandIn(script=lambda _: CALLS)) as served,
        served.events("/v1/chat/completions", CHAT) as events,
    ):
        found = await events.rest()
    pieces = [piece for event in found for piece in event["choices"][0]["delta"].get("tool_calls", ())]
    assert pieces[0] == {
        "index": 0,
        "id": "call_a",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 0) == '{"city": "Rome"}'
    assert [piece["id"] for piece in pieces if "id" in piece] == ["call_a", "call_b"]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_logprobs_in_the_chat_form(served: Served) -> None:
    (choice,) = (await served.chat(max_tokens=2, logprobs=True, top_logprobs=2)).json()["choices"]
    first = choice["logprobs"]["content"][0]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -1.0, "bytes": [97]},
            {"token": "b", "logprob": -2.0, "bytes": [98]},
        ],
    }
    (plain,) = (await served.chat(max_tokens=2, logprobs=True)).json()["choices"]
    assert [entry["top_logprobs"] for entry in plain["logprobs"]["content"]] == [[], []]


async def test_streamed_logprobs_cover_every_token(served: Served) -> None:
    body = {**CHAT, "max_tokens": 4, "logprobs": True, "top_logprobs": 1}
    async with served.events("/v1/chat/completions", body) as events:
        found = await events.rest()
    entries = [entry for event in found for entry in (event["choices"][0]["logprobs"] or {}).get("content", ())]
    assert [entry["token"] for entry in entries] == list(letters(4))


async def test_logprobs_of_thinking_are_listed_apart() -> None:
    def script(stream: object) -> list[list[object]]:
        entries = tuple({"token_id": token, "logprob": -0.25, "rank": 1} for token in b"abc")
        return [[delta("c", reasoning="ab", logprobs=entries, num_generated_tokens=3, num_reasoning_tokens=2,
                       finish_reason="stop")]]  # fmt: skip

    async with serving(StandIn(script=script)) as served:  # type: ignore[arg-type]
        (choice,) = (await served.chat(logprobs=True)).json()["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["reasoning"]] == ["a", "b"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["c"]


async def test_token_ids_beside_the_text(served: Served) -> None:
    reply = (await served.chat(max_tokens=3, return_token_ids=True)).json()
    assert reply["prompt_token_ids"] == [256, *b"user:Hi\n"]
    assert reply["choices"][0]["token_ids"] == [97, 98, 99]
    body = {**CHAT, "max_tokens": 3, "return_token_ids": True}
    async with served.events("/v1/chat/completions", body) as events:
        found = await events.rest()
    assert [token for event in found for token in event["choices"][0].get("token_ids", ())] == [97, 98, 99]


async def test_every_parameter_reaches_the_engine() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        given = {
            "max_completion_tokens": 7, "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
            "min_p": 0.1, "presence_penalty": 0.3, "frequency_penalty": -0.4, "repetition_penalty": 1.1,
            "logit_bias": {"65": 2}, "allowed_token_ids": [1, 2], "seed": -3, "n": 2, "stop": "END",
            "stop_token_ids": [4], "include_stop_str_in_output": True, "ignore_eos": True,
            "skip_special_tokens": False, "logprobs": True, "top_logprobs": 3, "priority": -2, "cache_salt": "acme",
        }  # fmt: skip
        async with served.events("/v1/chat/completions", {**CHAT, **given}):
            stream = await engine.opened()
            for choice in range(2):
                stream.push(delta("x", index=choice, finish_reason="stop"), over=choice == 1)
    params = stream.params
    assert (params.max_tokens, params.min_tokens, params.temperature, params.top_p) == (7, 2, 0.5, 0.9)
    assert (params.top_k, params.min_p, params.presence_penalty, params.frequency_penalty) == (5, 0.1, 0.3, -0.4)
    assert (params.repetition_penalty, params.logit_bias, params.allowed_token_ids) == (1.1, {65: 2.0}, (1, 2))
    assert (params.seed, params.n, params.stop, params.stop_token_ids) == (-3, 2, ("END",), (4,))
    assert (params.include_stop_str_in_output, params.ignore_eos, params.skip_special_tokens) == (True, True, False)
    assert (params.logprobs, stream.priority, stream.cache_salt) == (3, -2, "acme")


async def test_null_means_absent(served: Served) -> None:
    nothing = dict.fromkeys(
        ("model", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "tools", "tool_choice", "logprobs",
         "response_format", "stream_options", "reasoning_effort", "thinking", "user", "logit_bias")
    )  # fmt: skip
    response = await served.chat(**nothing)
    assert response.status_code == 200
    assert "x-dsv4-warning" not in response.headers


async def test_a_step_of_several_tokens_is_one_frame_under_stream_interval() -> None:
    async with (
        serving(settings=ServeSettings(stream_interval=10)) as served,
        served.events("/v1/chat/completions", {**CHAT, "max_tokens": 25}) as events,
    ):
        found = await events.rest()
    pieces = [event["choices"][0]["delta"].get("content") for event in found]
    assert pieces == ["", "a", letters(25)[1:11], letters(25)[11:21], letters(25)[21:]]
