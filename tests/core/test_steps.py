"""Plans, events and outcomes through the binding; the rules themselves are tested in Rust (rust/core/tests)."""

from __future__ import annotations

import gc
import json
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.core.shapes import (
    answer,
    fields_of,
    flash_geometry,
    limits,
    memory_of,
    read,
    run_step,
    run_until_idle,
    small_core,
)

from dsv4._core import Core, PoolSizes, StepDone, Stopped, Tick
from dsv4.errors import ConfigError, EngineClosed, InvalidRequest, Misuse, QueueFull


def ends(outcomes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(request_id, code) for request_id, code in outcomes if code]


def test_a_request_from_prompt_to_end() -> None:
    core = small_core()
    memory = memory_of(core)
    request_id = core.submit([1, 2, 3], max_tokens=2)
    plan = core.plan(memory)
    assert plan is not None
    assert (plan.num_tokens, plan.num_requests, plan.num_samples, plan.num_prefill_tokens) == (3, 1, 1, 3)
    assert (plan.request_ids, plan.sample_request_ids, plan.sample_positions) == ([request_id], [request_id], [0])
    outcome = core.advance([answer(plan, 9)])
    assert (outcome.request_ids, outcome.tokens, outcome.finished) == ([request_id], [9], [0])
    plan = core.plan(memory)
    assert plan is not None
    assert (plan.num_prefill_tokens, plan.sample_positions, plan.max_seq_len) == (0, [1], 4)
    outcome = core.advance([answer(plan, 8)])
    assert (outcome.tokens, outcome.finished) == ([8], [2])
    assert core.plan(memory) is None


def test_the_fields_are_those_of_step_inputs_copies_of_state_and_tokens_between_steps() -> None:
    names = [field.name for field in small_core().step_fields]
    assert names == [
        "token_ids",
        "positions",
        "token_rows",
        "query_starts",
        "seq_lens",
        "block_table_full",
        "block_table_swa",
        "swa_first_block",
        "swa_slots",
        "state_slots",
        "state_resets",
        "c4_tokens",
        "c4_slots",
        "c128_tokens",
        "c128_slots",
        "sample_tokens",
        "restore_sources",
        "restore_targets",
        "save_sources",
        "save_targets",
        "token_sources",
        "sample_starts",
        "draft_widths",
        "next_tokens",
        "state_banks",
        "bank_writes",
    ]


def test_the_arrays_of_a_mixed_step() -> None:
    core = small_core(limits(max_num_tokens=200))
    memory, fields = memory_of(core), fields_of(core)
    core.submit(list(range(127)), max_tokens=8)
    assert run_step(core, memory) is not None
    core.submit(list(range(500, 700)), max_tokens=8)
    plan = core.plan(memory)
    assert plan is not None
    array = {name: read(memory, field) for name, field in fields.items()}
    assert (plan.num_tokens, plan.num_c4, plan.num_c128) == (197, 50, 2)
    assert array["query_starts"][:3].tolist() == [0, 1, 197]
    assert array["seq_lens"][:2].tolist() == [128, 196]
    assert array["token_ids"][:3].tolist() == [7, 500, 501]
    assert array["positions"][:3].tolist() == [127, 0, 1]
    assert array["token_rows"][:3].tolist() == [0, 1, 1]
    assert array["state_resets"][:2].tolist() == [0, 1]
    assert array["sample_tokens"][: plan.num_samples].tolist() == [0]
    # Token 0 is position 127 of the first request: it closes its 32nd group of 4 and its first of 128.
    first_block = int(array["block_table_full"][0, 0])
    assert array["c4_tokens"][:3].tolist() == [0, 4, 8]
    assert array["c4_slots"][0] == first_block * 64 + 31
    assert array["c128_tokens"][:2].tolist() == [0, 128]
    assert array["c128_slots"][0] == first_block * 2
    swa_block = int(array["block_table_swa"][0, 1])
    assert array["swa_slots"][0] == swa_block * 64 + 63


@pytest.mark.parametrize("as_type", [list, tuple, lambda ids: np.array(ids, np.int32), lambda ids: range(len(ids))])
def test_a_prompt_is_any_sequence_or_buffer_of_int32(as_type: type[list[int]]) -> None:
    core = small_core()
    memory = memory_of(core)
    core.submit(as_type([0, 1, 2, 3]), max_tokens=1)
    assert core.plan(memory) is not None
    assert read(memory, fields_of(core)["token_ids"])[:4].tolist() == [0, 1, 2, 3]


class Id(int):
    """An int that is more than one."""


class Shrinks:
    """A number that empties the list that it is in when somebody asks for its value."""

    def __index__(self) -> int:
        SHRINKING.clear()
        return 1


