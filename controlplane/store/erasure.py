"""Erasing what messages say about people: on request, and when a tenant's retention is over. Events, leaves and proofs stay.

Retention: any node does it, a few hundred messages at a time. `retention` has one document for each tenant and direction: up to where everything is erased,
and which messages before that are still open. It is claimed for a minute at a time, so that nodes do not do the same work; where two do it all the same, nothing
happens twice. First the `erased` event, then the content: what is cut short between the two is found again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog
from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.catalog import Snapshot
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, fold
from controlplane.errors import StoreUnavailableError
from controlplane.store.book import Book, Fact
from controlplane.store.client import Database, border
from controlplane.store.copies import local_mid
from controlplane.store.events import EventReader
from controlplane.store.leases import Lease
from controlplane.store.regions import RegionStore
from controlplane.tasks import going_on

__all__ = ["RETENTION", "Retention", "erased", "home", "stories_of"]

_log = structlog.get_logger()
RETENTION = "retention"
_CHUNK = 200
_PAUSE_SECONDS = 1.0
"""Between chunks: 200 messages a second and node are seventeen million a day."""
_TURN_SECONDS = 60.0
_CLAIM_MS = 60_000
_MAX_LEFT = 10_000
_DAY_MS = 86_400_000


def home(message: Message, events: list[Event]) -> str:
    """The datacenter that alone may change a message: its owner's; of one from a phone, where it came in."""
    return message.owner[0] if message.owner else events[0].dc


def stories_of(mid: str, adopted: Iterable[str]) -> list[str]:
    """The names under which a message's content is kept here that is erased with it: its own, and those of what `adopted` datacenters, which cannot any more,
    accepted under the same Idempotency-Key (`controlplane.store.copies`). A second name is never written to: the message's own `erased` stands for both."""
    return [mid, *(local_mid(mid, dc) for dc in adopted)]


def erased(message: Message, reason: str | None = None) -> Fact:
    """The event that goes before the erasure of a message's content. It keeps what is needed to show the message without it."""
    kept = {
        "status": message.status.value,
        "class": message.cls,
        "encoding": message.encoding,
        "parts": len(message.parts),
    }
    return Fact(Kind.ERASED, kept, reason=reason, guard=lambda m: m.final and not m.erased)


@dataclass(slots=True)
class _Place:
    """How far one tenant's messages of one direction are erased."""

    id: str
    homes: list[str]
    """Datacenters whose messages are looked at; when there is another one, everything is looked at again."""
    at: int = 0
    mid: str = ""
    left: list[str] = field(default_factory=list)
    """Messages before that place that were not final."""


class Retention:
    """One per node."""

    def __init__(
        self,
        database: Database,
        book: Book,
        reader: EventReader,
        regions: RegionStore,
        snapshot: Callable[[], Snapshot],
        lease: Lease,
        clock: Clock,
    ) -> None:
        self._collection = database[RETENTION]
        self._book = book
        self._reader = reader
        self._regions = regions
        self._snapshot = snapshot
        self._lease = lease
        self._clock = clock
        self.erased = 0
        """Messages, since the start."""

    async def run(self) -> None:
        """Erase what is due, again and again, until cancelled."""
        while going_on():
            await asyncio.sleep(_TURN_SECONDS)
            try:
                await self.turn()
            except (StoreUnavailableError, KeyError, ValueError) as error:
                _log.warning("retention_interrupted", reason=str(error)[:200])

    async def turn(self) -> None:
        """Everything that is due now, once. Raises StoreUnavailableError."""
        for tenant in self._snapshot().tenants.values():
            if tenant.retention_days is None or not self._lease.valid:
                continue
            until = self._clock.now_ms() - tenant.retention_days * _DAY_MS
            homes = sorted({self._lease.dc, *(await self._regions.adopted())})
            for kind in (Kind.ACCEPTED, Kind.RECEIVED):
                place = await self._claim(f"{tenant.id}|{kind.value}", homes)
                while place is not None and going_on():
                    if not await self._step(place, tenant.id, kind, until):
                        break
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _claim(self, identity: str, homes: list[str]) -> _Place | None:
        now = self._clock.now_ms()
        with border():
            try:
                await self._collection.update_one(
                    {"_id": identity, "until": {"$lt": now}},
                    {"$set": {"until": now + _CLAIM_MS, "by": self._lease.node}},
                    upsert=True,
                )
            except DuplicateKeyError:  # another node is at it
                return None
            document = await self._collection.find_one({"_id": identity})
        if document is None or document.get("homes") != homes:
            return _Place(identity, homes)
        return _Place(identity, homes, document["at"], document["mid"], list(document["left"]))

    async def _step(self, place: _Place, tenant: str, kind: Kind, until: int) -> bool:
        """One chunk; whether there is more."""
        heads = await self._reader.erasable(tenant, kind, (place.at, place.mid), until, _CHUNK)
        again = place.left[: 0 if heads else len(place.left)]  # what was open, once everything else is looked at
        still = await self._erase([mid for _, mid in heads], place.homes)
        if again:
            place.left = []
            for start in range(0, len(again), _CHUNK):
                place.left += await self._erase(again[start : start + _CHUNK], place.homes)
        elif heads:
            if len(place.left) + len(still) > _MAX_LEFT:
                _log.error("retention_waits", what=place.id, open=len(place.left))
                return False
            place.left += still
            place.at, place.mid = heads[-1]
        fields = {
            "at": place.at,
            "mid": place.mid,
            "left": place.left,
            "homes": place.homes,
            "until": self._clock.now_ms() + _CLAIM_MS,
        }
        with border():
            await self._collection.update_one({"_id": place.id}, {"$set": fields})
        return bool(heads)

    async def _erase(self, mids: list[str], homes: list[str]) -> list[str]:
        """Those of them that are not final yet; the others are erased where they are ours."""
        still: list[str] = []
        ripe: list[Message] = []
        done: list[str] = []
        second = {mid.partition("@")[0] for mid in mids if "@" in mid}
        for mid, events in (await self._reader.load_many({mid.partition("@")[0] for mid in mids})).items():
            try:
                message = fold(events)
            except ValueError as error:
                _log.error("damaged_message", mid=mid, reason=str(error))
                continue
            if message is None:
                continue
            if message.erased and mid in second:
                done.append(mid)
            elif home(message, events) not in homes:
                continue
            elif not message.final:
                still.append(mid)
            elif not message.erased:
                ripe.append(message)
            elif any(event.data is not None and event.kind is not Kind.ERASED for event in events):
                done.append(mid)
        await asyncio.gather(*(self._book.record(message.mid, erased(message, "retention")) for message in ripe))
        done += [message.mid for message in ripe]
        if done:
            others = [dc for dc in homes if dc != self._lease.dc]
            await self._reader.erase(*(name for mid in done for name in stories_of(mid, others)))
            self.erased += len(done)
        return still
