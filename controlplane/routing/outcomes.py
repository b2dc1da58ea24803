"""What came of decisions, read from messages' stories: what off-policy evaluation and audits begin with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from controlplane.domain.events import Event, Kind
from controlplane.routing.evaluate import Sent

__all__ = ["Decided", "decisions", "sent"]

_ENDS = frozenset({Kind.DELIVERED, Kind.UNDELIVERED, Kind.EXPIRED, Kind.FAILED})


class Decided(NamedTuple):
    """One decision of one message."""

    mid: str
    k: int
    """Of the event that holds it."""
    at: int
    """ms since the epoch, of that event."""
    record: str


def decisions(events: Sequence[Event]) -> Iterator[Decided]:
    """Of one message, in order. An erased one has none any more."""
    for event in events:
        record = (event.data or {}).get("decision")
        if isinstance(record, str):
            yield Decided(event.mid, event.k, event.at, record)


def sent(stories: Iterable[Sequence[Event]], deadlines_ms: Mapping[str, int], now_ms: int) -> Iterator[Sent]:
    """First decisions whose outcome is known: the message got its final receipt, or its class's deadline is over."""
    for events in stories:
        first = next(decisions(events), None)
        taken = next((event for event in events if event.kind is Kind.SUBMITTED), None)
        if first is None or taken is None or events[0].data is None:
            continue
        deadline = deadlines_ms[events[0].data.get("class", "")]
        end = next((event for event in events if event.kind in _ENDS and event.k > taken.k), None)
        if end is None and now_ms < taken.at + deadline:
            continue
        seconds = (end.at - taken.at) / 1000 if end is not None else 0.0
        in_time = end is not None and end.kind is Kind.DELIVERED and end.at <= taken.at + deadline
        yield Sent(first.record, taken.route or "", in_time, seconds)
