"""The bars that rows of kernel benches are held against, and the table of them.

A row is what `benches.kernels.harness.measure` makes. It is judged by the gate of its op and shape:

    met       every bar of the gate holds
    missed    one does not: the row gets the gate's reason and next idea
    no peer   the gate counts against a peer that this row does not have: installed nowhere, or failed; never guessed
    no gate   the targets say nothing of it
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

GATES = Path(__file__).with_name("gates.toml")
BARS = ("ratio", "x_floor", "launches")

Row = dict[str, Any]
Verdict = Literal["met", "missed", "no peer", "no gate"]


def _several(value: Any) -> list[Any]:  # noqa: ANN401 - what TOML holds: one or a list
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True, slots=True)
class Gate:
    """One bar of the targets; gates.toml says what each field means."""

    name: str
    op: str | list[str]
    shape: dict[str, Any]
    dtype: str = ""
    routing: str = ""
    peer: str | list[str] = field(default_factory=list)
    ratio: float | None = None
    x_floor: float | None = None
    launches: int | None = None
    goal_ratio: float | None = None
    goal_x_floor: float | None = None
    goal_launches: int | None = None
    why: str = ""
    next: str = ""
    caveat: str = ""

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is of this gate's op, dtype, routing and shape, whoever its peer is."""
        return (
            row["op"] in _several(self.op)
            and self.dtype in ("", row["dtype"])
            and self.routing in ("", row["routing"])
            and all(row["shape"].get(name) in _several(value) for name, value in self.shape.items())
        )

    def bars(self, prefix: str = "") -> dict[str, float]:
        """The bars that are set: of the gate, or with "goal_" of the goal."""
        found = {name: getattr(self, prefix + name) for name in BARS}
        return {name: value for name, value in found.items() if value is not None}

    def has_peer(self, row: Mapping[str, Any]) -> bool:
        """Whether the row was timed beside a peer that this gate counts against."""
        return row["ratio"] is not None and str(row["peer"]).startswith(tuple(_several(self.peer)))

    def judge(self, row: Mapping[str, Any], prefix: str = "") -> Verdict:
        """Bars that need no peer are held against every row; a miss of one of them is a miss."""
        bars = self.bars(prefix)
        if any(row[name] > bar for name, bar in bars.items() if name != "ratio"):
            return "missed"
        if "ratio" in bars:
            return "no peer" if not self.has_peer(row) else "met" if row["ratio"] <= bars["ratio"] else "missed"
        return "met" if bars else "no gate"


def load(path: Path = GATES) -> list[Gate]:
    """The gates, in the file's order; TypeError where a key is none."""
    with path.open("rb") as file:
        return [Gate(**entry) for entry in tomllib.load(file)["gate"]]


def gate_of(row: Mapping[str, Any], gates: Iterable[Gate]) -> Gate | None:
    """The only gate that covers a row."""
    found = [gate for gate in gates if gate.covers(row)]
    if len(found) > 1:
        raise ValueError(f"{row['op']} {row['shape']} is covered by {[gate.name for gate in found]}")
    return found[0] if found else None


def annotate(row: Row, gates: Iterable[Gate]) -> Row:
    """The row with what is wanted of it and whether it holds."""
    gate = gate_of(row, gates)
    percent = round(100 / row["x_floor"], 1) if row["x_floor"] else None
    if gate is None:
        return row | {"percent_of_floor": percent, "gate": None, "verdict": "no gate"}
    verdict = gate.judge(row)
    marked: Row = row | {
        "percent_of_floor": percent,
        "gate": {"name": gate.name, **gate.bars()},
        "verdict": verdict,
        "goal": gate.judge(row, "goal_"),
    }
    if verdict == "missed":
        marked |= {"why": gate.why, "next": gate.next}
    return marked


def _wanted(bars: Mapping[str, float]) -> str:
    form = {"ratio": "{} of peer", "x_floor": "{}x floor", "launches": "{} launches"}
    return ", ".join("<= " + form[name].format(bar) for name, bar in bars.items()) or "-"


def worst(rows: Sequence[Row]) -> Row:
    """Of one gate's rows the one that decides: missed before no peer before met, then the largest ratio."""
    order = {"missed": 2, "no peer": 1}
    return max(rows, key=lambda row: (order.get(row["verdict"], 0), row["ratio"] or 0.0, row["x_floor"]))


def _cells(gate: Gate, rows: Sequence[Row]) -> list[str]:
    wanted = [gate.name, _wanted(gate.bars()), _wanted(gate.bars("goal_"))]
    if not rows:
        return [*wanted, "not measured", "", "", "", gate.caveat or "no row of this run"]
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(f"{v} {verdicts.count(v)}" for v in ("met", "missed", "no peer", "no gate") if v in verdicts)
    row = worst(rows)
    shape = " ".join(f"{name}={value}" for name, value in row["shape"].items())
    peer = f"{row['ratio']} of {row['peer']}" if row["ratio"] is not None else f"{row['peer']}: {row.get('skipped')}"
    missed = f"{row['why']}; next: {row['next']}" if "missed" in verdicts else ""
    note = ". ".join(text for text in (gate.caveat, missed) if text)
    return [
        *wanted,
        counts,
        f"{row['op']} {shape} {row['routing']}".strip(),
        f"{row['us']} us, {row['x_floor']}x",
        peer,
        note,
    ]


def table(rows: Iterable[Row], gates: Sequence[Gate]) -> str:
    """Markdown, one line for each gate: how many rows hold it, and the worst of them. Rows are annotated."""
    by_gate: dict[str, list[Row]] = {gate.name: [] for gate in gates}
    for row in rows:
        if row["gate"] is not None:
            by_gate[row["gate"]["name"]].append(row)
    heads = ["bar", "gate", "goal", "rows", "the worst", "us, x floor", "peer", "why, and what next"]
    lines = [heads, ["---"] * len(heads), *(_cells(gate, by_gate[gate.name]) for gate in gates)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def without_bar(rows: Iterable[Row]) -> list[str]:
    """The ops of rows that no gate covers, in order."""
    return sorted({str(row["op"]) for row in rows if row["gate"] is None})
