"""Collections and their indexes. Idempotent; run by each node and ledger at its start."""

from __future__ import annotations

import asyncio

from pymongo import ASCENDING, DESCENDING, IndexModel

from controlplane.clock import Clock
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Database, border

__all__ = [
    "EVENTS",
    "INBOUND_PARTS",
    "INTENTS",
    "OPERATIONS",
    "OPERATION_AGENTS",
    "OPERATION_EVENTS",
    "ORPHANS",
    "RESTORES",
    "TERMS",
    "ensure_indexes",
    "wait_for_indexes",
]

EVENTS = "events"
INTENTS = "intents"
ORPHANS = "orphans"
TERMS = "terms"
INBOUND_PARTS = "inbound_parts"
OPERATIONS = "operations"
OPERATION_EVENTS = "operation_events"
OPERATION_AGENTS = "operation_agents"
RESTORES = "restores"
"""Which backup is being put into the database, or was (store.backup.restore)."""

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
    OPERATIONS: [
        IndexModel(  # one unfinished operation that changes the region, and one of each kind that does not
            [("dc", ASCENDING), ("slot", ASCENDING)],
            name="slot",
            unique=True,
            partialFilterExpression={"slot": {"$exists": True}},
        )
    ],
    OPERATION_EVENTS: [IndexModel([("op", ASCENDING), ("n", ASCENDING)], name="operation")],
    OPERATION_AGENTS: [IndexModel([("expires", ASCENDING)], name="ttl", expireAfterSeconds=0)],
}


async def ensure_indexes(database: Database) -> None:
    """Create what is missing. Raises StoreUnavailableError when MongoDB is away."""
    with border():
        for collection, indexes in _INDEXES.items():
            await database[collection].create_indexes(indexes)


async def wait_for_indexes(database: Database, clock: Clock) -> None:
    """`ensure_indexes`, once MongoDB is there. Raises StoreUnavailableError when it is not within a minute, ConfigError while a backup is half put back."""
    deadline = clock.monotonic() + _WAIT_SECONDS
    while True:
        try:
            await _require_whole(database)
            await ensure_indexes(database)
        except StoreUnavailableError:
            if clock.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return


async def _require_whole(database: Database) -> None:
    with border():
        found = await database[RESTORES].find_one({"state": "running"})
    if found is not None:
        raise ConfigError(
            f"The database {database.name} is being emptied, or restored from the backup {found['backup']}, and that is not at its end. "
            "Wait for it, or run `heliograph backup restore` again: it goes on."
        )
