"""The sessions that the catalog asks for: started, replaced when their connector changes, stopped when it goes.

Where a carrier allows only so many sessions for the whole account (`max_binds`), a node binds only while it holds one of that many slots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from controlplane.clock import Clock
from controlplane.dispatch.outbox import Outbox, Unit
from controlplane.dispatch.outcome import Judge
from controlplane.dispatch.tallies import Tallies, Tally
from controlplane.domain.address import mask
from controlplane.domain.catalog import Connector, Snapshot
from controlplane.errors import StoreUnavailableError
from controlplane.smpp.connection import Bind, tls_context
from controlplane.smpp.pdu import AlertNotification, DataSm, DeliverSm, QuerySmResp
from controlplane.store.slots import Slots
from controlplane.tasks import going_on

__all__ = ["Binds", "Inbound"]

_log = structlog.get_logger()

Inbound = Callable[[Connector, "DeliverSm | DataSm", Callable[[int], None]], None]
"""(connector, PDU, answer): answer is called with a command_status once the PDU's event is durable."""

_SLOT_POLL_SECONDS = 1.0
_TURN_SECONDS = 5.0
"""A node keeps a slot for at least so long before another gets its turn."""


@dataclass(slots=True)
class _Running:
    connector: Connector
    outbox: Outbox
    task: asyncio.Task[None]
    binds: list[Bind] = field(default_factory=list)


class _Handler:
    """What the binds of one connector report."""

    def __init__(
        self, outbox: Outbox, judge: Judge, inbound: Inbound, changed: Callable[[], None], tally: Tally
    ) -> None:
        self._outbox = outbox
        self._judge = judge
        self._inbound = inbound
        self._changed = changed
        """Told when a bind came or went."""
        self._tally = tally

    def on_bound(self, bind: Bind) -> None:
        _log.info("bound", connector=self._outbox.connector.name, bind=bind.name, peer=bind.peer)
        self._outbox.binds_changed()
        self._changed()

    def on_unbound(self, bind: Bind, reason: str, retry_in: float, bind_status: int | None) -> None:
        log = _log.error if bind_status else _log.warning
        log(
            "unbound",
            connector=self._outbox.connector.name,
            bind=bind.name,
            reason=reason,
            retry_in=round(retry_in, 2),
            command_status=bind_status,
        )
        self._outbox.binds_changed()
        self._changed()

    def on_room(self, bind: Bind) -> None:  # noqa: ARG002 - the outbox asks all binds
        self._outbox.wake()

    def on_response(self, bind: Bind, token: object, status: int, message_id: str, latency: float, late: bool) -> None:  # noqa: ARG002
        if isinstance(token, Unit):
            if not late:
                self._tally.answered(status, len(token.parts), latency)
            self._judge.response(self._outbox, token, status, message_id, late=late)

    def on_no_response(self, bind: Bind, tokens: list[object], cause: str) -> None:  # noqa: ARG002
        for token in tokens:
            if isinstance(token, Unit):
                self._tally.unanswered += 1
                self._judge.no_response(token, cause)

    def on_deliver(self, bind: Bind, pdu: DeliverSm | DataSm, answer: Callable[[int], None]) -> None:  # noqa: ARG002
        self._inbound(self._outbox.connector, pdu, answer)

    def on_query(self, bind: Bind, token: object, resp: QuerySmResp | None) -> None:  # noqa: ARG002
        if callable(token):
            token(resp)

    def on_alert(self, bind: Bind, pdu: AlertNotification) -> None:
        _log.info("alert_notification", bind=bind.name, number=mask(pdu.source_addr))

    def on_protocol_error(self, bind: Bind, detail: str, raw: bytes) -> None:
        _log.warning("protocol_error", bind=bind.name, detail=detail, octets=len(raw), head=raw[:16].hex())


