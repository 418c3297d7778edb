"""The curve's scenarios are what they say, at sizes that take a moment; and what the report makes of points."""

from __future__ import annotations

import numpy as np
import pytest
from benches.core import lent
from benches.peers import curve, notes
from benches.peers.curve import Point
from benches.peers.drivers import Samples


def test_running_has_a_point_per_size_and_all_requests_sample() -> None:
    points = list(curve.running((1, 3)))
    assert [(point.line, point.x) for point in points] == [("running", 1), ("running", 3)]
    assert all(0 < point.median_us <= point.p99_us for point in points)


def test_requests_wait_and_never_start_while_the_step_is_timed() -> None:
    # `step` raises where one of them joins: then there would be more samples.
    points = list(curve.waiting((0, 2)))
    assert [(point.line, point.x) for point in points] == [
        ("waiting for a row", 0),
        ("waiting for a row", 2),
        ("waiting for blocks", 0),
        ("waiting for blocks", 2),
    ]


def test_a_filled_pool_has_no_block_left_that_is_not_cached() -> None:
    core = curve.core_of(curve.DECODING + 1, 640, queued=1, checkpoints=20)
    memory = lent(core)
    curve.fill(core, memory, 640, np.random.default_rng(0))
    stats = core.stats()
    assert stats["full_cached"] > 600
    assert stats["full_free"] < 33


def test_steps_that_leave_requests_out_are_refused() -> None:
    core = curve.core_of(2, 100)
    memory = lent(core)
    curve.decoding(core, memory, 1, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="2 samples expected"):
        curve.step(core, memory, 2)


def test_the_report_has_the_tables_and_two_figures() -> None:
    points = [Point("running", 1, 1.0, 2.0), Point("running", 8, 2.0, 3.0)]
    points += [Point("waiting for a row", x, 5.0, 6.0) for x in (0, 10)]
    points += [Point("pool, empty", 1000, 5.0, 6.0), Point("pool, empty: admit 8K", 1000, 40.0, 60.0)]
    measured = {"step": Samples({"dsv4": [[1000]]})}
    files = notes.report("python -m benches.peers --notes", ["somewhere"], measured, ["dsv4"], "dsv4", ["ok"], points)
    assert set(files) == {"core_speed.md", "core_speed_running.svg", "core_speed_flat.svg"}
    text = files["core_speed.md"]
    assert "| 8 | 2.0 / 3.0 | 250 |" in text
    assert "| waiting for a row | 0 | 5.0 / 6.0 |" in text
    assert "| pool, empty: admit 8K | 1,000 | 40.0 / 60.0 |" in text
    assert "admit" not in files["core_speed_flat.svg"]
    assert "{" not in text.replace("`{", "")
