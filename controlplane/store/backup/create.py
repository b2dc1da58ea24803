"""Making a backup: every kept collection as of one instant, in parts of bounded size, with bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

from bson.raw_bson import RawBSONDocument

from controlplane import __version__
from controlplane.clock import Clock
from controlplane.domain.events import Kind
from controlplane.errors import ConfigError
from controlplane.ids import random_bytes
from controlplane.settings import Settings
from controlplane.store.backup.archive import MANIFEST, draft
from controlplane.store.backup.contents import LEFT_OUT
from controlplane.store.backup.manifest import FORMAT, Accepted, Kept, Ledger, LogAt, Manifest, Part, signed
from controlplane.store.backup.part import MAGIC, Keys, Sealer
from controlplane.store.backup.snapshot import Snapshot
from controlplane.store.backup.tally import Tally
from controlplane.store.client import Database, border
from controlplane.store.ledger import LOGS
from controlplane.store.schema import EVENTS

__all__ = ["KEEP_SECONDS", "accepted_of", "chunks", "create"]

KEEP_SECONDS = 4 * 3_600
"""For so long MongoDB keeps old states while a backup runs."""
_CHUNK = 2**20
_PART = 128 * 2**20
"""BSON of one part; half of that as a file."""
_AHEAD = 3
"""Chunks that are sealed while the next is read."""

Tell = Callable[[str], None]


async def create(database: Database, settings: Settings, folder: Path, clock: Clock, tell: Tell) -> Manifest:
    """Write the backup `folder`, whose name is its id. Raises ConfigError where it cannot be, StoreUnavailableError; then nothing is left of it."""
    began = clock.monotonic()
    with draft(folder) as place:
        await _room(database, place)
        async with Snapshot.take(database, keep_seconds=KEEP_SECONDS) as snapshot:
            salt = random_bytes(32)
            writer = _Writer(place, Keys(settings.secret, salt), snapshot, tell)
            collections = [await writer.collection(name) for name in await snapshot.names()]
        keys = Keys(settings.secret, salt)
        manifest = Manifest(
            format=FORMAT,
            id=folder.name,
            region=settings.datacenter,
            cluster_time=(snapshot.instant.time, snapshot.instant.inc),
            seconds=round(clock.monotonic() - began, 3),
            heliograph=__version__,
            mongodb=snapshot.mongodb,
            salt=salt.hex(),
            key_check=keys.check,
            collections=collections,
            left_out=sorted(LEFT_OUT),
            accepted=[Accepted(dc, one.count, one.digest) for dc, one in sorted(writer.accepted.items())],
            ledger=Ledger(settings.ledger_domain, _peers(settings), sorted(writer.logs, key=lambda log: log.origin)),
        )
        _write(place / MANIFEST, signed(manifest, keys))
    return manifest


async def _room(database: Database, place: Path) -> None:
    """Refuse what would fill the disk: a backup is never larger than the documents."""
    with border():
        size = int((await database.command({"dbStats": 1}))["dataSize"])
    free = shutil.disk_usage(place).free
    if free < size:
        raise ConfigError(
            f"{place.parent} has {free // 2**20} MiB free; the backup may need {size // 2**20}. Free some, or choose another --to."
        )


def _peers(settings: Settings) -> list[dict[str, object]]:
    return [peer.model_dump(mode="json") for peer in settings.ledger_peers]


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def accepted_of(documents: list[RawBSONDocument]) -> dict[str, Tally]:
    """Datacenter → the ids of the messages that it accepted, among these events."""
    found: dict[str, list[bytes]] = {}
    for event in documents:
        if event["kind"] == Kind.ACCEPTED:
            found.setdefault(event["dc"], []).append(event["mid"].encode())
    tallies = {dc: Tally() for dc in found}
    for dc, mids in found.items():
        tallies[dc].add(mids)
    return tallies


class _Writer:
    """The parts of one backup."""

    def __init__(self, place: Path, keys: Keys, snapshot: Snapshot, tell: Tell) -> None:
        self._place = place
        self._keys = keys
        self._snapshot = snapshot
        self._tell = tell
        self.accepted: dict[str, Tally] = {}
        self.logs: list[LogAt] = []

    async def collection(self, name: str) -> Kept:
        """Write it, in one or more parts."""
        tally, parts = Tally(), list[Part]()
        part = self._begin(name, 0, tally)
        try:
            async with aclosing(chunks(self._snapshot.documents(name))) as pieces:
                async for chunk in pieces:
                    if part.taken >= _PART:
                        parts.append(await part.finish())
                        part = self._begin(name, len(parts), tally)
                    await part.add(chunk)
            parts.append(await part.finish())
        finally:
            part.close()
        self._tell(f"{name}: {tally.count} documents, {tally.size / 1e6:.1f} MB")
        return Kept(name, tally.count, tally.size, tally.digest, parts)

    def _begin(self, name: str, number: int, tally: Tally) -> _PartFile:
        return _PartFile(self._place, self._keys, f"{name}.{number:04d}", self._look(name), tally)

    def _look(self, name: str) -> Callable[[list[RawBSONDocument]], None]:
        """What of a collection's documents goes into the manifest."""

        def events(chunk: list[RawBSONDocument]) -> None:
            for dc, found in accepted_of(chunk).items():
                self.accepted.setdefault(dc, Tally()).join(found)

        def logs(chunk: list[RawBSONDocument]) -> None:
            self.logs += [
                LogAt(log["_id"], log["dc"], log["own"], log["size"], bytes(log["root"]).hex()) for log in chunk
            ]

        return {EVENTS: events, LOGS: logs}.get(name, lambda _chunk: None)


