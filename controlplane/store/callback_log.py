"""The callbacks' delivery log (insert-only), and those that wait for a retry.

`callback_log`: `{_id: "<mid>:<k>:<endpoint>:<n>", mid, k, t, endpoint, url, at, attempt, outcome, status, ms, error}`.
`callbacks`: `{_id: "<mid>:<endpoint>", mid, t, endpoint, url, ks: [k, …], attempt, due, by, until}`: one document for each message and endpoint that
could not be told at the first try. Any node may claim one that is due; a claim runs out, so that it survives its claimer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, Document, border

__all__ = ["Attempt", "CallbackLog", "Parked"]

_CLAIM_MS = 120_000
FINAL_OUTCOMES = ("delivered", "gone", "refused", "exhausted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One line of the delivery log."""

    mid: str
    k: int
    tenant: str
    endpoint: str
    url: str
    """Scheme, host and path: a query may hold secrets."""
    at: int
    attempt: int
    outcome: str
    status: int
    ms: int
    error: str = ""
    id: str = ""

    def as_document(self) -> Document:
        """As stored; ids ascend with time."""
        return {
            "_id": ObjectId(),
            "mid": self.mid,
            "k": self.k,
            "t": self.tenant,
            "endpoint": self.endpoint,
            "url": self.url,
            "at": self.at,
            "attempt": self.attempt,
            "outcome": self.outcome,
            "status": self.status,
            "ms": self.ms,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Parked:
    """Callbacks of one message to one endpoint that wait for their next try."""

    mid: str
    tenant: str
    endpoint: str
    url: str
    ks: tuple[int, ...]
    attempt: int
    replay: bool = False

    @property
    def id(self) -> str:
        """`<mid>:<endpoint>`."""
        return f"{self.mid}:{self.endpoint}"


class CallbackLog:
    """Shared by the nodes of a datacenter."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._log = database["callback_log"]
        self._parked = database["callbacks"]
        self._clock = clock
        self._unwritten: list[tuple[Attempt, asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._log.create_indexes(
                [
                    IndexModel([("mid", ASCENDING), ("_id", ASCENDING)], name="message"),
                    IndexModel([("t", ASCENDING), ("endpoint", ASCENDING), ("_id", DESCENDING)], name="endpoint"),
                ]
            )
            await self._parked.create_indexes([IndexModel([("due", ASCENDING)], name="due")])

    async def append(self, attempt: Attempt) -> None:
        """Log an attempt, durably. What comes while a write is on its way goes together in the next, which one of its callers makes."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.append((attempt, written))
        async with self._writing:
            if written.done():
                written.result()
                return
            batch, self._unwritten = self._unwritten, []
            try:
                with border():
                    await self._log.insert_many([one.as_document() for one, _ in batch], ordered=False)
            except BaseException as error:
                known = isinstance(error, StoreUnavailableError)
                for _, waiting in batch:
                    if waiting is not written:
                        waiting.set_exception(error if known else StoreUnavailableError("The writer was stopped."))
                raise
            for _, waiting in batch:
                waiting.set_result(None)

    async def settled(self, mid: str) -> set[tuple[int, str]]:
        """(k, endpoint) of this message's callbacks that need no further try."""
        query = {"mid": mid, "outcome": {"$in": list(FINAL_OUTCOMES)}}
        with border():
            return {(d["k"], d["endpoint"]) async for d in self._log.find(query, {"k": 1, "endpoint": 1})}

    async def attempts(
        self, *, tenant: str, endpoint: str | None, mid: str | None, before: str | None, limit: int
    ) -> list[Attempt]:
        """Newest first; `before` is the id of the last one seen."""
        query: dict[str, Any] = {"t": tenant}
        if endpoint is not None:
            query["endpoint"] = endpoint
        if mid is not None:
            query["mid"] = mid
        if before is not None:
            query["_id"] = {"$lt": ObjectId(before)}
        with border():
            found = await self._log.find(query).sort("_id", DESCENDING).limit(limit).to_list()
        return [
            Attempt(
                id=str(d["_id"]),
                mid=d["mid"],
                k=d["k"],
                tenant=d["t"],
                endpoint=d["endpoint"],
                url=d["url"],
                at=d["at"],
                attempt=d["attempt"],
                outcome=d["outcome"],
                status=d["status"],
                ms=d["ms"],
                error=d["error"],
            )
            for d in found
        ]

    async def park(self, item: Parked, due: int) -> None:
        """Keep callbacks for a later try, added to those of the same message and endpoint that wait already."""
        with border():
            update = {
                "$addToSet": {"ks": {"$each": list(item.ks)}},
                "$setOnInsert": {
                    "mid": item.mid,
                    "t": item.tenant,
                    "endpoint": item.endpoint,
                    "url": item.url,
                    "attempt": item.attempt,
                    "due": due,
                    "until": 0,
                    "replay": item.replay,
                },
            }
            try:
                await self._parked.update_one({"_id": item.id}, update, upsert=True)
            except DuplicateKeyError:  # two upserts at once: the second now finds the first
                await self._parked.update_one({"_id": item.id}, update, upsert=True)

    async def claim(self, limit: int) -> list[Parked]:
        """Take up to `limit` that are due; the claim lasts two minutes."""
        now = self._clock.now_ms()
        claimed: list[Parked] = []
        with border():
            found = (
                await self._parked.find({"due": {"$lte": now}, "until": {"$lte": now}})
                .sort("due", 1)
                .limit(limit)
                .to_list()
            )
            for document in found:
                result = await self._parked.update_one(
                    {"_id": document["_id"], "until": document["until"], "due": document["due"]},
                    {"$set": {"until": now + _CLAIM_MS}},
                )
                if result.modified_count:
                    claimed.append(
                        Parked(
                            document["mid"],
                            document["t"],
                            document["endpoint"],
                            document["url"],
                            tuple(sorted(document["ks"])),
                            document["attempt"],
                            document.get("replay", False),
                        )
                    )
        return claimed

    async def sent(self, item: Parked, k: int, *, last: bool) -> None:
        """One of them needs no further try. With the last of the claim the document goes, or is free for what was added meanwhile."""
        changes: Document = {"attempt": 0}
        if last:
            changes |= {"until": 0, "due": self._clock.now_ms()}
        with border():
            await self._parked.update_one({"_id": item.id}, {"$pull": {"ks": k}, "$set": changes})
            if last:
                await self._parked.delete_one({"_id": item.id, "ks": {"$size": 0}})

    async def postpone(self, item: Parked, due: int) -> None:
        """Try again at `due`; the claim is given back."""
        with border():
            await self._parked.update_one({"_id": item.id}, {"$inc": {"attempt": 1}, "$set": {"due": due, "until": 0}})

    async def waiting(self) -> int:
        """Messages with callbacks that wait for a retry."""
        with border():
            return await self._parked.estimated_document_count()
