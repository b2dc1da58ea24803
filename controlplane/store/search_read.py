"""Finding messages, newest first: what the index does not have yet by looking at each (`_fresh`), everything before that by the index (`_indexed`).

Nothing is believed of the index: what it finds is read, folded and compared, so a list never shows what is erased, another tenant's, or in another status now.
A page may be short and have a `next` all the same, where much was looked at in vain (`_LOOKED_AT`, `_VERIFIED`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np
import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status, fold
from controlplane.domain.query import Direction, Match, Query, matches
from controlplane.store.client import Database
from controlplane.store.events import EventReader, Head, Page
from controlplane.store.search import SearchStore, Segment
from controlplane.store.search_pack import (
    COLUMNS,
    ROWS_A_CHUNK,
    Chunk,
    Codes,
    Ordinals,
    common,
    having,
    lookup,
)
from controlplane.store.search_tokens import Tokens

__all__ = ["Found", "Search"]

_log = structlog.get_logger()
_CHUNK = 200
_LOOKED_AT = 20_000
"""Accepted messages beyond the index that one page may look at."""
_VERIFIED = 2_000
"""What the index found that one page may look at."""
_FEW = 4
"""Rows of a segment that are rather looked at than narrowed down any further …"""
_SOME = 32
"""… or by a column."""
_OPENED = 2
"""Segments that are looked into at first; then twice as many, and so on."""
_MOST_OPENED = 64
_STEP = 64
"""Rows of a segment that are read at once."""

Place = tuple[int, str]
"""(accepted at, mid): lists are in falling order of it."""


@dataclass(frozen=True, slots=True)
class Found(Page):
    """A page, and how far the index was."""

    indexed_until: int | None = None
    """Messages accepted before this were found by the index, ms since the epoch; None where there is none."""


@dataclass(slots=True)
class _Stream:
    """What is left of one segment's rows."""

    segment: Segment
    rows: Ordinals
    """Ascending: the last is the next."""
    bound: int = 0
    """No row that is left was accepted later; -1 when none is left."""
    begun: bool = False

    def __post_init__(self) -> None:
        self.bound = self.segment.last if len(self.rows) else -1


@dataclass(slots=True)
class _Window:
    """Which places are asked for: `least` ≤ at, and (at, mid) below `below`."""

    least: int
    below: Place

    def holds(self, place: Place) -> bool:
        return place[0] >= self.least and place < self.below


@dataclass(slots=True)
class _Walk:
    """The index walked through for one page."""

    window: _Window
    closed: list[Segment]
    """Not looked into yet, the newest last."""
    streams: list[_Stream] = field(default_factory=list)
    pool: list[Place] = field(default_factory=list)
    opened: int = _OPENED

    @property
    def bound(self) -> int:
        """Nothing that is not in the pool yet was accepted later."""
        return max(self.closed[-1].last if self.closed else -1, *(stream.bound for stream in self.streams), -1)

    def ripe(self) -> list[Place]:
        """What nothing can come before any more, in order; taken out of the pool."""
        bound = self.bound
        ripe = sorted({place for place in self.pool if place[0] > bound}, reverse=True)
        self.pool = [place for place in self.pool if place[0] <= bound]
        return ripe