SHRINKING: list[Any] = []


@pytest.mark.parametrize("as_type", [list, tuple])
@pytest.mark.parametrize("odd", [Id(7), np.int32(7), np.int64(7), True])
def test_ids_of_other_types_are_read_as_well(as_type: Callable[[list[int]], Any], odd: int) -> None:
    for place in range(3):
        core = small_core()
        memory = memory_of(core)
        ids = [1, 2, 3]
        ids[place] = odd
        core.submit(as_type(ids), max_tokens=1)
        assert core.plan(memory) is not None
        assert read(memory, fields_of(core)["token_ids"])[:3].tolist() == [int(number) for number in ids]


@pytest.mark.parametrize("as_type", [list, tuple])
@pytest.mark.parametrize("odd", [1.0, "1", None, b"1", [1]])
def test_what_is_no_integer_is_a_type_error(as_type: Callable[[list[Any]], Any], odd: object) -> None:
    core = small_core()
    with pytest.raises(TypeError):
        core.submit(as_type([1, odd]), max_tokens=1)


def test_a_list_that_changes_while_it_is_read_harms_nobody() -> None:
    core = small_core()
    for place in range(4):
        SHRINKING[:] = [5] * 4
        SHRINKING[place] = Shrinks()
        request = core.submit(SHRINKING, max_tokens=1)
        assert SHRINKING == [], "it was asked"
        assert core.abort(request)
    core.audit()


@pytest.mark.parametrize("token", [-1, 1000, 2**31, 2**63, -(2**63), 10**30])
def test_no_prompt_token_is_too_strange_to_be_refused(token: int) -> None:
    core = small_core()
    with pytest.raises(InvalidRequest, match=f"token {token}") as caught:
        core.submit([1, token], max_tokens=1)
    assert caught.value.param == "prompt"


