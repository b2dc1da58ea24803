"""What a callback says. Built from the events each time it is sent, so that erased content is not sent either."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState

__all__ = ["SENT", "payload", "settles"]

SENT = frozenset(
    {
        Kind.SUBMITTED,
        Kind.UNKNOWN,
        Kind.DELIVERED,
        Kind.UNDELIVERED,
        Kind.FAILED,
        Kind.EXPIRED,
        Kind.CANCELLED,
        Kind.RECEIVED,
    }
)
"""Kinds of events that tenants are told of."""


def settles(message: Message, event: Event) -> bool:
    """Whether this event gave the message the status of its own name: a late fact, or one part of several, did not."""
    return event.kind in SENT and str.__eq__(message.status, event.kind)


def payload(message: Message, event: Event, accepted: dict[str, Any]) -> dict[str, Any]:
    """The body: `message` is the fold up to and including `event`; `accepted` the data of its first event ({} once erased)."""
    data: dict[str, Any] = {
        "id": message.mid,
        "sequence": event.k,
        "status": message.status.value,
        "to": message.to,
        "from": message.sender,
        "accepted_at": _iso(message.accepted_at),
        "reason": event.reason,
    }
    if event.kind is Kind.RECEIVED:
        data["body"] = message.body
        data["complete"] = accepted.get("complete", True)
    else:
        data["reference"] = accepted.get("reference")
        data["context"] = accepted.get("context", {})
        data["route"] = message.route or None
        data["parts"] = {
            "total": len(message.parts),
            "delivered": sum(part.state is PartState.DELIVERED for part in message.parts),
        }
    return {"type": f"message.{event.kind.value}", "timestamp": _iso(event.at), "data": data}


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
