"""What the tests of the binding share: a small core, memory to lend, and a loop that runs it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv4._core import Core, Field, Geometry, Limits, Outcome, Plan, PoolSizes, StepDone

Int32s = NDArray[np.int32]
ALIGN_BYTES = 64


def flash_geometry(*, draft_tokens: int = 0) -> Geometry:
    """The row sizes of V4-Flash in its packed formats, over a few layers."""
    return Geometry(
        ratios=[0, 0, 4, 128, 4, 128, 4],
        window=128,
        kv_data_bytes=576,
        kv_scale_bytes=8,
        kv_page_multiple=576,
        index_data_bytes=64,
        index_scale_bytes=4,
        c4_state_bytes=8 * 2 * 2 * 512 * 4,
        index_state_bytes=8 * 2 * 2 * 128 * 4,
        c128_state_bytes=3 * 512 * 4,
        draft_tokens=draft_tokens,
        hc_mult=4,
        hidden_size=4096,
    )


def limits(
    *,
    max_model_len: int = 2048,
    max_num_requests: int = 8,
    max_num_tokens: int = 512,
    max_queued_requests: int = 32,
    max_queued_tokens: int = 65_536,
    vocab_size: int = 1000,
    max_steps_in_flight: int = 1,
    max_draft_tokens: int = 0,
) -> Limits:
    return Limits(
        max_model_len=max_model_len,
        max_num_requests=max_num_requests,
        max_num_tokens=max_num_tokens,
        max_queued_requests=max_queued_requests,
        max_queued_tokens=max_queued_tokens,
        vocab_size=vocab_size,
        max_steps_in_flight=max_steps_in_flight,
        max_draft_tokens=max_draft_tokens,
    )


def small_core(
    bounds: Limits | None = None, sizes: PoolSizes | None = None, *, geometry: Geometry | None = None
) -> Core:
    sizes = sizes or PoolSizes(full_blocks=64, swa_blocks=128, state_slots=8)
    return Core(geometry or flash_geometry(), sizes, bounds or limits())


def aligned(num_bytes: int, *, offset_bytes: int = 0) -> Int32s:
    """Zeroed int32 memory that starts `offset_bytes` past a multiple of 64 bytes."""
    raw = np.zeros(num_bytes + 2 * ALIGN_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES + offset_bytes
    return raw[start : start + num_bytes].view(np.int32)


def memory_of(core: Core) -> Int32s:
    return aligned(core.step_bytes)


def read(memory: Int32s, field: Field) -> Int32s:
    """The array of one field, at its full capacity."""
    count = int(np.prod(field.shape))
    start = field.offset // 4
    return memory[start : start + count].reshape(field.shape)


def fields_of(core: Core) -> dict[str, Field]:
    return {field.name: field for field in core.step_fields}


def answer(plan: Plan, token: int = 7) -> StepDone:
    """The event of a step whose every sample came out as `token`."""
    return StepDone(plan.step_id, [token] * plan.num_samples)


def run_step(core: Core, memory: Int32s, token: int = 7) -> Outcome | None:
    """One step; None when there was nothing to do."""
    plan = core.plan(memory)
    return None if plan is None else core.advance([answer(plan, token)])


def run_until_idle(core: Core, memory: Int32s, most_steps: int = 10_000) -> list[Outcome]:
    """Steps until the core has nothing to plan."""
    outcomes: list[Outcome] = []
    for _ in range(most_steps):
        outcome = run_step(core, memory)
        if outcome is None:
            return outcomes
        outcomes.append(outcome)
    raise AssertionError(f"still busy after {most_steps} steps: {core.stats()}")
