"""Suppressions and preferences carried between datacenters: what is told to a peer, and how what a peer tells is merged.

Each record says when and where it was written last, and the later one wins (`Record.stamp`); a removal is a record too. So it does not matter in which order,
how often, or by which way records come, and a datacenter tells all that it has, not only its own.

`preference_marks`: `{_id: dc, version, token, scan}`: how far that peer has been heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from pymongo import InsertOne, ReplaceOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from controlplane.domain.preferences import Reason
from controlplane.domain.quiet import Action
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, Document, border
from controlplane.store.preferences import CHANGES, PREFERENCES, SUPPRESSIONS, PreferenceStore

__all__ = ["MARKS", "Mark", "News", "PreferenceNews", "Preferred", "Record", "Suppressed", "merged"]

MARKS = "preference_marks"
_PAGE = 2_000
"""Records of a scan, and recipients of changes, that are told at once; one change may be longer."""
_MOST = 50_000
"""Records of changes that are told at once: what goes beyond is scanned."""
_TRIES = 5
_DUPLICATE_KEY = 11_000
_DIGITS = 32
_OF_SUPPRESSION = 40
_OF_ALL = frozenset({"_id", "r", "t", "updated", "dc"})
_KINDS = {"s": SUPPRESSIONS, "p": PREFERENCES}

_Number = Annotated[int, Meta(ge=0, le=2**53)]
_Text = Annotated[str, Meta(max_length=1_000)]
_Classes = Annotated[list[_Text], Meta(max_length=16)]


class _Quiet(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    windows: list[tuple[int, int, int]]
    action: Action


class Suppressed(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="kind", tag="suppression"):
    """A suppression's fields, as stored."""

    masked: _Text
    reason: Reason
    sender: _Text
    classes: _Classes
    source: _Text
    at: _Number


class Preferred(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="kind", tag="preference"):
    """A preference's fields, as stored."""

    masked: _Text
    time_zone: _Text
    quiet_hours: Annotated[dict[str, _Quiet], Meta(max_length=16)]
    sender: _Text
    blocked: _Classes
    source: _Text
    at: _Number


class Record(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One suppression or preference as it was left by one write."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}([0-9a-f]{8})?$")]
    tenant: Annotated[str, Meta(min_length=1, max_length=200)]
    updated: _Number
    """ms since the epoch."""
    dc: Annotated[str, Meta(min_length=1, max_length=32)]
    says: Suppressed | Preferred | None
    """None: it was removed."""

    @property
    def r(self) -> str:
        """The recipient's keyed hash."""
        return self.id[:_DIGITS]

    @property
    def stamp(self) -> tuple[int, str]:
        """Of two states of a record, that with the greater one counts. No two have the same."""
        return self.updated, self.dc

    @property
    def collection(self) -> str:
        """Where it is kept."""
        return SUPPRESSIONS if len(self.id) == _OF_SUPPRESSION else PREFERENCES

    def document(self) -> Document:
        """As stored. ValueError where id and fields do not go together."""
        left = {"_id": self.id, "r": self.r, "t": self.tenant, "updated": self.updated, "dc": self.dc}
        if self.says is None:
            return left | {"gone": True}
        if isinstance(self.says, Suppressed) != (self.collection == SUPPRESSIONS):
            raise ValueError(f"{self.id} cannot be the id of a {type(self.says).__name__}")
        fields: Document = msgspec.to_builtins(self.says)
        del fields["kind"]
        return left | fields


class Mark(NamedTuple):
    """How far a peer has been heard."""

    version: int = -1
    """Of its changes; -1: nothing yet."""
    token: int = 0
    """Tells that version's entry from one of the same number after a restore: its time in ms; 0 where the peer keeps none."""
    scan: str | None = None
    """While everything is read as well: `s` or `p` (suppressions, preferences) and the last id of the page before; "" at the start."""


class News(NamedTuple):
    """What a peer tells at once."""

    mark: Mark
    """Where to go on."""
    head: int
    """The newest version."""
    told: list[Record]
    """What has changed since."""
    scanned: list[Record]


def merged(records: Sequence[Record]) -> dict[str, Record]:
    """By id, the state of each that counts."""
    newest: dict[str, Record] = {}
    for record in records:
        known = newest.get(record.id)
        if known is None or record.stamp > known.stamp:
            newest[record.id] = record
    return newest


