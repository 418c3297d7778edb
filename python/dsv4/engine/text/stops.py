"""Stop strings across token borders: an Aho-Corasick automaton over characters.

    text ──▶ state = the longest suffix of the text that begins a stop string
                │ a stop string ends here: cut at its start
                └ otherwise: release all but that suffix

So at most one character less than the longest stop string is ever held back. The match that ends first wins, and of
several that end together the longest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StopAutomaton:
    """The states of a set of stop strings; immutable, so that all choices of a request share one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.children: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.ending: list[str | None] = [None]  # the longest stop string that ends in this state
        self.fallback = [0]
        for stop in self.stops:
            self._add(stop)
        self._link()

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            child = self.children[state].get(char)
            if child is None:
                child = self.children[state][char] = len(self.children)
                self.children.append({})
                self.depth.append(self.depth[state] + 1)
                self.ending.append(None)
                self.fallback.append(0)
            state = child
        self.ending[state] = stop

    def _link(self) -> None:
        """Breadth first: a state falls back to the state of its longest proper suffix."""
        queue = deque(self.children[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self.children[state].items():
                self.fallback[child] = self.next(self.fallback[state], char)
                if self.ending[child] is None:
                    self.ending[child] = self.ending[self.fallback[child]]
                queue.append(child)

    def next(self, state: int, char: str) -> int:
        """The state after one more character; amortised constant time."""
        children = self.children
        while state and char not in children[state]:
            state = self.fallback[state]
        return children[state].get(char, 0)


class StopMatcher:
    """Cuts one choice's content at the first stop string.

    matched   the stop string that ended the content, None as long as none did
    """

    def __init__(self, stops: Iterable[str] | StopAutomaton, *, include_stop: bool = False) -> None:
        self._automaton = stops if isinstance(stops, StopAutomaton) else StopAutomaton(stops)
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """The text that is safe to show. Stop strings that end while not `armed` do not count."""
        automaton = self._automaton
        if not automaton.stops:
            return text
        if self.matched is not None:
            return ""
        state = self._state
        for position, char in enumerate(text, start=1):
            state = automaton.next(state, char)
            stop = automaton.ending[state]
            if stop is not None and armed:
                self.matched = stop
                shown = self._held + text[:position]
                self._held = ""
                return shown if self._include_stop else shown[: len(shown) - len(stop)]
        self._state = state
        shown = self._held + text
        keep = len(shown) - automaton.depth[state]
        self._held = shown[keep:]
        return shown[:keep]

    def finish(self) -> str:
        """What was held back: no stop string follows any more."""
        held, self._held = self._held, ""
        return held
