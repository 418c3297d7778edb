"""The bars: each verdict by a row made for it, and the stored rows of an H200 against all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benches.gpu import gates, store
from benches.gpu.gates import Gate, Row

BARS = gates.load()
GATE = Gate("a", "op", {"T": [1, 8]}, peer="Fast", ratio=0.9, x_floor=2.0, launches=2, why="so", next="then")


def row(**changes: object) -> Row:
    made: Row = {
        "op": "op",
        "shape": {"T": 8, "model": "flash"},
        "dtype": "bf16",
        "routing": "",
        "us": 10.0,
        "x_floor": 1.6,
        "launches": 2,
        "peer": "Fast 1.0",
        "ratio": 0.8,
        "device": "NVIDIA H200",
    }
    return made | changes


MISSING = {"ratio": None, "peer": "Fast 1.0", "skipped": "not installed"}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "met"),
        ({"ratio": 0.9, "x_floor": 2.0}, "met"),
        ({"ratio": 0.901}, "missed"),
        ({"x_floor": 2.01}, "missed"),
        ({"launches": 3}, "missed"),
        (MISSING, "no peer"),
        ({"peer": "Slow", "ratio": 0.1}, "no peer"),
        (MISSING | {"x_floor": 2.01}, "missed"),
        ({"shape": {"T": 9}}, "no gate"),
        ({"op": "other"}, "no gate"),
    ],
)
def test_verdicts(changes: Row, verdict: str) -> None:
    got = gates.annotate(row(**changes), [GATE])
    assert got["verdict"] == verdict
    assert ("why" in got, "next" in got) == (verdict == "missed",) * 2
    assert got["percent_of_floor"] == round(100 / got["x_floor"], 1)


def test_a_bar_that_no_peer_is_needed_for_does_not_wait_for_one() -> None:
    floor = Gate("a", "op", {}, x_floor=1.5)
    assert floor.judge(row() | MISSING | {"x_floor": 1.5}) == "met"
    assert floor.judge(row() | MISSING | {"x_floor": 1.6}) == "missed"


def test_a_row_of_two_gates_is_an_error() -> None:
    with pytest.raises(ValueError, match="covered by"):
        gates.gate_of(row(), [GATE, Gate("b", "op", {})])


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text('[[gate]]\nname = "a"\nop = "op"\nshape = {}\nratoi = 0.9\n')
    with pytest.raises(TypeError, match="ratoi"):
        gates.load(path)


def test_the_table_tells_missed_met_unjudged_and_unmeasured_apart() -> None:
    rows = [row(), row(ratio=1.2, us=15.0), row() | MISSING]
    unseen = Gate("b", "nothing", {}, ratio=1.0, caveat="no bench")
    lines = gates.table([gates.annotate(r, [GATE]) for r in rows], [GATE, unseen]).splitlines()
    assert len(lines) == 4
    assert "met 1, missed 1, no peer 1" in lines[2]
    assert "| 15.0 us, 1.6x | 1.2 of Fast 1.0 | so; next: then |" in lines[2]
    assert "not measured" in lines[3]
    assert "no bench" in lines[3]


def test_gates_are_complete() -> None:
    assert len({gate.name for gate in BARS}) == len(BARS)
    for gate in BARS:
        assert gate.bars() or gate.bars("goal_"), gate.name
        assert gate.ratio is None or gate.peer, f"{gate.name}: a ratio to whom?"
        judged = gate.ratio is not None or gate.x_floor is not None
        assert gate.caveat or gate.why or not judged or gate.op == "norm_rope_store", gate.name


def test_the_numbers_are_those_of_the_targets() -> None:
    bars = {gate.name: gate for gate in BARS}
    assert bars["sparse decode C4, B 256"].bars() == {"ratio": 0.9}
    assert bars["sparse decode C4, B 1-32"].bars() == {"ratio": 1.0}
    assert bars["experts W4A8, 8-256 tokens"].bars() == {"ratio": 1.0, "x_floor": 1.5}
    assert bars["experts W4A8, 8-256 tokens"].bars("goal_") == {"ratio": 0.8, "x_floor": 1.15}
    assert bars["FP8 GEMMs, chunk"].bars() == bars["index logits in FP4, B >= 64"].bars() == {"ratio": 1.1}
    assert bars["mHC boundary, T 1 / 64 / 256"].bars() == {"ratio": 0.8, "launches": 2}
    assert bars["compress, decode"].bars() == {"launches": 2}


def test_stored_rows_each_have_one_gate_at_most_and_every_gate_has_rows() -> None:
    rows = [gates.annotate(r, BARS) for r in store.read(store.BASELINES / "h200.jsonl")]
    seen = {r["gate"]["name"] for r in rows if r["gate"]}
    assert {gate.name for gate in BARS} == seen


def test_a_device_has_its_file() -> None:
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA B200", "Some Thing")
    files = [store.file_of(name).name for name in names]
    assert files == ["h200.jsonl", "h100.jsonl", "nvidia-geforce-rtx-4090.jsonl", "b200.jsonl", "some-thing.jsonl"]


def test_new_rows_replace_the_same_measurement_and_nothing_else(tmp_path: Path) -> None:
    stored = [row(us=1.0), row(us=2.0, peer="Slow"), row(us=3.0, device="NVIDIA H100")]
    path = tmp_path / "deep" / "rows.jsonl"
    store.write(path, store.merged(stored, [row(us=9.0, commit="new"), row(us=4.0, dtype="fp8")]))
    assert [r["us"] for r in store.read(path)] == [9.0, 2.0, 3.0, 4.0]
    with path.open("a") as file:
        file.write(json.dumps(row())[:40])  # its writer was killed
    assert len(store.read(path)) == 4
    assert store.read(tmp_path / "none") == []
