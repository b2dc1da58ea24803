"""The ledger's documents: logs, bundles, tiles, runs, cosignatures. What makes them a log is `controlplane.ledger`; here they are kept and found.

| collection | one document is |
|---|---|
| ledger_logs | a log, own or mirrored: its committed size, root, frontier, signed checkpoint; of an own log also the marks |
| ledger_bundles, ledger_tiles | an entry bundle, a tile (c2sp.org/tlog-tiles), in wire form. The last of each level grows; what is narrower is a prefix of it |
| ledger_runs | which entries hold a stretch of one node's sequence: found again from a message's event |
| ledger_cosignatures | the newest cosignature of one witness or mirror over one log |
| ledger_lease | who leads this datacenter's ledger |
| ledger_findings, ledger_repairs | what scrubbing found, what was asked to be mended |

Whatever lies above a log's committed size is a draft of somebody who may have died: readers cut at the size. `ver` orders the writers of one document,
so that a write which arrives late never replaces what a later round has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from controlplane.domain.events import Event
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, Document, border
from controlplane.store.events import from_document, to_document
from controlplane.store.leases import fresh_term
from controlplane.store.schema import EVENTS, TERMS

__all__ = [
    "BUNDLES",
    "LEDGER_NODE",
    "LOGS",
    "OPENED_NODE",
    "RUNS",
    "TILES",
    "Cosigned",
    "Finding",
    "LedgerStore",
    "Log",
    "Run",
    "Source",
    "StaleWriterError",
    "opening_time",
]

LOGS = "ledger_logs"
BUNDLES = "ledger_bundles"
TILES = "ledger_tiles"
RUNS = "ledger_runs"
COSIGNATURES = "ledger_cosignatures"
LEASE = "ledger_lease"
FINDINGS = "ledger_findings"
REPAIRS = "ledger_repairs"
LEDGER_NODE = "ledger"
"""The `n` of the events that the ledger itself writes."""
OPENED_NODE = "opened"
"""The `n` of the first entry of each log; its `e` is the log's number in its datacenter."""

_DUPLICATE_KEY = 11000
_CHUNK = 500
_INDEXES = {
    RUNS: [IndexModel([("dc", ASCENDING), ("n", ASCENDING), ("e", ASCENDING), ("q", DESCENDING)], name="run")],
    FINDINGS: [IndexModel([("state", ASCENDING), ("at", DESCENDING)], name="state")],
    REPAIRS: [IndexModel([("state", ASCENDING), ("at", ASCENDING)], name="state")],
}


