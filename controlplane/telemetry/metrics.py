"""All Prometheus metrics. docs/operations.md explains each; a test compares the names."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message

__all__ = ["GAUGES", "Metrics"]

GAUGES: dict[str, str] = {
    "heliograph_open_messages": "Messages that this node owns and that are not final.",
    "heliograph_queued_messages": "Messages that wait for a bind or a route.",
    "heliograph_held_messages": "Messages of durability `global` that wait for a mirror.",
    "heliograph_commit_queue": "Events that wait for the committer.",
    "heliograph_lease_valid": "1 while this node may accept and submit.",
    "heliograph_former_messages_wait": "1 while a peer has not said whether it took over what was open before this datacenter was away.",
    "heliograph_receipts_waiting": "deliver_sm without an answer yet.",
    "heliograph_receipts_refused": "deliver_sm answered ESME_RX_T_APPN since the start.",
    "heliograph_receipts_orphaned": "Receipts that found no message at once, since the start.",
    "heliograph_callbacks_waiting": "Messages with callbacks not tried yet.",
    "heliograph_callbacks_sent": "Callbacks answered 2xx since the start.",
    "heliograph_callbacks_failed": "Callback attempts that failed since the start.",
    "heliograph_erased_messages": "Messages erased because their retention was over, since the start.",
}
"""Name → help, of what is read when it is asked for."""
BIND_GAUGES: dict[str, str] = {
    "heliograph_connector_queued": "Messages queued for a connector.",
    "heliograph_connector_rate": "Parts a second that a connector allows at present.",
    "heliograph_connector_bound": "Binds of a connector that are bound.",
    "heliograph_connector_in_flight": "submit_sm without answer.",
}
LEDGER_GAUGES: dict[str, str] = {
    "heliograph_ledger_size": "Entries of a log that are published.",
    "heliograph_ledger_cosigned": "Entries of a log that a witness or mirror has cosigned.",
    "heliograph_ledger_behind_seconds": "How long a cosigner has been behind a log.",
    "heliograph_ledger_unsequenced": "Events of this datacenter that are not in its log yet.",
    "heliograph_ledger_unsequenced_seconds": "Age of the oldest of them.",
    "heliograph_ledger_leader_silent_seconds": "Since when this node has seen no heartbeat of the leading ledger.",
    "heliograph_ledger_findings": "Open findings of verification.",
    "heliograph_ledger_alarms": "What GET /v1/ledger calls an alarm, by kind.",
}
"""As this node last read it in MongoDB, a few seconds ago."""
LEDGER_LABELS = {
    "heliograph_ledger_size": ("log",),
    "heliograph_ledger_cosigned": ("log", "cosigner", "role"),
    "heliograph_ledger_behind_seconds": ("log", "cosigner", "role"),
    "heliograph_ledger_alarms": ("kind",),
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


class _Ledger(Collector):
    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._read()
        families = {
            name.removeprefix("heliograph_ledger_"): GaugeMetricFamily(name, text, labels=LEDGER_LABELS.get(name, ()))
            for name, text in LEDGER_GAUGES.items()
        }
        if found:
            families["unsequenced"].add_metric((), found["unsequenced"]["events"])
            families["unsequenced_seconds"].add_metric((), found["unsequenced"]["seconds"])
            families["findings"].add_metric((), found["findings"]["open"])
            if found["leader"]:
                families["leader_silent_seconds"].add_metric((), found["leader"]["silent_seconds"])
            for kind, count in Tally(alarm["kind"] for alarm in found["alarms"]).items():
                families["alarms"].add_metric((kind,), count)
            for log in found["logs"]:
                families["size"].add_metric((log["origin"],), log["published"])
                for item in log["cosigners"]:
                    names = (log["origin"], item["name"], item["role"])
                    families["cosigned"].add_metric(names, item["size"])
                    families["behind_seconds"].add_metric(names, item["behind_seconds"])
        yield from families.values()


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

    def watch_ledger(self, read: Callable[[], dict[str, Any]]) -> None:
        """The same for the ledger; `read` gives the document of GET /v1/ledger, or nothing yet."""
        self.registry.register(_Ledger(read))

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:  # noqa: ARG002 - a listener's signature
        """Book listener."""
        if own:
            self._events.by_kind[event.kind] += 1

    def on_commit(self, _events: int, seconds: float, retried: bool) -> None:
        """Committer observer."""
        self.commit_seconds.observe(seconds)
        if retried:
            self.commit_retries.inc()