def test_a_refused_request_changes_nothing() -> None:
    core = small_core(limits(max_queued_requests=2))
    core.submit([1], max_tokens=1)
    core.submit([1], max_tokens=1)
    before = core.stats()
    with pytest.raises(QueueFull, match="2 requests wait"):
        core.submit([1], max_tokens=1)
    with pytest.raises(InvalidRequest, match="2049") as caught:
        core.submit([1] * 2049, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    for wrong in ("text", b"bytes", 7, None, [1.5], ["1"], np.zeros((2, 2), np.int32), np.zeros(3, np.int64)):
        with pytest.raises((TypeError, BufferError)):
            core.submit(wrong, max_tokens=1)  # type: ignore[arg-type]
    assert core.stats() == before


def test_events_that_do_not_fit_are_misuse_and_change_nothing() -> None:
    core = small_core()
    memory = memory_of(core)
    core.submit([1, 2, 3], max_tokens=4)
    plan = core.plan(memory)
    assert plan is not None
    step = plan.step_id
    before = core.stats()
    for event, complaint in (
        (StepDone(step + 1, [7]), "not the oldest in flight"),
        (StepDone(step, []), "1 samples, but 0 tokens"),
        (StepDone(step, [7, 7]), "1 samples, but 2 tokens"),
        (StepDone(step, [1000]), "outside the vocabulary of 1000"),
        (StepDone(step, [7], [1]), "no sample 1"),
        (Stopped(99), "never submitted"),
    ):
        with pytest.raises(Misuse, match=complaint):
            core.advance([Tick(1), event])
        assert core.stats() == before
    with pytest.raises(Misuse, match="at most 1 steps"):
        core.plan(memory)
    with pytest.raises(TypeError, match="str is no event"):
        core.advance(["done"])  # type: ignore[list-item]
    assert core.stats() == before
    assert core.advance([StepDone(step, np.array([7], np.int32))]).tokens == [7]


def test_non_finite_samples_and_stops_end_their_request_alone() -> None:
    core = small_core()
    memory = memory_of(core)
    ids = [core.submit([1, 2, 3], max_tokens=9) for _ in range(3)]
    plan = core.plan(memory)
    assert plan is not None
    outcome = core.advance([StepDone(plan.step_id, [5, -1, 6], [1]), Stopped(ids[2])])
    assert outcome.request_ids == [*ids, ids[2]]
    assert outcome.tokens == [5, -1, 6, -1]
    assert outcome.finished == [0, 4, 0, 3]
    plan = core.plan(memory)
    assert plan is not None
    assert plan.request_ids == [ids[0]]


def test_an_abort_is_idempotent_and_an_unknown_id_is_false() -> None:
    core = small_core()
    request_id = core.submit([1], max_tokens=1)
    assert core.abort(request_id)
    assert not core.abort(request_id)
    for unknown in (0, -1, 99, 2**64, 10**30):
        assert not core.abort(unknown)
    assert core.plan(memory_of(core)) is None


def test_after_shutdown_the_engine_is_closed() -> None:
    core = small_core()
    memory = memory_of(core)
    core.submit([1, 2], max_tokens=3)
    plan = core.plan(memory)
    assert plan is not None
    core.shutdown()
    core.shutdown()
    for call in (
        lambda: core.submit([1], max_tokens=1),
        lambda: core.plan(memory),
        lambda: core.advance([answer(plan)]),
        lambda: core.advance([]),
    ):
        with pytest.raises(EngineClosed, match="shut down"):
            call()
    assert not core.abort(1)
    core.audit()
    assert core.stats()["num_running"] == 0


def test_a_step_that_failed_is_reported_done_after_its_requests_are_aborted() -> None:
    core = small_core()
    memory = memory_of(core)
    core.submit([1] * 300, max_tokens=9)
    plan = core.plan(memory)
    assert plan is not None
    for request_id in plan.request_ids:
        core.abort(request_id)
    outcome = core.advance([StepDone(plan.step_id, [0] * plan.num_samples)])
    assert outcome.request_ids == []
    core.audit()
    assert core.stats()["full_free"] == core.stats()["full_capacity"]


def test_two_steps_in_flight() -> None:
    core = small_core(limits(max_steps_in_flight=2, max_num_tokens=256))
    memories = [memory_of(core), memory_of(core)]
    core.submit([1] * 500, max_tokens=2)
    first, second = core.plan(memories[0]), core.plan(memories[1])
    assert first is not None
    assert second is not None
    assert (first.max_seq_len, second.max_seq_len) == (256, 500)
    with pytest.raises(Misuse, match="at most 2 steps"):
        core.plan(memories[0])
    outcome = core.advance([answer(first), answer(second)])
    assert outcome.tokens == [7]


def test_a_token_that_is_being_sampled_is_planned_by_its_place() -> None:
    core = small_core(limits(max_steps_in_flight=2))
    memories = [memory_of(core), memory_of(core)]
    requests = [core.submit([1, 2], max_tokens=9), core.submit([1, 2, 3], max_tokens=9)]
    first, second = core.plan(memories[0]), core.plan(memories[1])
    assert first is not None
    assert second is not None
    assert (first.num_forwarded, second.num_forwarded) == (0, 2)
    assert second.request_ids == requests
    assert second.sample_positions == [1, 1]
    sources = read(memories[1], fields_of(core)["token_sources"])
    assert sources[: second.num_tokens].tolist() == [0, 1]
    assert core.advance([answer(first, 5)]).tokens == [5, 5]
    assert core.advance([answer(second, 6)]).tokens == [6, 6]


def drafting_core(width: int) -> Core:
    return small_core(limits(max_draft_tokens=width), geometry=flash_geometry(draft_tokens=5))


def test_drafts_are_verified_and_what_is_right_counts() -> None:
    core = drafting_core(3)
    memory = memory_of(core)
    request_id = core.submit([1, 2], max_tokens=9)
    plan = core.plan(memory)
    assert plan is not None
    core.advance([StepDone(plan.step_id, [7], drafts=[8, 9, -1])])
    plan = core.plan(memory)
    assert plan is not None
    assert (plan.num_tokens, plan.num_samples, plan.num_draft_tokens) == (3, 3, 2)
    assert (plan.sample_counts, plan.sample_request_ids) == ([3], [request_id] * 3)
    assert plan.sample_positions == [1, 2, 3]
    fields = fields_of(core)
    assert read(memory, fields["token_ids"])[:3].tolist() == [7, 8, 9]
    assert read(memory, fields["bank_writes"])[:3].tolist() == [0, 1, 2]
    with pytest.raises(Misuse, match="accepts draft 9 in step 2 with token 5"):
        core.advance([StepDone(plan.step_id, [8, 5, 6], accepted=[2])])
    outcome = core.advance([StepDone(plan.step_id, [8, 5, 6], accepted=[1], drafts=np.array([1, 2, 3], np.int32))])
    assert (outcome.request_ids, outcome.tokens) == ([request_id] * 2, [8, 5])
    plan = core.plan(memory)
    assert plan is not None
    assert read(memory, fields["positions"])[:4].tolist() == [4, 5, 6, 7]
    assert read(memory, fields["state_banks"])[0] == 1
    core.advance([answer(plan)])
    core.audit()


def test_a_seed_is_hc_mult_times_hidden_values_and_never_hidden() -> None:
    assert drafting_core(1).seed_shape == (8, 4 * 4096)
    assert small_core().seed_shape[0] == 0
    assert drafting_core(1).layout_hash != drafting_core(2).layout_hash


def test_a_slot_with_drafts_has_rings_and_banks_for_them() -> None:
    geometry = flash_geometry(draft_tokens=5)
    assert (geometry.c4_ring, geometry.c128_banks) == (16, 6)
    assert (flash_geometry().c4_ring, flash_geometry().c128_banks) == (8, 1)
    assert geometry.state_slot_bytes == 3 * 2 * (65_536 + 16_384) + 2 * 6 * 6_144
    with pytest.raises(ConfigError, match="max_draft_tokens is 6, and a state slot of this geometry has room for 5"):
        small_core(limits(max_draft_tokens=6), geometry=geometry)


def test_every_block_comes_back_and_stats_are_numbers() -> None:
    core = small_core()
    for length in (1, 63, 64, 65, 255, 256, 257, 700):
        core.submit([1] * length, max_tokens=20)
    run_until_idle(core, memory_of(core))
    core.audit()
    stats = core.stats()
    json.dumps(stats)
    for group in ("full", "swa", "state"):
        assert stats[f"{group}_free"] == stats[f"{group}_capacity"]
        states = ("free", "open", "sealed", "retired", "quarantined")
        assert sum(stats[f"{group}_{state}"] for state in states) == stats[f"{group}_capacity"]
    assert stats["num_violations"] == stats["num_stalls"] == 0


def test_explain_is_a_sentence() -> None:
    core = small_core()
    request_id = core.submit([1, 2], max_tokens=3)
    assert "waits behind 0 others" in core.explain(request_id)
    run_step(core, memory_of(core))
    assert "decoding: 1 of at most 3" in core.explain(request_id)
    assert "never submitted" in core.explain(99)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        (PoolSizes(full_blocks=0, swa_blocks=9, state_slots=1), "full_blocks is 0"),
        (PoolSizes(full_blocks=1, swa_blocks=2, state_slots=1), "swa_blocks is 2; one request needs 3"),
        (PoolSizes(full_blocks=1, swa_blocks=3, state_slots=0), "state_slots is 0"),
        (PoolSizes(full_blocks=2**63, swa_blocks=3, state_slots=1), "at most"),
    ],
)
def test_pools_in_which_nothing_could_run_are_config_errors(sizes: PoolSizes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        small_core(sizes=sizes)


def test_limits_under_which_nothing_could_run_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="max_num_tokens is 7, less than max_num_requests, 8"):
        limits(max_num_tokens=7)
    with pytest.raises(ConfigError, match="max_steps_in_flight is 3; it must be from 1 to 2"):
        limits(max_steps_in_flight=3)
    with pytest.raises(ConfigError, match="max_queued_tokens is 2047"):
        limits(max_queued_tokens=2047)


