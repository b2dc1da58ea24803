"""Collections and their indexes. Idempotent; run by each node and ledger at its start."""

from __future__ import annotations

import asyncio

from pymongo import ASCENDING, DESCENDING, IndexModel

from controlplane.clock import Clock
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, border

__all__ = ["EVENTS", "INBOUND_PARTS", "INTENTS", "ORPHANS", "TERMS", "ensure_indexes", "wait_for_indexes"]

EVENTS = "events"
INTENTS = "intents"
ORPHANS = "orphans"
TERMS = "terms"
INBOUND_PARTS = "inbound_parts"

_DAY = 86_400
_WAIT_SECONDS = 60.0

_INDEXES = {
    EVENTS: [
        IndexModel([("n", ASCENDING), ("e", ASCENDING), ("q", ASCENDING)], name="sequence"),
        IndexModel(  # what lists start from: the first event of each message
            [("t", ASCENDING), ("kind", ASCENDING), ("at", DESCENDING), ("mid", DESCENDING)],
            name="first",
            partialFilterExpression={"k": 0},
        ),
        IndexModel([("cids", ASCENDING)], name="carrier_ids", partialFilterExpression={"cids": {"$exists": True}}),
    ],
    INTENTS: [IndexModel([("at", ASCENDING)], name="ttl", expireAfterSeconds=8 * _DAY)],
    ORPHANS: [IndexModel([("due", ASCENDING)], name="due")],
    INBOUND_PARTS: [
        IndexModel([("due", ASCENDING)], name="due"),
        IndexModel([("key", ASCENDING)], name="key"),
    ],
}


async def ensure_indexes(database: Database) -> None:
    """Create what is missing. Raises StoreUnavailableError when MongoDB is away."""
    with border():
        for collection, indexes in _INDEXES.items():
            await database[collection].create_indexes(indexes)


async def wait_for_indexes(database: Database, clock: Clock) -> None:
    """`ensure_indexes`, once MongoDB is there. Raises StoreUnavailableError when it is not within a minute."""
    deadline = clock.monotonic() + _WAIT_SECONDS
    while True:
        try:
            await ensure_indexes(database)
        except StoreUnavailableError:
            if clock.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return
