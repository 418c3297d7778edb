"""Health is progress: an engine is alive while its last step is young, or while there is nothing to do."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4.types import Health

STALL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Progress:
    """Written by the driver, read by anybody.

    busy_since    when work arrived at an idle engine, seconds on the driver's clock; None while there is nothing to do
    last_step_at  when the last step was done
    """

    busy_since: float | None = None
    last_step_at: float = 0.0
    dead: bool = False
    closed: bool = False
    draining: bool = False

    def stalled_for(self, now: float) -> float:
        """Seconds since the engine last got anywhere, 0 while there is nothing to do."""
        return 0.0 if self.busy_since is None else max(0.0, now - max(self.busy_since, self.last_step_at))

    def health(self, now: float, stall_timeout_s: float = STALL_TIMEOUT_S) -> Health:
        """What a probe is told."""
        if self.dead:
            return Health(alive=False, ready=False, reason="engine_dead")
        if self.closed:
            return Health(alive=False, ready=False, reason="engine_closed")
        if self.stalled_for(now) > stall_timeout_s:
            return Health(alive=False, ready=False, reason="stalled")
        if self.draining:
            return Health(alive=True, ready=False, reason="draining")
        return Health(alive=True, ready=True)
