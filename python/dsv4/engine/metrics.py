"""Every metric of the engine in one table, by name. The driver counts in plain numbers; a scrape turns them into text.

Names, labels and buckets are those of the interface, prefix `dsv4:`. A metric is listed here only if something moves
it. One engine has one registry, so that several engines fit in a process.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PREFIX = "dsv4:"
GROUPS = ("full", "swa", "state")
STATES = ("free", "open", "sealed", "shared", "cached", "retired", "quarantined")

MISSES = ("never_seen", "evicted_full", "evicted_window", "salt")

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
ITL_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TIME_BUCKETS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
STEP_TOKEN_BUCKETS = (1, 8, *(2**power for power in range(4, 15)))


def token_buckets(most: int) -> tuple[float, ...]:
    """The 1-2-5 series up to `most`."""
    series = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    return tuple(value for value in series if value <= most)


class Distribution:
    """A histogram: counts per bucket, their sum. One thread observes, any thread reads."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value; a bucket holds what is at most its bound."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Bounds as text with the number of values up to each, as the exposition wants them."""
        found, reached = [], 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            reached += count
            found.append(("+Inf" if bound == math.inf else repr(float(bound)), float(reached)))
        return found


@dataclass(slots=True)
class Counts:
    """What the driver counts. Labelled counters are dicts from the label's value.

    stats   the core's own numbers after the last step
    """

    max_model_len: int
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    generation_tokens: int = 0
    corrupted_requests: int = 0
    request_success: dict[str, int] = field(default_factory=dict)
    aborts: dict[str, int] = field(default_factory=dict)
    admission_rejections: dict[str, int] = field(default_factory=dict)
    invariant_violations: dict[str, int] = field(default_factory=dict)
    stats: Mapping[str, int] = field(default_factory=dict)
    ttft: Distribution = field(default_factory=lambda: Distribution(TTFT_BUCKETS))
    itl: Distribution = field(default_factory=lambda: Distribution(ITL_BUCKETS))
    e2e: Distribution = field(default_factory=lambda: Distribution(TIME_BUCKETS))
    queue: Distribution = field(default_factory=lambda: Distribution(TIME_BUCKETS))
    prefill: Distribution = field(default_factory=lambda: Distribution(TIME_BUCKETS))
    decode: Distribution = field(default_factory=lambda: Distribution(TIME_BUCKETS))
    step_tokens: Distribution = field(default_factory=lambda: Distribution(STEP_TOKEN_BUCKETS))
    request_prompt: Distribution = field(init=False)
    request_generation: Distribution = field(init=False)

    def __post_init__(self) -> None:
        self.request_prompt = Distribution(token_buckets(self.max_model_len))
        self.request_generation = Distribution(token_buckets(self.max_model_len))

    @property
    def violations(self) -> Mapping[str, int]:
        """Broken invariants by kind; "block" are those that the core contained by itself."""
        contained = self.stats.get("num_violations", 0)
        return {**self.invariant_violations, "block": contained} if contained else self.invariant_violations

    @property
    def prefix_misses(self) -> Mapping[str, int]:
        """Tokens that the prefix cache did not have, by reason; those that occurred."""
        found = {reason: self.stats.get(f"prefix_miss_{reason}_tokens", 0) for reason in MISSES}
        return {reason: number for reason, number in found.items() if number}

    @staticmethod
    def add(counter: dict[str, int], label: str, amount: int = 1) -> None:
        """Counts one event of a labelled counter."""
        counter[label] = counter.get(label, 0) + amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What does not change while an engine runs, for the info metrics and the gauges.

    pool_blocks   blocks per group, poison blocks not counted
    pool_bytes    bytes per pool: c4, c128, index, swa and the states
    recipe, bands name of the recipe, and of its bands in order
    kernels       each op of a step, and what serves it
    """

    served_name: str
    build: Mapping[str, str] = field(default_factory=dict)
    cache: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    pool_blocks: Mapping[str, int] = field(default_factory=dict)
    pool_bytes: Mapping[str, int] = field(default_factory=dict)
    recipe: str = "fixed"
    bands: tuple[str, ...] = ("all",)
    kernels: tuple[tuple[str, str], ...] = ()


