"""What is known here of another datacenter whose events are mirrored, and the taking over of its open messages: `adoptions` has one document for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from controlplane.domain.events import Kind
from controlplane.store.client import Database, Document, border
from controlplane.store.comebacks import TakenBy
from controlplane.store.events import of_message
from controlplane.store.ledger import RUNS
from controlplane.store.schema import EVENTS

__all__ = ["ADOPTIONS", "Adoption", "RegionStore", "Taken"]

ADOPTIONS = "adoptions"
_ENDS = (Kind.FAILED, Kind.CANCELLED, Kind.ERASED)
_ENDS_A_PART = (Kind.DELIVERED, Kind.UNDELIVERED, Kind.EXPIRED)


class Taken(NamedTuple):
    """A message that a term accepted or adopted."""

    q: int
    at: int
    mid: str
    parts: int
    """0: not known from here."""


@dataclass(slots=True, kw_only=True)
class Adoption:
    """One run over a datacenter's messages; with `dry_run` it only counts."""

    id: str
    dc: str
    by: str
    """Node that does it."""
    epoch: int = 0
    """Its term."""
    dry_run: bool
    unattempted: str
    """What is done with messages of which no attempt is known: policy, send, hold."""
    at: int
    """When it began; ms since the epoch, like all times here."""
    beat: int
    """When it last said how far it is."""
    state: str = "running"
    """running, done, failed."""
    seen: int = 0
    total: int = 0
    """Sequence numbers looked at, and to be looked at."""
    counts: dict[str, int] = field(default_factory=dict)
    """Open messages by what becomes of them."""
    adopted: int = 0
    damaged: int = 0
    """Messages whose events cannot be read as a story; the log names them."""
    error: str = ""

    def document(self) -> Document:
        """As stored."""
        document = asdict(self)
        document["_id"] = document.pop("id")
        return document

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read."""
        return cls(id=document["_id"], **{name: value for name, value in document.items() if name != "_id"})


class RegionStore:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._events = database[EVENTS]
        self._runs = database[RUNS]
        self._adoptions = database[ADOPTIONS]

    async def terms(self, dc: str) -> list[tuple[str, int, int]]:
        """(node, epoch, highest q) of the terms whose events are mirrored from that datacenter; newest epochs first."""
        found: list[tuple[str, int, int]] = []
        query: dict[str, Any] = {"dc": dc}
        order = [("n", ASCENDING), ("e", ASCENDING), ("q", DESCENDING)]
        while True:
            with border():
                run = await self._runs.find_one(query, sort=order)
            if run is None:
                return sorted(found, key=lambda term: term[1], reverse=True)
            found.append((run["n"], run["e"], run["q"] + run["count"] - 1))
            query["$or"] = [{"n": {"$gt": run["n"]}}, {"n": run["n"], "e": {"$gt": run["e"]}}]

    async def taken(self, dc: str, node: str, epoch: int, below: int, limit: int) -> list[Taken]:
        """What a term accepted or adopted with q < `below`, newest first."""
        query = {
            "n": node,
            "e": epoch,
            "q": {"$lt": below},
            "dc": dc,
            "kind": {"$in": [Kind.ACCEPTED.value, Kind.ADOPTED.value]},
        }
        fields = {"_id": 0, "q": 1, "at": 1, "mid": 1, "data.parts": 1}
        order = [("n", DESCENDING), ("e", DESCENDING), ("q", DESCENDING)]
        with border():
            documents = await self._events.find(query, fields).sort(order).limit(limit).to_list()
        return [Taken(d["q"], d["at"], d["mid"], (d["data"] or {}).get("parts", 0)) for d in documents]

    async def ended(self, taken: Sequence[Taken]) -> set[str]:
        """Those of these messages that are certainly final, told by few and small documents: nearly all messages are. Others may be final too."""
        single = {item.mid for item in taken if item.parts == 1}
        query = {
            "$or": [of_message(item.mid) for item in taken],
            "kind": {"$in": [kind.value for kind in (*_ENDS, *_ENDS_A_PART)]},
        }
        sure = {kind.value for kind in _ENDS}
        with border():
            found = self._events.find(query, {"_id": 0, "mid": 1, "kind": 1})
            return {d["mid"] async for d in found if d["kind"] in sure or d["mid"] in single}

    async def begin(self, adoption: Adoption) -> bool:
        """False: there is one of this name."""
        with border():
            try:
                await self._adoptions.insert_one(adoption.document())
            except DuplicateKeyError:
                return False
        return True

    async def save(self, adoption: Adoption) -> None:
        """How far it is."""
        document = adoption.document()
        with border():
            await self._adoptions.replace_one({"_id": document["_id"]}, document, upsert=True)

    async def adoption(self, identity: str) -> Adoption | None:
        """One of them."""
        with border():
            document = await self._adoptions.find_one({"_id": identity})
        return Adoption.of(document) if document else None

    async def adoptions(self, dc: str | None = None) -> list[Adoption]:
        """The last hundred, newest first."""
        with border():
            documents = await self._adoptions.find({"dc": dc} if dc else {}).sort("at", DESCENDING).limit(100).to_list()
        return [Adoption.of(document) for document in documents]

    async def taken_by(self, here: str, dc: str, running_since: int) -> tuple[list[TakenBy], bool]:
        """The terms of `here` that took over messages of `dc`, each with its last event's number; and whether one still does, with a beat at or after `running_since`."""
        with border():
            documents = await self._adoptions.find({"dc": dc, "dry_run": False}).to_list()
        terms = sorted({(document["by"], document.get("epoch", 0)) for document in documents})
        running = any(each["state"] == "running" and each["beat"] >= running_since for each in documents)
        return [(node, epoch, await self._last_sequence(here, node, epoch)) for node, epoch in terms], running

    async def _last_sequence(self, dc: str, node: str, epoch: int) -> int:
        query = {"n": node, "e": epoch, "dc": dc}
        with border():
            newest = await self._events.find_one(query, {"q": 1}, sort=[("n", -1), ("e", -1), ("q", -1)])
        return int(newest["q"]) if newest else 0

    async def adopted(self) -> frozenset[str]:
        """The datacenters whose messages were taken over here: what they left is ours to erase, too."""
        with border():
            documents = await self._adoptions.find({"dry_run": False, "state": "done"}, {"dc": 1}).to_list()
        return frozenset(document["dc"] for document in documents)
