"""A message is the fold of its events. Its status is monotone: what is final stays, and late facts are kept without moving it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from controlplane.domain.events import Event, Kind, leaf_hash

__all__ = ["FINAL", "Message", "Part", "PartState", "Status", "fold"]


class Status(StrEnum):
    """What people see. docs/api.md says what each means and what to do."""

    SCHEDULED = "scheduled"
    ACCEPTED = "accepted"
    QUEUED = "queued"
    SUBMITTED = "submitted"
    UNKNOWN = "unknown"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    RECEIVED = "received"
    """A mobile-originated message."""


FINAL = frozenset(
    {Status.DELIVERED, Status.UNDELIVERED, Status.FAILED, Status.EXPIRED, Status.CANCELLED, Status.RECEIVED}
)


class PartState(StrEnum):
    """What is known of one part (SMS segment)."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    UNKNOWN = "unknown"
    ENROUTE = "enroute"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    EXPIRED = "expired"


_FINAL_PART = frozenset({PartState.DELIVERED, PartState.UNDELIVERED, PartState.EXPIRED})
_PART_OF_RECEIPT = {
    Kind.ENROUTE: PartState.ENROUTE,
    Kind.DELIVERED: PartState.DELIVERED,
    Kind.UNDELIVERED: PartState.UNDELIVERED,
    Kind.EXPIRED: PartState.EXPIRED,
}
_MESSAGE_LEVEL = {
    Kind.FAILED: Status.FAILED,
    Kind.EXPIRED: Status.EXPIRED,
    Kind.CANCELLED: Status.CANCELLED,
}


@dataclass(slots=True)
class Part:
    """One SMS segment: where it went and what the carrier said."""

    state: PartState = PartState.PENDING
    connector: str = ""
    cid: str = ""
    """The carrier's id, raw."""
    attempt: int = 0
    """The last attempt whose outcome is recorded."""
    receipt: str = ""
    """`state error done_date` of the last receipt kept, by which a repeated one is known."""


@dataclass(slots=True)
class Message:
    """The state of one message after `next_k` events. Mutated by `apply` alone."""

    mid: str
    tenant: str = ""
    next_k: int = 0
    prev: bytes | None = None
    """Leaf hash of the newest event."""
    status: Status = Status.ACCEPTED
    accepted_at: int = 0
    updated_at: int = 0
    owner: tuple[str, str, int] | None = None
    """(datacenter, node, epoch) that dispatches it; None for a message from a phone."""
    to: str = ""
    sender: str = ""
    body: str = ""
    cls: str = ""
    encoding: str = ""
    sender_type: str = ""
    ref: int = 0
    """Concatenation reference of a long message: kept, so that a part sent later still joins the others."""
    expires_at: int = 0
    send_at: int = 0
    unknown_policy: str = ""
    callback_url: str = ""
    max_price: int | None = None
    reference: str = ""
    origin: str = ""
    """The sender's country."""
    context: dict[str, str] | None = None
    """The client's own words, for its callbacks."""
    parts: list[Part] = field(default_factory=list)
    attempt: int = 0
    route: str = ""
    connector: str = ""
    tried: tuple[str, ...] = ()
    """Routes that refused it for good."""
    retry_at: int = 0
    reason: str = ""
    erased: bool = False
    feedback: str = ""
    resent_as: str = ""
    """The newest message that repeats this one."""
    settled_k: int = -1
    """Ordinal of the event that gave it its final status; -1 while it has none."""
    mirror_first: tuple[str, str, int, int] | None = None
    """Of durability `global`: where its `accepted` stands (datacenter, node, epoch, q). Nothing is sent before a mirror has that."""

    @property
    def final(self) -> bool:
        """Whether the status can no longer change."""
        return self.status in FINAL

    @property
    def pending(self) -> list[int]:
        """Numbers (from 1) of the parts that have still to be submitted."""
        return [n for n, part in enumerate(self.parts, 1) if part.state is PartState.PENDING]

    def part(self, number: int) -> Part:
        """The part with this number, from 1. It is made where the event that told of it is lost."""
        while len(self.parts) < number:
            self.parts.append(Part())
        return self.parts[number - 1]

    def status_at(self, now_ms: int) -> Status:
        """The status that people see at `now_ms`: a scheduled message whose time has come is queued."""
        if self.status is Status.SCHEDULED and self.send_at <= now_ms:
            return Status.QUEUED
        return self.status

    def apply(self, event: Event) -> None:
        """Take one more event. Raises ValueError when it is not the next one: a fold over a gap would lie."""
        if event.k != self.next_k or event.mid != self.mid:
            raise ValueError(f"event {event.id} does not follow {self.mid}:{self.next_k - 1}")
        self.next_k += 1
        self.prev = leaf_hash(event.leaf)
        _APPLY[event.kind](self, event, event.data if event.data is not None else {})
        if event.kind not in _SILENT:
            self.updated_at = event.at

    def settle(self, status: Status, reason: str | None) -> None:
        """Move to a final status, unless there is one already."""
        if not self.final:
            self.status = status
            self.reason = reason or ""
            self.settled_k = self.next_k - 1

    def aggregate(self, reason: str | None) -> None:
        """Status from the parts: final only when every part is."""
        if self.final or not self.parts:
            return
        states = {part.state for part in self.parts}
        if states <= _FINAL_PART:
            if PartState.UNDELIVERED in states:
                self.settle(Status.UNDELIVERED, reason)
            elif PartState.EXPIRED in states:
                self.settle(Status.EXPIRED, reason)
            else:
                self.settle(Status.DELIVERED, reason)
        elif PartState.PENDING in states:
            if self.status is not Status.SCHEDULED or self.attempt:
                self.status = Status.QUEUED
        else:
            self.status = Status.UNKNOWN if PartState.UNKNOWN in states else Status.SUBMITTED


