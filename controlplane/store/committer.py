"""Group commit: everything a node wants to persist about messages goes in through here.

A batch is what gathered while the earlier ones were on their way: no timer. Up to `in_flight` batches travel at once, each one
`insert_many(ordered=False)` with `w: majority, j: true`. A batch whose outcome is not known (failover, broken connection) is sent again until
it is: inserts are idempotent by `_id`, and a duplicate that carries our own (node, epoch, q) is our own earlier success.

A duplicate that somebody else wrote is a lost race: the caller hears `None`, re-reads and folds. The sequence number that the loser had is then
filled with a `void` event, so that (node, epoch, q) stays contiguous for the ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.write_concern import WriteConcern

from controlplane.clock import Clock
from controlplane.domain.events import Draft, Event, Kind, commitment, leaf_bytes
from controlplane.errors import StoreUnavailableError
from controlplane.ids import random_bytes
from controlplane.store.client import Database
from controlplane.store.events import to_document
from controlplane.store.schema import EVENTS
from controlplane.tasks import going_on

__all__ = ["Committer", "Ticket"]

_DUPLICATE_KEY = 11000
_SALT_BYTES = 16

Done = Callable[[Event | None], None]


class Ticket:
    """A draft that waits for its batch."""

    __slots__ = ("done", "draft", "q", "withdrawn")

    def __init__(self, draft: Draft, done: Done | None, q: int = 0) -> None:
        self.draft = draft
        self.done = done
        self.q = q
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
        self._collection = database[EVENTS]
        if unsafe:  # the loss tests' negative control: acknowledged from memory
            self._collection = self._collection.with_options(write_concern=WriteConcern(w=0))
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
        self._flying: dict[int, list[Ticket]] = {}
        """Batches on their way, by their smallest q."""
        self._wake = asyncio.Event()
        self._slot_free = asyncio.Event()
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
        waiting = min((ticket.q for ticket in self._queue if ticket.q), default=flying)
        return min(flying, waiting) - 1

    def submit(self, draft: Draft, done: Done | None = None) -> Ticket:
        """Queue one event. `done` is called in the loop: with the committed Event, or with None when the ordinal was already taken."""
        if self._closed:
            raise StoreUnavailableError("This node is stopping and takes no more events.")
        ticket = Ticket(draft, done)
        self._queue.append(ticket)
        self._wake.set()
        self._idle.clear()
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        """Take back a draft that no batch has taken yet. False: it is on its way, and its outcome will come."""
        if ticket.q:
            return False
        ticket.withdrawn = True
        return True

    async def append(self, draft: Draft) -> Event | None:
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
                await asyncio.sleep(0)  # let everything that is ready in this turn of the loop join the batch
                while self._queue and len(self._flying) < self._slots:
                    batch = self._cut()
                    if batch:
                        group.create_task(self._commit(batch))
                if not self._queue:
                    self._wake.clear()
                    self._rest()
                else:
                    self._slot_free.clear()
                    await self._slot_free.wait()

    def _rest(self) -> None:
        if not self._queue and not self._flying:
            self._idle.set()

    def _cut(self) -> list[Ticket]:
        batch: list[Ticket] = []
        queue = self._queue
        while queue and len(batch) < self._batch_size:
            ticket = queue.popleft()
            if ticket.withdrawn:
                continue
            if not ticket.q:
                ticket.q = self._next_q
                self._next_q += 1
            batch.append(ticket)
        if batch:
            self._flying[batch[0].q] = batch
        return batch

    def _seal(self, ticket: Ticket) -> Event:
        draft = ticket.draft
        salt = random_bytes(_SALT_BYTES)
        commit = commitment(salt, draft.data)
        return Event(
            mid=draft.mid,
            k=draft.k,
            tenant=draft.tenant,
            kind=draft.kind,
            at=draft.at,
            dc=self.datacenter,
            node=self.node,
            epoch=self.epoch,
            q=ticket.q,
            leaf=leaf_bytes(draft, self.datacenter, self.node, self.epoch, ticket.q, commit),
            data=draft.data,
            salt=salt,
            route=draft.route,
            reason=draft.reason,
            cids=draft.cids,
        )

    async def _commit(self, batch: list[Ticket]) -> None:
        events = [self._seal(ticket) for ticket in batch]
        started = self._clock.monotonic()
        lost, retried = await self._insert([to_document(event) for event in events])
        self._observe(len(events), self._clock.monotonic() - started, retried)
        del self._flying[batch[0].q]
        for ticket, event in zip(batch, events, strict=True):
            if event.id in lost:
                if event.kind is not Kind.VOID:
                    self._fill(ticket)
                if ticket.done:
                    ticket.done(None)
            elif ticket.done:
                ticket.done(event)
        self._slot_free.set()
        self._rest()

    def _fill(self, loser: Ticket) -> None:
        mid = f"void.{self.node}.{self.epoch}.{loser.q}"
        void = Draft(mid=mid, k=0, tenant="", kind=Kind.VOID, at=self._clock.now_ms(), data={})
        self._queue.append(Ticket(void, None, loser.q))
        self._idle.clear()
        self._wake.set()

    async def _insert(self, documents: list[dict[str, Any]]) -> tuple[set[str], bool]:
        """Insert until every document's outcome is known; the ids that somebody else had taken, and whether it took more than one try."""
        pause = 0.02
        tries = 0
        while going_on():
            tries += 1
            try:
                await self._collection.insert_many(documents, ordered=False)
                lost: set[str] | None = set()
            except BulkWriteError as error:
                lost = await self._judge(documents, error)
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

    async def _judge(self, documents: list[dict[str, Any]], error: BulkWriteError) -> set[str] | None:
        """Which duplicates are not our own earlier tries; None when something else went wrong, or when it cannot be told yet."""
        details = error.details or {}
        errors = details.get("writeErrors", [])
        if details.get("writeConcernErrors") or any(item["code"] != _DUPLICATE_KEY for item in errors):
            return None
        suspects = {documents[item["index"]]["_id"]: documents[item["index"]] for item in errors}
        mids = sorted({document["mid"] for document in suspects.values()})
        try:
            query = {"mid": {"$in": mids}, "_id": {"$in": list(suspects)}}
            found = await self._collection.find(query, {"n": 1, "e": 1, "q": 1}).to_list()
        except PyMongoError:
            return None
        if len(found) < len(suspects):
            return None  # seen as a duplicate, not yet by the majority: ask again
        return {
            document["_id"]
            for document in found
            if any(document[key] != suspects[document["_id"]][key] for key in ("n", "e", "q"))
        }
