"""What the core costs through its binding: a step with 1, 64 and 512 decoding requests, and the start of a long prompt.

Run alone: python benches/core.py. The timed part of a step is what an engine does every time, with the model taken out:
plan into lent memory, make the event from a list of tokens, advance, read the outcome's lists. Of a start, it is submit
and the plan that admits: keys of 32 blocks, look-up, whatever has to be evicted, a first step of 256 tokens.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dsv4._core import Core, Geometry, Limits, PoolSizes, StepDone

PROMPT_TOKENS = 1000
STEPS = 2000
WARM_UP = 200


def flash_geometry() -> Geometry:
    """V4-Flash: 43 main layers and a draft layer, FP8 rows."""
    return Geometry(
        ratios=[0, 0, *[4, 128] * 20, 4, 0],
        window=128,
        kv_data_bytes=576,
        kv_scale_bytes=8,
        kv_page_multiple=576,
        index_data_bytes=64,
        index_scale_bytes=4,
        c4_state_bytes=8 * 2 * 2 * 512 * 4,
        index_state_bytes=8 * 2 * 2 * 128 * 4,
        c128_state_bytes=3 * 512 * 4,
    )


def core_of(num_requests: int) -> Core:
    """A core whose pools hold that many requests of an 8K context."""
    limits = Limits(
        max_model_len=8192,
        max_num_requests=num_requests,
        max_num_tokens=8192,
        max_queued_requests=num_requests,
        max_queued_tokens=8192 * num_requests,
        vocab_size=129_280,
    )
    sizes = PoolSizes(full_blocks=32 * num_requests, swa_blocks=3 * num_requests + 129, state_slots=num_requests)
    return Core(flash_geometry(), sizes, limits)


def lent(core: Core) -> np.ndarray:
    raw = np.zeros(core.step_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + core.step_bytes].view(np.int32)


def one_step(core: Core, memory: np.ndarray) -> tuple[int, int]:
    """Nanoseconds of one step and its number of samples."""
    tokens = [7] * 1024
    start = time.perf_counter_ns()
    plan = core.plan(memory)
    planned = time.perf_counter_ns()
    if plan is None:
        raise RuntimeError(core.stats())
    answer = tokens[: plan.num_samples]  # what the sampler hands over: a list that exists already
    resumed = time.perf_counter_ns()
    core.advance([StepDone(plan.step_id, answer)])
    core.take_trace()  # empty and cheap unless this core is recorded
    return planned - start + time.perf_counter_ns() - resumed, plan.num_samples


def decode_times_us(num_requests: int, *, recorded: bool = False) -> list[float]:
    """Microseconds of each step with that many requests decoding, and nothing else."""
    core = core_of(num_requests)
    if recorded:
        core.record()
    memory = lent(core)
    for _ in range(num_requests):
        core.submit(list(range(PROMPT_TOKENS)), max_tokens=STEPS + WARM_UP + 1000)
    while core.stats()["num_prefilling"] or core.stats()["num_waiting"]:
        one_step(core, memory)
    for _ in range(WARM_UP):
        one_step(core, memory)
    gc.disable()
    times = [one_step(core, memory) for _ in range(STEPS)]
    gc.enable()
    if any(samples != num_requests for _, samples in times):
        raise RuntimeError("some steps left requests out")
    return [ns / 1000 for ns, _ in times]


def admission_us(full_blocks: int, *, is_full: bool) -> float:
    """Microseconds of submit and plan of 8,192 unseen tokens, in a pool that is empty or full of prefixes."""
    checkpoints = full_blocks // 32 if is_full else 8
    limits = Limits(
        max_model_len=8448,
        max_num_requests=2,
        max_num_tokens=256,
        max_queued_requests=4,
        max_queued_tokens=65_536,
        vocab_size=129_280,
        prefix_cache=True,
    )
    sizes = PoolSizes(full_blocks=full_blocks, swa_blocks=200 + 2 * checkpoints, state_slots=2 + checkpoints)
    core = Core(flash_geometry(), sizes, limits)
    memory = lent(core)
    rng = np.random.default_rng(full_blocks)
    times = []
    num_before = full_blocks // 32 + 20 if is_full else 20
    for _ in range(num_before + 100):
        prompt = rng.integers(0, 129_280, 8192, dtype=np.int32)
        start = time.perf_counter_ns()
        core.submit(prompt, max_tokens=1)
        plan = core.plan(memory)
        times.append((time.perf_counter_ns() - start) / 1000)
        while plan is not None:
            core.advance([StepDone(plan.step_id, [7] * plan.num_samples)])
            plan = core.plan(memory)
    if is_full and not core.stats()["num_evicted_blocks"]:
        raise RuntimeError(f"nothing was evicted: {core.stats()}")
    return statistics.median(times[num_before:])


def submit_us(kind: Callable[[list[int]], Any]) -> float:
    """Microseconds of submit alone, of 8,000 ids in a sequence of some kind."""
    core = core_of(4)
    rng = np.random.default_rng(1)
    times = []
    for _ in range(300):
        prompt = kind(rng.integers(0, 129_280, 8000).tolist())
        start = time.perf_counter_ns()
        request = core.submit(prompt, max_tokens=1)
        times.append((time.perf_counter_ns() - start) / 1000)
        core.abort(request)
    return statistics.median(times)


def measure() -> list[tuple[str, str]]:
    """Rows of (name, value)."""
    rows = []
    for num_requests in (1, 64, 512):
        times = sorted(decode_times_us(num_requests))
        p99 = times[len(times) * 99 // 100]
        value = f"{statistics.median(times):.1f} us median, {p99:.1f} us p99"
        rows.append((f"core: plan + advance, {num_requests} decoding", value))
        again = statistics.median(decode_times_us(num_requests, recorded=True))
        ratio = f"{again:.1f} us median, {again / statistics.median(times):.2f} of it without"
        rows.append((f"core: the same, recorded, {num_requests} decoding", ratio))
    for full_blocks in (10_000, 100_000):
        empty, full = (admission_us(full_blocks, is_full=is_full) for is_full in (False, True))
        rows.append(
            (f"core: admit 8K, {full_blocks:,} blocks", f"{empty:.1f} us empty, {full:.1f} us full of prefixes")
        )
    kinds: dict[str, Callable[[list[int]], Any]] = {
        "list": list,
        "tuple": tuple,
        "int32 array": partial(np.array, dtype=np.int32),
    }
    times_of = ", ".join(f"{submit_us(kind):.1f} us {name}" for name, kind in kinds.items())
    rows.append(("core: submit 8,000 ids", times_of))
    return rows


if __name__ == "__main__":
    for name, value in measure():
        print(f"{name:<44} {value}")
