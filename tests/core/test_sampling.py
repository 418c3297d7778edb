"""check_sampling: the validator's refusals reach Python as InvalidRequest, whatever was passed.

The limits themselves are tested, under, at and over each, beside the validator (rust/core/src/validate.rs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import pytest

from dsv4._core import check_sampling
from dsv4.errors import InvalidRequest


class Fields(TypedDict, total=False):
    num_prompt_tokens: int
    max_model_len: int
    max_request_tokens: int
    vocab_size: int
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Sequence[tuple[int, float]]
    allowed_token_ids: Sequence[int] | None
    seed: int | None
    n: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: int | None
    max_logprobs: int


PLAIN = Fields(
    num_prompt_tokens=10,
    max_model_len=4096,
    max_request_tokens=2048,
    vocab_size=1000,
    max_tokens=16,
    min_tokens=0,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias=(),
    allowed_token_ids=None,
    seed=None,
    n=1,
    stop=(),
    stop_token_ids=(),
    logprobs=None,
)


def check(changes: Fields) -> int:
    fields: Any = {**PLAIN, **changes}
    return check_sampling(**fields)


def test_max_tokens_comes_back_resolved() -> None:
    assert check({}) == 16
    assert check({"max_tokens": None}) == 2048 - 10
    assert check({"max_tokens": None, "max_request_tokens": 9999}) == 4096 - 10


def test_a_refusal_carries_its_field_and_its_code() -> None:
    with pytest.raises(InvalidRequest, match="n is 17; it must be from 1 to 16") as caught:
        check({"n": 17})
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")


def test_a_prompt_longer_than_the_pool_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidRequest, match=r"3000 tokens.*2048 tokens.*at least 953") as caught:
        check({"num_prompt_tokens": 3000, "max_tokens": None})
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"],
)
def test_no_number_is_too_strange_to_be_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        check({field: value})  # type: ignore[misc]
    assert caught.value.param == field


@pytest.mark.parametrize("value", [2**63, 2**64, 2**127, 2**128, 10**1000, -(2**63) - 1, -(10**1000)])
@pytest.mark.parametrize("field", ["n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs"])
def test_no_integer_is_too_large_to_be_refused(field: str, value: int) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        check({field: value})  # type: ignore[misc]
    assert caught.value.param == field


@pytest.mark.parametrize("token", [-1, 1000, 2**31, 2**63, 10**1000, -(10**1000)])
def test_no_token_id_is_too_large_to_be_refused(token: int) -> None:
    for field, value in (("stop_token_ids", [token]), ("allowed_token_ids", [token]), ("logit_bias", [(token, 1.0)])):
        with pytest.raises(InvalidRequest, match="1000 tokens") as caught:
            check({field: value})  # type: ignore[misc]
        assert caught.value.param == field


def test_seeds_are_signed_64_bit_integers() -> None:
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        assert check({"seed": seed}) == 16


def test_a_stop_string_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate") as caught:
        check({"stop": ["fine", "not \ud800 fine"]})
    assert caught.value.param == "stop"


def test_a_million_entries_are_refused_by_their_number() -> None:
    for field in ("stop", "stop_token_ids", "allowed_token_ids", "logit_bias"):
        with pytest.raises(InvalidRequest, match=r"1000000 entries; at most (16|1024)") as caught:
            check({field: [None] * 1_000_000})  # type: ignore[misc]
        assert caught.value.param == field


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": "warm"},
        {"n": 1.5},
        {"max_tokens": "7"},
        {"stop": "not a list"},
        {"stop": [7]},
        {"stop_token_ids": ["7"]},
        {"logit_bias": {7: 1.0}},
        {"logit_bias": [(1, 2, 3)]},
    ],
)
def test_wrong_types_are_type_errors(changes: Fields) -> None:
    with pytest.raises((TypeError, ValueError)):
        check(changes)


def test_arguments_are_by_keyword() -> None:
    with pytest.raises(TypeError):
        check_sampling(10)  # type: ignore[call-arg]
