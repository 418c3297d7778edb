"""The loop plan ─▶ run ─▶ advance, on one thread, which alone touches the core; steps may run beside it (flights).

    other threads ──submit, abort, ask, stop──▶ inbox ──▶ ┌─ core.plan ─▶ runner.run ─▶ core.advance ─┐
                                                          └──── deltas ◀── readers ◀── tokens ◀───────┘
                                                                  │ once per step
                                                                  ▼
                                                        sinks, and one wake per event loop

Every request that was accepted ends exactly once: all its choices finished, or an error. What happens to it between is
decided here and nowhere else:

    stop string        the reader found one: the core is told, tokens after it do not exist
    non-finite row     that request fails with "numerical_error", its neighbours go on
    slow reader        its sink is full: the request fails with "slow_consumer"
    abort              in any phase, between two steps; the blocks retire at once
    bug in the text    that request fails with "internal_error"
    bug in the model   the requests of that step fail with "internal_error"; the core is audited, and the loop goes on
    bug in the core    the engine is dead: every request fails, health says so, nothing hangs
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from dsv4._core import Core, Outcome, Plan, StepDone, Stopped, Tick
from dsv4.engine.deliver import Delivery
from dsv4.engine.flights import Flights
from dsv4.engine.health import Progress
from dsv4.engine.metrics import Counts
from dsv4.engine.request import Choice, Request
from dsv4.engine.trace import Recording
from dsv4.errors import Dsv4Error, EngineClosed, QueueFull, RequestFailed, Violation
from dsv4.runtime.step import Runner, StepResult
from dsv4.types import TokenLogprob

log = logging.getLogger("dsv4.engine")

AUDIT_S = 60.0
"""How long at least between two looks through the core's books while nothing runs."""

RETRY_S = 0.01
"""How long to wait before asking again, when there are requests and the core plans nothing."""

GOES_ON, STOP_TOKEN, LENGTH, STOPPED, NON_FINITE, VIOLATION = range(6)
"""What `Outcome.finished` says."""

Answer = TypeVar("Answer")


Command = Callable[[], None]