class Search:
    """One per node."""

    def __init__(self, database: Database, reader: EventReader, secret: bytes, clock: Clock) -> None:
        self.store = SearchStore(database)
        self._reader = reader
        self._tokens = Tokens(secret)
        self._clock = clock
        self._segments: tuple[int, list[Segment]] = (0, [])

    async def page(self, query: Query, tenants: Collection[str], cursor: Place | None, limit: int) -> Found:
        """What `query` finds among the messages of `tenants` (`query.tenant` is not looked at), beyond `cursor`. Raises StoreUnavailableError."""
        query = replace(query, tenant=None)
        state = await self.store.state()
        until = state.until or None
        least, below = query.after or 0, cursor or (2**62, "")
        if query.before is not None:
            below = min(below, (query.before, ""))
        border = max(least, state.until) if query.narrow else least
        fresh = await self._fresh(query, tenants, _Window(border, below), limit)
        if fresh.next is not None or border == least:
            return Found(fresh.items, fresh.next, until)
        items, budget = fresh.items, _VERIFIED
        window = _Window(least, min(below, (border, "")))
        async with aclosing(self._indexed(query, tenants, window, state.version, limit)) as found:
            async for places in found:
                for message, events in await self._verified(query, tenants, places):
                    items.append((message, events))
                    if len(items) == limit:
                        return Found(items, (message.accepted_at, message.mid), until)
                budget -= len(places)
                if budget <= 0:
                    return Found(items, places[-1], until)
        return Found(items, None, until)

    # -- what is too new for the index ----------------------------------------------------------------------------------

    async def _fresh(self, query: Query, tenants: Collection[str], window: _Window, limit: int) -> Page:
        """The same, in the window alone, by looking at every message in it."""
        loose = replace(query, statuses=frozenset(), route=None, connector=None)
        items: list[tuple[Message, list[Event]]] = []
        budget, below, now = _LOOKED_AT, window.below, self._clock.now_ms()
        while window.least <= below[0]:
            step = _CHUNK if query.narrow else min(limit - len(items), _CHUNK)
            heads = await self._reader.heads(sorted(tenants), _kinds(query), window.least, below, step, _exact(query))
            likely = [head.place for head in heads if _may_match(loose, head, now)]
            stories = {
                message.mid: (message, events) for message, events in await self._verified(query, tenants, likely)
            }
            for head in heads:
                if head.mid in stories:
                    items.append(stories[head.mid])
                    if len(items) == limit:
                        return Page(items, head.place)
            if len(heads) < step:
                break
            budget, below = budget - len(heads), heads[-1].place
            if budget <= 0:
                return Page(items, below)
        return Page(items, None)

    async def _verified(
        self, query: Query, tenants: Collection[str], places: Sequence[Place]
    ) -> list[tuple[Message, list[Event]]]:
        """Those that are what is looked for, in the same order."""
        now = self._clock.now_ms()
        stories = await self._reader.load_many(mid for _, mid in places)
        found = []
        for at, mid in places:
            events = stories.get(mid, [])
            try:
                message = fold(events)
            except ValueError as error:
                _log.error("damaged_message", reason=str(error))  # the list shows the others
                continue
            if (
                message is not None
                and message.accepted_at == at
                and message.tenant in tenants
                and matches(query, message, events[0], now)
            ):
                found.append((message, events))
        return found

    # -- the index -----------------------------------------------------------------------------------------------------

    async def _indexed(
        self, query: Query, tenants: Collection[str], window: _Window, version: int, limit: int
    ) -> AsyncGenerator[list[Place], None]:
        """What may be what is looked for, a few at a time, in order."""
        if self._segments[0] != version:
            self._segments = (version, await self.store.segments(self._segments[1]))
        wanted = _wanted(query, tenants)
        tokens = self._tokens.of_query(query)
        closed = [
            segment
            for segment in reversed(self._segments[1])
            if segment.last >= window.least and segment.first <= window.below[0] and _possible(segment, wanted)
        ]
        walk = _Walk(window, closed)
        ready: list[Place] = []
        while walk.bound >= 0 or walk.pool:
            ready += walk.ripe()
            if len(ready) >= min(limit, _CHUNK):
                yield ready[:_CHUNK]
                ready = ready[_CHUNK:]
            elif walk.closed and walk.closed[-1].last >= walk.bound:
                opened = [walk.closed.pop() for _ in range(min(walk.opened, len(walk.closed)))]
                walk.opened = min(2 * walk.opened, _MOST_OPENED)
                rows = await self._rows(opened, tokens, wanted, window)
                walk.streams += [_Stream(segment, rows[segment.id]) for segment in opened if len(rows[segment.id])]
                await self._fill(walk)
            elif walk.bound >= 0:
                await self._fill(walk)
        for start in range(0, len(ready), _CHUNK):
            yield ready[start : start + _CHUNK]

    async def _rows(
        self,
        segments: Sequence[Segment],
        tokens: Sequence[int],
        wanted: Mapping[int, Collection[str]],
        window: _Window,
    ) -> dict[str, Ordinals]:
        """For each segment, which of its rows have all tokens and values: some more where it is cheaper to look at them."""
        rows: dict[str, Ordinals] = {}
        for segment in segments:
            first = segment.chunks_at(window.least).start * ROWS_A_CHUNK
            last = min(segment.size, segment.chunks_at(window.below[0]).stop * ROWS_A_CHUNK)
            rows[segment.id] = np.arange(first, last, dtype=np.uint16)
        for number, token in enumerate(tokens):
            left = [each for each in segments if len(rows[each.id]) > (_FEW if number else 0)]
            buckets = await self.store.buckets((each, each.bucket_of(token)) for each in left)
            for each in left:
                rows[each.id] = common(rows[each.id], lookup(buckets.get(each.id, b""), token))
        for column, values in sorted(wanted.items()):
            left = [s for s in segments if len(rows[s.id]) > (_SOME if tokens else 0) and _telling(s, column, values)]
            codes = await self.store.columns((each, column) for each in left)
            for each in left:
                if (each.id, column) in codes:
                    chosen = [(column, _codes(each, column, values))]
                    rows[each.id] = having(_column(codes, each), chosen, rows[each.id])
        return rows

    async def _fill(self, walk: _Walk) -> None:
        """Read on in those streams of which the next may come."""
        bound = walk.bound
        reading = [stream for stream in walk.streams if stream.bound >= bound or not stream.begun]
        numbers = {
            (s.segment.id, int(n)): s.segment for s in reading for n in np.unique(s.rows[-_STEP:] // ROWS_A_CHUNK)
        }
        chunks = await self.store.chunks((segment, number) for (_, number), segment in numbers.items())
        for stream in reading:
            taken, stream.begun = stream.rows[-_STEP:], True
            stream.rows = stream.rows[: -len(taken)]
            places = _places(stream.segment, taken, chunks)
            walk.pool += [place for place in places if walk.window.holds(place)]
            stream.bound = places[0][0] if len(stream.rows) and places else -1
            if stream.bound < walk.window.least:
                stream.bound = -1
        walk.streams = [stream for stream in walk.streams if stream.bound >= 0]


def _places(segment: Segment, rows: Ordinals, chunks: Mapping[tuple[str, int], Chunk]) -> list[Place]:
    """Ascending. Of a segment that is gone meanwhile there are none."""
    found = []
    for row in rows.tolist():
        chunk = chunks.get((segment.id, row // ROWS_A_CHUNK))
        if chunk is not None:
            found.append((chunk.ats[row % ROWS_A_CHUNK], chunk.mids[row % ROWS_A_CHUNK]))
    return found


def _kinds(query: Query) -> list[Kind]:
    kinds = {Direction.OUT: [Kind.ACCEPTED], Direction.IN: [Kind.RECEIVED]}
    return kinds.get(query.direction, [Kind.ACCEPTED, Kind.RECEIVED])


def _exact(query: Query) -> dict[str, str]:
    """What MongoDB can compare itself in the first event: field of its data → value."""

    def whole(match: Match | None) -> bool:
        return match is not None and match.place.value == "whole"

    found = {}
    if query.to is not None and whole(query.to) and query.direction is Direction.OUT:
        found["to"] = "+" + query.to.value
    if query.reference is not None and whole(query.reference):
        found["reference"] = query.reference.value
    return found


def _may_match(loose: Query, head: Head, now: int) -> bool:
    """By its first event alone."""
    if head.first.data is None:
        return True
    try:
        message = fold([head.first])
    except ValueError:
        return False
    return message is not None and matches(loose, message, head.first, now)


def _wanted(query: Query, tenants: Collection[str]) -> dict[int, Collection[str]]:
    """Column → the values that are looked for."""
    statuses = {status.value for status in query.statuses}
    if Status.QUEUED in query.statuses:
        statuses.add(Status.SCHEDULED.value)  # its time may have come since
    every: dict[str, Collection[str]] = {
        "status": statuses,
        "route": {query.route} if query.route is not None else (),
        "connector": {query.connector} if query.connector is not None else (),
        "tenant": frozenset(tenants),
        "class": {query.cls} if query.cls is not None else (),
        "direction": {query.direction.value} if query.direction is not Direction.ANY else (),
    }
    return {number: every[name] for number, name in enumerate(COLUMNS) if every[name]}


def _codes(segment: Segment, column: int, values: Collection[str]) -> list[int]:
    return [code for code, value in enumerate(segment.dictionaries[column]) if value in values]


def _possible(segment: Segment, wanted: Mapping[int, Collection[str]]) -> bool:
    """Whether the segment has each value at all."""
    for column, values in wanted.items():
        codes = _codes(segment, column, values)
        if not codes or (column == 0 and not any(segment.counts[code] for code in codes)):
            return False
    return True


def _telling(segment: Segment, column: int, values: Collection[str]) -> bool:
    """Whether the segment has other values as well."""
    return len(_codes(segment, column, values)) < len(segment.dictionaries[column])


def _column(codes: Mapping[tuple[str, int], Codes], segment: Segment) -> Callable[[int], Codes]:
    return lambda column: codes[segment.id, column]
