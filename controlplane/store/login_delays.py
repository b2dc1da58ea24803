"""How long somebody has to wait before the next try to log in, the same on all nodes.

`login_delays`: `{_id: what is counted, tries, next (ms: no try before), forget}`. A try is counted before it is looked at, by one conditional update, so
that a thousand at once on many nodes are no more than one after the other; a success takes its own count back.

Nobody is ever locked out: delays grow to a bound, and a browser in which somebody has logged in before is counted by itself
(OWASP, "device cookies"), so that whoever guesses at a name delays strangers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.login import Counted
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, Document, border

__all__ = ["DELAYS", "LoginDelays"]

DELAYS = "login_delays"
_FORGET_MS = 24 * 3_600_000


class LoginDelays:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._delays = database[DELAYS]
        self._clock = clock

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._delays.create_indexes([IndexModel([("forget", ASCENDING)], name="ttl", expireAfterSeconds=0)])

    async def count(self, tries: Sequence[Counted]) -> int:
        """0: the try is counted, look at it. Else the seconds to wait: do not look at it."""
        for each in tries:
            if wait := await self._count(each):
                return wait
        return 0

    async def take_back(self, tries: Sequence[Counted]) -> None:
        """A counted try was right. What others tried there still counts, and their delay goes on."""
        with border():
            for each in tries:
                await self._delays.update_one({"_id": each.key, "tries": {"$gt": 0}}, {"$inc": {"tries": -1}})

    async def clear(self, tries: Sequence[Counted]) -> None:
        """Forget all tries: whoever made them has proven who they are."""
        with border():
            await self._delays.delete_many({"_id": {"$in": [each.key for each in tries]}})

    async def _count(self, each: Counted) -> int:
        now = self._clock.now_ms()
        over = {"$max": [0, {"$subtract": ["$tries", each.free]}]}
        seconds = {"$min": [each.longest, {"$pow": [2, {"$min": [30, {"$subtract": [over, 1]}]}]}]}
        update: list[Document] = [
            {"$set": {"tries": {"$add": [{"$ifNull": ["$tries", 0]}, 1]}}},
            {
                "$set": {
                    "next": {
                        "$cond": [{"$gt": ["$tries", each.free]}, {"$add": [now, {"$multiply": [1000, seconds]}]}, 0]
                    },
                    "forget": datetime.fromtimestamp((now + _FORGET_MS) / 1000, UTC),
                }
            },
        ]
        try:
            with border():
                await self._delays.update_one({"_id": each.key, "next": {"$lte": now}}, update, upsert=True)
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, DuplicateKeyError):
                raise
            return await self._wait(each, now)
        return 0

    async def _wait(self, each: Counted, now: int) -> int:
        with border():
            document = await self._delays.find_one({"_id": each.key}, {"next": 1})
        return max(1, math.ceil(((document["next"] if document else now) - now) / 1000))
