"""What the search index's writer says of itself; only the ledger that leads has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.clock import Clock
from controlplane.ledger.index import Indexer

__all__ = ["INDEX_GAUGES", "IndexGauges"]

INDEX_GAUGES = {
    "heliograph_search_messages": "Messages in the search index.",
    "heliograph_search_segments": "Segments of the search index.",
    "heliograph_search_behind": "Entries of the logs that are not in the search index yet.",
    "heliograph_search_lag_seconds": "Age of the newest moment before which every message is in the search index.",
}


class IndexGauges(Collector):
    """Read when they are asked for."""

    def __init__(self, read: Callable[[], Indexer | None], clock: Clock) -> None:
        self._read = read
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family a gauge; nothing while this ledger does not lead, or has not indexed yet."""
        found = self._read()
        if found is None or not found.until:
            return
        values = (found.messages, found.segments, found.behind, (self._clock.now_ms() - found.until) / 1000)
        for (name, text), value in zip(INDEX_GAUGES.items(), values, strict=True):
            yield GaugeMetricFamily(name, text, value=value)
