"""Metrics by name, label and bucket; every one of them moves, and says what happened."""

from __future__ import annotations

import asyncio
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.gates import Gate, opened, parts, spelling, text_of, whole

from dsv4.engine.engine import LLM, AsyncEngine
from dsv4.engine.metrics import (
    ITL_BUCKETS,
    STEP_TOKEN_BUCKETS,
    TIME_BUCKETS,
    TTFT_BUCKETS,
    Counts,
    Distribution,
    token_buckets,
)
from dsv4.types import SamplingParams

COUNTERS = {
    "prompt_tokens",
    "prompt_tokens_cached",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prefix_cache_misses",
    "generation_tokens",
    "request_success",
    "num_preemptions",
    "recipe_switches",
    "admission_rejections",
    "aborts",
    "corrupted_requests",
    "invariant_violations",
}
GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "window_checkpoints",
    "kv_cache_usage_perc",
    "pool_blocks",
    "pool_bytes",
    "build_info",
    "cache_config_info",
    "config_info",
    "kernel_info",
    "recipe_info",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": TTFT_BUCKETS,
    "inter_token_latency_seconds": ITL_BUCKETS,
    "e2e_request_latency_seconds": TIME_BUCKETS,
    "request_queue_time_seconds": TIME_BUCKETS,
    "request_prefill_time_seconds": TIME_BUCKETS,
    "request_decode_time_seconds": TIME_BUCKETS,
    "request_prompt_tokens": token_buckets(4096),
    "request_generation_tokens": token_buckets(4096),
    "iteration_tokens_total": STEP_TOKEN_BUCKETS,
}

Labels = frozenset[tuple[str, str]]


def read(text: bytes) -> dict[str, dict[Labels, float]]:
    """Samples by name and labels, the two labels of every metric left out."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "null"
            assert sample.labels["engine"] == "0"
            labels = frozenset(item for item in sample.labels.items() if item[0] not in ("model_name", "engine"))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def value(samples: dict[str, dict[Labels, float]], name: str, **labels: str) -> float:
    return samples[f"dsv4:{name}"][frozenset(labels.items())]


def test_names_and_types_are_those_of_the_interface() -> None:
    with LLM.over(parts()) as llm:
        pass
    from dsv4.engine.metrics import EngineMetrics

    text = EngineMetrics(llm._front.driver.counts, llm._front.facts).text().decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert {name for name, kind in types.items() if kind == "counter"} == {f"dsv4:{name}_total" for name in COUNTERS}
    assert {name for name, kind in types.items() if kind == "gauge"} == {f"dsv4:{name}" for name in GAUGES}
    assert {name for name, kind in types.items() if kind == "histogram"} == {f"dsv4:{name}" for name in HISTOGRAMS}


def test_buckets_are_those_of_the_interface() -> None:
    async def work() -> bytes:
        async with AsyncEngine.over(parts()) as engine:
            return engine.metrics_text()

    samples = read(asyncio.run(work()))
    for name, buckets in HISTOGRAMS.items():
        bounds = [dict(labels)["le"] for labels in samples[f"dsv4:{name}_bucket"]]
        assert bounds == [*(str(float(bound)) for bound in buckets), "+Inf"], name
    assert STEP_TOKEN_BUCKETS[:4] == (1, 8, 16, 32)
    assert STEP_TOKEN_BUCKETS[-1] == 16384
    assert token_buckets(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def test_a_distribution_counts_what_is_at_most_its_bound() -> None:
    found = Distribution((1, 2))
    for number in (0.5, 1.0, 1.5, 2.0, 7.0):
        found.observe(number)
    assert found.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert (found.count, found.total) == (5, 12.0)
    assert math.isclose(sum(found.counts), 5)


def test_requests_are_counted_by_what_became_of_them() -> None:
    async def work() -> dict[str, dict[Labels, float]]:
        gate = Gate()
        async with AsyncEngine.over(parts(spelling("four"), before_step=gate)) as engine:
            running = await engine.open([5] * 300, SamplingParams(max_tokens=100))
            gate.arrived()
            before = read(engine.metrics_text())
            assert value(before, "generation_tokens_total") == 0
            left = await opened(engine, gate, [6] * 10, SamplingParams(max_tokens=100))
            gate.arrived()
            busy = read(engine.metrics_text())
            assert value(busy, "num_requests_running") + value(busy, "num_requests_waiting") == 2
            assert (
                value(busy, "pool_blocks", group="full", state="free")
                < value(before, "pool_blocks", group="full", state="free") + 3
            )
            assert value(busy, "kv_cache_usage_perc") > 0
            left.leave()
            gate.open()
            assert text_of(await whole(running)) == "four"
            two = await whole(await engine.open([5] * 7, SamplingParams(max_tokens=3, n=2)))
            assert len(two) == 6
            await engine.stats()
            return read(engine.metrics_text())

    found = asyncio.run(work())
    assert value(found, "request_success_total", finished_reason="stop") == 1
    assert value(found, "request_success_total", finished_reason="length") == 2
    assert value(found, "aborts_total", reason="client") == 1
    assert value(found, "prompt_tokens_total") in (307, 317)  # the one that left may have said something before
    assert value(found, "generation_tokens_total") >= 5 + 6
    assert value(found, "request_prompt_tokens_count") == 3
    assert value(found, "request_generation_tokens_sum") == value(found, "generation_tokens_total")
    assert value(found, "time_to_first_token_seconds_count") in (2, 3)
    assert value(found, "e2e_request_latency_seconds_count") == 3
    assert value(found, "iteration_tokens_total_sum") >= 300 + 7 + 4 + 4
    assert value(found, "num_requests_running") == value(found, "num_requests_waiting") == 0
    assert value(found, "kv_cache_usage_perc") == 0


def test_preemptions_are_counted() -> None:
    with LLM.over(parts(max_running=2, full_blocks=6, max_step_tokens=512)) as llm:  # each comes to need 5 blocks
        found = llm.generate([[5] * 10] * 3, SamplingParams(max_tokens=1100, ignore_eos=True))
        assert [each.text for each in found] == ["abcdefghijklmnopqrstuvwxyz" * 42 + "abcdefgh"] * 3
        assert llm._front.driver.counts.stats["num_preemptions"] > 0


@pytest.mark.parametrize("registry", range(2))
def test_engines_do_not_share_a_registry(registry: int) -> None:
    assert Counts(10) != Counts(11)
    with LLM.over(parts()) as llm:
        llm.generate("hi", SamplingParams(max_tokens=2))
        assert llm._front.driver.counts.generation_tokens == 2
