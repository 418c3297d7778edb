"""The classes of the binding: frozen, final, by keyword, and right about their numbers."""

from __future__ import annotations

import threading

import pytest
from tests.core.shapes import flash_geometry, limits, memory_of, small_core

import dsv4
from dsv4 import _core
from dsv4._core import Core, Geometry, PoolSizes, StepDone, plan_memory
from dsv4.errors import ConfigError

CLASSES = [name for name in dir(_core) if isinstance(getattr(_core, name), type)]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_final(name: str) -> None:
    with pytest.raises(TypeError):
        type("Heir", (getattr(_core, name),), {})


@pytest.mark.parametrize("name", CLASSES)
def test_classes_say_where_they_live_and_what_they_are(name: str) -> None:
    value = getattr(_core, name)
    assert value.__module__ == "dsv4._core"
    assert value.__doc__


def test_objects_are_frozen() -> None:
    sizes = PoolSizes(full_blocks=1, swa_blocks=2, state_slots=3)
    for owner, name in ((sizes, "full_blocks"), (limits(), "vocab_size"), (small_core(), "step_bytes")):
        with pytest.raises(AttributeError):
            setattr(owner, name, 5)
    with pytest.raises(AttributeError):
        sizes.unknown = 1  # type: ignore[attr-defined]


def test_pages_of_flash_have_the_published_sizes() -> None:
    geometry = flash_geometry()
    assert geometry.swa_page_bytes == 37_440
    assert geometry.c4_page_bytes == 37_440
    assert geometry.index_page_bytes == 64 * 68
    assert geometry.c128_page_bytes == 1_728
    num_c4, num_c128, num_layers = 3, 2, 7
    assert geometry.full_block_bytes == num_c4 * (37_440 + 64 * 68) + num_c128 * 1_728
    assert geometry.swa_block_bytes == num_layers * 37_440
    assert geometry.state_slot_bytes == num_c4 * (65_536 + 16_384) + num_c128 * 6_144
    assert geometry.bytes_per_token == pytest.approx(geometry.full_block_bytes / 256)


def test_limits_give_back_what_they_were_given() -> None:
    given = limits(max_model_len=512, max_num_requests=3, vocab_size=77, max_steps_in_flight=2)
    assert (given.max_model_len, given.max_num_requests, given.vocab_size) == (512, 3, 77)
    assert (given.max_num_tokens, given.max_queued_requests, given.max_queued_tokens) == (512, 32, 65_536)
    assert (given.max_steps_in_flight, given.aging_steps) == (2, 256)


def test_arguments_are_by_keyword() -> None:
    with pytest.raises(TypeError):
        PoolSizes(1, 2, 3)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "1", None])
def test_a_count_is_a_whole_number(value: object) -> None:
    with pytest.raises((TypeError, OverflowError, ConfigError)):
        PoolSizes(full_blocks=value, swa_blocks=2, state_slots=3)  # type: ignore[arg-type]


def test_a_geometry_that_cannot_be_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="7"):
        Geometry(
            ratios=[7],
            window=128,
            kv_data_bytes=576,
            kv_scale_bytes=8,
            kv_page_multiple=576,
            index_data_bytes=64,
            index_scale_bytes=4,
            c4_state_bytes=64,
            index_state_bytes=64,
            c128_state_bytes=64,
        )


def test_a_memory_plan_stays_inside_its_bytes() -> None:
    total = 256 * 2**20
    plan = plan_memory(flash_geometry(), limits(), total)
    assert 0 < plan.full_bytes + plan.swa_bytes + plan.state_bytes <= total
    assert plan.sizes.full_blocks > 0
    assert plan.max_request_tokens >= 1
    assert plan.capacity(512) >= 1
    Core(flash_geometry(), plan.sizes, limits())


def test_too_little_memory_is_a_config_error_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="1000"):
        plan_memory(flash_geometry(), limits(), 1000)


def test_step_done_takes_any_sequence_of_tokens() -> None:
    for tokens in ([1, 2], (1, 2), range(2)):
        StepDone(1, tokens)
    with pytest.raises(TypeError):
        StepDone(1, "12")  # type: ignore[arg-type]


def test_debug_builds_say_so() -> None:
    assert ("debug" in _core.build_info) != ("release" in _core.build_info)
    assert _core.__version__ == dsv4.__version__


def test_a_core_may_be_used_from_any_thread() -> None:
    core = small_core()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(core.submit([1, 2, 3], max_tokens=1)))
    thread.start()
    thread.join()
    plan = core.plan(memory_of(core))
    assert plan is not None
    assert plan.request_ids == found
