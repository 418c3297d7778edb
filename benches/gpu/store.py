"""benches/baselines/<device>.jsonl: one line per measurement, the newest of each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from benches.gpu.gates import Row

BASELINES = Path(__file__).parents[1] / "baselines"
IDENTITY = ("op", "shape", "dtype", "routing", "peer", "device")


def file_of(device: str) -> Path:
    """ "NVIDIA H100 80GB HBM3" -> baselines/h100.jsonl; a name without a model's number keeps its words."""
    model = re.search(r"\b[A-Z]{1,3}\d{2,4}[A-Z]?\b", device)
    words = model[0] if model else "-".join(device.split())
    return BASELINES / f"{words.lower() or 'unknown'}.jsonl"


def key(row: Row) -> str:
    """What makes two lines the same measurement."""
    return json.dumps([row.get(name) for name in IDENTITY], sort_keys=True)


def read(path: Path) -> list[Row]:
    """The lines of a file, none if there is none. A last line that a killed process left unfinished is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def merged(stored: Iterable[Row], measured: Iterable[Row]) -> list[Row]:
    """Measured rows in the place of stored ones of the same key, new ones after them; nothing else is lost."""
    rows = {key(row): row for row in stored}
    for row in measured:
        rows[key(row)] = row
    return list(rows.values())


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows at once, or, if the process dies, none of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)