class Binds:
    """One per node."""

    def __init__(
        self,
        make_outbox: Callable[[Connector], Outbox],
        judge: Judge,
        inbound: Inbound,
        slots: Slots,
        clock: Clock,
        removed: Callable[[Outbox], Awaitable[None]],
        tallies: Tallies,
    ) -> None:
        self._make_outbox = make_outbox
        self._judge = judge
        self._inbound = inbound
        self._slots = slots
        self._clock = clock
        self._removed = removed
        self._tallies = tallies
        self._running: dict[str, _Running] = {}
        self._wanted: dict[str, Connector] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self.outboxes: dict[str, Outbox] = {}
        self.live: frozenset[str] = frozenset()
        """Connectors where this node has a bind that could submit (routing's question); another object when they change."""

    def _refresh(self) -> None:
        live = frozenset(name for name, outbox in self.outboxes.items() if outbox.live)
        if live != self.live:
            self.live = live

    def states(self) -> list[tuple[Outbox, list[Bind]]]:
        """Each connector's outbox and its binds, for health and metrics."""
        return [(running.outbox, running.binds) for running in self._running.values()]

    def on_catalog(self, snapshot: Snapshot) -> None:
        """Catalog listener."""
        self._wanted = {name: connector for name, connector in snapshot.connectors.items() if connector.enabled}
        self._changed.set()

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        async with asyncio.TaskGroup() as group:
            while going_on():
                await self._changed.wait()
                self._changed.clear()
                if self._stopping:
                    continue
                for name in list(self._running):
                    wanted = self._wanted.get(name)
                    running = self._running[name]
                    if wanted is None or _differs(running.connector, wanted):
                        await self._stop(running)
                        if wanted is None:
                            del self.outboxes[name]
                            self._refresh()
                            await self._removed(running.outbox)
                    else:
                        running.connector = wanted
                        running.outbox.reconfigure(wanted)
                for name, connector in self._wanted.items():
                    if name not in self._running:
                        self._start(group, connector)

    def _start(self, group: asyncio.TaskGroup, connector: Connector) -> None:
        outbox = self.outboxes.get(connector.name)
        if outbox is None:
            outbox = self.outboxes[connector.name] = self._make_outbox(connector)
        outbox.reconfigure(connector)
        running = _Running(connector, outbox, group.create_task(asyncio.sleep(0)))
        running.task = group.create_task(self._serve(running))
        self._running[connector.name] = running

    async def _serve(self, running: _Running) -> None:
        connector, outbox = running.connector, running.outbox
        handler = _Handler(outbox, self._judge, self._inbound, self._refresh, self._tallies.of(connector.name))
        context = tls_context(connector) if connector.tls else None
        running.binds = [
            Bind(
                f"{connector.name}/{number}",
                connector,
                handler,
                clock=self._clock,
                random=random.Random(),  # noqa: S311 - jitter
                ssl_context=context,
            )
            for number in range(1, connector.binds + 1)
        ]
        outbox.binds = running.binds
        with suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                group.create_task(outbox.run())
                for bind in running.binds:
                    group.create_task(self._hold(connector, bind))

    async def _hold(self, connector: Connector, bind: Bind) -> None:
        """Run one bind; where the account is limited, only while holding a slot of it."""
        if not connector.max_binds:
            await bind.run()
            return
        while not self._stopping:
            slot = await self._slot(connector)
            if slot is None:
                await asyncio.sleep(_SLOT_POLL_SECONDS * (0.5 + random.random()))  # noqa: S311 - jitter
                continue
            try:
                async with asyncio.TaskGroup() as group:
                    session = group.create_task(bind.run())
                    await self._keep(slot)
                    await bind.stop()
                    session.cancel()
            finally:
                with suppress(StoreUnavailableError):
                    await self._slots.release(slot)

    async def _slot(self, connector: Connector) -> str | None:
        with suppress(StoreUnavailableError):
            slot = await self._slots.take(connector.name, connector.max_binds)
            if slot is None and len(self.outboxes[connector.name]):
                await self._slots.ask(connector.name, connector.max_binds)
            return slot
        return None

    async def _keep(self, slot: str) -> None:
        """Returns when the slot is no longer surely ours (others may bind once it has been silent for the whole lease), or when our turn is over."""
        taken = kept = self._clock.monotonic()
        while not self._stopping and self._clock.monotonic() < kept + self._slots.safe_seconds:
            now = self._clock.monotonic()
            with suppress(StoreUnavailableError):
                if not await self._slots.keep(slot):
                    return
                kept = now
                if self._slots.asked(slot) and now - taken >= _TURN_SECONDS:
                    return
            await asyncio.sleep(_SLOT_POLL_SECONDS)

    async def _stop(self, running: _Running) -> None:
        """Unbind in good order, then end the sessions. What waits for a response meanwhile gets it, or is unknown."""
        await asyncio.gather(*(bind.stop() for bind in running.binds), return_exceptions=True)
        running.task.cancel()
        with suppress(asyncio.CancelledError):
            await running.task
        running.outbox.binds = []
        running.outbox.binds_changed()
        self._refresh()
        del self._running[running.connector.name]

    async def stop(self) -> None:
        """End all sessions in good order."""
        self._stopping = True
        await asyncio.gather(*(self._stop(running) for running in list(self._running.values())))


def _differs(old: Connector, new: Connector) -> bool:
    """Whether the sessions must be replaced; a new rate needs only the throttle."""
    return replace(old, rate=new.rate) != new
