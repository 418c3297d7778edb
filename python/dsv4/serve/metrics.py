"""What the door itself counts; the engine's metrics are rendered by the engine."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class DoorMetrics:
    """Counters of one server, in a registry of their own: several servers fit in one process.

    http_requests            answers by route and status; 499 is a client that left
    stream_frames            server-sent events with content
    slow_consumer_aborts     requests ended because their reader did not keep up
    event_loop_lag_seconds   how late a timer of the loop fires
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        labels = ("model_name", "engine")
        values = (model_name, "0")
        requests = Counter(
            "dsv4:http_requests", "Answers by route and status", (*labels, "route", "status"), registry=self.registry
        )
        self._requests = requests
        self._values = values
        self._by_route: dict[tuple[str, int], Counter] = {}
        self.stream_frames = Counter(
            "dsv4:stream_frames", "Server-sent events with content", labels, registry=self.registry
        ).labels(*values)
        self.slow_consumer_aborts = Counter(
            "dsv4:slow_consumer_aborts", "Requests whose reader did not keep up", labels, registry=self.registry
        ).labels(*values)
        self.loop_lag = Histogram(
            "dsv4:event_loop_lag_seconds",
            "How late a timer of the event loop fires",
            labels,
            buckets=LAG_BUCKETS,
            registry=self.registry,
        ).labels(*values)

    def count_request(self, route: str, status: int) -> None:
        """One answer went out."""
        counter = self._by_route.get((route, status))
        if counter is None:
            counter = self._requests.labels(*self._values, route, str(status))
            self._by_route[route, status] = counter
        counter.inc()

    def text(self) -> bytes:
        """The exposition of the door's metrics."""
        return generate_latest(self.registry)
