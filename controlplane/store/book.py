"""The book: open messages that this node owns, and the one place where facts about any message are recorded.

Facts about one message are serialised in a lane: the next is drafted when the one before is committed, so that `k` and `prev` are right. A lost
race on `<mid>:<k>` (another node moved the message: a receipt on its bind, an adoption) is resolved by reading what is new, applying it, asking the
guard again and trying the next ordinal.

Listeners hear of every event in order per message: `own=True` for those that this node committed, `own=False` for those it read after a lost race.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, fold
from controlplane.domain.receipt import submit_key
from controlplane.errors import Problem, StoreUnavailableError
from controlplane.store.committer import Committer, Ticket
from controlplane.store.events import EventReader
from controlplane.store.leases import Lease, require
from controlplane.tasks import going_on

__all__ = ["Book", "Fact", "Listener"]

_STRAGGLERS = 2_000
_REFERENCES = 50_000
_GIVE_UP_SECONDS = 0.25

Guard = Callable[[Message], bool]
Done = Callable[[Event | None, BaseException | None], None]


class Listener(Protocol):
    """Called in the loop after a commit. Must not block and must not raise."""

    def __call__(self, message: Message, event: Event, *, own: bool) -> None:
        """`message` is the fold including `event`; it is the book's own object: read, do not keep or change."""
        ...


Settled = Callable[[Event | Exception], None]
"""Hears of the `accepted` event that has the id: the draft itself, now committed, or that of an earlier request."""


@dataclass(slots=True)
class Fact:
    """Something to be recorded about a message."""

    kind: Kind
    data: dict[str, Any]
    route: str | None = None
    """`""`: the route that the message has when its turn comes."""
    reason: str | None = None
    cids: tuple[str, ...] = ()
    guard: Guard | None = None
    """Sees the newest fold, and may decline."""
    done: Done | None = None
    """Called in the loop: (the event, or None where the guard declined; the error, if any)."""


class _Lane:
    """Facts about one message that wait for the one being committed."""

    __slots__ = ("book", "facts", "message", "mid")

    def __init__(self, book: Book, mid: str, message: Message | None, fact: Fact) -> None:
        self.book = book
        self.mid = mid
        self.message = message
        self.facts = [fact]
        """Few: a list is smaller than a deque."""

    def committed(self, event: Event | None) -> None:
        """What the committer says of the first fact."""
        self.book.committed(self, event)


class _Acceptance:
    """An `accepted` event on its way, and the caller who waits for it."""

    __slots__ = ("book", "deadline", "settled", "ticket")

    def __init__(self, book: Book, deadline: float, settled: Settled) -> None:
        self.book = book
        self.deadline = deadline
        self.settled: Settled | None = settled
        self.ticket: Ticket | None = None

    def committed(self, event: Event | None) -> None:
        """What the committer says."""
        if event is None:
            self.book.replay(self)
        else:
            self.book.begin(event)
            self.settle(event)

    def settle(self, outcome: Event | Exception) -> None:
        """Tell the caller, once."""
        settled, self.settled, self.ticket = self.settled, None, None
        if settled is not None:
            settled(outcome)


