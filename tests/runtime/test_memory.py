"""Pools: sized by the core, allocated as they were planned, never larger than the budget."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dsv4.config.choices import resolve
from dsv4.config.directory import DEMO
from dsv4.config.engine import EngineConfig
from dsv4.config.model import ModelConfig
from dsv4.config.recipe import recipe_of
from dsv4.errors import ConfigError
from dsv4.model.numerics import Numerics
from dsv4.runtime.memory import Sizing, allocate_pools, pool_bytes, size_pools, useful_bytes

FP8 = Numerics("bfloat16", "fp8_ds_mla", "fp4")


def demo(**changes: Any) -> ModelConfig:
    config = ModelConfig.parse(json.loads((DEMO / "config.json").read_text()), num_mtp_layers=1)
    return dataclasses.replace(config, **changes)


def sized(model: ModelConfig | None = None, **settings: Any) -> Sizing:
    model = model or demo()
    config = EngineConfig(**settings)
    return size_pools(config, resolve(config, model), model, FP8)


@pytest.mark.parametrize("total", [16 << 20, 40_000_001, 256 << 20])
def test_the_pools_take_what_the_plan_says_and_no_more_than_the_budget(total: int) -> None:
    found = sized(kv_cache_memory_bytes=total, max_num_seqs=4)
    by_pool = pool_bytes(allocate_pools(demo(), FP8, found.plan, "cpu"))
    plan = found.plan
    assert by_pool["c4"] + by_pool["c128"] + by_pool["index"] == plan.full_bytes
    assert by_pool["swa"] == plan.swa_bytes
    assert by_pool["c4_state"] + by_pool["index_state"] + by_pool["c128_state"] == plan.state_bytes
    assert sum(by_pool.values()) <= total


def test_a_small_model_takes_what_it_can_use_and_not_the_default() -> None:
    found = sized(max_num_seqs=2, max_model_len=1024, enable_prefix_caching=False)
    assert found.total_bytes < recipe_of("cpu").limits.kv_cache_memory_bytes // 10
    assert found.plan.capacity(1024) == 2
    assert found.plan.sizes.state_slots == 2
    assert found.plan.sizes.full_blocks < 3 * 2 * 4  # two requests of four blocks, and what the step's windows leave


@pytest.mark.parametrize(("seqs", "length", "tokens"), [(1, 2, 1), (32, 65_536, 512), (7, 1000, 96), (64, 300, 2048)])
def test_useful_bytes_let_every_request_be_as_long_as_may_be(seqs: int, length: int, tokens: int) -> None:
    settings: dict[str, Any] = {
        "max_num_seqs": seqs,
        "max_model_len": length,
        "max_num_batched_tokens": max(tokens, seqs),
    }
    geometry_and_limits = sized(kv_cache_memory_bytes=2 << 30, **settings)
    useful = useful_bytes(geometry_and_limits.geometry, geometry_and_limits.limits)
    found = sized(kv_cache_memory_bytes=useful, **settings)
    assert found.plan.capacity(length) == seqs


def test_the_context_is_capped_by_what_the_pools_hold() -> None:
    found = sized(demo(max_position_embeddings=1 << 20), kv_cache_memory_bytes=64 << 20, max_num_seqs=2)
    assert found.limits.max_model_len == found.plan.max_request_tokens < 1 << 20
    reasons = {choice.name: choice.reason for choice in found.choices}
    assert reasons["max_model_len"] == "what the pools hold"


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len is 65536, and pools of 16777216 bytes hold requests of \d+"):
        sized(kv_cache_memory_bytes=16 << 20, max_model_len=65_536, max_num_seqs=2)


def test_too_few_bytes_for_anything_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="1000 bytes of KV memory are too few"):
        sized(kv_cache_memory_bytes=1000)


def test_a_queue_that_the_longest_request_could_not_enter_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_queued_tokens is 100, less than max_model_len, 1024"):
        sized(max_num_queued_tokens=100, max_model_len=1024)
