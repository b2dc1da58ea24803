"""Receipts: when they go out, in which dialect, on which bind; and again, until they are acknowledged."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from controlplane.carrier.ids import in_receipt
from controlplane.smpp import pdu as p
from controlplane.smpp.tlv import MESSAGE_PAYLOAD, MESSAGE_STATE, NETWORK_ERROR_CODE, RECEIPTED_MESSAGE_ID
from controlplane.tasks import going_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.carrier.server import Exchange, Session

__all__ = ["Receipts", "Taken"]

_CODES = {
    "ENROUTE": 1,
    "DELIVRD": 2,
    "EXPIRED": 3,
    "DELETED": 4,
    "UNDELIV": 5,
    "ACCEPTD": 6,
    "UNKNOWN": 7,
    "REJECTD": 8,
}
_MAX_PAUSE = 30.0


@dataclass(slots=True)
class Taken:
    """A part that the carrier accepted."""

    id: str
    source: str
    dest: str
    state: str
    """The receipt's; empty for no receipt."""
    became: str
    """What query_sm tells; empty: nothing yet."""
    at: int
    digest: str
    text: str
    session: Session | None = None
    acked: bool = False


@dataclass(slots=True)
class _Due:
    taken: Taken
    state: str
    tries: int = 0
    final: bool = True


class Receipts:
    """All receipts of the carrier, by one timer."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._heap: list[tuple[float, int, _Due]] = []
        self._number = 0
        self._wake = asyncio.Event()

    @property
    def pending(self) -> int:
        """Receipts that wait for their time or for a bind."""
        return len(self._heap)

    def wake(self) -> None:
        """A bind came."""
        self._wake.set()

    def schedule(self, taken: Taken, delay: float) -> None:
        """Send the receipt(s) of `taken` in `delay` seconds."""
        b = self._exchange.behaviour
        if b.receipt_intermediate:
            early = delay + 0.05 if b.receipt_shuffle else delay / 2
            self._push(_Due(taken, "ENROUTE", final=False), early)
        for _ in range(1 + b.receipt_duplicates):
            self._push(_Due(taken, taken.state), delay)

    def _push(self, due: _Due, delay: float) -> None:
        self._number += 1
        at = self._exchange.clock.monotonic() + delay
        heapq.heappush(self._heap, (at, self._number, due))
        if self._heap[0][1] == self._number:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while going_on():
            now = self._exchange.clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                due = heapq.heappop(self._heap)[2]
                self._send(due)
            timeout = max(0.001, self._heap[0][0] - now) if self._heap else None
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _session(self, taken: Taken) -> Session | None:
        ready = [session for session in self._exchange.sessions if session.bound and session.receives]
        others = [session for session in ready if session is not taken.session]
        if self._exchange.behaviour.receipt_other_bind and others:
            return self._exchange.rng.choice(others)
        if taken.session in ready:
            return taken.session
        return self._exchange.rng.choice(ready) if ready else None

    def _send(self, due: _Due) -> None:
        session = self._session(due.taken)
        if session is None:
            self._push(due, 0.2)
            return
        pdu = self._pdu(due)
        loop = asyncio.get_running_loop()

        def unanswered() -> None:
            session.forget(pdu.sequence)
            self._again(due)

        timer = loop.call_later(self._exchange.behaviour.redeliver_seconds, unanswered)
        session.deliver(pdu, self._answered(due, timer))
        self._exchange.counts["receipts_sent"] += 1

    def _answered(self, due: _Due, timer: asyncio.TimerHandle) -> Callable[[int], None]:
        def answered(status: int) -> None:
            timer.cancel()
            if status == 0:
                self._exchange.counts["receipts_acknowledged"] += 1
                if due.final and not due.taken.acked:
                    due.taken.acked = True
                    self._exchange.journal.write(e="ack", id=due.taken.id)
            else:
                self._exchange.counts["receipts_refused"] += 1
                self._again(due)

        return answered

    def _again(self, due: _Due) -> None:
        due.tries += 1
        pause = min(_MAX_PAUSE, self._exchange.behaviour.redeliver_seconds * 2.0 ** min(due.tries - 1, 6))
        self._push(due, pause * self._exchange.rng.uniform(0.1, 0.5))

    def _pdu(self, due: _Due) -> p.DeliverSm | p.DataSm:
        b, taken = self._exchange.behaviour, due.taken
        message_id = in_receipt(taken.id, b.receipt_id)
        tlvs = {
            RECEIPTED_MESSAGE_ID: message_id.encode("latin-1") + b"\x00",
            MESSAGE_STATE: bytes((_CODES.get(due.state, 7),)),
            NETWORK_ERROR_CODE: b"\x03\x00\x00" if due.state == "DELIVRD" else b"\x03\x00\x42",
        }
        text = self._text(due, message_id)
        if b.receipt_dialect == "data_sm":
            return p.DataSm(
                source_addr=taken.dest,
                dest_addr=taken.source,
                esm_class=0x04,
                tlvs={**tlvs, MESSAGE_PAYLOAD: text.encode("latin-1", "replace")},
            )
        return p.DeliverSm(
            source_ton=1,
            source_npi=1,
            source_addr=taken.dest,
            dest_addr=taken.source,
            esm_class={"esm44": 0x44}.get(b.receipt_dialect, 0x04 if due.final else 0x20),
            short_message=text.encode("latin-1", "replace"),
            tlvs=tlvs if b.receipt_dialect == "tlv" else None,
        )

    def _text(self, due: _Due, message_id: str) -> str:
        b, taken = self._exchange.behaviour, due.taken
        if b.receipt_dialect == "tlv":
            return ""
        if b.receipt_dialect == "garbled":
            return f"??{message_id[::-1]} who knows"
        submitted = datetime.fromtimestamp(taken.at / 1000, UTC)
        done = datetime.fromtimestamp(self._exchange.clock.now_ms() / 1000, UTC)
        delivered = "001" if due.state == "DELIVRD" else "000"
        error = "000" if due.state == "DELIVRD" else "042"
        opening = taken.text if taken.text.isprintable() else ""
        if b.receipt_dialect == "compact":
            return (
                f"id:{message_id} sub:1 dlvrd:{delivered[-1]} submitdate:{submitted:%y%m%d%H%M%S} "
                f"donedate:{done:%y%m%d%H%M%S} stat:{due.state} err:{error} text:{opening}"
            )
        return (
            f"id:{message_id} sub:001 dlvrd:{delivered} submit date:{submitted:%y%m%d%H%M} "
            f"done date:{done:%y%m%d%H%M} stat:{due.state} err:{error} text:{opening}"
        )
