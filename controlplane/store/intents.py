"""Intents: the write-ahead record of submits.

Before a batch of submit_sm goes out, *one* document names all of it. After a crash, a part that an intent names and that has no outcome is
unknown; every other part was certainly not sent. A part that the carrier refused for now (throttled, queue full) and that went back to the queue
without an event is listed as `refused` in the next intent, so that it does not count as unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from pymongo.errors import DuplicateKeyError, PyMongoError

from controlplane.clock import Clock
from controlplane.store.client import Database, border
from controlplane.store.schema import INTENTS
from controlplane.tasks import going_on

__all__ = ["Intent", "IntentItem", "IntentLog", "read_attempted"]

IntentItem = tuple[str, int, int, str, str]
"""mid, part, attempt, route, connector."""


_encode = msgspec.json.encode
"""Lists as one JSON binary: BSON would spend a key on each element, and mongod a look."""
_decode_items = msgspec.json.Decoder(list[IntentItem]).decode
_decode_refused = msgspec.json.Decoder(list[tuple[str, int, int]]).decode


@dataclass(slots=True)
class Intent:
    """One durable intent and how many of its submits have no outcome yet."""

    number: int
    open: int


class IntentLog:
    """One per term. `write` groups what is asked for while the last document is on its way."""

    def __init__(self, database: Database, node: str, epoch: int, clock: Clock) -> None:
        self._collection = database[INTENTS]
        self._node = node
        self._epoch = epoch
        self._clock = clock
        self._next = 1
        self._items: list[IntentItem] = []
        self._waiters: list[tuple[asyncio.Future[Intent], int]] = []
        self._refused: list[tuple[str, int, int]] = []
        self._open: dict[int, Intent] = {}
        self._wake = asyncio.Event()

    @property
    def settled(self) -> int:
        """Every intent up to this number has all its outcomes."""
        return next(iter(self._open), self._next) - 1

    async def write(self, items: list[IntentItem]) -> Intent:
        """Returns once the intent that names `items` is durable (majority + journal)."""
        future: asyncio.Future[Intent] = asyncio.get_running_loop().create_future()
        self._items.extend(items)
        self._waiters.append((future, len(items)))
        self._wake.set()
        return await future

    async def flush(self) -> None:
        """Make durable which parts were refused: at a clean stop, so that they do not count as unknown."""
        if self._refused:
            await self.write([])

    def resolve(self, number: int, count: int = 1) -> None:
        """`count` submits of that intent have an outcome that is durable (or were never sent)."""
        intent = self._open.get(number)
        if intent is None:
            return
        intent.open -= count
        if intent.open <= 0:
            del self._open[number]

    def refuse(self, number: int, mid: str, part: int, attempt: int) -> None:
        """The carrier refused it for now: it goes back to the queue without an event."""
        self._refused.append((mid, part, attempt))
        self.resolve(number)

    async def run(self) -> None:
        """Write until cancelled."""
        while going_on():
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)
            if not self._waiters:
                continue
            items, self._items = self._items, []
            waiters, self._waiters = self._waiters, []
            refused, self._refused = self._refused, []
            intent = Intent(self._next, len(items))
            self._next += 1
            if items:
                self._open[intent.number] = intent
            await self._insert(intent, items, refused)
            for future, count in waiters:
                if future.done():  # its caller is gone: nothing of it will be sent
                    self.resolve(intent.number, count)
                else:
                    future.set_result(intent)

    async def _insert(self, intent: Intent, items: list[IntentItem], refused: list[tuple[str, int, int]]) -> None:
        document = {
            "_id": _id(self._node, self._epoch, intent.number),
            "items": _encode(items),
            "refused": _encode(refused),
            "at": datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC),
        }
        pause = 0.02
        while going_on():
            try:
                await self._collection.insert_one(document)
            except DuplicateKeyError:
                return  # our own earlier try: nobody else writes this node's epoch
            except PyMongoError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
            else:
                return
        raise asyncio.CancelledError


def _id(node: str, epoch: int, number: int) -> str:
    return f"{node}:{epoch}:{number:012d}"


async def read_attempted(
    database: Database, node: str, epoch: int, after: int
) -> dict[tuple[str, int], tuple[int, str, str]]:
    """What a dead term may have sent: (mid, part) → (attempt, route, connector) of the newest intent > `after`, less the refused."""
    attempted: dict[tuple[str, int], tuple[int, str, str]] = {}
    async for items, refused in _read(database, node, epoch, after):
        for mid, part, attempt in refused:
            if attempted.get((mid, part), (0, "", ""))[0] == attempt:
                del attempted[mid, part]
        for mid, part, attempt, route, connector in items:
            attempted[mid, part] = (attempt, route, connector)
    return attempted


async def _read(
    database: Database, node: str, epoch: int, after: int
) -> AsyncIterator[tuple[Iterable[IntentItem], Iterable[tuple[str, int, int]]]]:
    query = {"_id": {"$gt": _id(node, epoch, after), "$lt": f"{node}:{epoch};"}}
    with border():
        async for document in database[INTENTS].find(query).sort("_id", 1):
            yield _decode_items(document["items"]), _decode_refused(document["refused"])