class Book:
    """One per node and epoch."""

    def __init__(
        self,
        committer: Committer,
        reader: EventReader,
        lease: Lease,
        clock: Clock,
        *,
        max_open: int,
        max_queue: int,
        accept_timeout: float,
    ) -> None:
        self._committer = committer
        self._reader = reader
        self._lease = lease
        self._clock = clock
        self._max_open = max_open
        self._max_queue = max_queue
        self._accept_timeout = accept_timeout
        self.open: dict[str, Message] = {}
        self._lanes: dict[str, _Lane] = {}
        self._listeners: list[Listener] = []
        self._carrier_ids: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._former: dict[str, list[str]] = {}
        """mid → keys of earlier submits of its parts, which went out again since."""
        self.flying: dict[str, int] = {}
        """Messages in hand → how many of their submits have no durable outcome. They can be neither cancelled nor expired."""
        self._ages: list[tuple[int, str]] = []
        """Heap of (q of the event that made it ours, mid); entries of closed messages are dropped lazily."""
        self._stragglers: dict[str, None] = {}
        self._references: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._waiting: deque[_Acceptance] = deque()
        """In order of their deadlines; those with an outcome are dropped lazily."""
        self._work: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self.closing = False

    def subscribe(self, listener: Listener) -> None:
        """Hear of every event from now on."""
        self._listeners.append(listener)

    def get(self, mid: str) -> Message | None:
        """The open message, if this node owns it."""
        return self.open.get(mid)

    def parts_of(self, key: str) -> tuple[str, tuple[int, ...]] | None:
        """(mid, parts) of an open message that a carrier knows by `key` (domain.receipt.submit_key), also where `submitted` is still being written."""
        return self._carrier_ids.get(key)

    async def run(self) -> None:
        """Read what lanes need from MongoDB, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._give_up())
            while going_on():
                group.create_task(await self._work.get())

    # -- accepting -----------------------------------------------------------------------------------------------------

    def accept_soon(self, draft: Event, settled: Settled) -> None:
        """Insert `accepted`; `settled` is called in the loop, once, when it is majority-written and journaled, or is not.

        Raises Problem 503 before anything is queued when this node cannot take it: no lease, too many open, stopping, committer behind.
        A Problem or StoreUnavailableError as the outcome: MongoDB did not confirm in time.
        """
        self.accept_all([(draft, settled)])

    def accept_all(self, drafts: Sequence[tuple[Event, Settled]]) -> None:
        """`accept_soon` for many, each with its own outcome; it raises for all of them or for none."""
        self._admit(len(drafts))
        for draft, settled in drafts:
            self._submit(draft, settled)

    async def accept(self, draft: Event) -> Event:
        """`accept_soon` for those who can wait. Raises what would be the outcome."""
        future: asyncio.Future[Event | Exception] = asyncio.get_running_loop().create_future()

        def settled(outcome: Event | Exception) -> None:
            if not future.done():
                future.set_result(outcome)

        self.accept_soon(draft, settled)
        outcome = await future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _admit(self, count: int) -> None:
        if self.closing:
            raise _busy("stopping", "This node is stopping.", 1)
        try:
            require(self._lease)
        except StoreUnavailableError as error:
            raise _busy("store-unavailable", str(error), 2) from None
        if self._committer.queued + count > max(self._max_queue, count):
            raise _busy("overloaded", "Too many messages wait to be written.", 1)
        if len(self.open) + count > self._max_open:
            raise _busy(
                "overloaded", f"This node holds {len(self.open)} open messages, and its limit is {self._max_open}.", 5
            )

    def _submit(self, draft: Event, settled: Settled) -> None:
        waiting = _Acceptance(self, self._clock.monotonic() + self._accept_timeout, settled)
        if draft.data is not None and draft.data.get("parts", 1) > 1:
            draft.data["ref"] = self._reference(draft.data.get("from", ""), draft.data["to"])
        waiting.ticket = self._committer.submit(draft, waiting.committed)
        self._waiting.append(waiting)

    def begin(self, event: Event) -> None:
        """Own the message of a committed `accepted` or `received`, unless it is final."""
        message = Message(event.mid, event.tenant)
        message.apply(event)
        if not message.final:
            self._own(message, event.q)
        self._tell(message, event, own=True)

    def replay(self, waiting: _Acceptance) -> None:
        """The ordinal 0 was taken: an earlier request with this Idempotency-Key."""
        if waiting.ticket is not None:
            self._work.put_nowait(self._replay(waiting.ticket.event.mid, waiting))

    async def _replay(self, mid: str, waiting: _Acceptance) -> None:
        try:
            events = await self._reader.load(mid)
        except (StoreUnavailableError, ValueError) as error:  # ValueError: what this version cannot read
            waiting.settle(error)
        else:
            waiting.settle(events[0] if events else _unconfirmed(withdrawn=True))

    def recall_soon(
        self, mids: Sequence[str], told: Callable[[dict[str, Event] | StoreUnavailableError], None]
    ) -> None:
        """The `accepted` events that earlier requests left under these ids, as far as there are any. `told` is called in the loop, once."""
        self._work.put_nowait(self._recall(mids, told))

    async def _recall(
        self, mids: Sequence[str], told: Callable[[dict[str, Event] | StoreUnavailableError], None]
    ) -> None:
        try:
            stories = await self._reader.load_many(dict.fromkeys(mids))
        except StoreUnavailableError as error:
            told(error)
        else:
            told({mid: events[0] for mid, events in stories.items()})

    async def _give_up(self) -> None:
        """Answer those whose acceptance takes too long. What is already on its way stays ours when it arrives."""
        while going_on():
            await asyncio.sleep(_GIVE_UP_SECONDS)
            now = self._clock.monotonic()
            while self._waiting and (self._waiting[0].settled is None or self._waiting[0].deadline <= now):
                waiting = self._waiting.popleft()
                if waiting.ticket is not None:
                    waiting.settle(_unconfirmed(withdrawn=self._committer.withdraw(waiting.ticket)))

    def _reference(self, source: str, dest: str) -> int:
        """The next concatenation reference of (source, dest), 1 to 65535, so that two long messages to one phone do not mix."""
        key = (source, dest)
        value = self._references.pop(key, random.randrange(0xFFFF)) % 0xFFFF + 1  # noqa: S311 - spreads, hides nothing
        self._references[key] = value
        if len(self._references) > _REFERENCES:
            self._references.popitem(last=False)
        return value

    # -- owning --------------------------------------------------------------------------------------------------------

    def _own(self, message: Message, q: int) -> None:
        self.open[message.mid] = message
        heapq.heappush(self._ages, (q, message.mid))
        for key, numbers in _known_as(message).items():
            self._carrier_ids[key] = (message.mid, tuple(numbers))

    def _close(self, message: Message) -> None:
        if self.open.pop(message.mid, None) is None:
            return
        self._stragglers.pop(message.mid, None)
        for key in (*_known_as(message), *self._former.pop(message.mid, ())):
            if self._carrier_ids.get(key, ("",))[0] == message.mid:
                del self._carrier_ids[key]

    def watermark(self) -> tuple[int, tuple[str, ...]]:
        """(q, stragglers): every message that this term accepted or adopted with a number ≤ q is closed, or is one of the stragglers."""
        settled = self._committer.settled_q
        while self._ages and self._ages[0][0] <= settled:
            mid = self._ages[0][1]
            if mid in self.open and mid not in self._stragglers:
                if len(self._stragglers) >= _STRAGGLERS:
                    break
                self._stragglers[mid] = None
            heapq.heappop(self._ages)
        low = self._ages[0][0] - 1 if self._ages else settled
        return min(low, settled), tuple(self._stragglers)

    def fly(self, mid: str, count: int) -> None:
        """`count` submits of this message are in hand."""
        self.flying[mid] = self.flying.get(mid, 0) + count

    def land(self, mid: str, count: int = 1) -> None:
        """So many of them have their outcome."""
        left = self.flying.get(mid, 0) - count
        if left > 0:
            self.flying[mid] = left
        else:
            self.flying.pop(mid, None)

    # -- recording -----------------------------------------------------------------------------------------------------

    async def record(self, mid: str, fact: Fact) -> Event | None:
        """Append the next event of a message, wherever it lives; returns when it is durable, None when the guard declined.

        Raises KeyError for a message that does not exist, StoreUnavailableError when MongoDB did not confirm in time (it still may).
        """
        try:
            async with asyncio.timeout(self._accept_timeout):
                return await self.settle(mid, fact)
        except TimeoutError:
            raise StoreUnavailableError(f"MongoDB did not confirm {fact.kind.value} of {mid} in time.") from None

    async def settle(self, mid: str, fact: Fact, known: Message | None = None) -> Event | None:
        """`record` for those who can wait for as long as it takes; `known` as in `post`."""
        future: asyncio.Future[Event | None] = asyncio.get_running_loop().create_future()

        def done(event: Event | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(event)

        fact.done = done
        self.post(mid, fact, known)
        return await future

    def post(self, mid: str, fact: Fact, known: Message | None = None) -> None:
        """`record` without waiting.

        `known` spares a read where the caller has just folded a message that is not open here.
        """
        for key in fact.cids:  # a receipt may come before this is committed: it queues in the lane behind it
            numbers = tuple(number for number, _ in fact.data["part_ids"])
            self._carrier_ids[key] = (mid, numbers)
            message = self.open.get(mid)
            if message is not None and message.tried:
                parts = [message.part(number) for number in numbers]
                former = [submit_key(part.connector, part.cid) for part in parts if part.cid]
                self._former.setdefault(mid, []).extend(former)
        lane = self._lanes.get(mid)
        if lane is not None:
            lane.facts.append(fact)
            return
        lane = self._lanes[mid] = _Lane(self, mid, self.open.get(mid) or known, fact)
        self._advance(lane)

    async def load(self, mid: str) -> tuple[Message, list[Event]] | None:
        """A message and its events as MongoDB has them; None when there is none. Problem 500 for a story with a gap."""
        events = await self._reader.load(mid)
        try:
            message = fold(events)
        except ValueError as error:
            raise Problem(
                "damaged-record",
                "Damaged record",
                500,
                f"The stored events of message {mid} do not follow each other: {error}.",
                "Tell the operator: the store has lost a write that it confirmed.",
            ) from None
        return (message, events) if message else None

    def _advance(self, lane: _Lane) -> None:
        """Draft the lane's first fact, or end the lane."""
        mid = lane.mid
        while lane.facts:
            if lane.message is None:
                self._work.put_nowait(self._catch_up(lane))
                return
            fact = lane.facts[0]
            if fact.guard is not None and not fact.guard(lane.message):
                lane.facts.pop(0)
                _finish(fact, None, None)
                continue
            message = lane.message
            route = fact.route if fact.route != "" else message.route or None
            draft = Event(
                mid,
                message.next_k,
                message.tenant,
                fact.kind,
                self._clock.now_ms(),
                fact.data,
                message.prev,
                route,
                fact.reason,
                fact.cids,
            )
            try:
                self._committer.submit(draft, lane.committed)
            except StoreUnavailableError as error:
                lane.facts.pop(0)
                _finish(fact, None, error)
                continue
            return
        del self._lanes[mid]
        if lane.message is not None and (lane.message.final or not self._ours(lane.message)):
            self._close(lane.message)

    def _ours(self, message: Message) -> bool:
        return message.owner == (self._lease.dc, self._lease.node, self._lease.epoch)

    def committed(self, lane: _Lane, event: Event | None) -> None:
        """The lane's first fact is durable; or (None) another node's event has its ordinal."""
        if event is None:
            self._work.put_nowait(self._catch_up(lane))
            return
        fact = lane.facts.pop(0)
        message = lane.message
        assert message is not None  # noqa: S101 - a draft is made from it
        self._apply(message, event, own=True)
        _finish(fact, event, None)
        self._advance(lane)

    async def _catch_up(self, lane: _Lane) -> None:
        """Read what the lane's message has become elsewhere, then go on. A fact is never given up because MongoDB is away."""
        try:
            events = await self._read(lane.mid)
            if lane.message is None:
                lane.message = fold(events)
            else:
                for event in events[lane.message.next_k :]:
                    self._apply(lane.message, event, own=False)
        except ValueError as error:  # an event of a kind, or in an order, that this version cannot fold
            _finish(lane.facts.pop(0), None, error)
        else:
            if lane.message is None:
                _finish(lane.facts.pop(0), None, KeyError(lane.mid))
        self._advance(lane)

    async def _read(self, mid: str) -> list[Event]:
        pause = 0.02
        while going_on():
            try:
                return await self._reader.load(mid)
            except StoreUnavailableError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
        raise asyncio.CancelledError

    def _apply(self, message: Message, event: Event, *, own: bool) -> None:
        message.apply(event)
        if event.kind is Kind.ADOPTED and own:
            self._own(message, event.q)
        self._tell(message, event, own=own)

    def _tell(self, message: Message, event: Event, *, own: bool) -> None:
        for listener in self._listeners:
            listener(message, event, own=own)


def _known_as(message: Message) -> dict[str, list[int]]:
    """The message's parts by the key of the carrier's id; one id has them all where one PDU carried them."""
    found: dict[str, list[int]] = {}
    for number, part in enumerate(message.parts, 1):
        if part.cid:
            found.setdefault(submit_key(part.connector, part.cid), []).append(number)
    return found


def _finish(fact: Fact, event: Event | None, error: BaseException | None) -> None:
    if fact.done is not None:
        fact.done(event, error)


def _busy(slug: str, detail: str, retry_after: int) -> Problem:
    return Problem(
        slug,
        "Not accepted for now",
        503,
        detail,
        f"Nothing was accepted. Send the same request again in {retry_after} s, or to another node.",
        headers={"Retry-After": str(retry_after)},
    )


def _unconfirmed(*, withdrawn: bool) -> Problem:
    if withdrawn:
        return _busy("store-unavailable", "MongoDB did not confirm in time; the message was withdrawn.", 2)
    return Problem(
        "accept-unconfirmed",
        "Acceptance not confirmed",
        503,
        "MongoDB did not confirm in time. The message may or may not have been accepted.",
        "Send the same request again with the same Idempotency-Key: it will not be sent twice.",
        headers={"Retry-After": "2"},
    )
