"""The search index's writer: follows every log that is held here, own and mirrored, and indexes the messages that their entries are about.

It stands behind the ledger, so the message path knows nothing of it: no write more for a node, and when the index falls behind under load it catches up
afterwards, in a fifth of the time; in half of it once it is ten minutes late (`_GENTLE`, `_URGENT`). An entry says only which message it is about; that message's events are read and folded, so
the same entries twice, in any order, give the same index.

New messages become a segment (`store.search_pack`) every few seconds; small segments are joined to larger ones. Of a message that is in a segment already only
its status, route and connector can change: they are columns, written anew in place. What is erased loses its tokens when its segment is written anew, an hour
later at the most; found it is not from the moment of its erasure, for what the index finds is read before it is shown.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, fold
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.entries import place_of
from controlplane.ledger.tiles import WIDTH, decode_bundle
from controlplane.store.copies import Copies, local_mid
from controlplane.store.events import EventReader
from controlplane.store.ledger import LEDGER_NODE, LedgerStore, Log, StaleWriterError
from controlplane.store.search import DamagedIndexError, SearchStore, Segment
from controlplane.store.search_pack import COLUMNS, MAX_ROWS, Chunk, Codes, Packed, Row, joined, pack
from controlplane.store.search_tokens import Tokens
from controlplane.tasks import going_on

__all__ = ["Indexer"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 2.0
_DAMAGED_SECONDS = 30.0
"""Before it is built anew: a fault that comes back each time costs little."""
_GENTLE, _URGENT = 4.0, 1.0
"""How long it rests, in terms of the time that it worked, while there is more to do: messages that are on their way come first …"""
_LATE_MS = 600_000
"""… until the index is this late."""
_ENTRIES = 8_192
"""Of all logs together, in one turn."""
_SLICE = 100
"""Messages between two looks at the loop."""
_JOINED = 8
"""Segments of about one size that become one."""
_FULL = 32_768
"""Messages from which on a segment is not joined with others any more."""
_KEPT_CHUNKS = 2_048
_KEPT_PLACES = 100_000
_DROP_SECONDS = 60.0
_SLACK_MS = 10_000
"""An event is in the log this long after it happened, unless the sequencer is behind."""
_PATIENCE_MS = 600_000
"""How long a gap in a node's sequence holds `until` back."""
_PURGE_MS = 3_600_000
_PURGE_SHARE = 4
"""Or when one in so many messages of a segment is erased."""
_OF_LEDGER = frozenset({Kind.VOID, Kind.OPENED, Kind.REPAIRED, Kind.RECOVERED, Kind.FORK})
_FIRST = (Kind.ACCEPTED, Kind.RECEIVED)
"""What a message begins with; repair may have put a gap in its place."""
_BY_LEDGER = f"{LEDGER_NODE}."
"""So the names of its own records begin: no messages."""

Spot = tuple[str, int]
"""(segment's id, ordinal)."""


@dataclass(slots=True)
class _Batch:
    """What one turn takes in."""

    logs: dict[str, int]
    """Where each log is afterwards."""
    mids: dict[str, bool] = field(default_factory=dict)
    """Messages that its entries are about, by their names here; whether their first event is among these."""
    own: set[str] = field(default_factory=set)
    """Those that were accepted here, whose first event is among these, and before which nothing of an earlier log is left."""
    entries: int = 0
    behind: bool = False


@dataclass(slots=True)
class _Changes:
    """What becomes of rows that are in segments."""

    values: dict[Spot, tuple[str, ...]] = field(default_factory=dict)
    erased: set[Spot] = field(default_factory=set)