class StaleWriterError(Exception):
    """A later writer has been at a document: whoever gets this no longer leads, and must stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A log as it was last committed."""

    origin: str
    dc: str
    own: bool
    vkey: str
    state: str = "open"
    """open; sealed (complete, has a successor); frozen (mirrored, and found forked: nothing more is taken from it)."""
    term: int = 0
    """Of the ledger that may commit; 0 for a mirror's copy."""
    size: int = 0
    root: bytes
    frontier: tuple[bytes, ...] = ()
    marks: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """(node, epoch) → the highest q that is in this log or one before it; nodes whose terms are over and complete are left out."""
    late: tuple[tuple[str, int, int], ...] = ()
    """(node, epoch, q) below a mark that repair asks to be sequenced."""
    checkpoint: str = ""
    """The signed note of exactly `size`; empty before the first."""
    opened_at: int = 0
    previous: str = ""
    next: str = ""
    seal: str = ""
    """Why it was sealed: `quarter`, `key`, `fork`, `root`."""

    def document(self) -> Document:
        """As stored."""
        return {
            "_id": self.origin,
            "dc": self.dc,
            "own": self.own,
            "vkey": self.vkey,
            "state": self.state,
            "term": self.term,
            "size": self.size,
            "root": self.root,
            "frontier": list(self.frontier),
            "marks": [[node, epoch, q] for (node, epoch), q in self.marks.items()],
            "late": [list(item) for item in self.late],
            "checkpoint": self.checkpoint,
            "opened_at": self.opened_at,
            "previous": self.previous,
            "next": self.next,
            "seal": self.seal,
        }

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read."""
        return cls(
            origin=document["_id"],
            dc=document["dc"],
            own=document["own"],
            vkey=document["vkey"],
            state=document["state"],
            term=document["term"],
            size=document["size"],
            root=bytes(document["root"]),
            frontier=tuple(bytes(item) for item in document["frontier"]),
            marks={(node, epoch): q for node, epoch, q in document["marks"]},
            late=tuple((node, epoch, q) for node, epoch, q in document["late"]),
            checkpoint=document["checkpoint"],
            opened_at=document["opened_at"],
            previous=document["previous"],
            next=document["next"],
            seal=document["seal"],
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Entries `index` … `index + count - 1` of `log` are q … q + count - 1 of (node, epoch)."""

    log: str
    dc: str
    node: str
    epoch: int
    q: int
    count: int
    index: int

    @property
    def id(self) -> str:
        """`<log>|<node>:<epoch>|<q>`."""
        return f"{self.log}|{self.node}:{self.epoch}|{self.q:012d}"

    def document(self) -> Document:
        """As stored, but for its `_id` and `ver`."""
        return {
            "log": self.log,
            "dc": self.dc,
            "n": self.node,
            "e": self.epoch,
            "q": self.q,
            "count": self.count,
            "index": self.index,
        }

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read. KeyError for what is no run."""
        return cls(*(document[name] for name in ("log", "dc", "n", "e", "q", "count", "index")))


@dataclass(frozen=True, slots=True)
class Source:
    """A term whose events go into the log."""

    node: str
    epoch: int
    closed: bool
    """Nothing is written under it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """The newest that one cosigner said about one log."""

    origin: str
    cosigner: str
    role: str
    """witness: it has seen nothing inconsistent; mirror: it holds every entry and payload."""
    size: int
    note: str
    """The log's signed checkpoint of that size with this cosignature."""
    at: int
    """ms since the epoch, of this machine."""

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read. KeyError for what is no cosignature."""
        return cls(**{name.name: document[name.name] for name in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it must be."""

    kind: str
    """One of controlplane.ledger.repair's classes."""
    origin: str
    first: int = -1
    last: int = -1
    """Indices of the entries concerned, both inclusive; -1 where it is about none."""
    detail: str
    at: int
    state: str = "open"
    """open, cured, sealed."""
    subject: str = ""
    """The event, tile or node concerned."""

    @property
    def id(self) -> str:
        """One document for one fault, however often it is found."""
        return f"{self.kind}|{self.origin}|{self.first}|{self.last}|{self.subject}"

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read."""
        return cls(**{name.name: document[name.name] for name in fields(cls)})


def opening_time(before: Log | None, now_ms: int) -> int:
    """`opened_at` of the log that follows `before`: logs are told in order by it, whatever the clock does."""
    return max(now_ms, before.opened_at + 1) if before else now_ms


def _drafts(
    origin: str, bundles: Mapping[int, bytes], tiles: Mapping[tuple[int, int], bytes], runs: Iterable[Run]
) -> dict[str, dict[str, Document]]:
    """Collection → `_id` → what is written there."""
    return {
        BUNDLES: {f"{origin}|{index}": {"data": data} for index, data in bundles.items()},
        TILES: {f"{origin}|{level}|{index}": {"data": data} for (level, index), data in tiles.items()},
        RUNS: {run.id: run.document() for run in runs},
    }


def _begins(stored: Document, draft: Document) -> bool:
    """Whether a bundle, tile or run begins as drafted, and may go on."""
    if "data" in draft:
        return bytes(stored.get("data") or b"").startswith(draft["data"])
    return bool(
        stored.get("count", 0) >= draft["count"]
        and all(stored.get(name) == value for name, value in draft.items() if name != "count")
    )


class LedgerStore:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._logs = database[LOGS]
        self._bundles = database[BUNDLES]
        self._tiles = database[TILES]
        self._runs = database[RUNS]
        self._cosignatures = database[COSIGNATURES]
        self._events = database[EVENTS]
        self._terms = database[TERMS]
        self._findings = database[FINDINGS]
        self._repairs = database[REPAIRS]

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            for collection, indexes in _INDEXES.items():
                await self._database[collection].create_indexes(indexes)

    # -- logs ----------------------------------------------------------------------------------------------------------

    async def logs(self, *, own: bool | None = None, dc: str | None = None) -> list[Log]:
        """All logs that are held here, oldest first."""
        query: Document = {}
        if own is not None:
            query["own"] = own
        if dc is not None:
            query["dc"] = dc
        with border():
            documents = await self._logs.find(query).to_list()
        return sorted(map(Log.of, documents), key=lambda log: (log.dc, log.opened_at, log.origin))

    async def log(self, origin: str) -> Log | None:
        """One log."""
        with border():
            document = await self._logs.find_one({"_id": origin})
        return Log.of(document) if document else None

    async def create_log(self, log: Log) -> bool:
        """False: it exists already."""
        with border():
            try:
                await self._logs.insert_one(log.document())
            except DuplicateKeyError:
                return False
        return True

    async def take_term(self, origin: str, term: int) -> Log:
        """Fence every earlier writer of an own log: from here on only `term` commits to it. Raises StaleWriterError, KeyError."""
        with border():
            await self._logs.update_one({"_id": origin, "term": {"$lt": term}}, {"$set": {"term": term}})
        log = await self.log(origin)
        if log is None:
            raise KeyError(origin)
        if log.term != term:
            raise StaleWriterError(f"{origin} is at term {log.term}, later than {term}")
        return log

    async def commit(self, old: Log, new: Log) -> bool:
        """The one update that makes a round true: from `old` to `new`, of the same term. False: somebody else has moved the log.

        What was asked for with `ask_late` meanwhile stays; what `new` no longer has in `late` is taken out.
        """
        document = new.document()
        del document["_id"], document["late"]
        update: Document = {"$set": document}
        if added := [list(item) for item in new.late if item not in old.late]:
            update["$addToSet"] = {"late": {"$each": added}}
        elif done := [list(item) for item in old.late if item not in new.late]:
            update["$pullAll"] = {"late": done}
        query = {
            "_id": old.origin,
            "term": old.term,
            "size": old.size,
            "state": old.state,
            "checkpoint": old.checkpoint,
        }
        with border():
            result = await self._logs.update_one(query, update)
        return result.matched_count == 1

    async def late(self, origin: str) -> tuple[tuple[str, int, int], ...]:
        """What is asked for at present."""
        log = await self.log(origin)
        return log.late if log else ()

    async def ask_late(self, origin: str, wanted: Sequence[tuple[str, int, int]]) -> None:
        """Let the next round sequence these (node, epoch, q), which lie below their marks."""
        with border():
            await self._logs.update_one(
                {"_id": origin}, {"$addToSet": {"late": {"$each": [list(item) for item in wanted]}}}
            )

    # -- tiles and bundles ---------------------------------------------------------------------------------------------

    async def stage(
        self,
        origin: str,
        ver: int,
        bundles: Mapping[int, bytes],
        tiles: Mapping[tuple[int, int], bytes],
        runs: Iterable[Run],
    ) -> None:
        """Write drafts of one round, durably. Raises StaleWriterError when a later round was there."""
        for collection, documents in _drafts(origin, bundles, tiles, runs).items():
            await self._put(collection, ver, documents)

    async def stage_under(
        self,
        origin: str,
        ver: int,
        bundles: Mapping[int, bytes],
        tiles: Mapping[tuple[int, int], bytes],
        runs: Iterable[Run],
    ) -> int:
        """The same where a copy's document was put back, so that behind its size stands what a longer copy has left: what begins as the draft does stays,
        what does not is replaced, whoever wrote it. How many were replaced. Not for an own log, whose later writers may have another draft."""
        replaced = 0
        for collection, documents in _drafts(origin, bundles, tiles, runs).items():
            missing = dict(documents)
            for start in range(0, len(documents), _CHUNK // 5):
                part = list(documents)[start : start + _CHUNK // 5]
                with border():
                    async for stored in self._database[collection].find({"_id": {"$in": part}}):
                        identity = stored["_id"]
                        if _begins(stored, documents[identity]):
                            del missing[identity]
                        elif stored.get("ver", 0) > ver:
                            query = {"_id": identity, "ver": stored["ver"]}
                            result = await self._database[collection].update_one(query, {"$set": {"ver": ver}})
                            replaced += result.modified_count
            await self._put(collection, ver, missing)
        return replaced

    async def _put(self, collection: str, ver: int, documents: Mapping[str, Document]) -> None:
        updates = [
            {"q": {"_id": identity, "ver": {"$lte": ver}}, "u": {"$set": {**fields, "ver": ver}}, "upsert": True}
            for identity, fields in documents.items()
        ]
        for start in range(0, len(updates), _CHUNK // 5):
            command = {
                "update": collection,
                "ordered": False,
                "writeConcern": self._database.write_concern.document,
                "updates": updates[start : start + _CHUNK // 5],
            }
            with border():
                reply = await self._database.command(command)
            errors = reply.get("writeErrors", ())
            if any(item["code"] == _DUPLICATE_KEY for item in errors):
                raise StaleWriterError(f"{collection}: a later round has written what this one drafts")
            if errors or "writeConcernError" in reply:
                raise StoreUnavailableError(f"MongoDB: {errors or reply['writeConcernError']}")

    async def bundle(self, origin: str, index: int) -> bytes | None:
        """An entry bundle in wire form, with whatever drafts may stand at its end."""
        with border():
            document = await self._bundles.find_one({"_id": f"{origin}|{index}"}, {"data": 1})
        return bytes(document["data"]) if document else None

    async def bundles(self, origin: str, indices: Sequence[int]) -> dict[int, bytes]:
        """Several; those that are missing are absent."""
        found: dict[int, bytes] = {}
        for start in range(0, len(indices), 64):
            ids = [f"{origin}|{index}" for index in indices[start : start + 64]]
            with border():
                async for document in self._bundles.find({"_id": {"$in": ids}}, {"data": 1}):
                    found[int(document["_id"].rpartition("|")[2])] = bytes(document["data"])
        return found

    async def tile(self, origin: str, level: int, index: int) -> bytes | None:
        """A tile in wire form, with whatever drafts may stand at its end."""
        with border():
            document = await self._tiles.find_one({"_id": f"{origin}|{level}|{index}"}, {"data": 1})
        return bytes(document["data"]) if document else None

    async def tiles(self, origin: str, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Several by (level, index); those that are missing are absent."""
        ids = [f"{origin}|{level}|{index}" for level, index in places]
        found: dict[tuple[int, int], bytes] = {}
        for start in range(0, len(ids), _CHUNK):
            with border():
                async for document in self._tiles.find({"_id": {"$in": ids[start : start + _CHUNK]}}, {"data": 1}):
                    _, level, index = document["_id"].rsplit("|", 2)
                    found[int(level), int(index)] = bytes(document["data"])
        return found

    async def covered(self, dc: str, node: str, epoch: int, sizes: Mapping[str, int]) -> int:
        """The highest q of (node, epoch) that the first `sizes[origin]` entries of these logs hold; 0 for none. Drafts and cut-off ends do not count."""
        query = {"dc": dc, "n": node, "e": epoch}
        with border():
            async for d in self._runs.find(query).sort([("q", DESCENDING)]):
                inside = min(d["count"], sizes.get(d["log"], 0) - d["index"])
                if inside > 0:
                    return int(d["q"] + inside - 1)
        return 0

    async def find_runs(self, dc: str, node: str, epoch: int, q: int) -> list[Run]:
        """Where the event (node, epoch, q) may stand, newest run first: drafts among them, so look before you trust."""
        query = {"dc": dc, "n": node, "e": epoch, "q": {"$lte": q}}
        with border():
            documents = await self._runs.find(query).sort([("q", DESCENDING)]).limit(8).to_list()
        return [run for run in map(Run.of, documents) if run.q + run.count > q]

    # -- events --------------------------------------------------------------------------------------------------------

    async def sources(self) -> list[Source]:
        """The terms of this datacenter that are not known to be complete in the log."""
        with border():
            documents = await self._terms.find(
                {"sequenced": {"$exists": False}}, {"n": 1, "e": 1, "state": 1}
            ).to_list()
        return sorted(
            (Source(d["n"], d["e"], d["state"] == "closed") for d in documents), key=lambda s: (s.node, s.epoch)
        )

    async def add_source(self, node: str, epoch: int) -> None:
        """Let a ledger's own term be read; nobody adopts it."""
        term = {"n": node, "e": epoch, "beat": 0, "state": "closed", "by": "", "host": "", "url": ""}
        with border():
            await self._terms.update_one({"_id": f"{node}:{epoch}"}, {"$setOnInsert": term}, upsert=True)

    async def complete(self, node: str, epoch: int, mark: int) -> None:
        """Everything of this term is in the log, up to q = `mark`: it is not read again."""
        with border():
            await self._terms.update_one({"_id": f"{node}:{epoch}"}, {"$set": {"sequenced": mark}})

    async def reopen(self, node: str, epoch: int) -> None:
        """Read this term again: what it wrote is to be sequenced anew."""
        with border():
            await self._terms.update_one({"_id": f"{node}:{epoch}"}, {"$unset": {"sequenced": ""}})

    async def completed(self) -> dict[tuple[str, int], int]:
        """(node, epoch) → mark, of the terms that `complete` was said of."""
        with border():
            documents = await self._terms.find({"sequenced": {"$exists": True}}).to_list()
        return {(d["n"], d["e"]): d["sequenced"] for d in documents}

    async def sequence(self, dc: str, node: str, epoch: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(q, leaf) of the events with q > `after`, in order; there may be gaps."""
        query = {"n": node, "e": epoch, "q": {"$gt": after}, "dc": dc}
        with border():
            documents = (
                await self._events.find(query, {"_id": 0, "q": 1, "leaf": 1})
                .sort([("n", ASCENDING), ("e", ASCENDING), ("q", ASCENDING)])
                .limit(limit)
                .batch_size(limit + 1)  # one round trip
                .to_list()
            )
        return [(d["q"], d["leaf"]) for d in documents]

    async def leaves(self, dc: str, node: str, epoch: int, qs: Sequence[int]) -> dict[int, bytes]:
        """q → leaf, of those that are there."""
        with border():
            documents = await self._events.find(
                {"n": node, "e": epoch, "q": {"$in": list(qs)}, "dc": dc}, {"_id": 0, "q": 1, "leaf": 1}
            ).to_list()
        return {d["q"]: bytes(d["leaf"]) for d in documents}

    async def events(self, ids: Sequence[tuple[str, int]]) -> dict[str, Event]:
        """`<mid>:<k>` → event, of those that are there. A document that is no event any more is absent."""
        found: dict[str, Event] = {}
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            query = {
                "mid": {"$in": sorted({mid for mid, _ in part})},
                "_id": {"$in": [f"{mid}:{k}" for mid, k in part]},
            }
            with border():
                async for document in self._events.find(query):
                    try:
                        found[document["_id"]] = from_document(document)
                    except (KeyError, TypeError, ValueError):
                        continue
        return found

    async def put_events(self, events: Sequence[Event]) -> list[str]:
        """Insert mirrored events; those whose `_id` is taken stay as they are. Returns the ids that were taken."""
        taken: list[str] = []
        for start in range(0, len(events), _CHUNK):
            documents = [to_document(event) for event in events[start : start + _CHUNK]]
            command = {
                "insert": EVENTS,
                "ordered": False,
                "writeConcern": self._database.write_concern.document,
                "documents": documents,
            }
            with border():
                reply = await self._database.command(command)
            errors = reply.get("writeErrors", ())
            if "writeConcernError" in reply or any(item["code"] != _DUPLICATE_KEY for item in errors):
                raise StoreUnavailableError(f"MongoDB: {reply.get('writeConcernError') or errors}")
            taken += [documents[item["index"]]["_id"] for item in errors]
        return taken

    # -- cosignatures --------------------------------------------------------------------------------------------------

    async def save_cosignature(self, cosigned: Cosigned) -> None:
        """Keep it if it is the newest of that cosigner over that log."""
        with border():
            try:
                await self._cosignatures.update_one(
                    {"_id": f"{cosigned.origin}|{cosigned.cosigner}", "size": {"$lte": cosigned.size}},
                    {"$set": asdict(cosigned)},
                    upsert=True,
                )
            except DuplicateKeyError:
                return

    async def cosignatures(self, origin: str | None = None) -> list[Cosigned]:
        """Of one log, or of all."""
        with border():
            documents = await self._cosignatures.find({"origin": origin} if origin else {}).to_list()
        return list(map(Cosigned.of, documents))

    # -- findings and repairs ------------------------------------------------------------------------------------------

    async def report(self, finding: Finding) -> None:
        """Write a finding down; one that is found again keeps the time of its first finding."""
        found = asdict(finding)
        at = found.pop("at")
        with border():
            await self._findings.update_one(
                {"_id": finding.id}, {"$set": found, "$setOnInsert": {"at": at}}, upsert=True
            )

    async def findings(self, state: str | None = None) -> list[Finding]:
        """Newest first."""
        with border():
            documents = (
                await self._findings.find({"state": state} if state else {})
                .sort("at", DESCENDING)
                .limit(1000)
                .to_list()
            )
        return list(map(Finding.of, documents))

    async def ask_repair(self, identity: str, request: Mapping[str, Any]) -> None:
        """Queue a repair for whoever leads: `at`, `dry_run`, `by`; its report is written into the same document."""
        with border():
            await self._repairs.insert_one({"_id": identity, "state": "asked", **request})

    async def next_repair(self) -> Document | None:
        """The oldest that is asked for or was begun by a ledger that died."""
        with border():
            return await self._repairs.find_one({"state": {"$in": ["asked", "running"]}}, sort=[("at", ASCENDING)])

    async def update_repair(self, identity: str, fields: Mapping[str, Any]) -> None:
        """What became of it."""
        with border():
            await self._repairs.update_one({"_id": identity}, {"$set": dict(fields)})

    async def repair(self, identity: str) -> Document | None:
        """One of them."""
        with border():
            return await self._repairs.find_one({"_id": identity})

    # -- leading -------------------------------------------------------------------------------------------------------

    async def lease(self, dc: str) -> Document | None:
        """{_id: dc, term, holder, host, beat, released}."""
        with border():
            return await self._database[LEASE].find_one({"_id": dc})

    async def take_lease(self, dc: str, seen: Document | None, holder: str, host: str, now_ms: int) -> int | None:
        """A new term, if nobody else took it since `seen` was read; None otherwise."""
        term = fresh_term(seen["term"] if seen else 0, now_ms)
        fields = {"term": term, "holder": holder, "host": host, "beat": 0, "released": False}
        with border():
            if seen is None:
                try:
                    await self._database[LEASE].insert_one({"_id": dc, **fields})
                except DuplicateKeyError:
                    return None
                return term
            query = {"_id": dc, "term": seen["term"], "beat": seen["beat"]}
            result = await self._database[LEASE].update_one(query, {"$set": fields})
        return term if result.matched_count else None

    async def renew_lease(self, dc: str, term: int, *, release: bool = False) -> bool:
        """One heartbeat. False: the term is over."""
        with border():
            result = await self._database[LEASE].update_one(
                {"_id": dc, "term": term}, {"$inc": {"beat": 1}, "$set": {"released": release}}
            )
        return result.matched_count == 1
