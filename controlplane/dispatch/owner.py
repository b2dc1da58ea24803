"""The owner looks at one message at a time and decides its next step. It holds no state of its own but the timers and what is queued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.clock import Clock
from controlplane.dispatch.gate import GO, Ruling
from controlplane.dispatch.hold import Hold
from controlplane.dispatch.inquiry import Inquirer
from controlplane.dispatch.outbox import Outbox
from controlplane.dispatch.region import REGION_LOST
from controlplane.dispatch.timers import Wheel
from controlplane.domain.catalog import MESSAGE_CLASSES, SENDER_TYPES, SenderType, UnknownPolicy
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState
from controlplane.routing import Router, RouteRequest
from controlplane.store.book import Book, Fact
from controlplane.tasks import going_on

__all__ = ["Owner", "request_of"]

_TICK_SECONDS = 0.25
_LOOK_AGAIN_MS = 1_000
_DOWN_SECONDS = 2.0
_MAX_RESENDS = 5
_QUERIES = 8
"""How often a message without receipt is asked for, spread over the grace period."""
_MOST_TRIED = 3
"""Routes that may report a message undelivered, or refuse it, before the next such report is the end of it."""
_SLICE = 2_000
"""Messages looked at before the loop may do something else."""


class Owner:
    """One per node and epoch."""

    def __init__(
        self,
        book: Book,
        router: Router,
        outboxes: Callable[[], dict[str, Outbox]],
        hold: Hold,
        clock: Clock,
        *,
        receipt_grace_seconds: int,
        sends_on: Callable[[str], bool],
    ) -> None:
        self._book = book
        self._router = router
        self._sends_on = sends_on
        """Whether a tenant's messages go to the next route when they are reported undelivered."""
        self._hold = hold
        hold.released = self.look
        self._outboxes = outboxes
        self._clock = clock
        self._grace_ms = receipt_grace_seconds * 1000
        self._wheel = Wheel()
        self._inquirer = Inquirer(book, outboxes)
        self._queued: set[str] = set()
        self._unroutable: set[str] = set()
        self._evacuated: dict[str, frozenset[str]] = {}
        """Connector that is down → the connectors that were up when its queue was last routed anew."""
        self.gate: Callable[[Message, int], Ruling] = lambda _message, _now_ms: GO
        """Asked (message, ms since the epoch) before a message is routed."""

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener: what is new may change the next step."""
        if event.kind is Kind.ACCEPTED:
            self._wheel.add(message.expires_at, message.mid)
            self._look_pending(message, self._clock.now_ms())
        elif event.kind is Kind.ADOPTED:
            if own:
                self._wheel.add(message.expires_at, message.mid)
                self.look(message.mid)
            elif message.mirror_first is not None:
                self._hold.drop(message)
        elif event.kind is Kind.UNDELIVERED and not message.final:
            self.look(message.mid)  # a part goes to the next route
        elif message.final:
            self._wheel.drop(message.expires_at, message.mid)
            self._wheel.drop(message.expires_at + self._grace_ms, message.mid)
            if message.mirror_first is not None:
                self._hold.drop(message)

    def landed(self, mid: str) -> None:
        """A submit has its outcome."""
        self.look(mid)

    def unqueued(self, mid: str) -> None:
        """An outbox took the message from its queue."""
        self._queued.discard(mid)

    @property
    def queued(self) -> int:
        """Messages that wait in a queue of an outbox, or for a route."""
        return len(self._queued) + len(self._unroutable)

    def look(self, mid: str) -> None:
        """Decide what this message needs now."""
        message = self._book.get(mid)
        if message is None or message.final:
            self._unroutable.discard(mid)
            return
        now = self._clock.now_ms()
        if mid in self._book.flying:
            if now >= message.expires_at:
                self._wheel.add(now + _LOOK_AGAIN_MS, mid)
            return
        states = {part.state for part in message.parts}
        if PartState.PENDING in states:
            self._look_pending(message, now)
        elif now >= message.expires_at + self._grace_ms:
            self._expire(message, "no_outcome" if PartState.UNKNOWN in states else "no_receipt")
        elif PartState.UNKNOWN in states and self._resends(message, now):
            self._resend(message)
        elif now >= message.expires_at:
            if PartState.SUBMITTED in states:
                self._inquirer.ask(message)
            again = now + max(_LOOK_AGAIN_MS, self._grace_ms // _QUERIES)
            self._wheel.add(min(again, message.expires_at + self._grace_ms), mid)

    def _look_pending(self, message: Message, now: int) -> None:
        if now >= message.expires_at:
            self._expire(message, "validity")
            return
        if message.mirror_first is not None and self._hold.keeps(message):
            return
        due = max(message.send_at, message.retry_at)
        if due > now:
            self._wheel.add(due, message.mid)
        elif message.mid not in self._queued and self.admits(message, now):
            self._enqueue(message)

    def admits(self, message: Message, now: int) -> bool:
        """Whether its recipient's preferences let it go now; else it fails, or is looked at when they may. Asked before it is queued, and when it leaves the queue."""
        ruling = self.gate(message, now)
        if ruling.go:
            return True
        mid = message.mid
        if ruling.failed:
            why = {"rule": ruling.rule, "detail": ruling.detail}
            fact = Fact(
                Kind.FAILED, why, None, ruling.failed, guard=lambda m: not m.final and mid not in self._book.flying
            )
            self._book.post(mid, fact)
            return False
        self._wheel.add(ruling.until, mid)
        if ruling.rule:
            self._defer(message, ruling)
        return False

    def _defer(self, message: Message, ruling: Ruling) -> None:
        """Tell why it waits, once for each time."""
        until = ruling.until
        data = {
            "attempt": message.attempt,
            "parts": [],
            "retry_at": until,
            "rule": ruling.rule,
            "detail": ruling.detail,
        }
        fact = Fact(Kind.DEFERRED, data, None, ruling.rule, guard=lambda m: not m.final and m.retry_at < until)
        self._book.post(message.mid, fact)

    def _resends(self, message: Message, now: int) -> bool:
        return (
            message.unknown_policy == UnknownPolicy.RESEND
            and message.reason != REGION_LOST  # the operator, or its policy, wants it held
            and message.attempt < _MAX_RESENDS
            and now < message.expires_at
        )

    def _resend(self, message: Message) -> None:
        unknown = [number for number, part in enumerate(message.parts, 1) if part.state is PartState.UNKNOWN]
        data = {
            "parts": unknown,
            "attempt": message.attempt,
            "route": message.route,
            "connector": message.connector,
            "tried": list(message.tried),
        }
        fact = Fact(
            Kind.REROUTED,
            data,
            message.route or None,
            "resend",
            guard=lambda m: not m.final and any(part.state is PartState.UNKNOWN for part in m.parts),
            done=lambda _event, _error: self.look(message.mid),
        )
        self._book.post(message.mid, fact)

    def _expire(self, message: Message, reason: str) -> None:
        mid = message.mid
        fact = Fact(Kind.EXPIRED, {}, None, reason, guard=lambda m: not m.final and mid not in self._book.flying)
        self._book.post(mid, fact)

    # -- routing ---------------------------------------------------------------------------------------------------

    def next_route(self, message: Message, tried: tuple[str, ...]) -> str | None:
        """The best route that is not among `tried`, by name; None when none is left."""
        plan = self._router.plan(request_of(message, tried))
        return plan.candidates[0].route.name if plan.candidates else None

    def onward(self, message: Message, number: int) -> tuple[str, ...]:
        """The routes tried, if a part that is reported undelivered shall go to the next one; nothing where the report is the end of it.

        Only of a message that is open here: another node's is its owner's to send.
        """
        if (
            self._book.get(message.mid) is not message
            or message.final
            or not self._sends_on(message.tenant)
            or message.part(number).state not in (PartState.SUBMITTED, PartState.ENROUTE)
            or len(message.tried) >= _MOST_TRIED
            or self._clock.now_ms() >= message.expires_at
        ):
            return ()
        tried = (*message.tried, message.route)
        return tried if self.next_route(message, tried) is not None else ()

    def _enqueue(self, message: Message) -> None:
        plan = self._router.plan(request_of(message, message.tried))
        decision = plan.decision.encoded if plan.decision is not None else ""
        outboxes = self._outboxes()
        for candidate in plan.candidates:
            outbox = outboxes.get(candidate.route.connector)
            if outbox is not None:
                self._unroutable.discard(message.mid)
                self._queued.add(message.mid)
                outbox.push(message, candidate.route.name, decision)
                return
        self._unroutable.add(message.mid)  # looked at again when the catalog changes, and at its expiry

    def reroute(self) -> None:
        """The catalog or the binds changed: look again at what has no route, and at what waits behind a connector that is down."""
        for mid in list(self._unroutable):
            self.look(mid)

    async def evacuate(self, outbox: Outbox) -> None:
        """Route what waits in this outbox anew: its connector is down, or gone."""
        for number, mid in enumerate(outbox.take_queued(), 1):
            self._queued.discard(mid)
            self.look(mid)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        for unit in outbox.take_units():
            self._book.land(unit.message.mid)
            self.look(unit.message.mid)

    async def _evacuate_down(self) -> None:
        """Once for each change of which connectors are up: what was queued since then was routed knowing them."""
        now = self._clock.monotonic()
        outboxes = list(self._outboxes().values())
        live = frozenset(outbox.connector.name for outbox in outboxes if outbox.live)
        for outbox in outboxes:
            name = outbox.connector.name
            if outbox.down_since is None or now - outbox.down_since < _DOWN_SECONDS:
                self._evacuated.pop(name, None)
            elif self._evacuated.get(name) != live:
                self._evacuated[name] = live
                await self.evacuate(outbox)

    async def run(self) -> None:
        """Keep time until cancelled."""
        ticks = 0
        while going_on():
            await asyncio.sleep(_TICK_SECONDS)
            due = self._wheel.due(self._clock.now_ms())
            for start in range(0, len(due), _SLICE):
                for mid in due[start : start + _SLICE]:
                    self.look(mid)
                await asyncio.sleep(0)
            ticks += 1
            if ticks % 4 == 0:
                await self._evacuate_down()


def request_of(message: Message, tried: tuple[str, ...]) -> RouteRequest:
    """What is asked of the router about a message."""
    return RouteRequest(
        message.tenant,
        message.to,
        SENDER_TYPES.get(message.sender_type, SenderType.ALPHANUMERIC),
        MESSAGE_CLASSES[message.cls],
        len(message.parts),
        message.max_price,
        tried,
        message.sender,
        message.body,
        message.encoding,
        message.origin,
        message.mid,
    )
