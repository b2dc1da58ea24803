"""Adoption: what a dead or ended term left open gets a new owner.

Order matters. The term is claimed first: its former owner can no longer renew. Then its intents are read: a part that an intent names and that has no
outcome is recorded `unknown` *before* the message is adopted, so that an adopter which dies in between leaves nothing that looks unattempted.
`adopted` takes the ordinal that the old owner would need next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState, fold
from controlplane.errors import StoreUnavailableError
from controlplane.store.book import Book, Fact
from controlplane.store.client import Database
from controlplane.store.events import EventReader
from controlplane.store.intents import read_attempted
from controlplane.store.leases import Checkpoint, Lease, Term, Terms
from controlplane.tasks import going_on

__all__ = ["Adopter"]

_log = structlog.get_logger()
_CHUNK = 500
_POLL_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = (5.0, 60.0)

Attempted = dict[tuple[str, int], tuple[int, str, str]]
Recover = Callable[[list[tuple[Message, Event]]], Awaitable[None]]


class Adopter:
    """One per node and epoch."""

    def __init__(
        self,
        database: Database,
        terms: Terms,
        lease: Lease,
        book: Book,
        reader: EventReader,
        recover_callbacks: Recover,
        clock: Clock,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database = database
        self._terms = terms
        self._lease = lease
        self._book = book
        self._reader = reader
        self._recover_callbacks = recover_callbacks
        self._clock = clock
        self._allowed = allowed
        """While it says no, nothing of former terms is touched (dispatch.comeback)."""
        self._again: dict[str, tuple[Term, list[float]]] = {}
        """Adopted terms that are read again: term id → (the term from where it was read to, when)."""

    async def run(self) -> None:
        """Look for dead terms until cancelled."""
        while going_on():
            try:
                if self._lease.valid and self._allowed():
                    for term in await self._terms.adoptable(self._lease):
                        claimed = await self._terms.claim(term, self._lease)
                        if claimed is not None:
                            await self.adopt(claimed)
                    await self._look_again()
            except StoreUnavailableError as error:
                _log.warning("adoption_interrupted", reason=str(error)[:200])
            await asyncio.sleep(_POLL_SECONDS)

    async def adopt(self, term: Term) -> int:
        """Take over everything that `term` left open. Returns how many messages. May be repeated after a failure.

        The term stays claimed, not closed, until it has been read twice more: an insert that was on its way to MongoDB when its node died
        may land after the first reading.
        """
        last = await self._reader.last_sequence(term.node, term.epoch)
        attempted = await read_attempted(self._database, term.node, term.epoch, term.checkpoint.intent)
        adopted = 0
        async for mids in _chunks(self._mids(term)):
            found = [fold(events) for events in (await self._reader.load_many(mids)).values()]
            owner = (self._lease.dc, term.node, term.epoch)
            ours = [message for message in found if message and not message.final and message.owner == owner]
            adopted += sum(await asyncio.gather(*(self._take(message, term, attempted) for message in ours)))
        await self._callbacks(term)
        _log.info("adopted", term=term.id, messages=adopted, attempted=len(attempted))
        now = self._clock.monotonic()
        seen = replace(term, checkpoint=Checkpoint(q=last, callbacks_q=last, intent=term.checkpoint.intent))
        self._again[term.id] = (seen, [now + pause for pause in _LOOK_AGAIN_SECONDS])
        return adopted

    async def _look_again(self) -> None:
        now = self._clock.monotonic()
        for term, due in list(self._again.values()):
            if due and due[0] <= now:
                await self.adopt(term)
                self._again[term.id] = (self._again[term.id][0], due[1:])
            if not self._again[term.id][1]:
                await self._terms.close(term)
                del self._again[term.id]

    async def _mids(self, term: Term) -> AsyncIterator[str]:
        for mid in term.checkpoint.stragglers:
            yield mid
        async for event in self._reader.of_term(term.node, term.epoch, term.checkpoint.q):
            if event.kind in (Kind.ACCEPTED, Kind.ADOPTED):
                yield event.mid

    async def _take(self, message: Message, term: Term, attempted: Attempted) -> bool:
        owner = (self._lease.dc, term.node, term.epoch)
        lost = [
            (number, *attempted[message.mid, number])
            for number, part in enumerate(message.parts, 1)
            if part.state is PartState.PENDING and attempted.get((message.mid, number), (0,))[0] > part.attempt
        ]
        if lost:
            _, attempt, route, connector = lost[0]
            data = {
                "parts": [number for number, *_ in lost],
                "attempt": attempt,
                "route": route,
                "connector": connector,
            }
            unknown = Fact(Kind.UNKNOWN, data, route, "node_lost", guard=lambda m: not m.final and m.owner == owner)
            self._book.post(message.mid, unknown, message)
        data = {"from_node": term.node, "from_epoch": term.epoch}
        fact = Fact(Kind.ADOPTED, data, guard=lambda m: not m.final and m.owner == owner)
        return await self._book.settle(message.mid, fact, message) is not None

    async def _callbacks(self, term: Term) -> None:
        pending: list[Event] = []
        async for event in self._reader.of_term(term.node, term.epoch, term.checkpoint.callbacks_q):
            if event.kind not in (Kind.VOID, Kind.ADOPTED, Kind.ACCEPTED):
                pending.append(event)
                if len(pending) == _CHUNK:
                    await self._recover(pending)
                    pending = []
        if pending:
            await self._recover(pending)

    async def _recover(self, events: list[Event]) -> None:
        stories = await self._reader.load_many(dict.fromkeys(event.mid for event in events))
        folded: list[tuple[Message, Event]] = []
        for event in events:
            message = fold(earlier for earlier in stories[event.mid] if earlier.k <= event.k)
            if message is not None:
                folded.append((message, event))
        await self._recover_callbacks(folded)


async def _chunks(mids: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    chunk: dict[str, None] = {}
    async for mid in mids:
        chunk[mid] = None
        if len(chunk) == _CHUNK:
            yield list(chunk)
            chunk = {}
    if chunk:
        yield list(chunk)
