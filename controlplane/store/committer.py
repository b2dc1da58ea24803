"""Group commit: everything a node wants to persist about messages goes in through here.

A batch is what gathered while the one before was on its way: no timer. Another one follows before that is answered only when it is worth its round trip
(`_WORTHWHILE`), up to `in_flight` at once: an event in a batch of 20 costs four times what it costs in one of 200. Each is one unordered `insert`
with `w: majority, j: true`. A batch whose outcome is not known (failover, broken connection) is sent again until
it is: inserts are idempotent by `_id`, and a duplicate that carries our own (node, epoch, q) is our own earlier success.

A duplicate that somebody else wrote is a lost race: the caller hears `None`, re-reads and folds. The sequence number that the loser had is then
filled with a `void` event, so that (node, epoch, q) stays contiguous for the ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pymongo.errors import PyMongoError

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes
from controlplane.errors import StoreUnavailableError
from controlplane.ids import random_bytes
from controlplane.store.client import Database, Document
from controlplane.store.events import to_document
from controlplane.store.schema import EVENTS
from controlplane.tasks import going_on

__all__ = ["Committer", "Ticket"]

_DUPLICATE_KEY = 11000
_SALT_BYTES = 16
_WORTHWHILE = 200
_BATCH_BYTES = 8 * 1024 * 1024
"""A command document may have 16 MiB."""
_OVERHEAD = 600
"""Octets of an event's document beside its data, leaf included."""

Done = Callable[[Event | None], None]


class Ticket:
    """An event that waits for its batch."""

    __slots__ = ("done", "event", "withdrawn")

    def __init__(self, event: Event, done: Done | None) -> None:
        self.event = event
        self.done = done
        self.withdrawn = False