class Indexer:
    """One per leading term. `open` first. Raises StaleWriterError where another one writes."""

    def __init__(
        self,
        ledger: LedgerStore,
        copies: Copies,
        store: SearchStore,
        reader: EventReader,
        tokens: Tokens,
        clock: Clock,
        *,
        term: int,
        waiting: Callable[[], bool],
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._copies = copies
        self._store = store
        self._reader = reader
        self._tokens = tokens
        self._clock = clock
        self._term = term
        self._waiting = waiting
        """Whether the sequencer has, or may have, events to sequence that are older than a few seconds."""
        self._rest = rest
        self._segments: dict[str, Segment] = {}
        self._chunks: OrderedDict[Spot, Chunk] = OrderedDict()
        self._places: OrderedDict[str, Spot] = OrderedDict()
        """Where the messages are that were written last."""
        self._drops: dict[str, float] = {}
        """Segment that replaces others → when those go, on the monotonic clock: nobody reads them any more."""
        self._caught_up = False
        """Until then what seems new may be in the index: another ledger may have died between writing it and saying so."""
        self._positions: dict[str, int] = {}
        self._more = False
        """Whether the last turn left something that can be read."""
        self._unread: dict[str, str] = {}
        """Logs that cannot be read on, and why."""
        self.until = 0
        """Messages accepted in this datacenter before this are all in the index."""
        self.behind = 0
        """Entries that are in a log, and not in the index."""
        self.messages = 0
        """In the index."""

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._segments)

    async def open(self) -> None:
        """Go on where the index ends. Raises StaleWriterError, StoreUnavailableError."""
        state = await self._store.take(self._term)
        self._positions, self.until = dict(state.logs), state.until
        self._segments = {segment.id: segment for segment in await self._store.segments()}
        self._chunks.clear()
        self._places.clear()
        self._caught_up = False
        due = self._clock.monotonic() + _DROP_SECONDS
        self._drops = {segment.id: due for segment in self._segments.values() if segment.replaces}
        self._count()

    async def run(self) -> None:
        """Until cancelled. Raises StaleWriterError, and nothing else: no fault of the index ends the ledger."""
        opened = damaged = False
        while going_on():
            began, self._more = self._clock.monotonic(), False
            try:
                if damaged:
                    await self._store.clear(self._term)
                    damaged = False
                if not opened:
                    await self.open()
                    opened = True
                await self.turn()
            except StaleWriterError:
                raise
            except StoreUnavailableError as error:
                _log.warning("not_indexing", reason=str(error)[:300])
                opened = False
            except Exception as error:  # noqa: BLE001 - logged whole; whatever it is, the ledger goes on
                whole = not isinstance(error, DamagedIndexError)
                next_step = "It is built anew from the logs."
                _log.error("index_damaged", reason=repr(error)[:300], next_step=next_step, exc_info=whole)
                opened, damaged = False, True
            await self._rest(_DAMAGED_SECONDS if damaged else self._pause(began))

    def _pause(self, began: float) -> float:
        if not self._more:
            return _PAUSE_SECONDS
        late = self._clock.now_ms() - self.until > _LATE_MS
        return (self._clock.monotonic() - began) * (_URGENT if late else _GENTLE)

    async def turn(self) -> int:
        """Take in what is new, as much as fits into one turn; how many entries. Raises StaleWriterError, StoreUnavailableError."""
        now, waiting = self._clock.now_ms(), self._waiting()
        logs = [log for log in await self._ledger.logs() if log.checkpoint]
        batch = await self._gather(logs)
        newest = await self._take(batch, sorted({log.dc for log in logs if not log.own})) if batch.mids else 0
        self._positions = batch.logs
        self._more = any(batch.logs[log.origin] < log.size for log in logs if log.origin not in self._unread)
        self.behind = sum(max(0, log.size - batch.logs[log.origin]) for log in logs)
        self._caught_up = self._caught_up or not self.behind
        until = self._until(now, newest, behind=waiting or batch.behind)
        if batch.entries or until - self.until >= 1000:
            self.until = max(until, self.until)
            await self._store.save(self._term, self.until, batch.logs, changed=bool(batch.entries))
        await self._tend(now)
        self._count()
        return batch.entries

    def _until(self, now: int, newest: int, *, behind: bool) -> int:
        if not behind:
            return now - _SLACK_MS
        return max(min(newest, now) - _SLACK_MS, now - _PATIENCE_MS if not self.behind else 0)

    def _count(self) -> None:
        self.messages = sum(segment.size for segment in self._segments.values())

    # -- what is new ---------------------------------------------------------------------------------------------------

    async def _gather(self, logs: Sequence[Log]) -> _Batch:
        batch = _Batch({log.origin: min(self._positions.get(log.origin, 0), log.size) for log in logs})
        share = max(WIDTH, _ENTRIES // max(1, sum(batch.logs[log.origin] < log.size for log in logs)))
        for log in logs:
            start = batch.logs[log.origin]
            end = min(log.size, start + share)
            if start == end:
                continue
            try:
                found = await self._about(log, start, end)
            except ValueError as error:  # the other logs go on
                if self._unread.get(log.origin) != str(error):
                    reason, next_step = str(error)[:300], "Repair brings back what is missing."
                    _log.error("log_not_indexed", origin=log.origin, reason=reason, next_step=next_step)
                self._unread[log.origin] = str(error)
                batch.behind |= log.own
                continue
            self._unread.pop(log.origin, None)
            batch.mids |= await self._names(log, found)
            if log.own and not batch.behind:  # no earlier log has anything left
                batch.own |= {mid for mid, first in found.items() if first}
            batch.logs[log.origin] = end
            batch.entries += end - start
            batch.behind |= end < log.size and log.own
        return batch

    async def _about(self, log: Log, start: int, end: int) -> dict[str, bool]:
        """Messages that the entries `start` … `end - 1` are about; whether their first event is among these. ValueError for entries that are missing or damaged."""
        numbers = range(start // WIDTH, (end + WIDTH - 1) // WIDTH)
        bundles = await self._ledger.bundles(log.origin, list(numbers))
        leaves: list[bytes] = []
        for number in numbers:
            if number not in bundles:
                raise ValueError(f"bundle {number} is missing")
            leaves += decode_bundle(bundles[number])
        found: dict[str, bool] = {}
        skipped = start - numbers.start * WIDTH
        if len(leaves) < skipped + end - start:
            raise ValueError(f"bundles {numbers.start} to {numbers.stop - 1} lack entries")
        for leaf in leaves[skipped : skipped + end - start]:
            place = place_of(leaf)
            if place.kind not in _OF_LEDGER and not place.mid.startswith(_BY_LEDGER):
                found[place.mid] = found.get(place.mid, False) or place.k == 0
        return found

    async def _names(self, log: Log, found: dict[str, bool]) -> dict[str, bool]:
        """The names here of these messages of a log. Another datacenter's story may have a second one, and begin with another's events."""
        if log.own or not found:
            return found
        apart = await self._copies.apart(log.dc, found)
        both = {local_mid(mid, log.dc): first and not apart[mid] for mid, first in found.items() if mid in apart}
        return found | both

    async def _take(self, batch: _Batch, others: Sequence[str]) -> int:
        """Write what the batch says; when the newest of its messages that were accepted here was. `others` are the datacenters whose messages may have a second name."""
        fresh: list[Row] = []
        known: list[tuple[Row, bool]] = []
        newest = self.until
        mids = list(batch.mids)
        for start in range(0, len(mids), _SLICE):
            part = mids[start : start + _SLICE]
            stories = await self._reader.load_many(part)
            for mid, row, gone in self._rows(stories):
                newest = max(newest, row.at if mid in batch.own else 0)
                if batch.mids[mid] and not gone and self._caught_up:
                    fresh.append(row)
                else:
                    known.append((row, gone))
                    if gone:  # its second names have no `erased` of their own
                        second = await self._reader.load_many(local_mid(mid, dc) for dc in others if "@" not in mid)
                        known += [(other, True) for _, other, lost in self._rows(second) if lost]
            await asyncio.sleep(0)
        fresh += await self._change(known)
        for start in range(0, len(fresh), MAX_ROWS):
            await self._write(await asyncio.to_thread(pack, fresh[start : start + MAX_ROWS]))
        return newest

    def _rows(self, stories: Mapping[str, Sequence[Event]]) -> Iterable[tuple[str, Row, bool]]:
        """(mid, row, whether its content is erased) of each that can be read and began with its first event."""
        for mid, events in stories.items():
            if not events or events[0].kind not in _FIRST or "\n" in mid:
                continue
            try:
                message = fold(events)
                row = self._row(message, events[0]) if message is not None else None
            except ValueError:
                continue  # a gap in its story: lists do not show it
            except Exception:  # noqa: BLE001 - one message that makes no sense does not keep the others out
                _log.exception("message_not_indexed", id=mid)
                continue
            if message is not None and row is not None:
                yield mid, row, message.erased or events[0].data is None

    def _row(self, message: Message, first: Event) -> Row:
        values = {
            "status": message.status.value,
            "route": message.route or (first.data or {}).get("planned_route") or "",
            "connector": message.connector,
            "tenant": message.tenant,
            "class": message.cls,
            "direction": "in" if first.kind is Kind.RECEIVED else "out",
        }
        tokens = self._tokens.of_message(message)
        return Row(message.accepted_at, message.mid, tokens, tuple(str(values[name]) for name in COLUMNS))

    async def _write(self, packed: Packed, replaces: Collection[Segment] = ()) -> None:
        segment = await self._store.write(self._term, packed, replaces)
        for old in replaces:
            del self._segments[old.id]
        self._segments[segment.id] = segment
        if segment.size < _FULL:
            for ordinal, mid in enumerate(packed.mids):
                self._places[mid] = (segment.id, ordinal)
                self._places.move_to_end(mid)
        while len(self._places) > _KEPT_PLACES:
            self._places.popitem(last=False)
        if replaces:
            self._drops[segment.id] = self._clock.monotonic() + _DROP_SECONDS

    # -- what has changed ----------------------------------------------------------------------------------------------

    async def _change(self, known: Sequence[tuple[Row, bool]]) -> list[Row]:
        """Bring rows up to date; those of messages that are in no segment are given back."""
        changes, missing = _Changes(), []
        for start in range(0, len(known), _SLICE):
            part = known[start : start + _SLICE]
            spots = await self._find(part)
            for row, gone in part:
                if not spots[row.mid]:
                    missing.append(row)
                for spot in spots[row.mid]:
                    changes.values[spot] = row.values
                    if gone:
                        changes.erased.add(spot)
            await asyncio.sleep(0)
        await self._apply(changes)
        return missing

    async def _find(self, rows: Sequence[tuple[Row, bool]]) -> dict[str, list[Spot]]:
        """Where these messages are. An erased one is looked for everywhere: it may be in two places where a ledger died."""
        found: dict[str, list[Spot]] = {row.mid: [] for row, _ in rows}
        looking: list[Row] = []
        for row, gone in rows:
            spot = self._places.get(row.mid)
            if spot is not None and spot[0] in self._segments and not gone:
                found[row.mid].append(spot)
            else:
                looking.append(row)
        places = [
            (row, segment, number)
            for row in looking
            for segment in self._segments.values()
            if segment.first <= row.at <= segment.last
            for number in segment.chunks_at(row.at)
        ]
        chunks = await self._read({(segment.id, number): segment for _, segment, number in places})
        for row, segment, number in places:
            place = chunks[segment.id, number].find(row.at, row.mid)
            if place is not None:
                found[row.mid].append((segment.id, segment.ordinal(number, place)))
        return found

    async def _read(self, wanted: Mapping[Spot, Segment]) -> dict[Spot, Chunk]:
        missing = [(segment, key[1]) for key, segment in wanted.items() if key not in self._chunks]
        self._chunks.update(await self._store.chunks(missing))
        if any(key not in self._chunks for key in wanted):
            raise DamagedIndexError(f"a chunk of {sorted({key[0] for key in wanted})} is missing")
        found = {key: self._chunks[key] for key in wanted}
        for key in wanted:
            self._chunks.move_to_end(key)
        while len(self._chunks) > _KEPT_CHUNKS:
            self._chunks.popitem(last=False)
        return found

    async def _apply(self, changes: _Changes) -> None:
        by_segment: dict[str, list[int]] = defaultdict(list)
        for identity, ordinal in changes.values:
            by_segment[identity].append(ordinal)
        for identity, ordinals in by_segment.items():
            segment = self._segments[identity]
            columns = await self._store.columns((segment, column) for column in range(_CHANGING))
            if len(columns) < _CHANGING:
                raise DamagedIndexError(f"a column of {identity} is missing")
            changed: dict[int, Codes] = {}
            for column in range(_CHANGING):
                codes = columns[identity, column]
                if _recode(segment, column, codes, {o: changes.values[identity, o][column] for o in ordinals}):
                    changed[column] = codes
            erased = {ordinal for ordinal in ordinals if (identity, ordinal) in changes.erased} - set(segment.erased)
            if erased:
                segment.erased = sorted({*segment.erased, *erased})
                segment.erased_since = segment.erased_since or self._clock.now_ms()
            if changed or erased:
                await self._store.update(segment, changed)

    # -- keeping it small ----------------------------------------------------------------------------------------------

    async def _tend(self, now: int) -> None:
        """Join small segments, write those anew that hold something erased, delete what was replaced."""
        while due := self._due():
            await self._rewrite(due)
        for segment in list(self._segments.values()):
            waited = segment.erased and now - segment.erased_since >= _PURGE_MS
            if waited or len(segment.erased) * _PURGE_SHARE > segment.size:
                await self._rewrite([segment])
        over = [identity for identity, at in self._drops.items() if at <= self._clock.monotonic()]
        if over:
            await self._store.drop_replaced(over)
            self._drops = {identity: at for identity, at in self._drops.items() if identity not in over}

    def _due(self) -> list[Segment]:
        """Segments of about one size that are to be joined, as many as fit into one."""
        sizes: dict[int, list[Segment]] = defaultdict(list)
        for segment in self._segments.values():
            if segment.size < _FULL:
                sizes[segment.size.bit_length() // 3].append(segment)
        for group in sizes.values():
            if len(group) >= _JOINED:
                chosen, total = [], 0
                for segment in sorted(group, key=lambda each: each.last):
                    if total + segment.size <= MAX_ROWS:
                        chosen.append(segment)
                        total += segment.size
                return chosen
        return []

    async def _rewrite(self, segments: Sequence[Segment]) -> None:
        """One segment of these, without what is erased: its rows stay, without tokens."""
        parts = [await self._store.load(segment) for segment in segments]
        without = {(number, ordinal) for number, each in enumerate(segments) for ordinal in each.erased}
        bare = [_bare(parts[number], ordinal) for number, ordinal in sorted(without)]
        await self._write(await asyncio.to_thread(joined, parts, without, bare), segments)


_CHANGING = 3
"""Columns that change: the first of them."""


def _bare(part: Packed, ordinal: int) -> Row:
    values = (names[codes[ordinal]] for names, codes in zip(part.dictionaries, part.columns, strict=True))
    return Row(part.ats[ordinal], part.mids[ordinal], (), tuple(values))


def _recode(segment: Segment, column: int, codes: Codes, values: Mapping[int, str]) -> bool:
    """Write values (by ordinal) into a column; whether any is new there. Raises DamagedIndexError."""
    if not segment.explains(column, codes):
        raise DamagedIndexError(f"a column of {segment.id} has values that its dictionary does not")
    names = segment.dictionaries[column]
    changed = False
    for ordinal, value in values.items():
        if value not in names:
            names.append(value)
        new = names.index(value)
        if codes[ordinal] != new:
            changed = True
            codes[ordinal] = new
    if changed and column == 0:
        segment.counts = np.bincount(codes, minlength=len(names)).tolist()
    return changed
