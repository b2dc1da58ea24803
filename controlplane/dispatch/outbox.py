"""One connector's way out: messages queue by class, an intent is made durable, then submit_sm go to whichever bind has room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.clock import Clock
from controlplane.dispatch.compose import compose
from controlplane.dispatch.throttle import Throttle
from controlplane.domain.catalog import Connector, MessageClass
from controlplane.domain.message import Message
from controlplane.smpp.connection import Bind
from controlplane.smpp.pdu import SubmitSm
from controlplane.store.book import Book
from controlplane.store.intents import IntentLog
from controlplane.store.leases import Lease
from controlplane.tasks import going_on

__all__ = ["Outbox", "Unit"]

_CLASSES = (MessageClass.OTP.value, MessageClass.TRANSACTIONAL.value, MessageClass.MARKETING.value)
_BATCH = 200
_BATCHES_IN_FLIGHT = 4
_LEASE_POLL_SECONDS = 0.2


@dataclass(slots=True, eq=False)
class Unit:
    """One submit_sm on its way: the token that comes back with its response."""

    message: Message
    parts: tuple[int, ...]
    route: str
    connector: str
    attempt: int
    pdu: SubmitSm
    decision: str = ""
    """The router's record of its choice, which is kept with the outcome; with the first unit of a message only."""
    intent: int = 0


