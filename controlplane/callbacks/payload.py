"""What a callback says. A retry builds it from the events anew, so that content erased meanwhile is not sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

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
    return event.kind in SENT and message.status.value == event.kind.value


def payload(message: Message, event: Event) -> bytes:
    """The body, JSON: `message` is the fold up to and including `event`."""
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
        data["complete"] = (event.data or {}).get("complete", True)
        data["preference"] = (event.data or {}).get("preference")
    else:
        data["reference"] = message.reference or None
        data["context"] = message.context or {}
        data["route"] = message.route or None
        data["parts"] = {
            "total": len(message.parts),
            "delivered": sum(part.state is PartState.DELIVERED for part in message.parts),
        }
    return msgspec.json.encode({"type": f"message.{event.kind.value}", "timestamp": _iso(event.at), "data": data})


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
