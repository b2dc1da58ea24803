"""deliver_sm and data_sm from any bind: recorded, then answered. Bounded: what does not fit is refused for now, and the carrier sends it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from controlplane.domain.catalog import Connector
from controlplane.errors import Problem, StoreUnavailableError
from controlplane.receipts.correlate import Correlator
from controlplane.receipts.inbound import Inbound
from controlplane.smpp.pdu import DataSm, DeliverSm
from controlplane.smpp.receipt_text import is_receipt, parse_receipt
from controlplane.smpp.status import ESME_ROK, ESME_RX_T_APPN
from controlplane.store.orphans import OrphanStore
from controlplane.tasks import going_on

__all__ = ["Ingest"]

_log = structlog.get_logger()
_SWEEP_SECONDS = 0.2
_DUE_EVERY = 5
"""Turns of the sweep between two looks at the orphans that are due."""

Answer = Callable[[int], None]


class Ingest:
    """One per node."""

    def __init__(
        self,
        correlator: Correlator,
        inbound: Inbound,
        orphans: OrphanStore,
        *,
        workers: int = 64,
        max_waiting: int = 5_000,
    ) -> None:
        self._correlator = correlator
        self._inbound = inbound
        self._orphans = orphans
        self._workers = workers
        self._queue: asyncio.Queue[tuple[Connector, DeliverSm | DataSm, Answer]] = asyncio.Queue(max_waiting)
        self.refused = 0
        """PDUs answered ESME_RX_T_APPN."""
        self.joined = 0
        self.orphaned = 0

    @property
    def waiting(self) -> int:
        """PDUs that nobody has taken up yet."""
        return self._queue.qsize()

    def on_deliver(self, connector: Connector, pdu: DeliverSm | DataSm, answer: Answer) -> None:
        """A PDU came. `answer` is called once its event is durable, or at once when there is no room."""
        try:
            self._queue.put_nowait((connector, pdu, answer))
        except asyncio.QueueFull:
            self.refused += 1
            answer(ESME_RX_T_APPN)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())
            group.create_task(self._sweep())
            group.create_task(self._inbound.run())

    async def _work(self) -> None:
        while going_on():
            connector, pdu, answer = await self._queue.get()
            try:
                await self._take(connector, pdu)
            except (StoreUnavailableError, Problem):
                self.refused += 1
                answer(ESME_RX_T_APPN)
            except Exception:  # noqa: BLE001
                # One carrier's odd PDU must not end the intake of all the others; it is refused for now, so that nothing is lost.
                _log.exception("deliver_failed", connector=connector.name)
                self.refused += 1
                answer(ESME_RX_T_APPN)
            else:
                answer(ESME_ROK)

    async def _take(self, connector: Connector, pdu: DeliverSm | DataSm) -> None:
        if not is_receipt(pdu):
            await self._inbound.receive(connector, pdu)
            return
        receipt = parse_receipt(pdu)
        fmt = connector.receipt_id_format
        if await self._correlator.receive(connector.name, fmt, pdu.source_addr, receipt):
            self.joined += 1
        else:
            self.orphaned += 1

    async def _sweep(self) -> None:
        """Orphans again and again: at once when this node stored their other half, else when they are due."""
        turn = 0
        while going_on():
            await asyncio.sleep(_SWEEP_SECONDS)
            turn += 1
            with suppress(StoreUnavailableError):
                joinable = self._correlator.take_joinable()
                orphans = await self._orphans.by_ids(joinable) if joinable else []
                if turn % _DUE_EVERY == 0:
                    orphans += await self._orphans.due()
                for orphan in orphans:
                    if not await self._correlator.retry(orphan):
                        await self._orphans.postpone(orphan)
