"""The lent buffer: what the core wrote is what the model reads, in place, at the length of the step."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from dsv4._core import Core, Geometry, Limits, PoolSizes, StepDone
from dsv4.errors import Violation
from dsv4.model.inputs import StepInputs
from dsv4.runtime.batch import StepBuffer, views
from dsv4.runtime.step import aligned_memory


def core(*, max_steps_in_flight: int = 1) -> Core:
    geometry = Geometry(
        ratios=[0, 4, 128],
        window=128,
        kv_data_bytes=576,
        kv_scale_bytes=8,
        kv_page_multiple=576,
        index_data_bytes=64,
        index_scale_bytes=4,
        c4_state_bytes=65536,
        index_state_bytes=16384,
        c128_state_bytes=6144,
    )
    limits = Limits(
        max_model_len=2048,
        max_num_requests=8,
        max_num_tokens=256,
        max_queued_requests=16,
        max_queued_tokens=65_536,
        vocab_size=1000,
        max_steps_in_flight=max_steps_in_flight,
    )
    return Core(geometry, PoolSizes(full_blocks=64, swa_blocks=64, state_slots=8), limits)


@pytest.mark.parametrize("num_bytes", [4, 64, 4096, 100_004])
def test_memory_is_aligned_and_zero(num_bytes: int) -> None:
    memory = aligned_memory(num_bytes)
    assert memory.nbytes == num_bytes
    assert memory.ctypes.data % 64 == 0
    assert not memory.any()


def test_every_array_of_a_step_has_the_length_of_the_step() -> None:
    filled = core()
    buffer = StepBuffer(filled)
    prompts = [list(range(1, 1 + length)) for length in (3, 130, 40)]
    for prompt in prompts:
        filled.submit(prompt, max_tokens=5)
    plan = filled.plan(buffer.memory)
    assert plan is not None
    inputs = buffer.inputs(plan)
    assert inputs.token_ids.tolist() == [token for prompt in prompts for token in prompt]
    assert inputs.positions.tolist() == [position for prompt in prompts for position in range(len(prompt))]
    assert inputs.query_starts.tolist() == [0, 3, 133, 173]
    assert inputs.seq_lens.tolist() == [3, 130, 40]
    assert inputs.sample_tokens.tolist() == [2, 132, 172]
    assert len(inputs.c4_tokens) == len(inputs.c4_slots) == plan.num_c4 == 0 + 32 + 10
    assert len(inputs.c128_tokens) == plan.num_c128 == 1
    assert inputs.block_table_full.shape[0] == inputs.block_table_swa.shape[0] == 3
    for item in fields(StepInputs):
        array: torch.Tensor = getattr(inputs, item.name)
        assert array.dtype is torch.int32
        assert array.is_contiguous()


def test_the_arrays_are_the_lent_memory_itself() -> None:
    filled = core()
    buffer = StepBuffer(filled)
    filled.submit([7, 8, 9], max_tokens=2)
    first = filled.plan(buffer.memory)
    assert first is not None
    inputs = buffer.inputs(first)
    filled.advance([StepDone(first.step_id, [42])])
    second = filled.plan(buffer.memory)
    assert second is not None
    assert buffer.inputs(second).token_ids.tolist() == [42]
    assert inputs.token_ids[0] == 42  # no copy was made: the view of the step before sees the new one
    start = np.frombuffer(buffer.memory, dtype=np.int32).ctypes.data
    assert start <= inputs.token_ids.data_ptr() < start + filled.step_bytes


def test_a_layout_that_lacks_an_array_is_a_violation() -> None:
    filled = core()
    lacking = [field for field in filled.step_fields if field.name != "c4_slots"]
    with pytest.raises(Violation, match="'c4_slots'"):
        views(aligned_memory(filled.step_bytes), lacking)
