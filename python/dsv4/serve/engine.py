"""What the door asks of an engine: the methods of `AsyncEngine`, so that a stand-in can take its place in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from dsv4.types import ChatRequest, Delta, SamplingParams


class EngineInfo(Protocol):
    """What is known once an engine runs."""

    @property
    def served_name(self) -> str: ...
