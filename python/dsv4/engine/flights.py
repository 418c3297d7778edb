"""Steps that were planned and are not settled: one runs, the next one waits for it, and planning goes on beside both.

    plan ─▶ launch ─▶ [ run, in order, on a thread of its own ] ─▶ finish ─▶ advance
                              ▲ while step k runs, step k + 1 is planned into the other memory

With one step in flight nothing is gained by a second thread: the step runs where it is finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dsv4._core import Plan
from dsv4.runtime.step import Draw, Runner, StepResult


class Flights:
    """The steps in flight of one runner, which it owns. Not thread-safe: the driver's thread is its only caller.

    As many steps may be in flight as the runner has memories.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._memories = runner.memories
        self._flights: deque[tuple[Plan, Future[StepResult] | None]] = deque()
        self._next_step = 1
        self._leaving: deque[tuple[int, int]] = deque()  # newest step that may have the request, request
        self._thread: ThreadPoolExecutor | None = None
        if len(self._memories) > 1:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="dsv4-steps")

    def __len__(self) -> int:
        return len(self._flights)

    def begin(self, request_id: int, draw: Draw) -> None:
        """A request of the core that will be sampled."""
        self._runner.begin(request_id, draw)

    @property
    def can_launch(self) -> bool:
        """Whether one more step may be planned."""
        return len(self._flights) < len(self._memories)

    @property
    def memory(self) -> memoryview:
        """What the next step is to be planned into."""
        return self._memories[self._next_step % len(self._memories)]

    def launch(self, plan: Plan) -> None:
        """The step that was just planned into `memory` runs when those before it are done."""
        self._next_step = plan.step_id + 1
        running = None if self._thread is None else self._thread.submit(self._runner.run, plan)
        self._flights.append((plan, running))

    @property
    def oldest(self) -> Plan:
        """The plan of the step that `finish` is about."""
        return self._flights[0][0]

    def finish(self) -> StepResult:
        """Waits for the oldest step, which is in flight no more; raises what it raised."""
        plan, running = self._flights.popleft()
        return self._runner.run(plan) if running is None else running.result()

    def end(self, request_id: int) -> None:
        """A request is over. The runner is told when no step is left that was planned with it."""
        self._leaving.append((self._next_step - 1, request_id))
        if not self._flights:
            self.let_go(self._next_step - 1)

    def let_go(self, done: int) -> None:
        """Steps up to this one are settled: requests that ended before the next one are forgotten."""
        while self._leaving and self._leaving[0][0] <= done:
            self._runner.end(self._leaving.popleft()[1])

    def zero(self, blocks: Sequence[tuple[str, int]]) -> None:
        """Fills blocks that no step in flight has with zeros, before the next step is planned."""
        self._runner.zero(blocks)

    def close(self) -> None:
        """Waits for what runs; steps that have not begun never do. The runner lets go of the model."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._flights.clear()
        self._runner.close()
