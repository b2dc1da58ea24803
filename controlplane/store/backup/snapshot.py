"""Reading a database as it was at one instant, while it is written: all collections, and behind routers all shards.

Read concern `snapshot` with `atClusterTime` (MongoDB 5.0 and later, outside of transactions; https://www.mongodb.com/docs/manual/reference/read-concern-snapshot/).
MongoDB keeps old states for `minSnapshotHistoryWindowInSeconds` only, 300 by default: what takes longer needs more of it while it runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from bson import CodecOptions, Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from controlplane.errors import ConfigError
from controlplane.store.backup.contents import kept
from controlplane.store.client import Database, border
from controlplane.store.schema import EVENTS

__all__ = ["BATCH", "RAW", "Snapshot", "raw_collection"]

RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
_WINDOW = "minSnapshotHistoryWindowInSeconds"
_DEFAULT_SECONDS = 300
_TOO_OLD = {239, 246}
"""SnapshotTooOld, SnapshotUnavailable."""
_NOT_ALLOWED = {13}
BATCH = 1_000
"""Documents that are asked for at a time; MongoDB gives at most 16 MB of them."""


def raw_collection(database: Database, name: str, **options: Any) -> AsyncCollection[RawBSONDocument]:
    """A collection whose documents stay the bytes that they are."""
    return cast("AsyncCollection[RawBSONDocument]", database.get_collection(name, codec_options=RAW, **options))


class _At(ReadConcern):
    """`{level: "snapshot", atClusterTime}`; pymongo has no words for the second."""

    def __init__(self, instant: Timestamp) -> None:
        super().__init__("snapshot")
        self._instant = instant

    @property
    def document(self) -> dict[str, Any]:
        return {"level": "snapshot", "atClusterTime": self._instant}


class Snapshot:
    """A database at `instant`."""

    def __init__(self, database: Database, instant: Timestamp, *, routed: bool, mongodb: str) -> None:
        self._database = database
        self.instant = instant
        self.mongodb = mongodb
        """Its version."""
        self._from = ReadPreference.SECONDARY_PREFERRED if routed else ReadPreference.PRIMARY

    @classmethod
    @asynccontextmanager
    async def take(cls, database: Database, *, keep_seconds: int) -> AsyncIterator[Snapshot]:
        """Now. Old states are kept for `keep_seconds` until the end, where this client may say so (not through routers: `heliograph cluster snapshots`)."""
        with border():
            hello = await database.client.admin.command("hello")
            version = str((await database.client.admin.command("buildInfo"))["version"])
        routed = hello.get("msg") == "isdbgrid"
        if int(version.partition(".")[0]) < 5:
            raise ConfigError(f"MongoDB {version} cannot read all collections as of one instant; 5.0 and later can.")
        if not routed and "setName" not in hello:
            raise ConfigError("This mongod is no replica set, and has no instants. Start it with --replSet.")
        with border():
            former = None if routed else await _raise(database, keep_seconds)
        try:
            with border():  # it reaches every shard: whatever was confirmed before is not after this time
                reply = await database.command(
                    {"find": EVENTS, "filter": {}, "limit": 1, "readConcern": {"level": "majority"}}
                )
            instant = reply.get("$clusterTime", {}).get("clusterTime") or reply["operationTime"]
            yield cls(database, instant, routed=routed, mongodb=version)
        finally:
            if former is not None:
                with suppress(PyMongoError):
                    await _keep(database, former)

    async def names(self) -> list[str]:
        """The collections that are kept, by name; one that was made after the instant reads as empty."""
        with border():
            return sorted(name for name in await self._database.list_collection_names() if kept(name))

    async def documents(self, name: str) -> AsyncIterator[RawBSONDocument]:
        """Of one collection, in no order. ConfigError when the instant is too old; StoreUnavailableError."""
        collection = raw_collection(self._database, name, read_concern=_At(self.instant), read_preference=self._from)
        with border():
            try:
                async for document in collection.find(batch_size=BATCH):
                    yield document
            except OperationFailure as error:
                if error.code in _TOO_OLD:
                    raise ConfigError(
                        f"MongoDB has forgotten the state that was to be backed up while {name} was read: it keeps old states for {_WINDOW} only. "
                        "Raise it on every member while the backup runs (`heliograph ops backup` does; by hand: `heliograph cluster snapshots`), then make another one."
                    ) from error
                raise


async def _raise(database: Database, seconds: int) -> int | None:
    """Let old states be kept for so long; what is to be put back afterwards. None where this client may not say it, or they are kept for longer."""
    admin = database.client.admin
    try:
        was = int((await admin.command({"getParameter": 1, _WINDOW: 1}))[_WINDOW])
        if was < seconds:
            await _keep(database, seconds)
    except OperationFailure as error:
        if error.code in _NOT_ALLOWED:
            return None
        raise
    if was == seconds:  # a backup that was killed has left it
        return _DEFAULT_SECONDS
    return was if was < seconds else None


async def _keep(database: Database, seconds: int) -> None:
    await database.client.admin.command({"setParameter": 1, _WINDOW: seconds})
