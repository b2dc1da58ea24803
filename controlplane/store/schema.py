"""Collections and their indexes. Idempotent; run by each node at its start."""

from __future__ import annotations

from pymongo import ASCENDING, DESCENDING, IndexModel

from controlplane.store.client import Database, border

__all__ = ["EVENTS", "INBOUND_PARTS", "INTENTS", "ORPHANS", "TERMS", "ensure_indexes"]

EVENTS = "events"
INTENTS = "intents"
ORPHANS = "orphans"
TERMS = "terms"
INBOUND_PARTS = "inbound_parts"

_DAY = 86_400

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
