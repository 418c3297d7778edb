"""The earliest end wins, ties go to the longest, and little is held back."""

from __future__ import annotations

import random
import time

import pytest

from dsv4.engine.text import StopMatcher


def cut(parts: list[str], stops: list[str], *, include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include_stop=include_stop)
    shown = "".join(matcher.push(part) for part in parts)
    return shown + matcher.finish(), matcher.matched


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize(
    ("text", "stops", "shown", "matched"),
    [
        ("hello world", ["o w"], "hell", "o w"),
        ("hello", ["x"], "hello", None),
        ("abcd", ["abcd", "bc"], "a", "bc"),
        ("abcd", ["bcd", "abcd", "d"], "", "abcd"),
        ("aaab", ["aab"], "a", "aab"),
        ("abab abac", ["abac"], "abab ", "abac"),
        ("世界。", ["。"], "世界", "。"),
        ("ab", [], "ab", None),
        ("ab", [""], "ab", None),
    ],
)
def test_where_content_is_cut(text: str, stops: list[str], shown: str, matched: str | None) -> None:
    assert cut([text], stops) == (shown, matched)
    assert cut(list(text), stops) == (shown, matched)


def test_the_stop_string_may_be_kept() -> None:
    assert cut(list("one two three"), ["two"], include_stop=True) == ("one two", "two")


def test_random_texts_are_cut_as_by_looking_at_every_end() -> None:
    seed = 3
    draw = random.Random(seed)
    for turn in range(2000):
        text = "".join(draw.choices("ab", k=draw.randint(0, 20)))
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 6))) for _ in range(draw.randint(1, 4))]
        edge = draw.randint(0, len(text))
        where = f"seed {seed}, turn {turn}: {text!r} {stops}"
        assert cut([text[:edge], text[edge:]], stops) == naive(text, stops), where
        assert cut(list(text), stops) == naive(text, stops), where


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("a ST") == "a "
    assert matcher.push("x") == "STx"
    assert matcher.push("SSTO") == "S"
    assert matcher.finish() == "STO"


def test_nothing_is_shown_after_a_match() -> None:
    matcher = StopMatcher(["b"])
    assert [matcher.push("abc"), matcher.push("d"), matcher.finish()] == ["a", "", ""]


def test_a_match_does_not_count_before_it_is_armed() -> None:
    matcher = StopMatcher(["b"])
    assert matcher.push("ab", armed=False) + matcher.push("cb") == "abc"
    assert matcher.matched == "b"


def test_a_stop_string_may_begin_before_it_is_armed() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xab", armed=False) + matcher.push("c") == "x"


def test_many_long_similar_stop_strings_take_linear_time() -> None:
    stops = ["a" * 1000 + chr(0x62 + i) for i in range(16)]
    matcher = StopMatcher(stops)
    start = time.perf_counter()
    shown = "".join(matcher.push("a" * 100) for _ in range(1000))
    assert len(shown) == 100_000 - 1000
    assert matcher.push("q") == ""
    assert matcher.matched == stops[15]
    assert time.perf_counter() - start < 5