async def chunks(documents: AsyncIterator[RawBSONDocument]) -> AsyncGenerator[list[RawBSONDocument], None]:
    """Of a MiB or a little more each."""
    chunk, size = list[RawBSONDocument](), 0
    async for document in documents:
        chunk.append(document)
        size += len(document.raw)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _PartFile:
    """One part as it is written: chunks are sealed in threads, and written in their order."""

    def __init__(
        self, place: Path, keys: Keys, name: str, look: Callable[[list[RawBSONDocument]], None], tally: Tally
    ) -> None:
        self._name = name
        self._look = look
        self._tally = tally
        self._sealer = Sealer(keys, name)
        self._file = os.fdopen(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._sha256 = hashlib.sha256()
        self._size = self._documents = 0
        self.taken = 0
        """Bytes of BSON."""
        self._ahead: deque[asyncio.Future[tuple[bytes, Tally]]] = deque()
        self._put(MAGIC)

    async def add(self, chunk: list[RawBSONDocument]) -> None:
        """Take a chunk; waits while as many are under way as may be."""
        self.taken += sum(len(document.raw) for document in chunk)
        loop = asyncio.get_running_loop()
        self._ahead.append(loop.run_in_executor(None, self._seal, self._sealer.take(), chunk))
        if len(self._ahead) > _AHEAD:
            await self._next()

    async def finish(self) -> Part:
        """Everything is on the disk."""
        while self._ahead:
            await self._next()
        self._put(self._sealer.end(self._documents, self.taken))
        await asyncio.to_thread(self._sync)
        self.close()
        return Part(self._name, self._size, self._sha256.hexdigest(), self._documents)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _seal(self, number: int, chunk: list[RawBSONDocument]) -> tuple[bytes, Tally]:
        documents, tally = [bytes(document.raw) for document in chunk], Tally()
        tally.add(documents)
        self._look(chunk)
        return self._sealer.seal(number, documents), tally

    async def _next(self) -> None:
        frame, tally = await self._ahead.popleft()
        self._documents += tally.count
        self._tally.join(tally)
        await asyncio.to_thread(self._put, frame)

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self._size += len(content)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