class Driver:
    """One engine's loop. Public methods are for every thread; the rest runs on the driver's own.

    counts     what it counts, for the metrics
    progress   for health
    clock      monotonic seconds
    """

    def __init__(
        self,
        core: Core,
        runner: Runner,
        counts: Counts,
        *,
        recording: Recording | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = counts
        self.progress = Progress()
        self.clock = clock
        self._core: Core | None = core
        self._flights: Flights | None = Flights(runner)
        self._recording = recording
        self._delivery = Delivery(counts)
        self._choices: dict[int, Choice] = {}
        self._open: dict[Request, None] = {}
        self._unplanned: dict[int, Choice] = {}
        self._waiting_for_idle: list[Future[None]] = []
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._gate = threading.Lock()  # between "the inbox is closed" and "put into the inbox"
        self._accepting = True
        self._stopping = False
        self._band = 0  # in which a core begins
        self._audit_at = 0.0
        self._thread = threading.Thread(target=self._run, name="dsv4-driver", daemon=True)

    # ------------------------------------------------------------------ for every thread

    def start(self) -> None:
        """Starts the thread; once."""
        self.counts.stats = self._the_core.stats()
        self._thread.start()

    def submit(self, request: Request) -> Future[None]:
        """Done when the core has taken every choice; QueueFull, InvalidRequest or EngineClosed otherwise."""
        future: Future[None] = Future()
        self._post(lambda: self._submit(request, future), lambda: future.set_exception(_closed()))
        return future

    def abort(self, request: Request, error: RequestFailed, reason: str) -> None:
        """Ends a request early, whatever its phase; one that has ended is left alone."""
        self._post(lambda: self._abort(request, error, reason), _nothing)

    def abort_all(self, error: RequestFailed, reason: str) -> Future[int]:
        """Ends every request; says how many there were."""

        def end_all() -> int:
            requests = list(self._open)
            for request in requests:
                self._abort(request, error, reason)
            return len(requests)

        return self._call(end_all)

    def ask(self, question: Callable[[Core], Answer]) -> Future[Answer]:
        """Asks the core something between two steps, on the driver's thread."""
        return self._call(lambda: question(self._the_core))

    def when_idle(self) -> Future[None]:
        """Done when no request is open."""
        future: Future[None] = Future()

        def wait() -> None:
            self._waiting_for_idle.append(future)
            self._tell_idle()

        self._post(wait, lambda: future.set_result(None))
        return future

    def find(self, request_id: str) -> Future[list[Request]]:
        """The open requests of that name."""
        return self._call(lambda: [request for request in self._open if request.request_id == request_id])

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def stop(self) -> None:
        """Aborts everything and lets the thread end; idempotent, does not wait."""
        self._post(self._stop, _nothing)

    def join(self) -> None:
        """Waits until the thread has ended and everything is dropped; a running step is finished first."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _post(self, command: Command, refused: Command) -> None:
        with self._gate:
            if self._accepting:
                self._inbox.put(command)
                return
        refused()

    def _call(self, work: Callable[[], Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                future.set_exception(error)

        self._post(run, lambda: future.set_exception(_closed()))
        return future

    # ------------------------------------------------------------------ on the driver's thread

    @property
    def _the_core(self) -> Core:
        if self._core is None:
            raise _closed()
        return self._core

    @property
    def _the_flights(self) -> Flights:
        if self._flights is None:
            raise _closed()
        return self._flights

    def _run(self) -> None:
        error: Dsv4Error = RequestFailed("the engine was closed", "engine_closed")
        try:
            wait: float | None = None
            while not self._stopping:
                self._obey(wait)
                wait = self._step()
        except BaseException as death:
            log.exception("the engine died")
            if isinstance(death, Violation):
                self.counts.add(self.counts.invariant_violations, "core")
            self.progress.dead = True
            error = RequestFailed("the engine died; its log has the details", "internal_error")
        self._end(error)

    def _obey(self, wait: float | None) -> None:
        """Runs the commands that are there; `wait` seconds for the first one (None: for ever, 0: not at all)."""
        try:
            command = self._inbox.get_nowait() if wait == 0 else self._inbox.get(timeout=wait)
            while True:
                command()
                command = self._inbox.get_nowait()
        except queue.Empty:
            pass
        if not self._stopping:
            self.counts.stats = self._the_core.stats()
        self._flush()

    def _step(self) -> float | None:
        """One step, if there is something to do; how long the inbox may be waited for afterwards."""
        if self._stopping:
            return 0
        core, flights = self._the_core, self._the_flights
        while flights.can_launch and (plan := core.plan(flights.memory)) is not None:
            self._note_planned(plan)
            flights.launch(plan)
        if not flights:
            self.counts.stats = core.stats()
            if self._open:
                self._apply(self._advance(core, [self._tick()]), None)  # planning may have had to end a request
                self._flush()
                return RETRY_S
            self.progress.busy_since = None
            self._audit_at_rest(core)
            return None
        plan = flights.oldest
        try:
            result = flights.finish()
        except Exception as error:  # noqa: BLE001 - a bug in the model ends this step's requests, not the engine
            self._contain(core, plan, error)
        else:
            self._settle(core, plan, result)
        flights.let_go(plan.step_id)
        if self._recording is not None:
            self._recording.drain()
        self.counts.step_tokens.observe(plan.num_tokens)
        self.counts.stats = core.stats()
        self.progress.last_step_at = self.clock()
        self._flush()
        self._tell_idle()
        return 0

    def _audit_at_rest(self, core: Core) -> None:
        """Nothing runs: now and then, all the books are looked through. What is wrong is told, and nobody fails."""
        now = self.clock()
        if now < self._audit_at:
            return
        self._audit_at = now + AUDIT_S
        try:
            core.audit()
        except Violation:
            self.counts.add(self.counts.invariant_violations, "core")
            log.exception("the core's books do not balance; please report this")

    def _tick(self) -> Tick:
        return Tick(int(self.clock() * 1e6))

    def _submit(self, request: Request, future: Future[None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            for choice in request.choices:
                choice.core_id = self._the_core.submit(
                    request.prompt,
                    max_tokens=request.max_tokens,
                    min_tokens=request.params.min_tokens,
                    stop_token_ids=request.stop_ids,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                )
                self._choices[choice.core_id] = choice
                self._unplanned[choice.core_id] = choice
                self._the_flights.begin(choice.core_id, choice.draw)
        except Exception as error:  # noqa: BLE001 - all choices are taken or none is
            self._release(request)
            reason = "queue_full" if isinstance(error, QueueFull) else "invalid"
            self.counts.add(self.counts.admission_rejections, reason)
            future.set_exception(error)
            return
        self._open[request] = None
        if self.progress.busy_since is None:
            self.progress.busy_since = self.clock()
        future.set_result(None)

    def _note_planned(self, plan: Plan) -> None:
        """Which limits are in force; which requests run for the first time, while there are some that never ran."""
        if plan.band != self._band:
            self._band = plan.band
            log.info(self._the_core.explain_recipe())
        if not self._unplanned:
            return
        now = self.clock()
        for core_id, num_cached in zip(plan.started_request_ids, plan.started_cached_tokens, strict=True):
            choice = self._unplanned.pop(core_id, None)
            if choice is not None and choice.request.planned_at is None:
                choice.request.planned_at = now
                choice.request.num_cached_tokens = num_cached
                self.counts.queue.observe(now - choice.request.arrived_at)

    def _settle(self, core: Core, plan: Plan, result: StepResult) -> None:
        """Tells the core what happened, and hands on what counts of it."""
        outcome = self._advance(core, [StepDone(plan.step_id, result.tokens, result.non_finite), self._tick()])
        logprobs = None
        if any(entry is not None for entry in result.logprobs):
            logprobs = dict(zip(plan.sample_request_ids, result.logprobs, strict=True))
        stopped = self._apply(outcome, logprobs)
        if stopped:
            self._advance(core, stopped)

    def _advance(self, core: Core, events: Sequence[StepDone | Stopped | Tick]) -> Outcome:
        """Tells the core what happened, and zeroes what it wants zeroed."""
        outcome = core.advance(events)
        if outcome.to_zero:
            self._the_flights.zero(outcome.to_zero)
        return outcome

    def _apply(self, outcome: Outcome, logprobs: Mapping[int, TokenLogprob | None] | None) -> list[Stopped]:
        """Hands on what an outcome says; the requests that the text layer found to have stopped."""
        now = self.clock()
        stopped: list[Stopped] = []
        for core_id, token, finished in zip(outcome.request_ids, outcome.tokens, outcome.finished, strict=True):
            choice = self._choices.get(core_id)
            if choice is None:
                continue
            if finished >= NON_FINITE:
                self._fail_choice(choice, finished)
                continue
            logprob = logprobs.get(core_id) if logprobs is not None else None
            try:
                ended, took = self._delivery.deliver(choice, token, finished, now, logprob)
            except Exception as error:  # noqa: BLE001 - a bug in reading one answer ends that request alone
                self._fail_reading(choice, error)
                continue
            if not took:
                self._abort(choice.request, _too_slow(choice), "slow_consumer")
            elif ended:
                if finished == GOES_ON:
                    stopped.append(Stopped(core_id))
                self._finish_choice(choice)
        return stopped

    def _finish_choice(self, choice: Choice) -> None:
        """One choice has its last token."""
        self._forget(choice)
        request = choice.request
        if all(other.ended for other in request.choices):
            self._close(request, None)

    def _fail_choice(self, choice: Choice, finished: int) -> None:
        request = choice.request
        if finished == NON_FINITE:
            self.counts.corrupted_requests += 1
            message = f"the logits of request {request.request_id} were not finite at token {choice.num_generated}"
            error = RequestFailed(message, "numerical_error")
        else:
            self.counts.add(self.counts.invariant_violations, "request")
            message = f"an invariant of the core broke for request {request.request_id}; its blocks are quarantined"
            error = RequestFailed(message, "internal_error")
        log.error("%s", message)
        self._abort(request, error, error.code)

    def _fail_reading(self, choice: Choice, error: Exception) -> None:
        request = choice.request
        log.error("the answer to request %s could not be read", request.request_id, exc_info=error)
        message = f"the answer to request {request.request_id} could not be read; the engine's log has the details"
        self._abort(request, RequestFailed(message, "internal_error"), "internal_error")

    def _contain(self, core: Core, plan: Plan, error: Exception) -> None:
        """A step that raised: its requests fail; the step counts as done, so that their blocks can be reclaimed."""
        log.error("step %d failed, and its %d requests with it", plan.step_id, plan.num_requests, exc_info=error)
        failed = {self._choices[core_id].request: None for core_id in plan.request_ids if core_id in self._choices}
        for request in failed:
            message = f"request {request.request_id} was in a step that failed; the engine's log has the details"
            self._abort(request, RequestFailed(message, "internal_error"), "internal_error")
        self._advance(core, [StepDone(plan.step_id, [0] * plan.num_samples), self._tick()])
        core.audit()

    def _abort(self, request: Request, error: RequestFailed, reason: str) -> None:
        if request.ended or request not in self._open:
            return
        self.counts.add(self.counts.aborts, reason)
        self._release(request)
        self._close(request, error)

    def _release(self, request: Request) -> None:
        """Gives up what the core and the runner hold for the choices that have not ended."""
        for choice in request.choices:
            if choice.core_id is not None and not choice.ended:
                self._the_core.abort(choice.core_id)
                self._forget(choice)

    def _forget(self, choice: Choice) -> None:
        choice.ended = True
        if choice.core_id is not None:
            del self._choices[choice.core_id]
            self._unplanned.pop(choice.core_id, None)
            self._the_flights.end(choice.core_id)

    def _close(self, request: Request, error: Dsv4Error | None) -> None:
        """The one terminal event of a request."""
        request.ended = True
        del self._open[request]
        self._delivery.end(request, error, self.clock())
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._open:
            return
        self.progress.busy_since = None
        for future in self._waiting_for_idle:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
        self._waiting_for_idle.clear()

    def _flush(self) -> None:
        """Wakes the readers; the requests of a loop that was closed are ended."""
        for wake in self._delivery.flush():
            for request in [request for request in self._open if request.sink.wake is wake]:
                self._abort(request, RequestFailed("the reader's event loop was closed", "aborted"), "client")

    def _stop(self) -> None:
        self._stopping = True

    def _end(self, error: Dsv4Error) -> None:
        """Nothing is accepted any more; what was open fails; the model and the pools are let go of."""
        with self._gate:
            self._accepting = False
        for request in list(self._open):
            self.counts.add(self.counts.aborts, "engine_closed")
            request.ended = True
            del self._open[request]
            self._delivery.end(request, error, self.clock())
        core, flights = self._the_core, self._the_flights
        self._core = self._flights = None
        self._choices.clear()
        self._unplanned.clear()
        self._refuse_the_rest()
        self._delivery.flush()
        self._tell_idle()
        self.progress.closed = True
        _quietly((core.shutdown, flights.close))
        if self._recording is not None:
            _quietly((self._recording.close,))

    def _refuse_the_rest(self) -> None:
        """Commands that came too late run with a closed engine, so that no future is left unanswered."""
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            _quietly((command,))


def _quietly(works: Iterable[Command]) -> None:
    for work in works:
        try:
            work()
        except Exception:
            log.exception("while the engine was closed")


def _closed() -> EngineClosed:
    return EngineClosed("the engine was closed")


def _too_slow(choice: Choice) -> RequestFailed:
    message = f"request {choice.request.request_id} was ended: its reader fell too far behind"
    return RequestFailed(message, "slow_consumer")


def _nothing() -> None:
    """The engine is closed: there is nothing left to end."""
