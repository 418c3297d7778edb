"""Our core through its binding, with the prefix cache on: `python -m benches.peers` runs it."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns as now

import numpy as np
from benches.core import flash_geometry, lent
from benches.peers import load, wire
from benches.peers.drivers import Samples
from benches.peers.load import Round

from dsv4._core import Core, Limits, Plan, PoolSizes, StepDone, build_info

STEP_SIZES = (*load.STEP_SIZES, 2048, 8192)  # the last two are ours alone
NARROW = 256  # tokens a step: a long prompt starts with one block of work
NUMBERS = itertools.count()  # no two prompts are alike


def core_of(num_requests: int, num_tokens: int, *, full_blocks: int, checkpoints: int = 0) -> Core:
    """A core with the prefix cache on; window blocks and slots for what runs and for so many checkpoints."""
    limits = Limits(
        max_model_len=load.MAX_MODEL_LEN,
        max_num_requests=num_requests,
        max_num_tokens=num_tokens,
        max_queued_requests=max(64, num_requests),
        max_queued_tokens=load.LONG * max(64, num_requests),
        vocab_size=load.VOCAB,
        prefix_cache=True,
        checkpoint_tokens=load.LONG,
    )
    transient = num_tokens // 64 + 4
    sizes = PoolSizes(
        full_blocks=full_blocks,
        swa_blocks=3 * num_requests + transient + 2 * checkpoints,
        state_slots=num_requests + checkpoints,
    )
    return Core(flash_geometry(), sizes, limits)


def prompt(length: int) -> np.ndarray:
    """Tokens that nobody had before."""
    return np.array(load.tokens(next(NUMBERS), length), np.int32)


def settle(core: Core, memory: np.ndarray) -> Plan | None:
    """One step that nobody times."""
    plan = core.plan(memory)
    core.advance([] if plan is None else [StepDone(plan.step_id, [7] * plan.num_samples)])
    return plan


def steps(num_requests: int, *, reads: bool) -> Round:
    """plan, StepDone and advance with so many requests decoding; `reads`: and the lists that an engine reads."""
    core = core_of(num_requests, max(load.CHUNK, num_requests), full_blocks=40 * num_requests)
    memory = lent(core)
    for _ in range(num_requests):
        core.submit(prompt(load.CONTEXT), max_tokens=8000)
    while core.stats()["num_prefilling"] or core.stats()["num_waiting"]:
        settle(core, memory)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.STEPS_A_ROUND[num_requests]):
            answer = [7] * num_requests  # what the sampler hands over
            start = now()
            plan = core.plan(memory)
            assert plan is not None
            if reads:
                _ = plan.request_ids, plan.sample_request_ids, plan.sample_positions, plan.started_request_ids
            outcome = core.advance([StepDone(plan.step_id, answer)])
            if reads:
                _ = outcome.request_ids, outcome.tokens, outcome.finished
            times.append(now() - start)
            assert plan.num_samples == num_requests
        return times

    return round_of


def admit(num_tokens: int, *, as_list: bool = False) -> Round:
    """submit and plan of a prompt nobody knows: keys of its 32 blocks, look-up, reservation, the step's arrays."""
    core = core_of(64, num_tokens, full_blocks=4000)
    memory = lent(core)

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            asked = prompt(load.LONG)
            given = asked.tolist() if as_list else asked
            start = now()
            number = core.submit(given, max_tokens=64)
            plan = core.plan(memory)
            times.append(now() - start)
            assert plan is not None
            assert plan.num_tokens == min(load.FIRST_CHUNK, num_tokens)
            core.advance([StepDone(plan.step_id, [7] * plan.num_samples)])
            core.abort(number)
        return times

    return round_of


def cached() -> tuple[Core, np.ndarray, np.ndarray]:
    """A core that has 8K of a prompt in its cache, its memory, and that prompt with a few tokens more."""
    core = core_of(64, NARROW, full_blocks=4000, checkpoints=64)
    memory = lent(core)
    asked = prompt(load.LONG + 40)
    core.submit(asked, max_tokens=1)
    while settle(core, memory) is not None:
        pass
    return core, memory, asked


def match(*, is_known: bool) -> Round:
    """The look-up alone. `explain` of a waiting request does it: key, find and compare 32 blocks, ask for room.

    The second `explain` finds the keys made; what it costs besides (a sentence of text) both have in common.
    """
    core, memory, asked = cached()

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            number = core.submit(asked, max_tokens=1)
            if is_known:
                core.explain(number)
            start = now()
            core.explain(number)
            times.append(now() - start)
            plan = settle(core, memory)
            assert plan is not None
            assert plan.started_cached_tokens == [load.LONG]
        return times

    return round_of


def started() -> Round:
    """plan of a request whose 8K are found: everything between the queue and a step in flight."""
    core, memory, asked = cached()

    def round_of() -> list[int]:
        times = []
        for _ in range(load.OPERATIONS_A_ROUND):
            core.submit(asked, max_tokens=1)
            start = now()
            plan = core.plan(memory)
            times.append(now() - start)
            assert plan is not None
            assert plan.started_cached_tokens == [load.LONG]
            core.advance([StepDone(plan.step_id, [7])])
        return times

    return round_of


def turnover() -> Round:
    """submit to the last event of a request of 8K and one token; what it takes is evicted from the cache first."""
    core = core_of(1, load.CHUNK, full_blocks=320, checkpoints=8)
    memory = lent(core)

    def serve_one() -> int:
        asked = prompt(load.LONG)
        start = now()
        core.submit(asked, max_tokens=1)
        while (plan := core.plan(memory)) is not None:
            core.advance([StepDone(plan.step_id, [7] * plan.num_samples)])
        return now() - start

    for _ in range(20):
        serve_one()
    assert core.stats()["num_evicted_blocks"] > 0
    return lambda: [serve_one() for _ in range(load.OPERATIONS_A_ROUND)]


MEASUREMENTS: dict[str, Callable[[], Round]] = {
    **{load.step(size): partial(steps, size, reads=False) for size in STEP_SIZES},
    **{load.step_listed(size): partial(steps, size, reads=True) for size in (512,)},
    load.ADMIT: partial(admit, NARROW),
    load.FILLED: partial(admit, load.CHUNK),
    load.LISTED: partial(admit, NARROW, as_list=True),
    load.MATCH: partial(match, is_known=False),
    load.LOOKUP: partial(match, is_known=True),
    load.STARTED: started,
    load.TURNOVER: turnover,
}


def measure(num_rounds: int = 7) -> list[tuple[str, str]]:
    """Rows of (name, value) about a long prompt, for `make bench`."""
    rows = []
    for name in (load.ADMIT, load.FILLED, load.MATCH, load.STARTED):
        samples = Samples()
        one_round = MEASUREMENTS[name]()
        one_round()
        for _ in range(num_rounds):
            samples.add("dsv4", one_round())
        rows.append((name, f"{samples.median_us('dsv4'):.1f} us median, {samples.p99_us('dsv4'):.1f} us p99"))
    return rows


if __name__ == "__main__":
    wire.serve({"engine": "dsv4", "version": build_info, "python": platform.python_version()}, MEASUREMENTS)
