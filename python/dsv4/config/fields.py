"""One value of a JSON object at a time, with its type and range; what is wrong is a CheckpointError with the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from dsv4.errors import CheckpointError


class Fields:
    """A JSON object that is read by key. `where` is how messages call it, such as "config.json"."""

    def __init__(self, raw: Mapping[str, object], where: str) -> None:
        self.raw = raw
        self._where = where

    def wrong(self, key: str, problem: str) -> NoReturn:
        """Raises CheckpointError about one key."""
        raise CheckpointError(f"{self._where}: {key} {problem}")

    def value(self, key: str) -> object:
        """Whatever stands at the key, which must be there and not null."""
        value = self.raw.get(key)
        if value is None:
            self.wrong(key, "is missing")
        return value

    def integer(self, key: str, low: int = 1, high: int = 1 << 20) -> int:
        """An integer in low..high."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool):
            self.wrong(key, f"is {shown(value)}, not an integer")
        if not low <= value <= high:
            self.wrong(key, f"is {shown(value)}; it must lie in {low}..{high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in low..high."""
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.wrong(key, f"is {shown(value)}, not a number")
        if not low <= value <= high or not math.isfinite(value):
            self.wrong(key, f"is {shown(value)}; it must lie in {low:g}..{high:g}")
        return float(value)

    def items(self, key: str) -> list[object]:
        """A list of anything."""
        value = self.value(key)
        if not isinstance(value, list):
            self.wrong(key, f"is {shown(value)}, not a list")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers."""
        values = self.items(key)
        for index, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool):
                self.wrong(f"{key}[{index}]", f"is {shown(value)}, not an integer")
        return tuple(value for value in values if isinstance(value, int))

    def section(self, key: str) -> Fields:
        """A nested object."""
        value = self.value(key)
        if not isinstance(value, dict):
            self.wrong(key, f"is {shown(value)}, not an object")
        return Fields(value, f"{self._where}: {key}")


def shown(value: object) -> str:
    """A value as a message shows it: never longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "an enormous integer"
    return text if len(text) <= 120 else f"{text[:117]}..."
