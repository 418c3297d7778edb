"""Decode steps over graphs: the shape is chosen, idle rows say nothing, arrays lie where the capture found them.

A graph is stood in for by the function that was captured: every replay runs it again over the same arguments and leaves
its output where the first one lay, as a graph of a GPU does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from tests.kernels.test_gpu_runner import KINDS, Next, V
from tests.runtime.test_batch import core

from dsv4._core import Plan, StepDone
from dsv4.model.gpu.step import Bounds
from dsv4.model.inputs import StepInputs
from dsv4.model.model import StepOutput
from dsv4.runtime.gpu.graphs import Graphs, Shape, buckets, smallest
from dsv4.runtime.gpu.memory import StepMemory
from dsv4.runtime.gpu.runner import GpuRunner
from dsv4.runtime.step import Draw

POOLS: Any = object()
MAX_ROWS, MAX_LEN = 8, 2048


class Recorded:
    """A captured step, run again by every replay."""

    def __init__(self, run: Callable[[], StepOutput]) -> None:
        run()  # as on a GPU, everything is compiled before
        self.run, self.output = run, run()

    def replay(self) -> None:
        again = self.run()
        for here, new in zip(self.output, again, strict=True):
            here.copy_(new)


class Seeing(Next):
    """`Next`, with what it was given, and NaN for what it may not look at."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.steps: list[dict[str, torch.Tensor]] = []
        self.places: list[tuple[int, ...]] = []

    def forward(self, inputs: StepInputs, caches: object, bounds: Bounds) -> StepOutput:
        arrays = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
        self.steps.append({name: array.clone() for name, array in arrays.items()})
        self.places.append(tuple(array.data_ptr() for array in arrays.values()))
        output = super().forward(inputs, caches, bounds)
        idle = torch.arange(len(inputs.sample_tokens), device=self.device) >= inputs.query_starts[-1]
        return StepOutput(output.logits.masked_fill(idle[:, None], torch.nan), output.streams)


def said(network: Next, *, steps: int, graphs: bool) -> tuple[dict[int, list[int]], Graphs | None, list[Plan]]:
    """Tokens of three requests that come one after the other and end at different times; every second token is +1."""
    filled = core(max_steps_in_flight=steps)
    runner = GpuRunner(network, POOLS, filled, max_rows=MAX_ROWS, vocab_size=V, num_steps=steps)
    made = runner.capture(max_seq_len=MAX_LEN, by=Recorded) if graphs else None
    waiting = [([3, 4, 5], 9), ([10, 11], 4), ([7], 12), ([20] * 70, 6), ([40], 3)]
    flights: deque[Plan] = deque()
    found: dict[int, list[int]] = {}
    plans = []
    for step in range(1, 60):
        if waiting and step % 2:
            prompt, count = waiting.pop(0)
            number = filled.submit(prompt, max_tokens=count)
            runner.begin(number, Draw(params=KINDS[0], prompt=prompt, seed=0, choice=0, hidden=()))
        plan = filled.plan(runner.memories[step % steps])
        if plan is not None:
            flights.append(plan)
            plans.append(plan)
        if flights and (plan is None or len(flights) == steps):
            done = flights.popleft()
            result = runner.run(done)
            told = filled.advance([StepDone(done.step_id, result.tokens, result.non_finite)])
            for number, token in zip(told.request_ids, told.tokens, strict=True):
                found.setdefault(number, []).append(token)
    runner.close()
    return found, made, plans


@pytest.mark.parametrize("steps", [1, 2])
def test_tokens_are_those_without_graphs(steps: int, device: torch.device) -> None:
    want, _, _ = said(Seeing(device), steps=steps, graphs=False)
    network = Seeing(device)
    found, made, plans = said(network, steps=steps, graphs=True)
    assert found == want
    assert [tokens[:3] for tokens in found.values()][:2] == [[6, 7, 8], [12, 13, 14]]
    assert made is not None
    decoding = [plan for plan in plans if plan.num_tokens == plan.num_requests and not plan.num_prefill_tokens]
    assert 0 < len(decoding) <= made.num_replays, "a prompt of one token is a step like any other"


def test_nothing_is_captured_while_requests_are_served_and_arrays_do_not_move(device: torch.device) -> None:
    network = Seeing(device)
    _, made, _ = said(network, steps=2, graphs=True)
    assert made is not None
    at_start = 2 * len(made.shapes)
    by_rows: dict[int, set[tuple[int, ...]]] = {}
    for step, places in zip(network.steps, network.places, strict=True):
        by_rows.setdefault(len(step["token_ids"]), set()).add(places)
    assert {len(step["token_ids"]) for step in network.steps[:at_start]} == {shape.rows for shape in made.shapes}
    assert all(len(places) == 1 for rows, places in by_rows.items() if rows in buckets(MAX_ROWS))


