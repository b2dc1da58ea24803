"""Reading the event store: one message, many messages, a page of a tenant's messages. Also erasure, the one thing that alters an event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import structlog
from pymongo import ASCENDING, DESCENDING

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status, fold
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import EVENTS

__all__ = ["EventReader", "ListFilter", "Page", "from_document", "of_message", "to_document"]

_log = structlog.get_logger()
_CHUNK = 200
_SCAN_BUDGET = 20_000
"""Accepted messages that one list request may look at; past it the page is short and its cursor goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """Which messages a list shows. Times are ms since the epoch, of acceptance; `until` is exclusive."""

    status: Status | None = None
    to: str | None = None
    reference: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. `next` is (accepted_at, mid) of the last one looked at, None at the end."""

    items: list[tuple[Message, list[Event]]]
    next: tuple[int, str] | None


def to_document(event: Event) -> Document:
    """The event as stored; `cids`, `route` and `reason` only where there are any."""
    document: Document = {
        "_id": event.id,
        "mid": event.mid,
        "k": event.k,
        "t": event.tenant,
        "kind": event.kind,
        "at": event.at,
        "dc": event.dc,
        "n": event.node,
        "e": event.epoch,
        "q": event.q,
        "leaf": event.leaf,
        "salt": event.salt,
        "data": event.data,
    }
    if event.route is not None:
        document["route"] = event.route
    if event.reason is not None:
        document["reason"] = event.reason
    if event.ref is not None:
        document["ref"] = event.ref
    if event.cids:
        document["cids"] = list(event.cids)
    return document


def from_document(document: Document) -> Event:
    """The stored event. A kind that this version does not know (a newer node wrote it) raises ValueError."""
    return Event(
        mid=document["mid"],
        k=document["k"],
        tenant=document["t"],
        kind=Kind(document["kind"]),
        at=document["at"],
        dc=document["dc"],
        node=document["n"],
        epoch=document["e"],
        q=document["q"],
        leaf=bytes(document["leaf"]),
        data=document["data"],
        salt=bytes(document["salt"]) if document["salt"] is not None else None,
        route=document.get("route"),
        reason=document.get("reason"),
        ref=document.get("ref"),
        cids=tuple(document.get("cids", ())),
    )


def _readable(events: list[Event]) -> Message | None:
    """The fold, or None for a story with a gap: a list shows the others, and the log names this one."""
    try:
        return fold(events)
    except ValueError as error:
        _log.error("damaged_message", reason=str(error))
        return None


def of_message(mid: str) -> Document:
    """The query for all events of a message."""
    # `mid` targets one shard; the range on `_id` needs no index of its own.
    return {"mid": mid, "_id": {"$gte": f"{mid}:", "$lt": f"{mid};"}}


class EventReader:
    """Reads with majority read concern from the primary: what was acknowledged is seen."""

    def __init__(self, database: Database, datacenter: str, clock: Clock) -> None:
        self._events = database[EVENTS]
        self._datacenter = datacenter
        self._clock = clock

    async def load(self, mid: str) -> list[Event]:
        """All events of one message in order of k; empty when there is none."""
        with border():
            documents = await self._events.find(of_message(mid)).to_list()
        events = sorted(map(from_document, documents), key=lambda event: event.k)
        first, second, _ = mid.partition("@")
        if second and events and events[0].k:  # another datacenter's story (store.copies), the same up to there
            before = [replace(event, mid=mid) for event in await self.load(first) if event.k < events[0].k]
            events = before + events
        return events

    async def load_many(self, mids: Iterable[str]) -> dict[str, list[Event]]:
        """The events of several messages; those without any are absent."""
        wanted = list(mids)
        found: dict[str, list[Event]] = {}
        for start in range(0, len(wanted), _CHUNK):
            ranges = [of_message(mid) for mid in wanted[start : start + _CHUNK]]
            with border():
                documents = await self._events.find({"$or": ranges}).to_list()
            events = sorted(map(from_document, documents), key=lambda event: (event.mid, event.k))
            found.update((mid, list(group)) for mid, group in groupby(events, key=lambda event: event.mid))
        return found

    async def by_carrier_ids(self, keys: Sequence[str]) -> list[Event]:
        """The `submitted` events of this datacenter that hold one of `keys` (see domain.receipt.submit_key), newest first.

        Another datacenter's carriers may give the same ids, and name their connectors the same.
        """
        query = {"cids": {"$in": list(keys)}, "dc": self._datacenter}
        with border():
            documents = await self._events.find(query).sort("at", DESCENDING).limit(20).to_list()
        return [from_document(document) for document in documents]

    async def of_term(self, node: str, epoch: int, after: int) -> AsyncIterator[Event]:
        """What one term of one node of this datacenter wrote with q > `after`, in order of q."""
        query = {"n": node, "e": epoch, "q": {"$gt": after}, "dc": self._datacenter}
        with border():
            async for document in self._events.find(query).sort([("n", 1), ("e", 1), ("q", 1)]):
                yield from_document(document)

    async def last_sequence(self, node: str, epoch: int) -> int:
        """The largest q that this term committed, 0 for none."""
        with border():
            query = {"n": node, "e": epoch, "dc": self._datacenter}
            newest = await self._events.find_one(query, sort=[("n", -1), ("e", -1), ("q", -1)])
        return int(newest["q"]) if newest else 0

    async def list_messages(
        self, tenant: str, *, filters: ListFilter, cursor: tuple[int, str] | None, limit: int
    ) -> Page:
        """One page, newest acceptance first. A rare status may give a short page with a cursor: see _SCAN_BUDGET."""
        items: list[tuple[Message, list[Event]]] = []
        budget = _SCAN_BUDGET if filters.status else limit
        while budget > 0:
            step = min(_CHUNK if filters.status else limit - len(items), budget)
            heads = await self._heads(tenant, filters, cursor, step)
            events = await self.load_many(mid for _, mid in heads)
            now = self._clock.now_ms()
            for head in heads:
                cursor = head
                message = _readable(events.get(head[1], []))
                if message and (filters.status is None or message.status_at(now) is filters.status):
                    items.append((message, events[head[1]]))
                    if len(items) == limit:
                        return Page(items, cursor)
            budget -= step
            if len(heads) < step:
                return Page(items, None)
        return Page(items, cursor)

    async def _heads(
        self, tenant: str, filters: ListFilter, cursor: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str]]:
        kind = Kind.RECEIVED if filters.status is Status.RECEIVED else Kind.ACCEPTED
        query: Document = {"t": tenant, "kind": kind.value, "k": 0}  # the index has only these
        at: dict[str, Any] = {}
        if filters.since is not None:
            at["$gte"] = filters.since
        if filters.until is not None:
            at["$lt"] = filters.until
        if at:
            query["at"] = at
        if filters.to is not None:
            query["data.to"] = filters.to
        if filters.reference is not None:
            query["data.reference"] = filters.reference
        if cursor is not None:
            query["$or"] = [{"at": {"$lt": cursor[0]}}, {"at": cursor[0], "mid": {"$lt": cursor[1]}}]
        with border():
            found = (
                self._events.find(query, {"_id": 0, "at": 1, "mid": 1})
                .sort([("at", DESCENDING), ("mid", DESCENDING)])
                .limit(limit)
            )
            return [(document["at"], document["mid"]) async for document in found]

    async def erase(self, *mids: str) -> int:
        """Forget payload, salt and carriers' ids of every event of these messages but `erased` itself; leaves and proofs stay. How many it erased."""
        erased = 0
        for start in range(0, len(mids), _CHUNK):
            query = {
                "$or": [of_message(mid) for mid in mids[start : start + _CHUNK]],
                "kind": {"$ne": Kind.ERASED.value},
                "data": {"$ne": None},
            }
            with border():
                result = await self._events.update_many(
                    query, {"$set": {"data": None, "salt": None}, "$unset": {"cids": ""}}
                )
            erased += result.modified_count
        return erased

    async def erasable(
        self, tenant: str, kind: Kind, after: tuple[int, str], until: int, limit: int
    ) -> list[tuple[int, str]]:
        """(at, mid) of a tenant's messages that began with `kind` before `until`, oldest first, beyond `after`."""
        query: Document = {"t": tenant, "kind": kind.value, "k": 0, "at": {"$gte": after[0], "$lt": until}}
        query["$or"] = [{"at": {"$gt": after[0]}}, {"at": after[0], "mid": {"$gt": after[1]}}]
        with border():
            found = (
                self._events.find(query, {"_id": 0, "at": 1, "mid": 1})
                .sort([("at", ASCENDING), ("mid", ASCENDING)])
                .limit(limit)
            )
            return [(document["at"], document["mid"]) async for document in found]
