"""Reading the event store: one message, many messages, a page of a tenant's messages. Also erasure, the one thing that alters an event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import structlog
from pymongo import ASCENDING, DESCENDING

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import EVENTS

__all__ = ["EventReader", "Head", "Page", "from_document", "of_message", "to_document"]

_log = structlog.get_logger()
_KINDS = frozenset(Kind)
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first. `next` is (accepted_at, mid) of the last one looked at, None at the end."""

    items: list[tuple[Message, list[Event]]]
    next: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a message stands in a list."""

    at: int
    mid: str
    first: Event

    @property
    def place(self) -> tuple[int, str]:
        """(accepted at, mid)."""
        return self.at, self.mid


def _one_or_more(values: Sequence[str]) -> Any:
    return values[0] if len(values) == 1 else {"$in": list(values)}


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


def of_message(mid: str) -> Document:
    """The query for all events of a message."""
    # `mid` targets one shard; the range on `_id` needs no index of its own.
    return {"mid": mid, "_id": {"$gte": f"{mid}:", "$lt": f"{mid};"}}


class EventReader:
    """Reads with majority read concern from the primary: what was acknowledged is seen."""

    def __init__(self, database: Database, datacenter: str) -> None:
        self._events = database[EVENTS]
        self._datacenter = datacenter

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
        """The events of several messages; those without any are absent, and those with an event that a newer version wrote."""
        wanted = list(mids)
        found: dict[str, list[Event]] = {}
        for start in range(0, len(wanted), _CHUNK):
            ranges = [of_message(mid) for mid in wanted[start : start + _CHUNK]]
            with border():
                documents = await self._events.find({"$or": ranges}).to_list()
            documents.sort(key=lambda document: (document["mid"], document["k"]))
            for mid, group in groupby(documents, key=lambda document: str(document["mid"])):
                try:
                    found[mid] = [from_document(document) for document in group]
                except ValueError as error:
                    _log.error("message_not_read", mid=mid, reason=str(error))
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
        """What one term of one node of this datacenter wrote with q > `after`, in order of q; without what only a newer version knows."""
        query = {"n": node, "e": epoch, "q": {"$gt": after}, "dc": self._datacenter}
        with border():
            async for document in self._events.find(query).sort([("n", 1), ("e", 1), ("q", 1)]):
                if document["kind"] in _KINDS:
                    yield from_document(document)
                else:
                    _log.error("event_not_read", id=document["_id"], kind=document["kind"])

    async def last_sequence(self, node: str, epoch: int) -> int:
        """The largest q that this term committed, 0 for none."""
        with border():
            query = {"n": node, "e": epoch, "dc": self._datacenter}
            newest = await self._events.find_one(query, sort=[("n", -1), ("e", -1), ("q", -1)])
        return int(newest["q"]) if newest else 0

    async def heads(
        self,
        tenants: Sequence[str],
        kinds: Sequence[Kind],
        least: int,
        below: tuple[int, str],
        limit: int,
        exact: Mapping[str, str],
    ) -> list[Head]:
        """Messages of `tenants` that began with one of `kinds`, newest first: accepted at or after `least`, with (at, mid) below `below`.
        `exact`: what fields of the first event's data must be."""
        query: Document = {"t": _one_or_more(tenants), "kind": _one_or_more([kind.value for kind in kinds]), "k": 0}
        query["at"] = {"$gte": least, "$lte": below[0]}
        query["$or"] = [{"at": {"$lt": below[0]}}, {"at": below[0], "mid": {"$lt": below[1]}}]
        query |= {f"data.{name}": value for name, value in exact.items()}
        with border():
            documents = await (
                self._events.find(query).sort([("at", DESCENDING), ("mid", DESCENDING)]).limit(limit).to_list()
            )
        return [Head(document["at"], document["mid"], from_document(document)) for document in documents]

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
