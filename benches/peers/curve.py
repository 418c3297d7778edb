"""The cost of a step against what it should depend on and what it should not.

running    1 … 8,192 requests decoding: linear, so the cost per request is flat
waiting    0 … 100,000 requests behind 64 decoding ones, for want of a row or of blocks: flat
pool       1,000 … 1,000,000 full blocks, empty or all in the prefix cache, under 64 decoding requests: flat
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns as now

import numpy as np
from benches.core import flash_geometry, lent
from benches.peers.load import BLOCK, CONTEXT, LONG, VOCAB

from dsv4._core import Core, Limits, PoolSizes, StepDone

RUNNING = tuple(1 << power for power in range(14))
WAITING = (0, 1, 10, 100, 1_000, 10_000, 100_000)
POOLS = (1_000, 10_000, 100_000, 1_000_000)
DECODING = 64
OUTPUT = 1000
WAITING_TOKENS = 900  # four blocks, where two are left
CHUNK = 16_384
LAST = LONG // BLOCK  # blocks of a long prompt


@dataclass(frozen=True)
class Point:
    """Microseconds of one operation at one x."""

    line: str
    x: int
    median_us: float
    p99_us: float


def core_of(num_requests: int, full_blocks: int, *, queued: int = 0, checkpoints: int = 0) -> Core:
    """A core with the prefix cache on and so many rows and blocks."""
    limits = Limits(
        max_model_len=LONG + BLOCK,
        max_num_requests=num_requests,
        max_num_tokens=CHUNK,
        max_queued_requests=num_requests + queued,
        max_queued_tokens=CONTEXT * num_requests + LONG * (queued + 1),
        vocab_size=VOCAB,
        prefix_cache=True,
        checkpoint_tokens=LONG,
    )
    sizes = PoolSizes(
        full_blocks=full_blocks,
        swa_blocks=3 * num_requests + CHUNK // 64 + 4 + 2 * checkpoints,
        state_slots=num_requests + checkpoints,
    )
    return Core(flash_geometry(), sizes, limits)


def quantiles(line: str, x: int, times: Sequence[int]) -> Point:
    """Median and 99th percentile of nanoseconds."""
    ranked = sorted(times)
    return Point(line, x, ranked[len(ranked) // 2] / 1000, ranked[len(ranked) * 99 // 100] / 1000)


def step(core: Core, memory: np.ndarray, num_samples: int) -> int:
    """Nanoseconds of plan, StepDone and advance; all requests sample."""
    answer = [7] * num_samples
    start = now()
    plan = core.plan(memory)
    if plan is None or plan.num_samples != num_samples:
        raise RuntimeError(f"{num_samples} samples expected: {core.stats()}")
    core.advance([StepDone(plan.step_id, answer)])
    return now() - start


def settle(core: Core, memory: np.ndarray) -> None:
    """Steps until every prompt is computed that can start."""
    while core.stats()["num_prefilling"] or not core.stats()["num_running"]:
        advance(core, memory)


def advance(core: Core, memory: np.ndarray) -> bool:
    """One step that nobody times; False if there was none."""
    plan = core.plan(memory)
    core.advance([] if plan is None else [StepDone(plan.step_id, [7] * plan.num_samples)])
    return plan is not None


def fill(core: Core, memory: np.ndarray, num_blocks: int, rng: np.random.Generator) -> None:
    """Leaves so many blocks of finished prompts in the prefix cache."""
    for _ in range(num_blocks // LAST):
        core.submit(rng.integers(0, VOCAB, LONG, dtype=np.int32), max_tokens=1)
        while advance(core, memory):
            pass


def timed(line: str, x: int, core: Core, memory: np.ndarray, num_samples: int) -> Point:
    """A few hundred steps at most, after a warm-up; no garbage is collected meanwhile."""
    for _ in range(20):
        step(core, memory, num_samples)
    gc.collect()
    gc.disable()
    times = [step(core, memory, num_samples) for _ in range(min(400, max(60, 200_000 // num_samples)))]
    gc.enable()
    return quantiles(line, x, times)


def decoding(core: Core, memory: np.ndarray, num_requests: int, rng: np.random.Generator) -> None:
    """So many requests with their prompts behind them."""
    for _ in range(num_requests):
        core.submit(rng.integers(0, VOCAB, CONTEXT, dtype=np.int32), max_tokens=OUTPUT)
    while core.stats()["num_waiting"]:
        advance(core, memory)
    settle(core, memory)


def running(sizes: Sequence[int] = RUNNING) -> Iterator[Point]:
    """Requests decoding, nothing else."""
    for size in sizes:
        rng = np.random.default_rng(size)
        core = core_of(size, 10 * size)
        memory = lent(core)
        decoding(core, memory, size, rng)
        yield timed("running", size, core, memory, size)


def waiting(sizes: Sequence[int] = WAITING) -> Iterator[Point]:
    """Requests that wait behind 64 decoding ones: all rows taken; rows left but too few blocks."""
    roomy = core_of(DECODING, 10_000)
    decoding(roomy, lent(roomy), DECODING, np.random.default_rng(0))
    stats = roomy.stats()
    held = stats["full_capacity"] - stats["full_free"] + stats["full_reserved"]
    for line, rows, blocks in (("waiting for a row", DECODING, 10_000), ("waiting for blocks", 2 * DECODING, held + 2)):
        for size in sizes:
            rng = np.random.default_rng(size)
            core = core_of(rows, blocks, queued=size)
            memory = lent(core)
            decoding(core, memory, DECODING, rng)
            for _ in range(size):
                core.submit(rng.integers(0, VOCAB, WAITING_TOKENS, dtype=np.int32), max_tokens=1)
            yield timed(line, size, core, memory, DECODING)


def pools(sizes: Sequence[int] = POOLS) -> Iterator[Point]:
    """Pool sizes, empty but for the 64, and with all other blocks in the prefix cache; there also admission of 8K."""
    for line in ("pool, empty", "pool, all cached"):
        for size in sizes:
            rng = np.random.default_rng(size)
            cached = line == "pool, all cached"
            core = core_of(DECODING + 1, size, queued=1, checkpoints=max(8, size // LAST) if cached else 0)
            memory = lent(core)
            if cached:
                fill(core, memory, size, rng)
            decoding(core, memory, DECODING, rng)
            yield timed(line, size, core, memory, DECODING)
            yield from admission(line, size, core, memory, rng)


def admission(line: str, size: int, core: Core, memory: np.ndarray, rng: np.random.Generator) -> Iterator[Point]:
    """submit and plan of 8K more, beside the 64; where all is cached, 32 blocks and more are evicted for it."""
    times = []
    for _ in range(60):
        asked = rng.integers(0, VOCAB, LONG, dtype=np.int32)
        start = now()
        core.submit(asked, max_tokens=1)
        plan = core.plan(memory)
        times.append(now() - start)
        assert plan is not None
        assert plan.num_prefill_tokens > 0
        core.advance([StepDone(plan.step_id, [7] * plan.num_samples)])
        while core.stats()["num_running"] > DECODING:
            advance(core, memory)
    yield quantiles(f"{line}: admit 8K", size, times)


def points() -> Iterator[Point]:
    """All of it, in about a minute."""
    yield from running()
    yield from waiting()
    yield from pools()