def _accepted(m: Message, event: Event, data: dict[str, Any]) -> None:
    m.tenant = event.tenant
    m.owner = (event.dc, event.node, event.epoch)
    m.accepted_at = event.at
    m.to = data.get("to", "")
    m.sender = data.get("from", "")
    m.body = data.get("body", "")
    m.cls = data.get("class", "")
    m.encoding = data.get("encoding", "")
    m.sender_type = data.get("sender_type", "")
    m.ref = data.get("ref", 0)
    m.expires_at = data.get("expires_at", 0)
    m.send_at = data.get("send_at", 0)
    m.unknown_policy = data.get("unknown_policy", "")
    m.callback_url = data.get("callback_url", "")
    m.max_price = data.get("max_price")
    m.reference = data.get("reference", "")
    m.origin = data.get("origin", "")
    m.context = data.get("context")
    m.parts = [Part() for _ in range(data.get("parts", 0))]
    m.status = Status.SCHEDULED if m.send_at > event.at else Status.ACCEPTED
    if data.get("durability") == "global":
        m.mirror_first = (event.dc, event.node, event.epoch, event.q)


def _attempted(m: Message, event: Event, data: dict[str, Any], parts: Iterable[int]) -> None:
    attempt = data.get("attempt", 0)
    m.attempt = max(m.attempt, attempt)
    for number in parts:
        m.part(number).attempt = max(m.part(number).attempt, attempt)
    m.route = event.route or m.route
    m.connector = data.get("connector", m.connector)


def _submitted(m: Message, event: Event, data: dict[str, Any]) -> None:
    _attempted(m, event, data, [number for number, _ in data.get("part_ids", ())])
    for number, cid in data.get("part_ids", ()):
        part = m.part(number)
        part.cid = cid
        part.connector = data.get("connector", "")
        if part.state in (PartState.PENDING, PartState.UNKNOWN):
            part.state = PartState.SUBMITTED
    m.aggregate(event.reason)


def _unknown(m: Message, event: Event, data: dict[str, Any]) -> None:
    _attempted(m, event, data, data.get("parts", ()))
    for number in data.get("parts", ()):
        part = m.part(number)
        if part.state is PartState.PENDING:
            part.state = PartState.UNKNOWN
            part.connector = data.get("connector", "")
    m.reason = event.reason or ""
    m.aggregate(event.reason)


def _deferred(m: Message, event: Event, data: dict[str, Any]) -> None:
    _attempted(m, event, data, data.get("parts", ()))
    m.retry_at = data.get("retry_at", 0)
    m.reason = event.reason or ""
    m.aggregate(event.reason)


