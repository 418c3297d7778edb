"""What a request gets: its text, its end, its reason, its choices. The model is replaced by a function."""

from __future__ import annotations

import asyncio

import pytest
from tests.engine.gates import EOS, SPELL, TOKENIZER, assert_free, letters, parts, spelling, text_of, whole

from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.engine.null import null_parts
from dsv4.errors import InvalidRequest
from dsv4.types import Delta, RenderedChat, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def answer(next_token: object, params: SamplingParams, prompt: object = "hi") -> list[Delta]:
    async def ask() -> list[Delta]:
        async with AsyncEngine.over(parts(next_token)) as engine:  # type: ignore[arg-type]
            return await whole(await engine.open(prompt, params))  # type: ignore[arg-type]

    return asyncio.run(ask())


def test_deltas_add_up_to_the_answer() -> None:
    deltas = answer(letters, SamplingParams(max_tokens=5))
    assert text_of(deltas) == "abcde"
    assert [delta.finish_reason for delta in deltas] == [None, None, None, None, "length"]
    assert [delta.num_generated_tokens for delta in deltas] == [1, 2, 3, 4, 5]
    assert [token for delta in deltas for token in delta.token_ids] == [SPELL[97 + i] for i in range(5)]
    assert {delta.num_prompt_tokens for delta in deltas} == {len(TOKENIZER.encode("hi"))}


def test_end_of_sequence_stops_without_a_reason_and_without_text() -> None:
    deltas = answer(spelling("so"), SamplingParams(max_tokens=50))
    assert text_of(deltas) == "so"
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].stop_reason is None
    assert deltas[-1].token_ids == (EOS,)


def test_end_of_sequence_can_be_ignored() -> None:
    deltas = answer(spelling("so"), SamplingParams(max_tokens=6, ignore_eos=True))
    assert deltas[-1].finish_reason == "length"
    assert sum(len(delta.token_ids) for delta in deltas) == 6


def test_a_stop_token_is_the_reason_and_leaves_no_text() -> None:
    deltas = answer(letters, SamplingParams(max_tokens=50, stop_token_ids=(SPELL[ord("d")],)))
    assert text_of(deltas) == "abc"
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].stop_reason == SPELL[ord("d")]


@pytest.mark.parametrize(("include", "expected"), [(False, "ab"), (True, "abcde")])
def test_a_stop_string_across_tokens_ends_the_request_in_the_core(include: bool, expected: str) -> None:
    params = SamplingParams(max_tokens=500, stop=("zzz", "cde"), include_stop_str_in_output=include)
    with LLM.over(parts(letters)) as llm:
        found = llm.generate("hi", params)[0]
        assert_free(llm.stats())
    assert found.text == expected
    assert (found.finish_reason, found.stop_reason) == ("stop", "cde")
    assert len(found.token_ids) == 5  # nothing was generated after it


def test_a_stop_string_that_the_last_token_completes_wins_over_length() -> None:
    found = answer(letters, SamplingParams(max_tokens=3, stop=("c",)))
    assert (text_of(found), found[-1].finish_reason, found[-1].stop_reason) == ("ab", "stop", "c")


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    found = answer(letters, SamplingParams(max_tokens=3, stop=("bcx",)))
    assert (text_of(found), found[-1].finish_reason, found[-1].stop_reason) == ("abc", "length", None)


def test_code_points_are_not_split() -> None:
    deltas = answer(spelling("aé€🙂"), SamplingParams(max_tokens=50))
    assert [delta.content for delta in deltas if delta.content] == ["a", "é", "€", "🙂"]


def test_choices_come_with_their_index_and_share_the_prompt() -> None:
    with LLM.over(parts(letters)) as llm:
        found = llm.generate(["one", "two"], SamplingParams(max_tokens=3, n=3))
        assert_free(llm.stats())
    assert [(each.prompt_index, each.index, each.text) for each in found] == [
        (prompt, index, text) for prompt in (0, 1) for index, text in enumerate(("abc", "bcd", "cde"))
    ]


def test_the_answer_to_a_chat_is_parsed() -> None:
    chat = RenderedChat(token_ids=(0, 5, 6), thinking=True)
    tokenizer = parts().tokenizer
    said = [SPELL[ord(c)] for c in "hmm"] + [tokenizer.end_think_id] + [SPELL[ord(c)] for c in "yes"] + [EOS]

    def next_token(draw: object, position: int) -> int:
        return said[position]

    deltas = answer(next_token, SamplingParams(max_tokens=50), chat)
    assert "".join(delta.reasoning for delta in deltas) == "hmm"
    assert text_of(deltas) == "yes"
    assert deltas[-1].num_reasoning_tokens in (3, 4)


def test_logprobs_come_one_per_token() -> None:
    deltas = answer(letters, SamplingParams(max_tokens=4, logprobs=0))
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == [SPELL[97 + i] for i in range(4)]


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ("", GREEDY, None),
        ([[]], GREEDY, "prompt"),
        ([1, 4096], GREEDY, "prompt"),
        ([1, -1], GREEDY, "prompt"),
        ([1, "x"], GREEDY, "prompt"),
        ([1, True], GREEDY, "prompt"),
        ([5] * 5000, GREEDY, None),
        ("hi", SamplingParams(temperature=float("nan")), "temperature"),
        ("hi", SamplingParams(n=17), "n"),
        ("hi", SamplingParams(max_tokens=0), "max_tokens"),
        ("hi", SamplingParams(min_tokens=1, allowed_token_ids=(EOS,)), "allowed_token_ids"),
        ("hi", SamplingParams(stop=("x",) * 10_000), "stop"),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(prompt: object, params: SamplingParams, param: str | None) -> None:
    with LLM.over(parts()) as llm:
        with pytest.raises(InvalidRequest) as refusal:
            llm.generate(prompt, params)  # type: ignore[arg-type]
        assert param is None or refusal.value.param == param
        with pytest.raises(InvalidRequest):
            llm.stream(prompt, params)  # type: ignore[arg-type]
        assert_free(llm.stats())
        assert llm.generate("hi", GREEDY)[0].text == "abcdefgh"


def test_one_bad_prompt_among_many_runs_none() -> None:
    with LLM.over(parts()) as llm:
        with pytest.raises(InvalidRequest):
            llm.generate(["good", "", "good"], GREEDY)
        assert_free(llm.stats())


def test_more_prompts_than_the_queue_takes_are_fed_as_it_empties() -> None:
    with LLM.over(parts(max_running=2, max_queued=3)) as llm:
        found = llm.generate(["hi"] * 40, SamplingParams(max_tokens=3))
    assert [each.text for each in found] == ["abc"] * 40


def test_each_prompt_may_have_its_own_parameters() -> None:
    with LLM.over(parts()) as llm:
        found = llm.generate(["x", "y"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)])
        with pytest.raises(ValueError, match="1 params for 2 prompts"):
            llm.generate(["x", "y"], [GREEDY])
    assert [each.text for each in found] == ["a", "ab"]


def test_as_many_stop_ids_as_the_validator_allows_go_along_with_the_end_of_sequence() -> None:
    with LLM.over(null_parts(lambda _draw, _position: 97)) as llm:
        most = SamplingParams(max_tokens=2, stop_token_ids=tuple(range(300, 300 + 1024)))
        assert llm.generate("ab", most)[0].finish_reason == "length"
        with pytest.raises(InvalidRequest, match="1025 entries; at most 1024"):
            llm.generate("ab", SamplingParams(max_tokens=2, stop_token_ids=tuple(range(300, 300 + 1025))))
