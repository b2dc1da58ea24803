"""deliver_sm and data_sm from any bind: recorded, then answered. Bounded: what does not fit is refused for now, and the carrier sends it again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from controlplane.clock import Clock
from controlplane.domain.catalog import Connector
from controlplane.domain.receipt import Receipt
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

_ANSWER_SECONDS = 10.0

Answer = Callable[[int], None]


class _Receipt:
    """A receipt on its way into the store; the carrier hears once."""

    __slots__ = ("answer", "deadline", "intake")

    def __init__(self, intake: Ingest, answer: Answer, deadline: float) -> None:
        self.intake = intake
        self.answer: Answer | None = answer
        self.deadline = deadline

    def done(self, error: BaseException | None) -> None:
        """It is durable, or (error) is not, as far as is known."""
        answer, self.answer = self.answer, None
        if answer is not None:
            self.intake.settled(answer, error)


class Ingest:
    """One per node."""

    def __init__(
        self,
        correlator: Correlator,
        inbound: Inbound,
        orphans: OrphanStore,
        clock: Clock,
        *,
        workers: int = 64,
        max_waiting: int = 5_000,
    ) -> None:
        self._correlator = correlator
        self._inbound = inbound
        self._orphans = orphans
        self._clock = clock
        self._workers = workers
        self._max_waiting = max_waiting
        self._queue: asyncio.Queue[tuple[Connector, DeliverSm | DataSm, Receipt | None, Answer]] = asyncio.Queue()
        self._recording: deque[_Receipt] = deque()
        """Receipts taken the short way, oldest first; those that are answered are dropped lazily."""
        self._unanswered = 0
        self.refused = 0
        """PDUs answered ESME_RX_T_APPN."""
        self.joined = 0
        self.orphaned = 0

    @property
    def waiting(self) -> int:
        """PDUs without an answer."""
        return self._unanswered

    def on_deliver(self, connector: Connector, pdu: DeliverSm | DataSm, answer: Answer) -> None:
        """A PDU came. `answer` is called once its event is durable, or at once when there is no room."""
        if self._unanswered >= self._max_waiting:
            self.refused += 1
            answer(ESME_RX_T_APPN)
            return
        self._unanswered += 1
        try:
            receipt = parse_receipt(pdu) if is_receipt(pdu) else None
            if receipt is not None and self._record_open(connector, pdu.source_addr, receipt, answer):
                return
        except Exception as error:  # noqa: BLE001 - see `settled`
            self.settled(answer, error)
            return
        self._queue.put_nowait((connector, pdu, receipt, answer))

    def _record_open(self, connector: Connector, recipient: str, receipt: Receipt, answer: Answer) -> bool:
        """A receipt of a message that is open here needs no look into the store, and no task."""
        entry = _Receipt(self, answer, self._clock.monotonic() + _ANSWER_SECONDS)
        fmt = connector.receipt_id_format
        taken = self._correlator.record_open(connector.name, fmt, recipient, receipt, entry.done)
        if taken:
            self.joined += 1
            self._recording.append(entry)
        return taken

    def settled(self, answer: Answer, error: BaseException | None) -> None:
        """Answer a PDU. What is not durable is refused for now, and the carrier sends it again: nothing is lost, and one odd PDU ends nothing."""
        self._unanswered -= 1
        if error is None:
            answer(ESME_ROK)
            return
        if not isinstance(error, StoreUnavailableError | Problem):
            _log.error("deliver_failed", exc_info=error)
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
            connector, pdu, receipt, answer = await self._queue.get()
            try:
                await self._take(connector, pdu, receipt)
            except Exception as error:  # noqa: BLE001 - see `settled`
                self.settled(answer, error)
            else:
                self.settled(answer, None)

    async def _take(self, connector: Connector, pdu: DeliverSm | DataSm, receipt: Receipt | None) -> None:
        if receipt is None:
            await self._inbound.receive(connector, pdu)
            return
        fmt = connector.receipt_id_format
        if await self._correlator.receive(connector.name, fmt, pdu.source_addr, receipt):
            self.joined += 1
        else:
            self.orphaned += 1

    def _give_up(self) -> None:
        """Refuse for now what MongoDB does not confirm; it may still be recorded, and its repetition is then declined and answered."""
        now = self._clock.monotonic()
        while self._recording and (self._recording[0].answer is None or self._recording[0].deadline <= now):
            self._recording.popleft().done(StoreUnavailableError("MongoDB did not confirm in time."))

    async def _sweep(self) -> None:
        """Orphans again and again: at once when this node stored their other half, else when they are due."""
        turn = 0
        while going_on():
            await asyncio.sleep(_SWEEP_SECONDS)
            turn += 1
            self._give_up()
            with suppress(StoreUnavailableError):
                joinable = self._correlator.take_joinable()
                orphans = await self._orphans.by_ids(joinable) if joinable else []
                if turn % _DUE_EVERY == 0:
                    orphans += await self._orphans.due()
                for orphan in orphans:
                    if not await self._correlator.retry(orphan):
                        await self._orphans.postpone(orphan)
