"""The sequencer: puts this datacenter's events into its log, one round after the other. One leads; whoever led before is fenced by the log's term.

A round gathers what each node has written beyond its mark (contiguous in q: a gap waits), stages bundles, tiles and runs as drafts, reads the drafts back,
compares them, recomputes the root from them by a second way (`_check`), signs, and makes all of it true by one conditional update of the log's document. Killed before
that update, nothing has happened, and whoever leads next drafts anew over the same places; killed after it, everything has.

A log ends with its quarter, with its key, or with repair; its successor begins with an `opened` entry that commits to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes
from controlplane.errors import StoreUnavailableError
from controlplane.ids import random_bytes
from controlplane.ledger.checkpoint import Checkpoint, origin_of, quarter_of
from controlplane.ledger.chunk import DamagedCopyError, Edge
from controlplane.ledger.merkle import EMPTY, Growth, grow, root_of
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.tiles import HASH_BYTES, TILE_BYTES, WIDTH, encode_bundle
from controlplane.settings import Settings
from controlplane.store.committer import Committer
from controlplane.store.copies import Held
from controlplane.store.ledger import (
    LEDGER_NODE,
    OPENED_NODE,
    LedgerStore,
    Log,
    Run,
    Source,
    StaleWriterError,
    opening_time,
)

__all__ = ["DamagedLogError", "Sequencer", "opened_event"]

_log = structlog.get_logger()
_ROUND_ENTRIES = 4_096
_SOURCES_SECONDS = 1.0
_SETTLED_SECONDS = 90.0
"""A term that was seen closed gets no late write after this: its adopter read it again 60 s after it took over."""
_SALT_BYTES = 16

Key = tuple[str, int]


class DamagedLogError(Exception):
    """What is stored is not what was signed. Nothing more is signed until it is repaired."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive events of one source."""

    node: str
    epoch: int
    q: int
    leaves: list[bytes]
    late: bool = False


def opened_event(dc: str, ordinal: int, ref: str, now_ms: int) -> Event:
    """Entry 0 of the datacenter's log number `ordinal` (from 1): `ref` is the log before as `origin size base64(root)`, or empty."""
    event = Event(f"{OPENED_NODE}.{dc}.{ordinal}", 0, "", Kind.OPENED, now_ms, {}, ref=ref, dc=dc, node=OPENED_NODE)
    event.epoch, event.q, event.salt = ordinal, 1, random_bytes(_SALT_BYTES)
    event.leaf = leaf_bytes(event, commitment(event.salt, committed_payload(event)))
    return event


