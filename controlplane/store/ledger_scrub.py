"""What verification and repair of the ledger need of MongoDB beyond what a ledger needs that runs: documents as they are, and their replacement.

Whatever replaces something here says what it has seen there before: a round that wrote in between is never undone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import Binary
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from controlplane.domain.events import Event, Kind
from controlplane.store.client import Document, border
from controlplane.store.copies import WITNESSED, Witnessed, origin_hash
from controlplane.store.events import from_document, of_message, to_document
from controlplane.store.ledger import BUNDLES, COSIGNATURES, RUNS, TILES, Cosigned, LedgerStore, Log, Run

__all__ = ["Blob", "ScrubStore", "StoredCosignature", "StoredRun"]

SCRUB = "ledger_scrub"
_CHUNK = 500
_FAR = 2**62


@dataclass(frozen=True, slots=True)
class Blob:
    """A bundle or tile as stored: its bytes, and which writer was last at it."""

    data: bytes
    ver: int


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run with the `_id` that it has, which may not be the one that it should have."""

    id: str
    run: Run
    ver: int


@dataclass(frozen=True, slots=True)
class StoredCosignature:
    """A cosignature with the `_id` that it has; None where it cannot be read as one."""

    id: str
    item: Cosigned | None


def _data(document: Document) -> Blob:
    data, ver = document.get("data"), document.get("ver")
    return Blob(bytes(data) if isinstance(data, bytes) else b"", ver if isinstance(ver, int) else -1)


def _stored_run(d: Document) -> StoredRun | None:
    try:
        run = Run.of(d)
    except KeyError:
        return None
    numbers = (run.epoch, run.q, run.count, run.index)
    if not all(isinstance(value, int) for value in numbers) or not all(
        isinstance(value, str) for value in (run.log, run.dc, run.node)
    ):
        return None
    return StoredRun(str(d["_id"]), run, d.get("ver", 0))


