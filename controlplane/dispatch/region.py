"""Another datacenter is lost for good: its open messages, as they are mirrored here, are taken over by this node.

What happened after the last mirrored entry is not known, and intents are not mirrored. So of a message without a recorded attempt it can only be said that
it was certainly not sent when its `send_at` is still to come. For the others their own policy decides, as for any outcome that is not known: `resend` (at least
once) sends them, `hold` (at most once) makes them `unknown`; and so does validity that is over. An operator may choose otherwise for all of them.

Each message gets an `adopted` event of this datacenter; one that has it is passed over, so whatever was cut short is simply begun again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter

import structlog

from controlplane.clock import Clock
from controlplane.domain.catalog import UnknownPolicy
from controlplane.domain.events import Kind
from controlplane.domain.message import Message, PartState, fold
from controlplane.errors import StoreUnavailableError
from controlplane.ids import token
from controlplane.store.book import Book, Fact
from controlplane.store.events import EventReader
from controlplane.store.leases import Lease, require
from controlplane.store.regions import Adoption, RegionStore, Taken
from controlplane.tasks import going_on

__all__ = ["REGION_LOST", "RegionAdopter", "what_becomes"]

_log = structlog.get_logger()
REGION_LOST = "region_lost"
_CHUNK = 500
_DAY_MS = 86_400_000
_OPEN_DAYS = 38
"""No message is open for longer, its receipt's grace aside: at most 30 days ahead, 7 days valid."""
_FULL = 0.9
"""Of the messages that a node may own; then the adoption waits until some are final."""
_PAUSE_SECONDS = 1.0


def what_becomes(message: Message, unattempted: str, now_ms: int) -> str:
    """What adoption makes of an open message: scheduled, send, hold, submitted, unknown."""
    states = {part.state for part in message.parts}
    if PartState.PENDING not in states:
        if PartState.UNKNOWN not in states:
            return "submitted"
        return "hold" if unattempted == "hold" else "unknown"
    if now_ms >= message.expires_at:
        return "hold"  # it may have been sent in time; `expired` before it could be sent would be a guess
    if message.send_at > now_ms and not message.attempt:
        return "scheduled"
    if unattempted == "policy":
        return "hold" if message.unknown_policy == UnknownPolicy.HOLD else "send"
    return unattempted