class Sequencer:
    """One per leading term. `open` before the first round."""

    def __init__(
        self,
        store: LedgerStore,
        committer: Committer,
        settings: Settings,
        clock: Clock,
        *,
        term: int,
        at: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._committer = committer
        self._settings = settings
        self._clock = clock
        self._term = term
        self._at = at
        """Told of each step of a round; the crash matrix kills there."""
        self._key = derive(settings.ledger_seed, "log")
        self._signer: Signer
        self.log: Log
        """As last committed."""
        self._tails: Mapping[int, bytes] = {}
        self._entries: Sequence[bytes] = ()
        """Of the last bundle, where it is partial."""
        self._known: dict[Key, int] = {}
        """(node, epoch) → the highest q that is in a log."""
        self._round = 0
        self._records = 0
        self._sources: list[Source] = []
        self._sources_at = float("-inf")
        self._resting: dict[Key, float] = {}
        """Sources that are not asked before then."""
        self._closed_at: dict[Key, float] = {}
        """When a source was first seen closed; what was still under way to it then is there or lost once that is long enough ago."""
        self.gaps: dict[Key, tuple[int, float]] = {}
        """(node, epoch) → (the q that is missing, since when on the monotonic clock) of sources that wait for it."""
        self.backlog = False
        """Whether the last round was full: there is more."""

    # -- opening and sealing -------------------------------------------------------------------------------------------

    async def open(self) -> Log:
        """Take over the newest log, or open the first; finish a change of logs that was begun. Raises DamagedLogError, StaleWriterError."""
        logs = await self._store.logs(own=True, dc=self._settings.datacenter)
        log = logs[-1] if logs else None
        if log is None or log.next:
            log = await self._create(log)
        await self._load(await self._store.take_term(log.origin, self._term))
        return self.log

    async def _load(self, log: Log) -> None:
        signer = Signer.log(log.origin, self._key)
        self.log, self._signer, self._known = log, signer, dict(log.marks)
        held = Held(log.size, log.root, log.frontier, log.checkpoint)
        try:
            edge = await Edge.load(self._store, log.origin, held)
        except DamagedCopyError as error:
            raise DamagedLogError(str(error)) from None
        self._tails, self._entries = edge.tails, edge.entries

    async def _create(self, before: Log | None) -> Log:
        settings = self._settings
        now = self._clock.now_ms()
        origin = before.next if before else origin_of(settings.ledger_domain, settings.datacenter, quarter_of(now))
        log = Log(
            origin=origin,
            dc=settings.datacenter,
            own=True,
            vkey=Signer.log(origin, self._key).vkey,
            term=self._term,
            root=EMPTY,
            marks=before.marks if before else {},
            late=before.late if before else (),
            opened_at=opening_time(before, now),
            previous=before.origin if before else "",
        )
        created = await self._store.create_log(log)
        _log.info("log_opened", origin=origin, by_another=not created)
        return log if created else await self._store.take_term(origin, self._term)

    async def seal(self, reason: str, ended: Log | None = None) -> Log:
        """End the log and open its successor, which commits to it. Raises StaleWriterError.

        `ended` is repair's: the log as it ends at an earlier size, with that size's checkpoint and marks; what stood behind it is sequenced again.
        """
        old = self.log
        sealed = replace(ended or old, state="sealed", seal=reason, next=await self._free_origin())
        if not await self._store.commit(old, sealed):
            raise StaleWriterError(f"{old.origin} was moved by somebody else")
        self._at("sealed")
        _log.info("log_sealed", origin=old.origin, size=sealed.size, reason=reason, next=sealed.next)
        await self._load(await self._create(sealed))
        return self.log

    async def _free_origin(self) -> str:
        settings = self._settings
        base = origin_of(settings.ledger_domain, settings.datacenter, quarter_of(self._clock.now_ms()))
        taken = {log.origin for log in await self._store.logs(own=True, dc=settings.datacenter)}
        number = 1
        while (origin := base if number == 1 else f"{base}-{number}") in taken:
            number += 1
        return origin

    def due(self) -> str:
        """Why the log must end now: `key`, `name`, `quarter`; "" while it goes on."""
        if self.log.vkey != self._signer.vkey:
            return "key"
        settings = self._settings
        wanted = origin_of(settings.ledger_domain, settings.datacenter, quarter_of(self._clock.now_ms()))
        base, quarter = wanted.rsplit("/", 1)
        here, name = self.log.origin.rsplit("/", 1)
        if here != base:
            return "name"
        return "quarter" if name.partition("-")[0] < quarter else ""  # a clock that goes back changes nothing

    # -- a round -------------------------------------------------------------------------------------------------------

    async def record(self, kind: Kind, ref: str, reason: str | None = None) -> None:
        """Write an event of the ledger's own; a later round sequences it."""
        self._records += 1
        mid = f"{LEDGER_NODE}.{self._settings.datacenter}.{self._term}.{self._records}"
        await self._committer.append(Event(mid, 0, "", kind, self._clock.now_ms(), {}, ref=ref, reason=reason))
        self._resting.pop((LEDGER_NODE, self._term), None)

    async def round(self) -> int:
        """Sequence, sign and publish what is new; how many entries. Nothing new: nothing is written.

        Raises StaleWriterError when another ledger leads, DamagedLogError when what was stored does not lead to the root that was computed,
        StoreUnavailableError; after each, `open` again before the next.
        """
        if reason := self.due():
            await self.seal(reason)
        stretches = await self._gather()
        if not stretches:
            return 0
        self._at("gathered")
        old = self.log
        entries = [leaf for stretch in stretches for leaf in stretch.leaves]
        growth = grow(old.size, self._tails, entries)
        bundles, rest = self._bundles(entries)
        self._round += 1
        await self._store.stage(
            old.origin, self._term << 32 | self._round, bundles, growth.tiles, self._runs(stretches)
        )
        self._at("staged")
        await self._check(growth, bundles)
        self._at("checked")
        text = Checkpoint(old.origin, growth.size, growth.root).text
        new = replace(
            old,
            size=growth.size,
            root=growth.root,
            frontier=tuple(growth.frontier.hashes),
            marks=self._marks(stretches),
            late=(),
            checkpoint=str(Note(text, (self._signer.sign(text),))),
        )
        self._at("signed")
        await self._commit(old, new)
        self.log, self._tails, self._entries = new, growth.tails, rest
        self._known |= new.marks
        self._at("committed")
        return len(entries)

    async def _commit(self, old: Log, new: Log) -> None:
        try:
            done = await self._store.commit(old, new)
        except StoreUnavailableError:
            done = False  # or it did: ask
        if not done:
            now = await self._store.log(old.origin)
            if now is None or now.checkpoint != new.checkpoint or now.term != self._term:
                raise StaleWriterError(f"{old.origin} was moved by somebody else, or not at all")

    def _bundles(self, entries: Sequence[bytes]) -> tuple[dict[int, bytes], list[bytes]]:
        every = [*self._entries, *entries]
        first = self.log.size // WIDTH
        found = {first + at // WIDTH: encode_bundle(every[at : at + WIDTH]) for at in range(0, len(every), WIDTH)}
        return found, every[len(every) - len(every) % WIDTH :]

    def _runs(self, stretches: Sequence[_Stretch]) -> list[Run]:
        index = self.log.size
        runs = []
        for item in stretches:
            runs.append(Run(self.log.origin, self.log.dc, item.node, item.epoch, item.q, len(item.leaves), index))
            index += len(item.leaves)
        return runs

    def _marks(self, stretches: Sequence[_Stretch]) -> dict[Key, int]:
        """Of the sources that are still read; those of a term that is over and complete are in `terms`."""
        live = {(source.node, source.epoch) for source in self._sources}
        marks = {key: q for key, q in self._known.items() if key in live}
        for item in stretches:
            if not item.late and item.node != OPENED_NODE:
                marks[item.node, item.epoch] = item.q + len(item.leaves) - 1
        return marks

    async def _check(self, growth: Growth, staged: Mapping[int, bytes]) -> None:
        """Before anything is signed: what is stored is what was staged, and leads to the root by RFC 6962's recursive definition instead of row by row.

        The part of the tree that no draft touches enters by the hashes that were signed before.
        """
        origin = self.log.origin
        if await self._store.bundles(origin, list(staged)) != staged:
            raise DamagedLogError(
                f"{origin}: the drafts of bundles {min(staged)} to {max(staged)} are not what was staged"
            )
        tiles = await self._store.tiles(origin, growth.tiles)
        if tiles != growth.tiles:
            raise DamagedLogError(f"{origin}: the drafts of tiles are not what was staged")
        for (level, index), data in tiles.items():
            above = tiles.get((level + 1, index // WIDTH))
            place = index % WIDTH * HASH_BYTES
            if len(data) == TILE_BYTES and (above is None or root_of(_cut(data)) != above[place : place + HASH_BYTES]):
                raise DamagedLogError(
                    f"{origin}: the draft of tile {level}/{index} does not agree with what is above it"
                )
        if self._root(growth, tiles) != growth.root:
            raise DamagedLogError(f"{origin}: the stored drafts do not lead to the root of {growth.size} entries")

    @staticmethod
    def _root(growth: Growth, tiles: Mapping[tuple[int, int], bytes]) -> bytes:
        """Over the partial tiles of the right edge: what hangs below the end of a level is one more node at its right."""
        value = b""
        for level, tail in sorted(growth.tails.items()):
            row = _cut(tiles.get((level, growth.size >> 8 * (level + 1)), tail))
            value = root_of([*row, value] if value else row)
        return value

    # -- gathering -----------------------------------------------------------------------------------------------------

    async def _gather(self) -> list[_Stretch]:
        """What is to be appended, at most about _ROUND_ENTRIES."""
        now = self._clock.monotonic()
        if now - self._sources_at >= _SOURCES_SECONDS:
            self._sources, self._sources_at = await self._store.sources(), now
            self.log = replace(self.log, late=await self._store.late(self.log.origin))
        found = [] if self.log.size else [await self._opening()]
        found += await self._late()
        room = _ROUND_ENTRIES
        self.backlog = False
        start = self._round % max(1, len(self._sources))
        for source in [*self._sources[start:], *self._sources[:start]]:
            if now < self._resting.get((source.node, source.epoch), now):
                continue
            stretch = await self._read(source, room, now)
            if stretch:
                found.append(stretch)
                room -= len(stretch.leaves)
            if room <= 0:
                self.backlog = True
                break
        return found

    async def _opening(self) -> _Stretch:
        before = await self._store.log(self.log.previous) if self.log.previous else None
        ref = Checkpoint(before.origin, before.size, before.root).ref if before else ""
        ordinal = [log.origin for log in await self._store.logs(own=True, dc=self.log.dc)].index(self.log.origin) + 1
        event = opened_event(self.log.dc, ordinal, ref, self._clock.now_ms())
        if await self._store.put_events([event]):
            event = (await self._store.events([(event.mid, 0)]))[event.id]
        return _Stretch(OPENED_NODE, ordinal, 1, [event.leaf])

    async def _late(self) -> list[_Stretch]:
        found = []
        live = {(source.node, source.epoch) for source in self._sources}
        for node, epoch, q in self.log.late:
            if (node, epoch) in live and q > await self._mark((node, epoch)):
                continue  # its turn comes
            leaves = await self._store.leaves(self.log.dc, node, epoch, [q])
            if q in leaves:
                found.append(_Stretch(node, epoch, q, [leaves[q]], late=True))
            else:
                _log.error("late_event_missing", node=node, epoch=epoch, q=q)
        return found

    async def _read(self, source: Source, room: int, now: float) -> _Stretch | None:
        key = (source.node, source.epoch)
        mark = await self._mark(key)
        rows = await self._store.sequence(self.log.dc, source.node, source.epoch, mark, room)
        settled = (
            source.closed
            and key != (LEDGER_NODE, self._term)
            and now - self._closed_at.setdefault(key, now) >= _SETTLED_SECONDS
        )
        if not rows:
            self.gaps.pop(key, None)
            if settled:
                await self._complete(source, mark)
            elif source.closed:  # hardly anything comes from it any more
                self._resting[key] = now + _SOURCES_SECONDS
            return None
        first = rows[0][0]
        if first != mark + 1:
            self.gaps.setdefault(key, (mark + 1, now))
            if not settled:
                return None
            await self._skip(source, mark + 1, first - 1)
        self.gaps.pop(key, None)
        leaves = [leaf for expected, (q, leaf) in enumerate(rows, first) if q == expected]
        return _Stretch(source.node, source.epoch, first, leaves)

    async def _skip(self, source: Source, first: int, last: int) -> None:
        """These numbers were given out by a node that died before MongoDB had their events: nothing will come any more, and the log says so."""
        await self.record(Kind.GAP, f"{source.node}:{source.epoch} {first}-{last}", "never_committed")
        _log.warning("gap_skipped", node=source.node, epoch=source.epoch, first=first, last=last)

    async def _complete(self, source: Source, mark: int) -> None:
        """Its term is over, and nothing is left to read: it is not asked again."""
        await self._store.complete(source.node, source.epoch, mark)
        key = (source.node, source.epoch)
        self._sources.remove(source)
        del self._closed_at[key]
        self._resting.pop(key, None)

    async def _mark(self, key: Key) -> int:
        """The highest q of this source that is in a log. Of one that is new here, the runs say it."""
        if key not in self._known:
            sizes = {log.origin: log.size for log in await self._store.logs(own=True, dc=self.log.dc)}
            self._known[key] = await self._store.covered(self.log.dc, *key, sizes)
        return self._known[key]


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
