"""Lent memory: what does not fit is refused by name, and a refusal leaves the core as it was."""

from __future__ import annotations

import array
import re

import numpy as np
import pytest
from tests.core.shapes import Int32s, aligned, fields_of, limits, memory_of, read, run_until_idle, small_core

from dsv4._core import Core


@pytest.fixture
def core() -> Core:
    core = small_core()
    core.submit(list(range(300)), max_tokens=4)
    return core


def refuses(core: Core, memory: object, complaint: str) -> None:
    before = core.stats()
    with pytest.raises(BufferError, match=complaint):
        core.plan(memory)  # type: ignore[arg-type]
    assert core.stats() == before
    core.audit()


def test_one_byte_too_few_is_refused_with_the_numbers(core: Core) -> None:
    need = core.step_bytes
    refuses(core, aligned(need - 4), rf"has {need - 4} bytes; a step needs {need}")
    refuses(core, aligned(0), "has 0 bytes")
    assert core.plan(aligned(need)) is not None


def test_more_than_enough_is_fine_and_the_rest_is_left_alone(core: Core) -> None:
    memory = aligned(core.step_bytes + 4096)
    memory[:] = -77
    assert core.plan(memory) is not None
    assert (memory[core.step_bytes // 4 :] == -77).all()


@pytest.mark.parametrize("offset_bytes", [4, 8, 32, 60])
def test_misaligned_memory_is_refused(core: Core, offset_bytes: int) -> None:
    refuses(core, aligned(core.step_bytes, offset_bytes=offset_bytes), f"starts {offset_bytes} bytes past")


def test_read_only_memory_is_refused(core: Core) -> None:
    memory = memory_of(core)
    memory.flags.writeable = False
    refuses(core, memory, "read-only")


def test_strided_memory_is_refused(core: Core) -> None:
    refuses(core, aligned(2 * core.step_bytes)[::2], "not contiguous")


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int64", "float32", ">i4"])
def test_other_item_types_are_refused(core: Core, dtype: str) -> None:
    refuses(core, memory_of(core).view(np.dtype(dtype)), "lend int32")


@pytest.mark.parametrize("thing", [None, 7, "memory", [0, 0]])
def test_what_is_no_buffer_at_all_is_a_type_error(core: Core, thing: object) -> None:
    before = core.stats()
    with pytest.raises(TypeError):
        core.plan(thing)  # type: ignore[arg-type]
    assert core.stats() == before


def test_a_refused_plan_is_made_afterwards_as_if_nothing_had_happened(core: Core) -> None:
    untouched, tried = small_core(), core
    untouched.submit(list(range(300)), max_tokens=4)
    with pytest.raises(BufferError):
        tried.plan(aligned(64))
    memories: list[Int32s] = []
    for each in (untouched, tried):
        memory = memory_of(each)
        plan = each.plan(memory)
        assert plan is not None
        memories.append(memory)
    assert (memories[0] == memories[1]).all()


def test_the_memory_is_lent_for_the_call_only(core: Core) -> None:
    """A resizable buffer can be resized again after plan: no export stays behind."""
    store = array.array("i", bytes(core.step_bytes + 64))
    address, _ = store.buffer_info()
    start = -address % 64 // 4
    with memoryview(store) as whole, whole[start : start + core.step_bytes // 4] as part:
        assert core.plan(part) is not None
    store.append(1)


def test_the_tokens_of_the_prompt_are_in_the_memory(core: Core) -> None:
    memory = memory_of(core)
    plan = core.plan(memory)
    assert plan is not None
    ids = read(memory, fields_of(core)["token_ids"])
    assert ids[: plan.num_tokens].tolist() == list(range(300))[: plan.num_tokens]


def test_every_field_is_aligned_and_inside_and_apart_from_the_others(core: Core) -> None:
    end = 0
    for field in sorted(core.step_fields, key=lambda field: field.offset):
        assert field.offset % 64 == 0
        assert field.offset >= end, f"{field.name} overlaps the field before it"
        end = field.offset + 4 * int(np.prod(field.shape))
    assert end <= core.step_bytes


def test_the_layout_hash_is_of_the_layout() -> None:
    assert small_core().layout_hash == small_core().layout_hash
    assert re.fullmatch(r"[0-9a-f]{16,}", small_core().layout_hash)
    assert small_core().layout_hash != small_core(limits(max_num_tokens=513)).layout_hash


def test_one_memory_serves_many_steps(core: Core) -> None:
    assert run_until_idle(core, memory_of(core))
    core.audit()