def _rerouted(m: Message, event: Event, data: dict[str, Any]) -> None:
    _attempted(m, event, data, data.get("parts", ()))
    m.tried = tuple(data.get("tried", m.tried))
    for number in data.get("parts", ()):
        part = m.part(number)
        if part.state is PartState.UNKNOWN:
            part.state = PartState.PENDING
    m.retry_at = data.get("retry_at", 0)
    m.reason = event.reason or ""
    m.aggregate(event.reason)


def _receipt(m: Message, event: Event, data: dict[str, Any]) -> None:
    number = data.get("part")
    if number is None:
        if event.kind in _MESSAGE_LEVEL and event.data is not None:
            m.settle(_MESSAGE_LEVEL[event.kind], event.reason)
        return
    part = m.part(number)
    if "former" in data and event.kind is not Kind.DELIVERED:
        return  # the part has gone out again since: only its arrival would say something of it
    receipt = data.get("receipt", {})
    part.receipt = f"{receipt.get('state', '')} {receipt.get('error', '')} {receipt.get('done_date', '')}"
    part.connector = part.connector or data.get("connector", "")
    part.cid = part.cid or receipt.get("id", "")
    if part.state not in _FINAL_PART:
        part.state = _PART_OF_RECEIPT[event.kind]
        if "tried" in data and not m.final:
            m.tried = tuple(data["tried"])
            part.state = PartState.PENDING
    m.aggregate(event.reason)


def _settled(m: Message, event: Event, _data: dict[str, Any]) -> None:
    m.settle(_MESSAGE_LEVEL[event.kind], event.reason)


def _adopted(m: Message, event: Event, _data: dict[str, Any]) -> None:
    m.owner = (event.dc, event.node, event.epoch)


def _feedback(m: Message, _event: Event, data: dict[str, Any]) -> None:
    m.feedback = data.get("outcome", "")


def _resent(m: Message, _event: Event, data: dict[str, Any]) -> None:
    m.resent_as = data.get("message", "")


def _erased(m: Message, _event: Event, data: dict[str, Any]) -> None:
    m.erased = True
    m.to = m.sender = m.body = m.callback_url = m.reference = ""
    m.context = None
    m.status = Status(data.get("status", m.status))
    m.cls = data.get("class", m.cls)
    m.encoding = data.get("encoding", m.encoding)
    if not m.parts:
        m.parts = [Part() for _ in range(data.get("parts", 0))]


def _received(m: Message, event: Event, data: dict[str, Any]) -> None:
    m.tenant = event.tenant
    m.accepted_at = event.at
    m.to = data.get("to", "")
    m.sender = data.get("from", "")
    m.body = data.get("body", "")
    m.connector = data.get("connector", "")
    m.status = Status.RECEIVED


def _void(_m: Message, event: Event, _data: dict[str, Any]) -> None:
    raise ValueError(f"{event.id} belongs to no message")


def _gap(_m: Message, _event: Event, _data: dict[str, Any]) -> None:
    """What it was is not known any more; what follows can be read."""


_APPLY = {
    Kind.ACCEPTED: _accepted,
    Kind.SUBMITTED: _submitted,
    Kind.DEFERRED: _deferred,
    Kind.REROUTED: _rerouted,
    Kind.UNKNOWN: _unknown,
    Kind.ENROUTE: _receipt,
    Kind.DELIVERED: _receipt,
    Kind.UNDELIVERED: _receipt,
    Kind.EXPIRED: _receipt,
    Kind.FAILED: _settled,
    Kind.CANCELLED: _settled,
    Kind.FEEDBACK: _feedback,
    Kind.RESENT: _resent,
    Kind.ADOPTED: _adopted,
    Kind.ERASED: _erased,
    Kind.RECEIVED: _received,
    Kind.GAP: _gap,
    Kind.VOID: _void,
    Kind.OPENED: _void,
    Kind.REPAIRED: _void,
    Kind.RECOVERED: _void,
    Kind.FORK: _void,
}
_SILENT = frozenset({Kind.ADOPTED, Kind.FEEDBACK, Kind.RESENT, Kind.GAP})


def fold(events: Iterable[Event]) -> Message | None:
    """The message that `events` (in order of k, from 0) describe; None for no events."""
    message: Message | None = None
    for event in events:
        if message is None:
            message = Message(mid=event.mid, tenant=event.tenant)
        message.apply(event)
    return message