def test_idle_rows_are_told_as_such_whatever_the_step_before_left(device: torch.device) -> None:
    network = Seeing(device)
    said(network, steps=1, graphs=True)
    padded = [step for step in network.steps if 0 < step["query_starts"][-1] < len(step["token_ids"])]
    assert padded
    for step in padded:
        rows, used = len(step["token_ids"]), int(step["query_starts"][-1])
        assert len(step["query_starts"]) == rows + 1
        assert step["query_starts"].tolist() == [*range(used + 1), *[used] * (rows - used)], "they have no tokens"
        idle = slice(used, None)
        for name in ("token_ids", "positions"):
            assert (step[name][idle] == step[name][0]).all()
        assert (step["token_rows"][idle] == 0).all()
        assert (step["swa_slots"][idle] == -1).all()
        assert (step["state_slots"][idle] == 0).all()
        for ratio in (4, 128):
            tokens = step[f"c{ratio}_tokens"]
            closing = [t for t in range(used) if int(step["positions"][t]) % ratio == ratio - 1]
            assert tokens.tolist() == closing + [-1] * (rows - len(closing))
        assert (step["block_table_full"][:used, 0] > 0).all()
    for step in network.steps[:2]:  # before any request
        assert not step["block_table_full"][0].any()
        assert not step["positions"].any()


def test_the_smallest_shape_that_serves_is_taken() -> None:
    shapes = sorted(Shape(rows, length) for rows in (1, 2, 4, 8) for length in (8192, 65_536, 100_000))
    assert smallest(shapes, 3, 100) == Shape(4, 8192)
    assert smallest(shapes, 3, 8193) == Shape(4, 65_536)
    assert smallest(shapes, 1, 100_000) == Shape(1, 100_000)
    assert smallest(shapes, 9, 1) is None
    assert smallest(shapes, 1, 100_001) is None


@pytest.mark.parametrize("most", [1, 2, 3, 8, 9, 100, 256, 512, 1000])
def test_buckets_cover_every_number_of_requests_and_waste_little(most: int) -> None:
    found = buckets(most)
    assert found[-1] == most
    assert list(found) == sorted(set(found))
    for rows in range(1, most + 1):
        bucket = next(b for b in found if b >= rows)
        assert bucket - rows <= max(7, rows / 3)
    assert len(found) <= 40


def test_prompts_drafts_and_steps_that_no_shape_serves_are_run_eagerly(device: torch.device) -> None:
    memory = StepMemory(core(), device)
    made = Graphs(Next(device), POOLS, memory, max_rows=4, max_seq_len=MAX_LEN, capture=Recorded)

    def step(requests: int, tokens: int, samples: int, new: int, length: int = 100) -> Shape | None:
        plan: Any = type("P", (), {"num_requests": requests, "num_tokens": tokens, "num_samples": samples})
        return made.shape_of(plan, Bounds(length, new))

    assert step(3, 3, 3, 1) == Shape(4, MAX_LEN)
    assert step(3, 5, 3, 3) is None, "a prompt of three tokens beside two that decode"
    assert step(3, 3, 2, 1) is None, "the last token but one of a prompt is nobody's sample"
    assert step(2, 4, 4, 2) is None, "drafts"
    assert step(5, 5, 5, 1) is None
    assert step(3, 3, 3, 1, MAX_LEN + 1) is None


def test_tables_that_an_idle_step_overwrote_are_written_again(device: torch.device) -> None:
    """The core writes only rows that differ from what it left in the memory."""
    filled = core()
    memory = StepMemory(filled, device)
    filled.submit([3, 4, 5], max_tokens=9)
    tables = []
    for _ in range(3):
        plan = filled.plan(memory.memory)
        assert plan is not None
        filled.advance([StepDone(plan.step_id, [7])])
        memory.send()
        tables.append([memory.array(f"block_table_{group}", 1).clone() for group in ("full", "swa")])
        memory.idle(4)
    assert tables[0][0][0, 0] > 0
    assert tables[0][1][0, 0] > 0
    for full, swa in tables[1:]:
        assert torch.equal(full, tables[0][0])
        assert torch.equal(swa, tables[0][1])
