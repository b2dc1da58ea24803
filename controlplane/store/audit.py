"""Who did what, when, from where, and what came of it: only ever inserted, forgotten after `HELIOGRAPH_AUDIT_DAYS`.

`audit`: `{_id (ascends with time), at, actor, tenant, address, action, object, outcome, rid, node, detail, forget}`. No number, no text of a message and no
secret is among them: objects are named by their ids.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel

from controlplane.clock import Clock
from controlplane.domain.audit import AuditFilter, Entry
from controlplane.ids import new_mid
from controlplane.store.client import Database, Document, border

__all__ = ["AUDIT", "AuditStore"]

AUDIT = "audit"
_DAY_MS = 86_400_000


class AuditStore:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, clock: Clock, *, node: str, keep_days: int) -> None:
        self._audit = database[AUDIT]
        self._clock = clock
        self._node = node
        self._keep_ms = keep_days * _DAY_MS

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._audit.create_indexes(
                [
                    *(
                        IndexModel([(field, ASCENDING), ("_id", DESCENDING)], name=field)
                        for field in ("actor", "action", "object")
                    ),
                    IndexModel([("forget", ASCENDING)], name="ttl", expireAfterSeconds=0),
                ]
            )

    async def append(self, entry: Entry) -> Entry:
        """Keep it; as kept, with id, time and node."""
        now = self._clock.now_ms()
        document: Document = asdict(entry) | {"_id": new_mid(now), "at": now, "node": self._node}
        del document["id"]
        document["forget"] = datetime.fromtimestamp((now + self._keep_ms) / 1000, UTC)
        with border():
            await self._audit.insert_one(document)
        return _entry(document)

    async def page(self, wanted: AuditFilter, *, before: str | None, limit: int) -> list[Entry]:
        """Newest first; `before` is the id of the last one seen."""
        query: dict[str, Any] = {
            name: value for name in ("actor", "action", "object", "outcome") if (value := getattr(wanted, name))
        }
        ids: dict[str, str] = {}
        if wanted.since is not None:
            ids["$gte"] = _floor(wanted.since)
        if wanted.until is not None:
            ids["$lt"] = _floor(wanted.until)
        if before is not None:
            ids["$lt"] = min(before, ids.get("$lt", before))
        if ids:
            query["_id"] = ids
        with border():
            found = await self._audit.find(query).sort("_id", DESCENDING).limit(limit).to_list()
        return [_entry(document) for document in found]


def _floor(at: int) -> str:
    """What no id of that millisecond sorts before."""
    bits = at << 80 << 2
    digits = "0123456789abcdefghijklmnopqrstuv"
    return "".join(digits[bits >> shift & 31] for shift in range(125, -1, -5))


def _entry(document: Document) -> Entry:
    values = {name: value for name, value in document.items() if name not in ("_id", "forget")}
    return Entry(id=document["_id"], **values)
