"""All Prometheus metrics. docs/operations.md explains each; a test compares the names."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message

__all__ = ["GAUGES", "Metrics"]

GAUGES: dict[str, str] = {
    "heliograph_open_messages": "Messages that this node owns and that are not final.",
    "heliograph_queued_messages": "Messages that wait for a bind or a route.",
    "heliograph_commit_queue": "Events that wait for the committer.",
    "heliograph_lease_valid": "1 while this node may accept and submit.",
    "heliograph_receipts_waiting": "deliver_sm without an answer yet.",
    "heliograph_receipts_refused": "deliver_sm answered ESME_RX_T_APPN since the start.",
    "heliograph_receipts_orphaned": "Receipts that found no message at once, since the start.",
    "heliograph_callbacks_waiting": "Messages with callbacks not tried yet.",
    "heliograph_callbacks_sent": "Callbacks answered 2xx since the start.",
    "heliograph_callbacks_failed": "Callback attempts that failed since the start.",
}
"""Name → help, of what is read when it is asked for."""
BIND_GAUGES: dict[str, str] = {
    "heliograph_connector_queued": "Messages queued for a connector.",
    "heliograph_connector_rate": "Parts a second that a connector allows at present.",
    "heliograph_connector_bound": "Binds of a connector that are bound.",
    "heliograph_connector_in_flight": "submit_sm without answer.",
}


class _Events(Collector):
    """Counted without the lock and the label look-up of a Counter: there is one thread, and one of these for every event."""

    def __init__(self) -> None:
        self.by_kind: Tally[Kind] = Tally()

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("heliograph_events", "Events committed by this node.", labels=["kind"])
        for kind, count in self.by_kind.items():
            family.add_metric([kind.value], count)
        yield family


class _Live(Collector):
    def __init__(
        self, read: Callable[[], dict[str, float]], connectors: Callable[[], dict[str, dict[str, float]]]
    ) -> None:
        self._read = read
        self._connectors = connectors

    def collect(self) -> Iterator[GaugeMetricFamily]:
        values = self._read()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=values[name])
        states = self._connectors()
        for name, text in BIND_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["connector"])
            for connector, state in states.items():
                family.add_metric([connector], state[name])
            yield family


class Metrics:
    """Counters and histograms of one node, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._events = _Events()
        self.registry.register(self._events)
        self.commit_seconds = Histogram(
            "heliograph_commit_seconds",
            "Time of a group commit.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
            registry=self.registry,
        )
        self.commit_retries = Counter("heliograph_commit_retries", "Group commits sent again.", registry=self.registry)

    def watch(
        self, read: Callable[[], dict[str, float]], connectors: Callable[[], dict[str, dict[str, float]]]
    ) -> None:
        """Read the gauges from here when they are asked for."""
        self.registry.register(_Live(read, connectors))

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:  # noqa: ARG002 - a listener's signature
        """Book listener."""
        if own:
            self._events.by_kind[event.kind] += 1

    def on_commit(self, _events: int, seconds: float, retried: bool) -> None:
        """Committer observer."""
        self.commit_seconds.observe(seconds)
        if retried:
            self.commit_retries.inc()
