"""The search index's documents. It is derived: whoever deletes all three collections gets it again, from the logs (`controlplane.ledger.index`).

| collection | one document is |
|---|---|
| search_state | how far each log is indexed, until when, by whom, and what was being written: one document |
| search_segments | a segment (`search_pack`): how many messages, of which time, its columns' values, which of it was erased |
| search_data | a segment's postings (`<segment>|p|<bucket>`), rows (`|r|<chunk>`) and columns (`|c|<column>`) |

A segment is there once its `search_segments` document is. One that `replaces` others makes them invisible in the same moment; they are deleted a minute later,
so that nobody who is reading them misses anything.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from pymongo.errors import DuplicateKeyError

from controlplane.ids import token
from controlplane.store.client import Database, Document, border
from controlplane.store.ledger import StaleWriterError
from controlplane.store.search_pack import COLUMNS, ROWS_A_CHUNK, Chunk, Codes, Packed, postings

__all__ = ["DATA", "SEGMENTS", "STATE", "DamagedIndexError", "SearchStore", "Segment", "State"]

STATE = "search_state"
SEGMENTS = "search_segments"
DATA = "search_data"
_ID = "index"
_FORM = 1
"""Of tokens and documents: what is of another form is dropped, and built anew."""
_CHUNK = 256
_NOTHING: Document = {"form": _FORM, "version": 1, "until": 0, "logs": [], "writing": []}


class DamagedIndexError(Exception):
    """A part of a segment is missing: the index is to be built anew."""


@dataclass(frozen=True, slots=True)
class State:
    """How far the index is."""

    version: int = 0
    """Changes whenever a segment does."""
    until: int = 0
    """Messages accepted here before this, ms since the epoch, are all in it; 0 while there is no index."""
    logs: Mapping[str, int] = field(default_factory=dict)
    """Origin → how many entries of that log are in it."""


@dataclass(slots=True)
class Segment:
    """What is known of a segment without reading its data."""

    id: str
    size: int
    bits: int
    starts: list[int]
    """When the first message of each chunk was accepted."""
    last: int
    """When the last message was accepted."""
    dictionaries: list[list[str]]
    counts: list[int]
    """Messages of each status, by code."""
    erased: list[int] = field(default_factory=list)
    """Ordinals whose tokens are still here and must go."""
    erased_since: int = 0
    replaces: list[str] = field(default_factory=list)
    revision: int = 0
    """Counts its changes."""

    @property
    def first(self) -> int:
        """When the first message was accepted."""
        return self.starts[0]

    def bucket_of(self, token: int) -> int:
        """Where a token's postings are."""
        return token >> 32 - self.bits

    def chunks_at(self, at: int) -> range:
        """Which chunks may have a message accepted at `at`."""
        return range(max(0, bisect_left(self.starts, at) - 1), bisect_right(self.starts, at))

    def rows_of(self, chunk: int) -> int:
        """How many rows a chunk has."""
        return min(ROWS_A_CHUNK, self.size - chunk * ROWS_A_CHUNK)

    def explains(self, column: int, codes: Codes) -> bool:
        """Whether the segment's dictionary has all of a column's codes."""
        return int(codes.max()) < len(self.dictionaries[column])

    def ordinal(self, chunk: int, place: int) -> int:
        """Of the row at `place` in a chunk."""
        return chunk * ROWS_A_CHUNK + place

    def document(self) -> Document:
        """As stored."""
        return {
            "_id": self.id,
            "size": self.size,
            "bits": self.bits,
            "starts": self.starts,
            "last": self.last,
            "dictionaries": self.dictionaries,
            "counts": self.counts,
            "erased": self.erased,
            "erased_since": self.erased_since,
            "replaces": self.replaces,
            "revision": self.revision,
        }

    @classmethod
    def of(cls, document: Document) -> Segment:
        """As read."""
        return cls(document["_id"], **{name: document[name] for name in cls.__slots__ if name != "id"})


