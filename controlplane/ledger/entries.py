"""From a log's entry and its private payload back to the event, and the other way round. Strict: what is accepted is written again byte for byte."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

import msgspec

from controlplane.domain.events import LEAF_VERSION, Event, Kind, canonical, commitment, committed_payload, leaf_bytes

__all__ = ["Row", "event_of", "place_of", "row"]

Row = tuple[bytes, bytes | None, bytes | None]
"""(leaf, salt, payload): an event as ledgers hand it to each other. Salt and payload are None once erased."""


_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What MongoDB can store."""


class _Leaf(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    at: _Whole
    commit: str
    dc: str
    e: _Whole
    k: _Whole
    kind: str
    mid: str
    n: str
    q: _Whole
    v: _Whole
    prev: str | None = None
    reason: str | None = None
    ref: str | None = None
    route: str | None = None


class _Place(msgspec.Struct, frozen=True):
    n: str
    e: int
    q: int
    mid: str
    k: int
    kind: str


_leaf = msgspec.json.Decoder(_Leaf).decode
_place = msgspec.json.Decoder(_Place).decode
_any = msgspec.json.Decoder(list[Any]).decode


def place_of(leaf: bytes) -> _Place:
    """Only where an entry stands: n, e, q, mid, k, kind. ValueError when it is no leaf. About 1 µs."""
    try:
        return _place(leaf)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a leaf: {error}") from None


def row(event: Event) -> Row:
    """What a peer gets of this event."""
    if event.salt is None or event.data is None:
        return event.leaf, None, None
    return event.leaf, event.salt, committed_payload(event)


def event_of(leaf: bytes, salt: bytes | None, payload: bytes | None) -> Event:
    """The event, with data and salt None where the payload is erased.

    ValueError when the leaf is not in canonical form, when it is of a kind or version that this program does not know, or when the payload is not
    what the leaf commits to.
    """
    try:
        found = _leaf(leaf)
        event = Event(
            mid=found.mid,
            k=found.k,
            tenant="",
            kind=Kind(found.kind),
            at=found.at,
            data=None,
            prev=bytes.fromhex(found.prev) if found.prev is not None else None,
            route=found.route,
            reason=found.reason,
            dc=found.dc,
            node=found.n,
            epoch=found.e,
            q=found.q,
            leaf=leaf,
            ref=found.ref,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"not a leaf: {error}") from None
    if found.v != LEAF_VERSION:
        raise ValueError(f"a leaf of version {found.v}; this program knows {LEAF_VERSION}")
    if leaf_bytes(event, found.commit) != leaf:
        raise ValueError("a leaf that is not in canonical form")
    if salt is None and payload is None:
        return event
    if salt is None or payload is None or not hmac.compare_digest(commitment(salt, payload), found.commit):
        raise ValueError(f"the payload of {event.id} is not what its leaf commits to")
    _open(event, salt, payload)
    return event


def _open(event: Event, salt: bytes, payload: bytes) -> None:
    wrong = ValueError(f"the payload of {event.id} is committed to, and not in its canonical form")
    try:
        values = _any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise wrong from None
    if len(values) not in (2, 3) or not isinstance(values[0], str) or not isinstance(values[1], dict):
        raise wrong
    cids = values[2] if len(values) == 3 else []
    if not isinstance(cids, list) or not all(isinstance(item, str) for item in cids) or canonical(values) != payload:
        raise wrong
    event.tenant, event.data, event.cids = values[0], values[1], tuple(cids)
    event.salt = salt