class RegionAdopter:
    """One per node and epoch."""

    def __init__(
        self,
        regions: RegionStore,
        reader: EventReader,
        book: Book,
        lease: Lease,
        clock: Clock,
        *,
        max_open: int,
        receipt_grace_seconds: int,
    ) -> None:
        self._regions = regions
        self._reader = reader
        self._book = book
        self._lease = lease
        self._clock = clock
        self._room = max(1, int(max_open * _FULL))
        self._reach_ms = _OPEN_DAYS * _DAY_MS + receipt_grace_seconds * 1000
        self._asked: asyncio.Queue[Adoption] = asyncio.Queue()

    async def ask(self, dc: str, *, dry_run: bool, unattempted: str) -> Adoption:
        """Begin one; it goes on in the background. Raises StoreUnavailableError."""
        now = self._clock.now_ms()
        adoption = Adoption(
            id=token("ad", 8),
            dc=dc,
            by=self._lease.node,
            epoch=self._lease.epoch,
            dry_run=dry_run,
            unattempted=unattempted,
            at=now,
            beat=now,
        )
        await self._regions.begin(adoption)
        self._asked.put_nowait(adoption)
        return adoption

    async def run(self) -> None:
        """Do what was asked for, one after the other, until cancelled."""
        while going_on():
            adoption = await self._asked.get()
            try:
                await self._adopt(adoption)
                adoption.state = "done"
            except (StoreUnavailableError, ValueError) as error:
                adoption.state, adoption.error = "failed", str(error)[:300]
            _log.warning(
                "region_adoption",
                dc=adoption.dc,
                state=adoption.state,
                dry_run=adoption.dry_run,
                adopted=adoption.adopted,
                counts=adoption.counts,
            )
            await self._finish(adoption)

    async def _finish(self, adoption: Adoption) -> None:
        while going_on():
            try:
                await self._save(adoption)
            except StoreUnavailableError:
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    async def _save(self, adoption: Adoption) -> None:
        adoption.beat = self._clock.now_ms()
        await self._regions.save(adoption)

    async def _adopt(self, adoption: Adoption) -> None:
        """The newest messages of all terms first: they are the urgent ones."""
        terms = await self._regions.terms(adoption.dc)
        adoption.total = sum(highest for *_, highest in terms)
        since = self._clock.now_ms() - self._reach_ms
        counts: Counter[str] = Counter()
        heap: list[tuple[int, str, int, int, list[Taken]]] = []
        """(minus the time of the newest, node, epoch, q below which is still to be looked at, what is next)."""

        async def read(node: str, epoch: int, below: int) -> None:
            rows = await self._regions.taken(adoption.dc, node, epoch, below, _CHUNK)
            if rows and rows[0].at >= since:
                heapq.heappush(heap, (-rows[0].at, node, epoch, below, rows))
            else:  # nothing that could be open
                adoption.seen += below - 1

        for node, epoch, highest in terms:
            await read(node, epoch, highest + 1)
        while heap and going_on():
            _, node, epoch, below, rows = heapq.heappop(heap)
            await self._take_chunk(adoption, counts, rows)
            adoption.seen += below - rows[-1].q
            await read(node, epoch, rows[-1].q)
            await self._save(adoption)
        if heap:
            raise asyncio.CancelledError

    async def _take_chunk(self, adoption: Adoption, counts: Counter[str], rows: list[Taken]) -> None:
        taken = []
        now = self._clock.now_ms()
        ended = await self._regions.ended(rows)
        # a message under a second name (store.copies) is one that was accepted here too, under the same Idempotency-Key
        mids = dict.fromkeys(row.mid for row in rows if row.mid not in ended and "@" not in row.mid)
        for mid, events in (await self._reader.load_many(mids)).items():
            try:
                message = fold(events)
            except ValueError as error:
                _log.error("damaged_message", mid=mid, reason=str(error))
                adoption.damaged += 1
                continue
            if message and not message.final and message.owner and message.owner[0] == adoption.dc:
                becomes = what_becomes(message, adoption.unattempted, now)
                counts[becomes] += 1
                taken.append((message, becomes))
        adoption.counts = dict(counts)
        if adoption.dry_run or not taken:
            return
        while len(self._book.open) + len(taken) > self._room:
            if not going_on():
                raise asyncio.CancelledError
            await self._save(adoption)
            await asyncio.sleep(_PAUSE_SECONDS)
        require(self._lease)
        results = await asyncio.gather(*(self._take(message, becomes) for message, becomes in taken))
        adoption.adopted += sum(results)

    async def _take(self, message: Message, becomes: str) -> bool:
        owner = message.owner
        assert owner is not None  # noqa: S101 - looked at by the caller
        if becomes == "hold":
            uncertain = (PartState.PENDING, PartState.UNKNOWN)
            data = {
                "parts": [number for number, part in enumerate(message.parts, 1) if part.state in uncertain],
                "attempt": message.attempt,
                "route": message.route,
                "connector": message.connector,
            }
            unknown = Fact(
                Kind.UNKNOWN, data, message.route or None, REGION_LOST, guard=lambda m: not m.final and m.owner == owner
            )
            self._book.post(message.mid, unknown, message)
        data = {"from_dc": owner[0], "from_node": owner[1], "from_epoch": owner[2]}
        fact = Fact(Kind.ADOPTED, data, guard=lambda m: not m.final and m.owner == owner)
        return await self._book.settle(message.mid, fact, message) is not None