_GAUGES: tuple[tuple[str, str, Callable[[Counts], float]], ...] = (
    ("num_requests_running", "Requests of the core with blocks", lambda c: c.stats.get("num_running", 0)),
    ("num_requests_waiting", "Requests of the core in the queue", lambda c: c.stats.get("num_waiting", 0)),
    ("window_checkpoints", "Places where a prefix can be resumed", lambda c: c.stats.get("num_window_checkpoints", 0)),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Counts], float]], ...] = (
    ("prompt_tokens", "Tokens of prompts whose first token came; once for any n", lambda c: c.prompt_tokens),
    ("generation_tokens", "Tokens generated", lambda c: c.generation_tokens),
    ("num_preemptions", "Times that a running request lost its blocks", lambda c: c.stats.get("num_preemptions", 0)),
    ("prompt_tokens_cached", "Of prompt_tokens, those found in the prefix cache", lambda c: c.prompt_tokens_cached),
    ("prefix_cache_queries", "Tokens looked for in the prefix cache", lambda c: c.stats.get("prefix_query_tokens", 0)),
    ("prefix_cache_hits", "Tokens found in the prefix cache", lambda c: c.stats.get("prefix_hit_tokens", 0)),
    ("recipe_switches", "Changes of the recipe's band", lambda c: c.stats.get("num_recipe_switches", 0)),
    ("corrupted_requests", "Requests ended for NaN or infinite logits", lambda c: c.corrupted_requests),
)  # fmt: skip
_LABELLED: tuple[tuple[str, str, str, Callable[[Counts], Mapping[str, int]]], ...] = (
    ("request_success", "Choices that ended, by reason", "finished_reason", lambda c: c.request_success),
    ("aborts", "Requests that were ended early", "reason", lambda c: c.aborts),
    ("admission_rejections", "Requests that the queue did not take", "reason", lambda c: c.admission_rejections),
    ("prefix_cache_misses", "Tokens not found in the prefix cache", "reason", lambda c: c.prefix_misses),
    ("invariant_violations", "Broken invariants of the core", "kind", lambda c: c.violations),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Counts], Distribution]], ...] = (
    ("time_to_first_token_seconds", "From arrival to the first token", lambda c: c.ttft),
    ("inter_token_latency_seconds", "Between two tokens of a choice", lambda c: c.itl),
    ("e2e_request_latency_seconds", "From arrival to the end", lambda c: c.e2e),
    ("request_queue_time_seconds", "From arrival to the first step", lambda c: c.queue),
    ("request_prefill_time_seconds", "From the first step to the first token", lambda c: c.prefill),
    ("request_decode_time_seconds", "From the first token to the end", lambda c: c.decode),
    ("request_prompt_tokens", "Prompt tokens of a request", lambda c: c.request_prompt),
    ("request_generation_tokens", "Tokens of all choices of a request", lambda c: c.request_generation),
    ("iteration_tokens_total", "Tokens of a step", lambda c: c.step_tokens),
)


class EngineMetrics(Collector):
    """The engine's metrics as Prometheus sees them; reads the counts when it is scraped."""

    def __init__(self, counts: Counts, facts: Facts) -> None:
        self._counts = counts
        self._facts = facts
        self._labels = ("model_name", "engine")
        self._values = (facts.served_name, "0")
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric of the table."""
        counts = self._counts
        for name, text, value in _GAUGES:
            yield self._gauge(name, text, value(counts))
        yield self._gauge(
            "kv_cache_usage_perc", "Blocks in use (not only cached), fullest group, 0 to 1", self._usage()
        )
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=self._labels)
            counter.add_metric(self._values, value(counts))
            yield counter
        for name, text, label, by_label in _LABELLED:
            counter = CounterMetricFamily(PREFIX + name, text, labels=(*self._labels, label))
            for key, number in sorted(by_label(counts).items()):
                counter.add_metric((*self._values, key), number)
            yield counter
        for name, text, of in _HISTOGRAMS:
            distribution = of(counts)
            histogram = HistogramMetricFamily(PREFIX + name, text, labels=self._labels)
            histogram.add_metric(self._values, distribution.cumulative(), distribution.total)
            yield histogram
        yield from self._pools()
        band = self._facts.bands[self._counts.stats.get("recipe_band", 0)]
        yield self._info("recipe_info", "The band in force", {"recipe": self._facts.recipe, "band": band})
        yield self._info("build_info", "What runs", self._facts.build)
        yield self._info("cache_config_info", "How the pools were sized", self._facts.cache)
        yield self._info("config_info", "Settings as they were resolved", self._facts.settings)
        kernels = GaugeMetricFamily(
            PREFIX + "kernel_info", "What serves each op", labels=(*self._labels, "op", "served_by")
        )
        for op, served_by in self._facts.kernels:
            kernels.add_metric((*self._values, op, served_by), 1)
        yield kernels

    def _pools(self) -> Iterator[Metric]:
        blocks = GaugeMetricFamily(
            PREFIX + "pool_blocks", "Blocks by group and state", labels=(*self._labels, "group", "state")
        )
        for group in GROUPS:
            for state in STATES:
                number = self._counts.stats.get(f"{group}_{state}")
                if number is not None:  # states that this core does not have are not listed
                    blocks.add_metric((*self._values, group, state), number)
        yield blocks
        sizes = GaugeMetricFamily(PREFIX + "pool_bytes", "Bytes of each pool", labels=(*self._labels, "pool"))
        for pool, size in self._facts.pool_bytes.items():
            sizes.add_metric((*self._values, pool), size)
        yield sizes

    def _usage(self) -> float:
        stats = self._counts.stats
        shares = [
            1 - (stats[f"{group}_free"] + stats.get(f"{group}_cached", 0)) / blocks
            for group, blocks in self._facts.pool_blocks.items()
            if blocks and f"{group}_free" in stats
        ]
        return max(shares, default=0.0)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(PREFIX + name, text, labels=self._labels)
        gauge.add_metric(self._values, value)
        return gauge

    def _info(self, name: str, text: str, facts: Mapping[str, str]) -> Metric:
        info = GaugeMetricFamily(PREFIX + name, text, labels=(*self._labels, *facts))
        info.add_metric((*self._values, *facts.values()), 1)
        return info