class Outbox:
    """One per connector of this node."""

    def __init__(self, connector: Connector, book: Book, intents: IntentLog, lease: Lease, clock: Clock) -> None:
        self.connector = connector
        self._book = book
        self._intents = intents
        self._lease = lease
        self._clock = clock
        self._queues: dict[str, deque[tuple[str, str, str]]] = {name: deque() for name in _CLASSES}
        """(mid, route, decision) by class."""
        self._head: deque[Unit] = deque()
        """Units that came back and go first."""
        self.throttle = Throttle(connector.rate, clock.monotonic())
        self.binds: list[Bind] = []
        self._reserved = 0
        self._sending = 0
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self.down_since: float | None = clock.monotonic()
        """Monotonic time since when no bind can submit; None while one can."""
        self.admits: Callable[[Message, int], bool] = lambda _message, _now_ms: True
        """(message, ms since the epoch): asked of what leaves the queues; what may not be sent now is its owner's again."""
        self.forget: Callable[[str], None] = lambda _mid: None
        """Told of each mid that leaves the queues."""
        self.unsendable: Callable[[Unit, str], None] = lambda _unit, _why: None
        """Told of a unit that cannot be written as a PDU."""

    def __len__(self) -> int:
        return len(self._head) + sum(len(queue) for queue in self._queues.values())

    @property
    def live(self) -> bool:
        """Whether a bind could submit."""
        return self.down_since is None

    def oldest_due(self) -> int | None:
        """Since when (ms since the epoch) the first message of any class has been due; None without one."""
        firsts = [queue[0][0] for queue in self._queues.values() if queue]
        found = [message for mid in firsts if (message := self._book.get(mid)) is not None]
        found += [unit.message for unit in list(self._head)[:1]]
        return min((max(message.accepted_at, message.send_at) for message in found), default=None)

    def reconfigure(self, connector: Connector) -> None:
        """Take the catalog's new settings."""
        self.connector = connector
        self.throttle.contract = connector.rate
        self.throttle.rate = min(self.throttle.rate, connector.rate)

    def binds_changed(self) -> None:
        """A bind came or went."""
        if any(bind.bound and bind.sends for bind in self.binds):
            self.down_since = None
            self.wake()
        elif self.down_since is None:
            self.down_since = self._clock.monotonic()

    def wake(self) -> None:
        """Something may be sendable now."""
        self._wake.set()

    def push(self, message: Message, route: str, decision: str = "") -> None:
        """Queue a message behind the others of its class."""
        self._queues.get(message.cls, self._queues[_CLASSES[1]]).append((message.mid, route, decision))
        self._wake.set()

    def push_back(self, unit: Unit) -> None:
        """The unit was not sent, or was refused for now: it goes first again. Its place in `Book.flying` is kept."""
        self._head.append(unit)
        self._wake.set()

    def take_queued(self) -> list[str]:
        """Empty the queues (the units that came back stay): the mids, for routing them elsewhere."""
        taken = [mid for name in _CLASSES for mid, _, _ in self._queues[name]]
        for queue in self._queues.values():
            queue.clear()
        return taken

    def take_units(self) -> list[Unit]:
        """Empty the units that came back."""
        units = list(self._head)
        self._head.clear()
        return units

    async def run(self) -> None:
        """Send until cancelled. What is in hand then is in the intents, and is judged by whoever adopts this term."""
        async with asyncio.TaskGroup() as group:
            while going_on():
                await self._wake.wait()
                self._wake.clear()
                while self._sending < _BATCHES_IN_FLIGHT and (units := self._collect()):
                    self._sending += 1
                    self._reserved += len(units)
                    self.throttle.take(len(units))
                    group.create_task(self._send(units))

    def _collect(self) -> list[Unit]:
        if self.live and not self._lease.valid and len(self):
            self._call_later(_LEASE_POLL_SECONDS)
            return []
        room = min(sum(bind.room for bind in self.binds) - self._reserved, _BATCH)
        if room <= 0 or not len(self):
            return []
        now = self._clock.monotonic()
        tokens = self.throttle.available(now)
        if tokens <= 0:
            self._call_later(self.throttle.delay(now))
            return []
        return self._units(min(room, tokens))

    def _units(self, limit: int) -> list[Unit]:
        units: list[Unit] = []
        now_ms = self._clock.now_ms()
        while self._head and len(units) < limit:
            unit = self._head.popleft()
            if unit.message.final or unit.message.expires_at <= now_ms:
                self._book.land(unit.message.mid)
            else:
                units.append(unit)
        for queue in self._queues.values():
            while queue and len(units) < limit:
                mid, route, decision = queue.popleft()
                self.forget(mid)
                message = self._book.get(mid)
                if message is None or message.final or message.expires_at <= now_ms:
                    continue
                if self.admits(message, now_ms):
                    units.extend(self._compose(message, route, decision, now_ms))
        self._head.extendleft(reversed(units[limit:]))
        return units[:limit]

    def _compose(self, message: Message, route: str, decision: str, now_ms: int) -> list[Unit]:
        units = [
            Unit(
                message,
                parts,
                route,
                self.connector.name,
                message.parts[parts[0] - 1].attempt + 1,
                pdu,
            )
            for parts, pdu in compose(message, self.connector, now_ms)
        ]
        if units:
            units[0].decision = decision
        self._book.fly(message.mid, len(units))
        return units

    async def _send(self, units: list[Unit]) -> None:
        try:
            items = [
                (unit.message.mid, part, unit.attempt, unit.route, unit.connector)
                for unit in units
                for part in unit.parts
            ]
            try:
                intent = await self._intents.write(items)
            except asyncio.CancelledError:  # the connector is being replaced: nothing of it was sent
                self._head.extend(units)
                raise
            rooms = {bind: bind.room for bind in self.binds} if self._lease.valid else {}
            for unit in units:
                unit.intent = intent.number
                bind = max(rooms, key=rooms.__getitem__, default=None)
                if bind is None or rooms[bind] <= 0:
                    self.throttle.give_back(1)
                    self.refused(unit)
                    continue
                rooms[bind] -= 1
                try:
                    bind.submit(unit.pdu, unit)
                except ValueError as error:  # a field that SMPP has no room for: never sent
                    self.unsendable(unit, str(error))
        finally:
            self._reserved -= len(units)
            self._sending -= 1
            self._wake.set()

    def refused(self, unit: Unit) -> None:
        """Certainly not taken by the carrier: back to the head, no retry spent, not unknown after a crash."""
        for part in unit.parts:
            self._intents.refuse(unit.intent, unit.message.mid, part, unit.attempt)
        self.push_back(unit)

    def _call_later(self, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(max(0.001, seconds), self._wake.set)
