"""What a cache under comparison offers: it serves requests one by one and says what it had.

A rule holds at most its pool's bytes whenever no request runs. Time is the order of arrivals: a request is served from
its first chunk to its last token before the next one arrives, except in `together`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from benches.replay.trace import Request


class PoolTooSmall(Exception):
    """Nothing is left to evict and the running requests need more."""


class Rule(ABC):
    """One cache with one pool. The core plugs in here: submit, plan and advance to the end, read num_cached_tokens."""

    @abstractmethod
    def request(self, request: Request) -> int:
        """Serves a request and returns the tokens of its prompt that were found, a multiple of 256.

        Raises PoolTooSmall if the request cannot run even alone.
        """

    def together(self, wave: Sequence[Request]) -> list[int]:
        """Serves requests that all run until the last of them ends; found tokens of each. Default: one by one."""
        return [self.request(request) for request in wave]


@dataclass(frozen=True)
class Score:
    """Tokens found and tokens asked for."""

    num_hit_tokens: int
    num_input_tokens: int

    @property
    def rate(self) -> float:
        """Share of the input found, 0 … 1."""
        return self.num_hit_tokens / max(1, self.num_input_tokens)


def replay(rule: Rule, requests: Sequence[Request]) -> Score:
    """Every request in order through one rule."""
    found = sum(rule.request(request) for request in requests)
    return Score(found, sum(request.num_input_tokens for request in requests))
