"""Receipts that nobody knows yet: kept until the submit_sm_resp that explains them is stored, or until they are too old.

The join is symmetric. A receipt that finds no message becomes an orphan; every node looks at the due ones again and again, with growing pauses, so
whichever side is stored last, they meet. The `_id` is a digest of what the carrier said: a redelivered receipt is the same orphan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.receipt import Receipt
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import ORPHANS

__all__ = ["Orphan", "OrphanStore"]

_FIRST_PAUSE_MS = 1_000
_LAST_PAUSE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Orphan:
    """One receipt without a message."""

    id: str
    connector: str
    keys: tuple[str, ...]
    """Candidate keys of its message (domain.receipt.receipt_keys), best first."""
    recipient: str
    """The receipt's source address: the number that the message went to."""
    receipt: Receipt
    at: int
    tries: int = 0


class OrphanStore:
    """Shared by the nodes of a datacenter."""

    def __init__(self, database: Database, clock: Clock, *, keep_days: int) -> None:
        self._orphans = database[ORPHANS]
        self._clock = clock
        self._keep_ms = keep_days * 86_400_000

    async def put(self, connector: str, keys: tuple[str, ...], recipient: str, receipt: Receipt) -> str:
        """Keep it, durably. Returns its id; the same receipt again is the same orphan."""
        digest = hashlib.sha256(repr((connector, recipient, sorted(receipt.as_data().items()))).encode()).hexdigest()
        now = self._clock.now_ms()
        document = {
            "_id": digest,
            "connector": connector,
            "keys": list(keys),
            "recipient": recipient,
            "receipt": {**receipt.as_data(), "source": receipt.source},
            "at": now,
            "tries": 0,
            "due": now + _FIRST_PAUSE_MS,
        }
        with border():
            try:
                await self._orphans.insert_one(document)
            except DuplicateKeyError:
                return digest
        return digest

    async def due(self, limit: int = 200) -> list[Orphan]:
        """Those whose next look has come, oldest first."""
        with border():
            found = self._orphans.find({"due": {"$lte": self._clock.now_ms()}}).sort("due", 1).limit(limit)
            return [_orphan(document) async for document in found]

    async def by_ids(self, ids: list[str]) -> list[Orphan]:
        """Those that are still orphans."""
        with border():
            return [_orphan(document) async for document in self._orphans.find({"_id": {"$in": ids}})]

    async def postpone(self, orphan: Orphan) -> None:
        """Not joined this time. Past the keeping time it is set aside for good: kept, listed, no longer looked at."""
        now = self._clock.now_ms()
        pause = min(_FIRST_PAUSE_MS * 2 ** min(orphan.tries, 20), _LAST_PAUSE_MS)
        due = now + pause if now - orphan.at < self._keep_ms else 2**53
        with border():
            await self._orphans.update_one({"_id": orphan.id}, {"$set": {"due": due}, "$inc": {"tries": 1}})

    async def remove(self, orphan_id: str) -> None:
        """Joined: its event is committed."""
        with border():
            await self._orphans.delete_one({"_id": orphan_id})


def _orphan(document: Document) -> Orphan:
    receipt = document["receipt"]
    return Orphan(
        id=document["_id"],
        connector=document["connector"],
        keys=tuple(document["keys"]),
        recipient=document["recipient"],
        receipt=Receipt(**receipt),
        at=document["at"],
        tries=document["tries"],
    )
