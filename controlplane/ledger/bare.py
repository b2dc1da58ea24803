"""Mirrored events that came without their payload. Erased ones do, and are well; one that was damaged in its own datacenter before it was mirrored does too.

Which it is shows when the `erased` of its message is seen, in this log or another's, before or after. Where none is known a while after the mirror has caught up,
it is a finding (`event_altered`, as scrubbing would call it), and the peer is asked for the payload again until it has mended its event, or the message is erased.
What is waited for is kept in memory, and found again from the open findings; beyond `_MOST` events it is left to scrubbing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.ledger.check import Fault
from controlplane.ledger.entries import event_of
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.store.copies import Copies, local_id
from controlplane.store.ledger import Finding, LedgerStore

__all__ = ["Bare"]

_log = structlog.get_logger()
_GRACE_SECONDS = 60.0
"""For so long an erasure may be on its way, in another datacenter's log."""
_AGAIN_SECONDS = 30.0
_MOST = 20_000
_CHUNK = 500
_DETAIL = (
    "it came without its payload, and no erasure of its message is known: it was damaged before it was mirrored. "
    "The peer's repair mends it; then it is taken from there"
)


@dataclass(slots=True)
class _Waiting:
    """One event without payload."""

    index: int
    event: Event
    since: float
    """On the monotonic clock."""
    reported: bool = False

    def finding(self, origin: str, at: int) -> Finding:
        """As scrubbing would report it."""
        return Finding(
            kind=Fault.EVENT_ALTERED,
            origin=origin,
            first=self.index,
            last=self.index,
            detail=_DETAIL,
            at=at,
            subject=self.event.id,
        )


class Bare:
    """One per mirror."""

    def __init__(self, store: LedgerStore, copies: Copies, client: LedgerClient, dc: str, clock: Clock) -> None:
        self._store = store
        self._copies = copies
        self._client = client
        self._dc = dc
        self._clock = clock
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        """(origin, event id) → it."""
        self._next = float("-inf")
        self._read = False

    def met(self, origin: str, first: int, events: Sequence[Event]) -> None:
        """These were mirrored, from entry `first` on."""
        now = self._clock.monotonic()
        erased = {event.mid for event in events if event.kind is Kind.ERASED}
        if erased and self._waiting:
            kept = {key: each for key, each in self._waiting.items() if each.reported or each.event.mid not in erased}
            self._waiting = kept
        for index, event in enumerate(events, first):
            if (
                event.salt is None
                and event.data is None
                and event.kind is not Kind.ERASED
                and len(self._waiting) < _MOST
            ):
                self._waiting[origin, event.id] = _Waiting(index, event, now)

    async def look(self) -> None:
        """Once all that the peer has is mirrored; does nothing most times. Raises StoreUnavailableError."""
        now = self._clock.monotonic()
        if not self._read:
            await self._read_findings()
        if now < self._next or not self._waiting:
            return
        self._next = now + min(_AGAIN_SECONDS, _GRACE_SECONDS)
        explained = await self._copies.explained({each.event.mid for each in self._waiting.values()})
        for (origin, name), each in list(self._waiting.items()):
            if each.event.mid in explained:
                await self._settled(origin, name, each)
        due = [key for key, each in self._waiting.items() if now - each.since >= _GRACE_SECONDS]
        for origin in dict.fromkeys(origin for origin, _ in due):
            names = [name for key, name in due if key == origin]
            for start in range(0, len(names), _CHUNK):
                await self._ask(origin, names[start : start + _CHUNK])

    async def _read_findings(self) -> None:
        """What a ledger that led before was waiting for."""
        mirrored = {log.origin for log in await self._store.logs(own=False, dc=self._dc)}
        for finding in await self._store.findings("open"):
            mid, _, k = finding.subject.rpartition(":")
            if finding.kind != Fault.EVENT_ALTERED or finding.origin not in mirrored or not k.isdecimal():
                continue
            apart = await self._copies.apart(self._dc, [mid])
            for name in (mid, f"{mid}@{self._dc}") if mid in apart else (mid,):
                event = (await self._store.events([(name, int(k))])).get(f"{name}:{k}")
                if event is not None and event.dc == self._dc and event.salt is None and event.data is None:
                    found = replace(event, mid=mid)
                    self._waiting[finding.origin, found.id] = _Waiting(
                        finding.first, found, float("-inf"), reported=True
                    )
        self._read = True

    async def _ask(self, origin: str, names: Sequence[str]) -> None:
        """Take what the peer has by now; report the rest."""
        waiting = [self._waiting[origin, name] for name in names]
        try:
            rows = await self._client.payloads(origin, [each.index for each in waiting])
        except PeerError:
            return  # the mirror says so itself
        for name, each, row in zip(names, waiting, rows, strict=True):
            whole = None
            if row is not None and row[0] == each.event.leaf and row[1] is not None:
                try:
                    whole = event_of(*row)
                except ValueError as error:
                    _log.error(
                        "payload_not_as_committed", peer=self._dc, origin=origin, id=name, reason=str(error)[:200]
                    )
            if whole is not None:
                apart = await self._copies.apart(self._dc, [whole.mid])
                await self._copies.complete(whole, local_id(whole, apart))
                await self._settled(origin, name, each)
                _log.info("payload_came", peer=self._dc, origin=origin, id=name)
            elif not each.reported:
                await self._store.report(each.finding(origin, self._clock.now_ms()))
                each.reported = True
                _log.error("mirrored_without_payload", peer=self._dc, origin=origin, index=each.index, id=name)

    async def _settled(self, origin: str, name: str, each: _Waiting) -> None:
        del self._waiting[origin, name]
        if each.reported:
            await self._store.report(replace(each.finding(origin, self._clock.now_ms()), state="cured"))
