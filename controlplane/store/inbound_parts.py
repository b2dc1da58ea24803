"""Parts of long mobile-originated messages: durable until the message is whole, and a while longer, so that a redelivered part is known.

`{_id: "<key>|<number>", key, number, total, text, at, due, done}`; `key` names connector, source, destination, reference and total.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.concat import StoredPart
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import INBOUND_PARTS

__all__ = ["InboundParts", "PartGroup"]

_WAIT_MS = 1_800_000
_REMEMBER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class PartGroup:
    """The parts of one message that have come."""

    key: str
    first_at: int
    parts: tuple[StoredPart, ...]
    done: bool


class InboundParts:
    """Shared by the nodes of a datacenter: parts may come on different binds."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._parts = database[INBOUND_PARTS]
        self._clock = clock

    async def add(self, key: str, part: StoredPart) -> PartGroup:
        """Keep a part, durably; the group as it now is. A part with another text under the same name begins a new message: its reference was reused."""
        now = self._clock.now_ms()
        document: Document = {
            "_id": f"{key}|{part.number}",
            "key": key,
            "number": part.number,
            "total": part.total,
            "text": part.text,
            "at": now,
            "due": now + _WAIT_MS,
            "done": False,
        }
        with border():
            try:
                await self._parts.insert_one(document)
            except DuplicateKeyError:
                known = await self._parts.find_one({"_id": document["_id"]})
                if known is not None and known["text"] != part.text:
                    await self._parts.delete_many({"key": key})
                    await self._parts.insert_one(document)
        return await self.group(key)

    async def group(self, key: str) -> PartGroup:
        """What there is of one message."""
        with border():
            documents = await self._parts.find({"key": key}).to_list()
        return _group(key, documents)

    async def finish(self, key: str) -> None:
        """The message is recorded: remember its parts a while, by name alone."""
        with border():
            await self._parts.update_many(
                {"key": key}, {"$set": {"done": True, "due": self._clock.now_ms() + _REMEMBER_MS}}
            )

    async def due(self) -> list[PartGroup]:
        """Groups whose time is over: incomplete ones to be recorded as they are. Forgets those that are done."""
        now = self._clock.now_ms()
        with border():
            await self._parts.delete_many({"due": {"$lte": now}, "done": True})
            keys = await self._parts.distinct("key", {"due": {"$lte": now}, "done": False})
        return [await self.group(key) for key in keys]


def _group(key: str, documents: list[Document]) -> PartGroup:
    parts = tuple(StoredPart(d["number"], d["total"], d["text"]) for d in documents)
    return PartGroup(key, min((d["at"] for d in documents), default=0), parts, any(d["done"] for d in documents))
