"""Putting a backup into an empty database: a replica set, or routers before collections that are sharded already.

It may be cut at any moment and run again: a document (`restores`) says which backup is being put back and which parts are there; what was inserted already is
compared, byte by byte, and nothing is ever replaced. While it is not at its end no node and no ledger starts on the database (`store.schema`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.backup.archive import Archive, ArchiveError
from controlplane.store.backup.create import accepted_of, chunks
from controlplane.store.backup.part import PartError, read_part
from controlplane.store.backup.snapshot import BATCH, RAW, raw_collection
from controlplane.store.backup.tally import Tally
from controlplane.store.backup.verify import check_files, differences, join
from controlplane.store.client import Database, border
from controlplane.store.cluster.report import Deadline
from controlplane.store.ledger import LedgerStore
from controlplane.store.schema import EVENTS, RESTORES, ensure_indexes

__all__ = ["clear", "restore"]

_ID = "restore"
_DUPLICATE_KEY = 11000
_AHEAD = 3
_PATIENCE_SECONDS = 60.0

Tell = Callable[[str], None]


async def restore(database: Database, archive: Archive, tell: Tell) -> bool:
    """Everything is in the database, compared with the manifest, and indexed. False: it was before.

    Raises ConfigError where the database is not empty or differs afterwards, ArchiveError, StoreUnavailableError (run it again).
    """
    done = await _begin(database, archive)
    if done is None:
        return False
    await asyncio.to_thread(check_files, archive.folder)
    for name, part in archive.manifest.parts:
        if part.name in done:
            continue
        tell(f"{part.name}: {part.documents} documents")
        await _put(database, name, _batches(archive, part.name, part.sha256))
        with border():
            await database[RESTORES].update_one({"_id": _ID}, {"$addToSet": {"parts": part.name}})
    tell("comparing what is there now with the backup")
    if wrong := await _compare(database, archive):
        raise ConfigError(
            f"The database is not what was backed up: {'; '.join(wrong)}. Something else writes to it, or removed documents: stop every node and ledger, "
            "empty the database (`heliograph backup clear`) and restore again."
        )
    await ensure_indexes(database)
    await LedgerStore(database).ensure_indexes()
    with border():
        await database[RESTORES].update_one({"_id": _ID}, {"$set": {"state": "done"}})
    return True


async def _begin(database: Database, archive: Archive) -> set[str] | None:
    """The parts that are there already; None when all of it is. Raises ConfigError."""
    backup = archive.manifest.id
    with border():
        known = await database[RESTORES].find_one({"_id": _ID})
        if known is not None and known["backup"] == backup and known["mac"] == archive.manifest.mac:
            return None if known["state"] == "done" else set(known["parts"])
        if known is None and (full := await _full(database)) is None:
            await database[RESTORES].insert_one(
                {"_id": _ID, "backup": backup, "mac": archive.manifest.mac, "state": "running", "parts": []}
            )
            return set()
    what = f"the backup {known['backup']} was put into it" if known else f"{full} has documents"
    raise ConfigError(
        f"The database {database.name} is not empty: {what}. A backup is put into an empty one only. Nothing was changed. "
        "Stop every node and ledger and empty it with `heliograph backup clear`, or restore elsewhere."
    )


async def _full(database: Database) -> str | None:
    """A collection that has documents."""
    for name in sorted(await database.list_collection_names()):
        if not name.startswith("system.") and await database[name].find_one({}, {"_id": 1}) is not None:
            return name
    return None


async def clear(database: Database) -> int:
    """Delete every document; collections, indexes and how they are sharded stay. How many there were. Raises StoreUnavailableError.

    The mark of a restore goes last, so that no node starts on what is half deleted.
    """
    count = 0
    with border():
        await database[RESTORES].replace_one(
            {"_id": _ID}, {"backup": "", "mac": "", "state": "running", "parts": []}, upsert=True
        )
        for name in await database.list_collection_names():
            if name != RESTORES and not name.startswith("system."):
                count += (await database[name].delete_many({})).deleted_count
        await database[RESTORES].delete_one({"_id": _ID})
    return count


# -- inserting -----------------------------------------------------------------------------------------------------------


def _batches(archive: Archive, name: str, sha256: str) -> Iterator[list[RawBSONDocument]]:
    """The documents of a part, a MiB or a little more at a time."""
    try:
        for documents in read_part(archive.path(name), archive.keys, name, sha256):
            yield [RawBSONDocument(bytes(document), RAW) for document in documents]
    except (PartError, OSError) as error:
        raise ArchiveError(f"{archive.folder}: {error}.") from None


async def _put(database: Database, name: str, batches: Iterator[list[RawBSONDocument]]) -> None:
    """Insert them, a few at the same time."""
    while window := await asyncio.to_thread(lambda: list(islice(batches, _AHEAD))):
        ended = await asyncio.gather(*(_insert(database, name, batch) for batch in window), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error


async def _insert(database: Database, name: str, batch: Sequence[RawBSONDocument]) -> None:
    """All of the batch is there, durably; tried again for a minute, as it may be repeated."""
    deadline = Deadline(_PATIENCE_SECONDS)
    while True:
        try:
            with border():
                await _insert_once(database, name, batch)
        except StoreUnavailableError:
            if not await deadline.pause():
                raise
        else:
            return


async def _insert_once(database: Database, name: str, batch: Sequence[RawBSONDocument]) -> None:
    collection = raw_collection(database, name)
    try:
        await collection.insert_many(batch, ordered=False)
    except BulkWriteError as error:
        errors = error.details["writeErrors"]
        if any(one["code"] != _DUPLICATE_KEY for one in errors) or error.details["writeConcernErrors"]:
            raise
        met = [batch[one["index"]] for one in errors]
    else:
        return
    stored = {one["_id"]: one.raw async for one in collection.find({"_id": {"$in": [one["_id"] for one in met]}})}
    for document in met:
        if stored.get(document["_id"]) != document.raw:
            raise ConfigError(
                f"{name} has another document {document['_id']!r} than the backup. Something else writes to the database: "
                "stop every node and ledger, empty it (`heliograph backup clear`) and restore again."
            )


# -- comparing -----------------------------------------------------------------------------------------------------------


async def _compare(database: Database, archive: Archive) -> list[str]:
    """Read all collections back; in what they differ from the manifest."""
    tallies: dict[str, Tally] = {}
    accepted: dict[str, Tally] = {}

    def take(name: str, documents: list[RawBSONDocument]) -> None:
        tallies.setdefault(name, Tally()).add(bytes(one.raw) for one in documents)
        if name == EVENTS:
            join(accepted, accepted_of(documents))

    for kept in archive.manifest.collections:
        with border():
            async for documents in chunks(raw_collection(database, kept.name).find(batch_size=BATCH)):
                await asyncio.to_thread(take, kept.name, documents)
    return differences(archive.manifest, tallies, accepted)
