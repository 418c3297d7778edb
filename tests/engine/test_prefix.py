"""The prefix cache from outside: what requests find in it, what usage and metrics say, and who shares with whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.engine.gates import assert_all_blocks_free, tiny_model, whole

from dsv4 import EngineConfig
from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.types import SamplingParams

PROMPT = list(range(100, 700))
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(
        model=str(tiny_model(tmp_path_factory.mktemp("tiny"))),
        load_format="dummy",
        kv_cache_memory_bytes=24 << 20,
        max_model_len=1024,
        max_num_seqs=4,
        max_num_batched_tokens=300,
        seed=5,
    )


def metric(text: bytes, name: str) -> list[str]:
    """Labels and values of the samples of one metric."""
    return [line for line in text.decode().splitlines() if line.startswith(f"dsv4:{name}{{")]


def number(text: bytes, name: str) -> float:
    (line,) = metric(text, name)
    return float(line.rpartition(" ")[2])


Found = tuple[int, tuple[int, ...]]
"""Cached tokens and the answer's tokens."""


async def answered(engine: AsyncEngine, salt: str | None = None) -> Found:
    deltas = await whole(await engine.open(PROMPT, GREEDY, cache_salt=salt))
    return deltas[-1].num_cached_tokens, tuple(token for delta in deltas for token in delta.token_ids)


async def asked(config: EngineConfig, salts: Sequence[str | None]) -> tuple[list[Found], bytes]:
    """The prompt once per salt, one after another, and the metrics in the end."""
    async with AsyncEngine.running(config) as engine:
        found = [await answered(engine, salt) for salt in salts]
        await assert_all_blocks_free(engine)
        return found, engine.metrics_text()


def test_usage_and_metrics_say_what_was_cached_and_the_answer_is_the_same(config: EngineConfig) -> None:
    found, text = asyncio.run(asked(config, [None] * 3))
    without, _ = asyncio.run(asked(replace(config, enable_prefix_caching=False), [None] * 2))
    assert [cached for cached, _ in (*found, *without)] == [0, 512, 512, 0, 0]
    assert len({answer for _, answer in (*found, *without)}) == 1
    assert number(text, "prompt_tokens_total") == number(text, "prefix_cache_queries_total") == 3 * 600
    assert number(text, "prompt_tokens_cached_total") == number(text, "prefix_cache_hits_total") == 2 * 512
    assert number(text, "prefix_cache_misses_total") == 3 * 600 - 2 * 512
    assert 'reason="never_seen"' in metric(text, "prefix_cache_misses_total")[0]
    assert number(text, "window_checkpoints") == 1
    assert number(text, "kv_cache_usage_perc") == 0
    cached = [line for line in metric(text, "pool_blocks") if 'group="full"' in line and 'state="cached"' in line]
    assert [line.rpartition(" ")[2] for line in cached] == ["2.0"]


def test_several_choices_of_one_prompt_count_it_once(config: EngineConfig) -> None:
    with LLM(config=config) as llm:
        first = llm.generate(PROMPT, GREEDY)[0]
        several = llm.generate(PROMPT, SamplingParams(n=2, max_tokens=4, temperature=0.0, ignore_eos=True))
    assert (first.num_cached_tokens, [each.num_cached_tokens for each in several]) == (0, [512, 512])
    assert {each.token_ids for each in (first, *several)} == {first.token_ids}


def test_a_salt_keeps_tenants_apart(config: EngineConfig) -> None:
    found, text = asyncio.run(asked(config, ["a", "b", None, "a", "b", None]))
    assert [cached for cached, _ in found] == [0, 0, 0, 512, 512, 512]
    assert any('reason="salt"' in line for line in metric(text, "prefix_cache_misses_total"))