def test_threads_that_submit_and_abort_while_one_plans_leave_the_books_balanced() -> None:
    core = small_core(limits(max_queued_requests=1000, max_queued_tokens=10**6))
    memory = memory_of(core)
    submitted: list[list[int]] = [[], [], []]

    def client(mine: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            mine.append(core.submit([1] * int(rng.integers(1, 300)), max_tokens=int(rng.integers(1, 20))))
            if rng.random() < 0.3:
                core.abort(int(rng.choice(mine)))
                core.explain(mine[-1])
                core.stats()

    clients = [threading.Thread(target=client, args=(mine, seed)) for seed, mine in enumerate(submitted)]
    for thread in clients:
        thread.start()
    while any(thread.is_alive() for thread in clients):
        run_step(core, memory)
    run_until_idle(core, memory)
    core.audit()
    ids = [request_id for mine in submitted for request_id in mine]
    assert sorted(ids) == list(range(1, 301))
    assert core.stats()["full_free"] == core.stats()["full_capacity"]


def test_a_hundred_thousand_steps_leave_no_memory_behind() -> None:
    core = small_core(limits(max_num_requests=2))
    memory = memory_of(core)

    def serve(num_requests: int) -> None:
        for _ in range(num_requests):
            core.submit([1, 2, 3], max_tokens=50)
            run_until_idle(core, memory)

    serve(20)
    gc.collect()
    tracemalloc.start()
    before = sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]
    serve(2000)
    gc.collect()
    after = sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after[0] - before[0] < 100
    assert after[1] - before[1] < 20_000
    assert core.stats()["num_running"] == 0


def test_a_core_goes_away_with_its_last_name() -> None:
    core: Core | None = small_core()
    assert core is not None
    core.submit([1] * 300, max_tokens=5)
    core.plan(memory_of(core))
    del core
    gc.collect()  # cores of other tests, in the frames of exceptions that were caught
    assert not [thing for thing in gc.get_objects() if type(thing) is Core]
