"""What is counted of messages, by minute, tenant, route and class. Pure: rows of integers that add over everything.

A row is a list, for speed; `FIELDS` names its places. What an event adds:

| event | adds |
|---|---|
| accepted | accepted, accepted_parts; to the route "": none is chosen yet |
| submitted | parts and price, and submitted once the carrier has every part |
| unknown | unknown |
| deferred, rerouted, failed with a command_status | refused |
| the event that settles the message | delivered, undelivered, failed, expired or cancelled |
| delivered, as the end of it | in_5s and in_time, where it arrived within 5 s, and within its class's deadline, of when it was due; the histogram of that time |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane.domain.events import Event, Kind
from controlplane.domain.latency import BUCKETS, bucket, quantile
from controlplane.domain.message import Message, Status

__all__ = ["FIELDS", "WIDTH", "count", "view"]

FIELDS = (
    "accepted",
    "accepted_parts",
    "submitted",
    "parts",
    "price",
    "unknown",
    "refused",
    "delivered",
    "undelivered",
    "failed",
    "expired",
    "cancelled",
    "in_5s",
    "in_time",
    *(f"h{number}" for number in range(BUCKETS)),
)
WIDTH = len(FIELDS)
_PLACE = {name: number for number, name in enumerate(FIELDS)}
_HISTOGRAM = _PLACE["h0"]
(_ACCEPTED, _ACCEPTED_PARTS, _SUBMITTED, _PARTS, _PRICE, _UNKNOWN, _REFUSED) = range(7)
_ENDS = {
    status: _PLACE[status.value]
    for status in (Status.DELIVERED, Status.UNDELIVERED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)
}
_IS_ACCEPTED, _IS_SUBMITTED, _IS_UNKNOWN = Kind.ACCEPTED, Kind.SUBMITTED, Kind.UNKNOWN
_IS_DEFERRED, _IS_REROUTED, _IS_FAILED, _IS_DELIVERED = Kind.DEFERRED, Kind.REROUTED, Kind.FAILED, Status.DELIVERED
_DELIVERED, _IN_5S, _IN_TIME = _PLACE["delivered"], _PLACE["in_5s"], _PLACE["in_time"]


def count(
    row: list[int],
    message: Message,
    event: Event,
    price: Callable[[str], int],
    deadlines_ms: Mapping[str, int],
) -> None:
    """Add what `event` says; `message` is the fold that includes it. `price`: of a route, minor units a part; `deadlines_ms` by class.

    On the path of every message, hence the members of enumerations by names of this module: to look one up in its class takes as long as the rest.
    """
    kind = event.kind
    if kind is _IS_ACCEPTED:
        row[_ACCEPTED] += 1
        row[_ACCEPTED_PARTS] += len(message.parts)
    elif kind is _IS_SUBMITTED:
        parts = len(event.data["part_ids"]) if event.data else 0
        row[_PARTS] += parts
        row[_PRICE] += parts * price(message.route)
        row[_SUBMITTED] += len(message.parts) == 1 or not message.pending
    elif kind is _IS_UNKNOWN:
        row[_UNKNOWN] += 1
    elif kind is _IS_DEFERRED or kind is _IS_REROUTED or kind is _IS_FAILED:
        row[_REFUSED] += "command_status" in (event.data or {})
    if message.settled_k == event.k:
        if message.status is _IS_DELIVERED:
            begun = max(message.accepted_at, message.send_at)
            took = event.at - begun
            row[_DELIVERED] += 1
            row[_HISTOGRAM + bucket(took / 1000)] += 1
            row[_IN_5S] += took <= 5_000
            row[_IN_TIME] += took <= deadlines_ms.get(message.cls, 0)
        else:
            row[_ENDS[message.status]] += 1


def view(counts: Mapping[str, int] | Sequence[int], prices: Mapping[str, int]) -> dict[str, Any]:
    """A sum of rows as the API shows it; `prices`: currency → minor units."""
    row = counts if isinstance(counts, Mapping) else dict(zip(FIELDS, counts, strict=True))
    histogram = [row.get(f"h{number}", 0) for number in range(BUCKETS)]
    shown: dict[str, Any] = {name: row.get(name, 0) for name in FIELDS[:_HISTOGRAM] if name != "price"}
    ended = sum(shown[status.value] for status in _ENDS if status is not Status.CANCELLED)
    delivered = shown["delivered"]
    return shown | {
        "price": {currency: amount for currency, amount in sorted(prices.items()) if amount},
        "delivery_rate": round(delivered / ended, 4) if ended else None,
        "in_5s_rate": round(shown["in_5s"] / ended, 4) if ended else None,
        "in_time_rate": round(shown["in_time"] / ended, 4) if ended else None,
        "delivery_seconds": {"p50": quantile(histogram, 0.5), "p95": quantile(histogram, 0.95)},
    }
