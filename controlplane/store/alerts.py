"""Alerts of this datacenter, and what happened to them.

`alerts`: one document for each kind and subject, `{_id, kind, subject, severity, what, next_step, state, since, …}` (domain.alerts.Alert), kept for 90 days after
its last end. `alert_history`: one line each time it fired, was resolved, acknowledged, silenced. `alert_rounds`: who looked last; whoever moves that document
on does the round, so that there is one evaluation in ten seconds however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, DeleteOne, IndexModel, UpdateOne
from pymongo.errors import DuplicateKeyError

from controlplane.domain.alerts import Alert, Change
from controlplane.store.client import Database, Document, border

__all__ = ["ALERTS", "Alerts"]

ALERTS = "alerts"
_HISTORY = "alert_history"
_ROUNDS = "alert_rounds"
_ROUND = "round"
_KEPT = timedelta(days=90)
_BY_PEOPLE = ("acknowledged", "silenced")
"""Fields that people write, at any time: an evaluation never writes over them."""


class Alerts:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._alerts = database[ALERTS]
        self._history = database[_HISTORY]
        self._rounds = database[_ROUNDS]

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._alerts.create_indexes([IndexModel([("expires", ASCENDING)], name="ttl", expireAfterSeconds=0)])
            await self._history.create_indexes(
                [
                    IndexModel([("alert", ASCENDING), ("_id", DESCENDING)], name="alert"),
                    IndexModel([("expires", ASCENDING)], name="ttl", expireAfterSeconds=0),
                ]
            )

    async def claim(self, node: str, seconds: float) -> bool:
        """Whether this node does the next round: nobody did one in the last `seconds`, by the database's clock."""
        due = {"$lt": ["$at", {"$subtract": ["$$NOW", int(seconds * 1000)]}]}
        mine: list[Document] = [{"$set": {"at": "$$NOW", "by": {"$literal": node}}}]
        with border():
            result = await self._rounds.update_one({"_id": _ROUND, "$expr": due}, mine)
            if result.matched_count:
                return True
            try:
                result = await self._rounds.update_one({"_id": _ROUND, "at": None}, mine, upsert=True)
            except DuplicateKeyError:
                return False
        return result.upserted_id is not None

    async def last_round(self) -> tuple[datetime, str] | None:
        """When alerts were evaluated last, and by which node."""
        with border():
            found = await self._rounds.find_one({"_id": _ROUND})
        return (found["at"].replace(tzinfo=UTC), found["by"]) if found else None

    async def all(self) -> list[Alert]:
        """Those that are not forgotten, pending ones too."""
        with border():
            documents = await self._alerts.find({}).sort("_id", ASCENDING).to_list()
        return [_alert(document) for document in documents]

    async def get(self, identity: str) -> Alert | None:
        """One, unless it is only pending for the first time."""
        with border():
            document = await self._alerts.find_one({"_id": identity})
        return _alert(document) if document else None

    async def save(self, changed: Iterable[Alert], history: Sequence[Change], dropped: Iterable[str]) -> None:
        """What `domain.alerts.advance` found."""
        writes: list[UpdateOne | DeleteOne] = []
        for alert in changed:
            fields = {
                name: value for name, value in msgspec.structs.asdict(alert).items() if name not in ("id", *_BY_PEOPLE)
            }
            update: Document = {"$set": fields}
            if alert.state == "resolved":
                fields |= {"acknowledged": None, "expires": _expires(alert.last_seen)}
            else:
                update["$unset"] = {"expires": ""}
            writes.append(UpdateOne({"_id": alert.id}, update, upsert=True))
        writes += [DeleteOne({"_id": identity, "state": "pending", "silenced": None}) for identity in dropped]
        with border():
            if writes:
                await self._alerts.bulk_write(writes, ordered=False)
            if history:
                await self._history.insert_many([_line(change, "", "") for change in history])

    async def tell(
        self, identity: str, field: str, value: dict[str, Any] | None, line: Change, by: str, note: str
    ) -> Alert | None:
        """A person acknowledges or silences an alert (`field`), or takes that back (None); the alert as it is then."""
        with border():
            result = await self._alerts.update_one({"_id": identity}, {"$set": {field: value}})
            if not result.matched_count:
                return None
            await self._history.insert_one(_line(line, by, note))
        return await self.get(identity)

    async def history(self, alert: str | None, before: str | None, limit: int) -> list[dict[str, Any]]:
        """Newest first: {id, alert, what, at (ms), text, by, note}. `before` is the id of the last one seen."""
        query: Document = {}
        if alert is not None:
            query["alert"] = alert
        if before is not None:
            query["_id"] = {"$lt": ObjectId(before)}
        with border():
            found = await self._history.find(query, {"expires": 0}).sort("_id", DESCENDING).limit(limit).to_list()
        return [{"id": str(line.pop("_id")), **line} for line in found]


def _alert(document: Document) -> Alert:
    return msgspec.convert({"id": document["_id"], **document}, Alert)


def _line(change: Change, by: str, note: str) -> Document:
    return {**change._asdict(), "by": by, "note": note, "expires": _expires(change.at)}


def _expires(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC) + _KEPT