class ScrubStore(LedgerStore):
    """Everything raises StoreUnavailableError while MongoDB is away."""

    # -- logs ----------------------------------------------------------------------------------------------------------

    async def log_documents(self) -> list[tuple[str, Log | None]]:
        """All logs that are held here, oldest first, by their `_id`; None for what cannot be read as one."""
        with border():
            documents = await self._logs.find().to_list()
        found: list[tuple[str, Log | None]] = []
        for document in documents:
            try:
                found.append((document["_id"], Log.of(document)))
            except (KeyError, TypeError, ValueError):
                found.append((document["_id"], None))
        return sorted(found, key=lambda item: (item[1].dc, item[1].opened_at, item[0]) if item[1] else ("", 0, item[0]))

    async def replace_log(self, old: Log | None, new: Log) -> bool:
        """Repair: put a log's document right, if it still is what was seen (None: unreadable, or not there)."""
        if old is not None:
            return await self.commit(old, new)
        with border():
            await self._logs.replace_one({"_id": new.origin}, new.document(), upsert=True)
        return True

    async def origins(self) -> set[str]:
        """The names of logs of which there is a bundle or a cosignature, whether their own document is here or not."""
        found: set[str] = set()
        after = ""
        with border():
            while True:
                document = await self._bundles.find_one({"_id": {"$gt": after}}, {"_id": 1}, sort=[("_id", ASCENDING)])
                if document is None:
                    break
                origin = str(document["_id"]).partition("|")[0]
                found.add(origin)
                after = f"{origin}}}"
            found.update(await self._database[COSIGNATURES].distinct("origin"))
        return found

    # -- tiles and bundles ---------------------------------------------------------------------------------------------

    async def bundle_blobs(self, origin: str, indices: Sequence[int]) -> dict[int, Blob]:
        """Bundles as stored; those that are missing are absent."""
        found: dict[int, Blob] = {}
        with border():
            async for document in self._bundles.find({"_id": {"$in": [f"{origin}|{index}" for index in indices]}}):
                found[int(document["_id"].rpartition("|")[2])] = _data(document)
        return found

    async def tile_blobs(self, origin: str, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Blob]:
        """Tiles as stored, by (level, index); those that are missing are absent."""
        ids = [f"{origin}|{level}|{index}" for level, index in places]
        found: dict[tuple[int, int], Blob] = {}
        for start in range(0, len(ids), _CHUNK):
            with border():
                async for document in self._tiles.find({"_id": {"$in": ids[start : start + _CHUNK]}}):
                    _, level, index = document["_id"].rsplit("|", 2)
                    found[int(level), int(index)] = _data(document)
        return found

    async def first_blobs(self, origins: Sequence[str]) -> dict[str, tuple[bytes, bytes]]:
        """Origin → (first bundle, first tile) of those that have both."""
        bundles = {f"{origin}|0": origin for origin in origins}
        tiles = {f"{origin}|0|0": origin for origin in origins}
        first: dict[str, bytes] = {}
        found: dict[str, tuple[bytes, bytes]] = {}
        with border():
            async for document in self._bundles.find({"_id": {"$in": list(bundles)}}):
                first[bundles[document["_id"]]] = _data(document).data
            async for document in self._tiles.find({"_id": {"$in": list(tiles)}}):
                if (origin := tiles[document["_id"]]) in first:
                    found[origin] = (first[origin], _data(document).data)
        return found

    async def mend_bundle(self, origin: str, index: int, seen: Blob | None, data: bytes, ver: int) -> bool:
        """Replace what was seen (None: nothing) by verified content. False: somebody wrote there in between."""
        return await self._mend(BUNDLES, f"{origin}|{index}", seen, data, ver)

    async def mend_tile(self, origin: str, place: tuple[int, int], seen: Blob | None, data: bytes, ver: int) -> bool:
        """As mend_bundle."""
        return await self._mend(TILES, f"{origin}|{place[0]}|{place[1]}", seen, data, ver)

    async def _mend(self, collection: str, identity: str, seen: Blob | None, data: bytes, ver: int) -> bool:
        with border():
            if seen is None:
                try:
                    await self._database[collection].insert_one({"_id": identity, "data": data, "ver": ver})
                except DuplicateKeyError:
                    return False
                return True
            result = await self._database[collection].update_one(
                {"_id": identity, "data": Binary(seen.data), "ver": seen.ver}, {"$set": {"data": data, "ver": ver}}
            )
        return result.matched_count == 1

    async def outdate(self, origin: str, size: int) -> None:
        """Repair: let a mirror that begins again at this size write over what it has written behind it."""
        query = {"_id": {"$gte": f"{origin}|", "$lt": f"{origin}}}"}, "ver": {"$gt": size}}
        with border():
            for collection in (self._bundles, self._tiles, self._runs):
                await collection.update_many(query, {"$set": {"ver": size}})

    # -- runs ----------------------------------------------------------------------------------------------------------

    async def runs_of(self, dc: str, node: str, epoch: int, first: int, last: int) -> list[StoredRun]:
        """Runs that hold one of the q from `first` to `last`, drafts among them. Runs have at most some thousand entries."""
        query = {"dc": dc, "n": node, "e": epoch, "q": {"$lte": last}}
        found: list[StoredRun] = []
        misses = 0
        with border():
            async for document in self._runs.find(query).sort([("q", DESCENDING)]):
                stored = _stored_run(document)
                if stored is None:
                    continue
                if stored.run.q + stored.run.count > first:
                    found.append(stored)
                elif (misses := misses + 1) > 8:
                    break
        return found

    async def newest_runs(self, dc: str, node: str, epoch: int, upto: int | None) -> AsyncIterator[Run]:
        """A term's runs that begin at `upto` or before, highest q first, drafts among them."""
        query: Document = {"dc": dc, "n": node, "e": epoch}
        if upto is not None:
            query["q"] = {"$lte": upto}
        with border():
            async for document in self._runs.find(query).sort([("q", DESCENDING)]):
                if (stored := _stored_run(document)) is not None:
                    yield stored.run

    async def covered(self, dc: str, node: str, epoch: int, sizes: Mapping[str, int]) -> int:
        """As LedgerStore's, and it takes no offence at a document that is no run."""
        async for run in self.newest_runs(dc, node, epoch, None):
            inside = min(run.count, sizes.get(run.log, 0) - run.index)
            if inside > 0:
                return run.q + inside - 1
        return 0

    async def run_sources(self, dc: str) -> list[tuple[str, int]]:
        """The (node, epoch) that have runs."""
        return await self._pairs(RUNS, {"dc": dc})

    async def event_sources(self) -> list[tuple[str, int]]:
        """The (node, epoch) that have events, of whichever datacenter."""
        return await self._pairs("events", {})

    async def _pairs(self, collection: str, base: Document) -> list[tuple[str, int]]:
        """Distinct (n, e) by stepping through the index that begins with them."""
        found: list[tuple[str, int]] = []
        query = base
        order = [(key, ASCENDING) for key in (*base, "n", "e")]
        with border():
            while True:
                document = await self._database[collection].find_one(query, {"_id": 0, "n": 1, "e": 1}, sort=order)
                if document is None:
                    return found
                node, epoch = document.get("n"), document.get("e")
                if not isinstance(node, str) or not isinstance(epoch, int):
                    return found
                found.append((node, epoch))
                query = {**base, "$or": [{"n": node, "e": {"$gt": epoch}}, {"n": {"$gt": node}}]}

    async def runs_of_log(self, origin: str) -> list[StoredRun]:
        """All runs that were written for a log, by their `_id`; the larger part of a second for a million."""
        query = {"_id": {"$gte": f"{origin}|", "$lt": f"{origin}}}"}}
        with border():
            documents = await self._runs.find(query).to_list()
        return [stored for document in documents if (stored := _stored_run(document)) is not None]

    async def runs_near(self, origin: str, first: int, last: int) -> list[Run]:
        """Runs of a log that hold one of its entries `first` to `last`; it looks at all runs of the log."""
        return [
            stored.run
            for stored in await self.runs_of_log(origin)
            if stored.run.log == origin and stored.run.index <= last and stored.run.index + stored.run.count > first
        ]

    async def run_document(self, identity: str) -> StoredRun | None:
        """One run by its `_id`."""
        with border():
            document = await self._runs.find_one({"_id": identity})
        return _stored_run(document) if document else None

    async def replace_runs(self, put: Iterable[Run], remove: Iterable[str], ver: int) -> None:
        """Repair: runs that were made again from the entries themselves."""
        with border():
            for identity in remove:
                await self._runs.delete_one({"_id": identity})
            for run in put:
                await self._runs.replace_one({"_id": run.id}, {**run.document(), "ver": ver}, upsert=True)

    # -- events --------------------------------------------------------------------------------------------------------

    async def event_documents(self, ids: Iterable[tuple[str, int]]) -> dict[str, Event | None]:
        """`<mid>:<k>` → the event; None where the document of that name is not what is written for any event."""
        wanted = list(ids)
        found: dict[str, Event | None] = {}
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            query = {"mid": {"$in": list({mid for mid, _ in part})}, "_id": {"$in": [f"{mid}:{k}" for mid, k in part]}}
            with border():
                async for document in self._events.find(query).batch_size(_CHUNK + 1):
                    found[document["_id"]] = _event(document)
        return found

    async def remains(self, event: Event, names: Sequence[str]) -> list[Event]:
        """What may be left of an event: documents under its names, or with its number; damaged ones as far as they can be read."""
        query: Document = {"$or": [{"_id": {"$in": list(names)}}, _numbered(event)]}
        with border():
            documents = await self._events.find(query).to_list()
        return [_remains(document) for document in documents]

    async def raw_event(self, identity: str) -> Document | None:
        """A document of the event store as it is."""
        with border():
            return await self._events.find_one({"_id": identity})

    async def counts(self, dc: str, ranges: Iterable[tuple[str, int, int, int]]) -> dict[tuple[str, int], int]:
        """(node, epoch) → how many event documents have a q in one of the ranges (node, epoch, first, last); 0 is left out."""
        wanted = [{"n": n, "e": e, "q": {"$gte": first, "$lte": last}} for n, e, first, last in ranges]
        found: dict[tuple[str, int], int] = {}
        for start in range(0, len(wanted), _CHUNK // 5):
            stages: list[Document] = [
                {"$match": {"$or": wanted[start : start + _CHUNK // 5], "dc": dc}},
                {"$group": {"_id": {"n": "$n", "e": "$e"}, "count": {"$sum": 1}}},
            ]
            with border():
                for d in await (await self._events.aggregate(stages)).to_list():
                    term = (d["_id"]["n"], d["_id"]["e"])
                    found[term] = found.get(term, 0) + d["count"]
        return found

    async def ids_between(self, dc: str, node: str, epoch: int, first: int, last: int) -> list[tuple[int, str]]:
        """(q, `_id`) of the event documents of a term with q from `first` to `last`."""
        query = {"n": node, "e": epoch, "q": {"$gte": first, "$lte": last}, "dc": dc}
        with border():
            documents = await self._events.find(query, {"q": 1}).sort([("q", ASCENDING)]).to_list()
        return [(d["q"], d["_id"]) for d in documents]

    async def gap_events(self, dc: str) -> list[Event]:
        """What the ledger of a datacenter wrote about sequence numbers that were never committed."""
        query = {"t": "", "kind": Kind.GAP.value, "k": 0, "dc": dc}
        with border():
            documents = await self._events.find(query).to_list()
        return [event for document in documents if (event := _event(document)) is not None]

    async def erased(self, mids: Sequence[str]) -> dict[str, Event]:
        """The `erased` events of these messages, by mid."""
        found: dict[str, Event] = {}
        for start in range(0, len(mids), _CHUNK // 5):
            ranges = [of_message(mid) for mid in mids[start : start + _CHUNK // 5]]
            with border():
                async for document in self._events.find({"$or": ranges, "kind": Kind.ERASED.value}):
                    if (event := _event(document)) is not None:
                        found[event.mid] = event
        return found

    async def put_event(self, event: Event) -> None:
        """Repair: put a verified event where a damaged one, or none, was. Whatever has its `_id` goes, whichever message it says it is of."""
        document = to_document(event)
        with border():
            try:
                await self._events.replace_one({"_id": event.id, "mid": event.mid}, document, upsert=True)
            except DuplicateKeyError:  # it says that it is another message's
                await self._events.delete_one({"_id": event.id})
                await self._events.insert_one(document)

    async def remove_event(self, identity: str) -> None:
        """Repair: take away a document that stands in the place of another."""
        with border():
            await self._events.delete_one({"_id": identity})

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def cosignature_documents(self) -> list[StoredCosignature]:
        """All of them."""
        with border():
            documents = await self._database[COSIGNATURES].find().to_list()
        return [StoredCosignature(str(document["_id"]), _cosigned(document)) for document in documents]

    async def remove_cosignature(self, identity: str) -> None:
        """Repair: take away what is no cosignature; the cosigner is asked again."""
        with border():
            await self._database[COSIGNATURES].delete_one({"_id": identity})

    async def forget_ahead(self, origin: str) -> None:
        """Repair: a copy goes on from its checkpoint."""
        with border():
            await self._logs.update_one({"_id": origin}, {"$unset": {"ahead": ""}})

    async def replace_witnessed(self, new: Witnessed) -> None:
        """Repair: what our witness remembers of a log, made again from what the log signed."""
        fields = {"size": new.size, "root": new.root, "note": new.note, "forked": new.forked}
        with border():
            await self._database[WITNESSED].update_one(
                {"_id": new.origin}, {"$set": {**fields, "hash": origin_hash(new.origin)}}, upsert=True
            )

    async def scrub_state(self, dc: str) -> Mapping[str, int | str]:
        """How far the present cycle of scrubbing is."""
        with border():
            return await self._database[SCRUB].find_one({"_id": dc}) or {}

    async def save_scrub_state(self, dc: str, state: Mapping[str, int | str]) -> None:
        """Go on from there after a restart."""
        with border():
            await self._database[SCRUB].replace_one({"_id": dc}, dict(state), upsert=True)


def _cosigned(d: Document) -> Cosigned | None:
    try:
        found = Cosigned.of(d)
    except KeyError:
        return None
    texts = (found.origin, found.cosigner, found.role, found.note)
    return found if all(isinstance(text, str) for text in texts) and isinstance(found.size, int) else None


def _numbered(event: Event) -> Document:
    return {"n": event.node, "e": event.epoch, "q": event.q, "dc": event.dc}


def _remains(document: Document) -> Event:
    def of(name: str, kind: type[Any], default: Any) -> Any:
        value = document.get(name)
        return value if isinstance(value, kind) else default

    return Event(
        mid=of("mid", str, ""),
        k=of("k", int, 0),
        tenant=of("t", str, ""),
        kind=Kind.VOID,
        at=0,
        data=of("data", dict, None),
        salt=of("salt", bytes, None),
        leaf=of("leaf", bytes, b""),
        cids=tuple(of("cids", list, ())),
    )


def _event(document: Document) -> Event | None:
    try:
        event = from_document(document)
        return event if to_document(event) == document else None
    except (KeyError, TypeError, ValueError):
        return None