class SearchStore:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._state = database[STATE]
        self._segments = database[SEGMENTS]
        self._data = database[DATA]

    # -- reading -------------------------------------------------------------------------------------------------------

    async def state(self) -> State:
        """How far the index is; of another form it is none."""
        with border():
            found = await self._state.find_one({"_id": _ID})
        if found is None or found.get("form") != _FORM:
            return State()
        return State(found["version"], found["until"], dict(found["logs"]))

    async def segments(self, known: Iterable[Segment] = ()) -> list[Segment]:
        """Those that count, the newest messages first. Of those that are `known` only what has changed is read."""
        with border():
            listed = await self._segments.find({}, {"replaces": 1, "revision": 1}).to_list()
        replaced = {identity for document in listed for identity in document["replaces"]}
        wanted = {document["_id"]: document["revision"] for document in listed if document["_id"] not in replaced}
        found = {each.id: each for each in known if wanted.get(each.id) == each.revision}
        with border():
            documents = await self._segments.find({"_id": {"$in": [i for i in wanted if i not in found]}}).to_list()
        found |= {document["_id"]: Segment.of(document) for document in documents}
        return sorted(found.values(), key=lambda segment: (segment.last, segment.id), reverse=True)

    async def _read(self, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), _CHUNK):
            with border():
                documents = await self._data.find({"_id": {"$in": ids[start : start + _CHUNK]}}).to_list()
            found.update((document["_id"], document["d"]) for document in documents)
        return found

    async def buckets(self, wanted: Iterable[tuple[Segment, int]]) -> dict[str, bytes]:
        """Segment's id → the bucket of it that was asked for."""
        ids = {f"{segment.id}|p|{bucket}": segment.id for segment, bucket in wanted}
        return {ids[identity]: data for identity, data in (await self._read(list(ids))).items()}

    async def chunks(self, wanted: Iterable[tuple[Segment, int]]) -> dict[tuple[str, int], Chunk]:
        """(segment's id, number) → chunk; those whose segment is gone are absent."""
        places = {f"{segment.id}|r|{number}": (segment, number) for segment, number in wanted}
        found = {}
        for identity, data in (await self._read(list(places))).items():
            segment, number = places[identity]
            found[segment.id, number] = Chunk.decode(data, segment.rows_of(number))
        return found

    async def columns(self, wanted: Iterable[tuple[Segment, int]]) -> dict[tuple[str, int], Codes]:
        """(segment's id, column) → codes."""
        places = {f"{segment.id}|c|{column}": (segment, column) for segment, column in wanted}
        found = {}
        for identity, data in (await self._read(list(places))).items():
            segment, column = places[identity]
            found[segment.id, column] = _decoded(data, segment.size)
        return found

    async def load(self, segment: Segment) -> Packed:
        """All of it. Raises DamagedIndexError."""
        numbers = range(len(segment.starts))
        rows = await self.chunks((segment, number) for number in numbers)
        columns = await self.columns((segment, column) for column in range(len(COLUMNS)))
        buckets = await self._read([f"{segment.id}|p|{number}" for number in range(1 << segment.bits)])
        if len(rows) < len(numbers) or len(columns) < len(COLUMNS):
            raise DamagedIndexError(f"{segment.id} is not complete")
        if not all(segment.explains(column, codes) for (_, column), codes in columns.items()):
            raise DamagedIndexError(f"a column of {segment.id} has values that its dictionary does not")
        ordered = [buckets.get(f"{segment.id}|p|{number}", b"") for number in range(1 << segment.bits)]
        tokens, ordinals = await asyncio.to_thread(postings, ordered)
        parts = [rows[segment.id, number] for number in numbers]
        return Packed(
            [at for part in parts for at in part.ats],
            [mid for part in parts for mid in part.mids],
            tokens,
            ordinals,
            segment.dictionaries,
            [columns[segment.id, column] for column in range(len(COLUMNS))],
        )

    # -- writing: one at a time, whoever has the last term ---------------------------------------------------------------

    async def take(self, term: int) -> State:
        """Begin to write: earlier terms' writers get StaleWriterError from now on, as this one does where there is a later. What they left half done is cleaned up; what they replaced stays for those who are reading it (`drop_replaced`)."""
        with border():
            found = await self._state.find_one({"_id": _ID})
            if found is not None and found.get("form") != _FORM:
                for collection in (self._segments, self._data, self._state):
                    await collection.delete_many({})
            with suppress(DuplicateKeyError):
                await self._state.update_one({"_id": _ID}, {"$setOnInsert": {**_NOTHING, "term": 0}}, upsert=True)
            await self._state.update_one({"_id": _ID, "term": {"$lt": term}}, {"$set": {"term": term}})
        await self._change(term, {})
        with border():
            writing = ((await self._state.find_one({"_id": _ID})) or _NOTHING)["writing"]
            for identity in writing:
                if await self._segments.find_one({"_id": identity}) is None:
                    await self._delete([identity])
        await self._change(term, {"writing": []}, changed=True)  # a segment may be there that nobody was told of
        return await self.state()

    async def clear(self, term: int) -> None:
        """Forget everything: the index is built anew."""
        nothing = {name: value for name, value in _NOTHING.items() if name != "version"}
        await self._change(term, nothing, changed=True)
        with border():
            await self._segments.delete_many({})
            await self._data.delete_many({})

    async def _change(self, term: int, fields: Document, *, changed: bool = False) -> None:
        update: Document = {"$set": {**fields, "term": term}}
        if changed:
            update["$inc"] = {"version": 1}
        with border():
            result = await self._state.update_one({"_id": _ID, "term": term}, update)
        if not result.matched_count:
            raise StaleWriterError("a later ledger writes the search index")

    async def save(self, term: int, until: int, logs: Mapping[str, int], *, changed: bool) -> None:
        """So far it goes now. `changed`: segments are not what they were."""
        await self._change(term, {"until": until, "logs": [list(item) for item in logs.items()]}, changed=changed)

    async def write(self, term: int, packed: Packed, replaces: Collection[Segment] = ()) -> Segment:
        """A new segment, durably, in the place of some."""
        segment = Segment(
            token("s", 10),
            len(packed),
            packed.bits,
            packed.ats[::ROWS_A_CHUNK],
            packed.ats[-1],
            packed.dictionaries,
            list(packed.counts(0).values()),
            replaces=[each.id for each in replaces],
        )
        await self._change(term, {"writing": [segment.id]})
        documents = await asyncio.to_thread(_documents, segment.id, packed)
        with border():
            for start in range(0, len(documents), _CHUNK):
                await self._data.insert_many(documents[start : start + _CHUNK], ordered=False)
        await self._change(term, {})  # nobody else has begun meanwhile
        with border():
            await self._segments.insert_one(segment.document())
        await self._change(term, {"writing": []}, changed=True)
        return segment

    async def update(self, segment: Segment, columns: Mapping[int, Codes]) -> None:
        """Write what `segment` says of itself, then these columns; `save` makes it known. Raises DamagedIndexError where somebody else has changed the segment.

        In this order nobody ever meets a code that no dictionary has: a value that no row has yet does no harm.
        """
        query = {"_id": segment.id, "revision": segment.revision}
        segment.revision += 1
        fields = segment.document()
        del fields["_id"], fields["replaces"]  # which is `drop_replaced`'s
        with border():
            result = await self._segments.update_one(query, {"$set": fields})
            if not result.matched_count:
                raise DamagedIndexError(f"{segment.id} is not what it was")
            for column, codes in columns.items():
                data = _encoded(codes, segment.dictionaries[column])
                await self._data.update_one({"_id": f"{segment.id}|c|{column}"}, {"$set": {"d": data}})

    async def drop_replaced(self, by: Collection[str] | None = None) -> None:
        """Delete what all segments, or those `by`, stand for."""
        with border():
            found = await self._segments.find({"replaces": {"$ne": []}}, {"replaces": 1}).to_list()
        replaces = {document["_id"]: document["replaces"] for document in found}
        for identity in list(replaces) if by is None else by:
            await self._drop(identity, replaces)

    async def _drop(self, identity: str, replaces: dict[str, list[str]]) -> None:
        """What a replaced segment itself stands for goes before it: else it would be there again."""
        gone = replaces.pop(identity, [])
        for each in gone:
            await self._drop(each, replaces)
        await self._delete(gone)
        with border():
            await self._segments.delete_many({"_id": {"$in": gone}})
            await self._segments.update_one({"_id": identity}, {"$set": {"replaces": []}})

    async def _delete(self, segments: Iterable[str]) -> None:
        for identity in segments:
            with border():
                await self._data.delete_many({"_id": {"$gte": f"{identity}|", "$lt": f"{identity}}}"}})


def _documents(identity: str, packed: Packed) -> list[Document]:
    data = {f"{identity}|p|{number}": bucket for number, bucket in enumerate(packed.buckets()) if bucket}
    data |= {f"{identity}|r|{number}": chunk.encode() for number, chunk in enumerate(packed.chunks())}
    for column, codes in enumerate(packed.columns):
        data[f"{identity}|c|{column}"] = _encoded(codes, packed.dictionaries[column])
    return [{"_id": name, "d": value} for name, value in data.items()]


def _encoded(codes: Codes, dictionary: Sequence[str]) -> bytes:
    return codes.astype("<u1" if len(dictionary) <= 256 else "<u2").tobytes()


def _decoded(data: bytes, size: int) -> Codes:
    return np.frombuffer(data, "<u1" if len(data) == size else "<u2").astype(np.uint16)
