"""A progress bar of bytes on stderr: redrawn in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

REDRAW_S = 0.1
LINE_S = 5.0
WIDTH = 30


class Progress:
    """Bytes done of a total, with the time left at the mean rate so far."""

    def __init__(
        self,
        total_bytes: int,
        title: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._title, self._clock = total_bytes, title, clock
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._started = clock()
        self._shown_at = float("-inf") if self._terminal else self._started
        self._done = 0
        self._closed = False

    def add(self, num_bytes: int) -> None:
        """Notes that `num_bytes` more are done; writes at most ten times a second, off a terminal every 5 s."""
        self._done += num_bytes
        now = self._clock()
        if now - self._shown_at >= (REDRAW_S if self._terminal else LINE_S):
            self._shown_at = now
            self._write(self.line(now), last=False)

    def close(self) -> None:
        """Writes the last state, once."""
        if not self._closed:
            self._closed = True
            self._write(self.line(self._clock()), last=True)

    def line(self, now: float) -> str:
        """What is shown at the time `now`."""
        seconds = now - self._started
        share = self._done / self._total if self._total else 1.0
        filled = int(WIDTH * min(share, 1.0))
        bar = "#" * filled + "." * (WIDTH - filled)
        text = f"{self._title} [{bar}] {share:4.0%} {readable(self._done)} of {readable(self._total)}"
        if self._done >= self._total:
            return f"{text} in {seconds:.1f} s"
        if self._done == 0 or seconds <= 0:
            return text
        left = (self._total - self._done) * seconds / self._done
        return f"{text}, {readable(self._done / seconds)}/s, {int(left) // 60}:{int(left) % 60:02d} left"

    def _write(self, line: str, *, last: bool) -> None:
        start, end = ("\r", "\x1b[K" + ("\n" if last else "")) if self._terminal else ("", "\n")
        self._stream.write(f"{start}{line}{end}")
        self._stream.flush()


def readable(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