class PreferenceNews:
    """Of a ledger. Everything raises StoreUnavailableError."""

    def __init__(self, database: Database, store: PreferenceStore) -> None:
        self._database = database
        self._store = store
        self._changes = database[CHANGES]
        self._marks = database[MARKS]

    @property
    def key_id(self) -> str:
        """Which key the recipients are hashed with."""
        return self._store.key_id

    # -- telling -------------------------------------------------------------------------------------------------------

    async def since(self, mark: Mark) -> News:
        """What is new. A mark that is not of this database, or is too old, gets one that begins with a scan of everything, and no records yet.

        The scan sees what was written before its version was counted up, so versions after it are all that it may miss.
        """
        head = await self._store.version()
        token = await self._token(mark.version)
        known = mark.version <= head and (token == mark.token or (not token and mark.version == head))
        if mark.version < 0 or not known:
            return await self._anew(head)
        version, recipients = mark.version, set[str]()
        query = {"_id": {"$gt": version}}
        with border():
            async for entry in self._changes.find(query, batch_size=100).sort("_id").limit(_PAGE):
                if entry["_id"] != version + 1 or (recipients and len(recipients) + len(entry["rs"]) > _PAGE):
                    break
                version, token = entry["_id"], _ms(entry)
                recipients.update(entry["rs"])
        told = await self._of(sorted(recipients))
        if len(told) > _MOST:
            return await self._anew(head)
        scanned, scan = ([], None) if mark.scan is None else await self._scan(mark.scan)
        return News(Mark(version, token, scan), head, told, scanned)

    async def _anew(self, head: int) -> News:
        return News(Mark(head, await self._token(head), ""), head, [], [])

    async def _token(self, version: int) -> int:
        with border():
            entry = await self._changes.find_one({"_id": version}, {"when": 1})
        return _ms(entry) if entry else 0

    async def _of(self, recipients: Sequence[str]) -> list[Record]:
        records: list[Record] = []
        for start in range(0, len(recipients), _PAGE):
            query = {"r": {"$in": recipients[start : start + _PAGE]}}
            for name in _KINDS.values():
                with border():
                    documents = await self._database[name].find(query).to_list()
                records += [self._record(document) for document in documents]
            if len(records) > _MOST:
                break
        return records

    async def _scan(self, cursor: str) -> tuple[list[Record], str | None]:
        kind = cursor[:1] or "s"
        with border():
            found = self._database[_KINDS[kind]].find({"_id": {"$gt": cursor[1:]}}).sort("_id").limit(_PAGE)
            records = [self._record(document) async for document in found]
        if len(records) == _PAGE:
            return records, kind + records[-1].id
        return records, "p" if kind == "s" else None

    def _record(self, document: Document) -> Record:
        says: Suppressed | Preferred | None = None
        if not document.get("gone"):
            kind = "suppression" if len(document["_id"]) == _OF_SUPPRESSION else "preference"
            fields = {name: _plain(value) for name, value in document.items() if name not in _OF_ALL}
            says = msgspec.convert({"kind": kind, **fields}, Suppressed | Preferred)
        dc = document.get("dc", self._store.datacenter)
        return Record(document["_id"], document["t"], int(document["updated"]), dc, says)

    # -- hearing -------------------------------------------------------------------------------------------------------

    async def heard(self, dc: str) -> Mark:
        """How far that peer has been."""
        with border():
            found = await self._marks.find_one({"_id": dc})
        return Mark(int(found["version"]), int(found["token"]), found["scan"]) if found else Mark()

    async def hear(self, dc: str, before: Mark, mark: Mark) -> None:
        """It goes on from here, unless another ledger has gone on from `before`."""
        with border():
            try:
                await self._marks.update_one({"_id": dc, **before._asdict()}, {"$set": mark._asdict()}, upsert=True)
            except DuplicateKeyError:
                return

    async def take(self, records: Sequence[Record], *, tell_all: bool = False) -> int:
        """Keep those that are later than what is here, and tell this datacenter's nodes; how many. ValueError for records that make no sense.

        `tell_all`: tell the nodes of the others too, for the case that an earlier try kept them and got no further.
        """
        newest = list(merged(records).values())
        documents = {record.id: record.document() for record in newest}
        taken: set[str] = set()
        for name in _KINDS.values():
            mine = [record for record in newest if record.collection == name]
            for start in range(0, len(mine), _PAGE):
                taken |= await self._keep(self._database[name], mine[start : start + _PAGE], documents)
        told = [record for record in newest if tell_all or record.id in taken]
        if told:
            await self._store.changed(sorted({record.r for record in told}), sorted({record.tenant for record in told}))
        return len(taken)

    async def _keep(
        self, collection: AsyncCollection[Document], records: Sequence[Record], documents: dict[str, Document]
    ) -> set[str]:
        """Each in the place of exactly what was compared with it: local writes go on meanwhile."""
        query = {"r": {"$in": [record.r for record in records]}, "_id": {"$in": [record.id for record in records]}}
        taken: set[str] = set()
        for _ in range(_TRIES):
            with border():
                here = {d["_id"]: d async for d in collection.find(query, {"updated": 1, "dc": 1})}
            writes: list[InsertOne[Document] | ReplaceOne[Document]] = []
            for record in records:
                known = here.get(record.id)
                if known is None:
                    writes.append(InsertOne(documents[record.id]))
                elif record.stamp > (known["updated"], known.get("dc", self._store.datacenter)):
                    same = {"_id": record.id, "r": record.r, "updated": known["updated"], "dc": known.get("dc")}
                    writes.append(ReplaceOne(same, documents[record.id]))
                else:
                    continue
                taken.add(record.id)
            if not writes:
                return taken
            with border():
                try:
                    await collection.bulk_write(writes, ordered=False)
                except BulkWriteError as error:
                    if any(item["code"] != _DUPLICATE_KEY for item in error.details["writeErrors"]):
                        raise
        raise StoreUnavailableError("Preferences of a peer are not kept: the same records change all the time.")


def _ms(entry: Document) -> int:
    when: datetime = entry["when"]
    return round(when.replace(tzinfo=UTC).timestamp() * 1000)


def _plain(value: Any) -> Any:
    """Without pymongo's own kind of integer."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, int) else value