class Committer:
    """One per node and epoch."""

    def __init__(
        self,
        database: Database,
        *,
        datacenter: str,
        node: str,
        epoch: int,
        clock: Clock,
        first_q: int = 1,
        in_flight: int = 3,
        batch_size: int = 1_000,
        unsafe: bool = False,
        observe: Callable[[int, float, bool], None] = lambda _events, _seconds, _retried: None,
    ) -> None:
        self._database = database
        # `unsafe` is the loss tests' negative control: acknowledged from memory
        self._write_concern = {"w": 0} if unsafe else database.write_concern.document
        self._unsafe = unsafe
        self.datacenter = datacenter
        self.node = node
        self.epoch = epoch
        self._clock = clock
        self._next_q = first_q
        self._slots = in_flight
        self._batch_size = batch_size
        self._observe = observe
        self._queue: deque[Ticket] = deque()
        self._flying: set[int] = set()
        """The smallest q of each batch on its way."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.failing_since: float | None = None
        """Monotonic time since when batches have been failing; None while MongoDB confirms."""

    @property
    def queued(self) -> int:
        """Events that wait for a batch (those on their way not counted)."""
        return len(self._queue)

    @property
    def settled_q(self) -> int:
        """Every sequence number up to this one has its outcome."""
        flying = min(self._flying, default=self._next_q)
        waiting = min((ticket.event.q for ticket in self._queue if ticket.event.q), default=flying)
        return min(flying, waiting) - 1

    def submit(self, draft: Event, done: Done | None = None) -> Ticket:
        """Queue one event. `done` is called in the loop: with the committed Event, or with None when the ordinal was already taken."""
        if self._closed:
            raise StoreUnavailableError("This node is stopping and takes no more events.")
        ticket = Ticket(draft, done)
        self._push(ticket)
        return ticket

    def _push(self, ticket: Ticket) -> None:
        self._queue.append(ticket)
        self._idle.clear()
        if self._may_send():
            self._wake.set()

    def withdraw(self, ticket: Ticket) -> bool:
        """Take back a draft that no batch has taken yet. False: it is on its way, and its outcome will come."""
        if ticket.event.q:
            return False
        ticket.withdrawn = True
        return True

    async def append(self, draft: Event) -> Event | None:
        """`submit` for those who can wait: the Event, or None for a lost race."""
        future: asyncio.Future[Event | None] = asyncio.get_running_loop().create_future()

        def done(event: Event | None) -> None:
            if not future.done():
                future.set_result(event)

        self.submit(draft, done)
        return await future

    async def drain(self) -> None:
        """Wait until everything that was submitted has its outcome."""
        await self._idle.wait()

    def close(self) -> None:
        """Refuse what comes from now on; what is queued still goes out."""
        self._closed = True

    async def run(self) -> None:
        """Send batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            while going_on():
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(0)  # let everything that is ready in this turn of the loop join the batch
                while self._queue and self._may_send():
                    batch = self._cut()
                    if batch:
                        first = min(ticket.event.q for ticket in batch)  # a void may stand anywhere
                        self._flying.add(first)
                        group.create_task(self._commit(first, batch))
                self._rest()

    def _may_send(self) -> bool:
        flying = len(self._flying)
        return not flying or (flying < self._slots and len(self._queue) >= _WORTHWHILE)

    def _rest(self) -> None:
        if not self._queue and not self._flying:
            self._idle.set()

    def _cut(self) -> list[Ticket]:
        batch: list[Ticket] = []
        queue = self._queue
        size = 0
        while queue and len(batch) < self._batch_size and size < _BATCH_BYTES:
            ticket = queue.popleft()
            if ticket.withdrawn:
                continue
            if not ticket.event.q:  # a void has the number of the event that it stands for
                ticket.event.q = self._next_q
                self._next_q += 1
            size += self._seal(ticket.event)
            batch.append(ticket)
        return batch

    def _seal(self, event: Event) -> int:
        """Make a draft an event; its size in octets, near enough."""
        payload = committed_payload(event)
        event.dc = self.datacenter
        event.node = self.node
        event.epoch = self.epoch
        event.salt = random_bytes(_SALT_BYTES)
        event.leaf = leaf_bytes(event, commitment(event.salt, payload))
        return len(payload) + _OVERHEAD

    async def _commit(self, first: int, batch: list[Ticket]) -> None:
        started = self._clock.monotonic()
        lost, retried = await self._insert([to_document(ticket.event) for ticket in batch])
        self._observe(len(batch), self._clock.monotonic() - started, retried)
        self._flying.remove(first)
        for ticket in batch:
            event = ticket.event
            if event.q in lost:
                if event.kind is not Kind.VOID:
                    self._fill(event)
                if ticket.done:
                    ticket.done(None)
            elif ticket.done:
                ticket.done(event)
        self._wake.set()

    def _fill(self, loser: Event) -> None:
        mid = f"void.{self.node}.{self.epoch}.{loser.q}"
        void = Event(mid, 0, "", Kind.VOID, self._clock.now_ms(), {}, q=loser.q)
        self._push(Ticket(void, None))

    async def _insert(self, documents: list[Document]) -> tuple[set[int], bool]:
        """Insert until every document's outcome is known; the q of those whose id was taken, and whether it took more than one try."""
        pause = 0.02
        tries = 0
        while going_on():
            tries += 1
            try:
                lost = await self._judge(documents, await self._send(documents))
            except PyMongoError:
                if self._unsafe:
                    return set(), True
                lost = None
            if lost is not None:
                self.failing_since = None
                return lost, tries > 1
            if self.failing_since is None:
                self.failing_since = self._clock.monotonic()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
        raise asyncio.CancelledError

    async def _send(self, documents: list[Document]) -> Document:
        """One `insert` command (insert_many spends as much time on each document again); the server's reply."""
        command = {"insert": EVENTS, "ordered": False, "writeConcern": self._write_concern, "documents": documents}
        return await self._database.command(command)

    async def _judge(self, documents: list[Document], reply: Document) -> set[int] | None:
        """The q of duplicates that are not our own earlier tries; None when something else went wrong, or when it cannot be told yet.

        Two of one batch may have the same id (one Idempotency-Key twice at once): the first is in, the other one lost.
        """
        errors = reply.get("writeErrors", ())
        if "writeConcernError" in reply or any(item["code"] != _DUPLICATE_KEY for item in errors):
            return None
        if not errors:
            return set()
        suspects = [documents[item["index"]] for item in errors]
        ids = {document["_id"] for document in suspects}
        try:
            query = {"mid": {"$in": sorted({document["mid"] for document in suspects})}, "_id": {"$in": sorted(ids)}}
            found = await self._database[EVENTS].find(query, {"dc": 1, "n": 1, "e": 1, "q": 1}).to_list()
        except PyMongoError:
            return None
        if len(found) < len(ids):
            return None  # seen as a duplicate, not yet by the majority: ask again
        there = {document["_id"]: document for document in found}
        return {
            document["q"]
            for document in suspects
            if any(document[key] != there[document["_id"]][key] for key in ("dc", "n", "e", "q"))
        }
