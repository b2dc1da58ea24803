"""Messages of durability `global` wait here until another datacenter has their `accepted`: nothing is sent before, and whoever asked is answered then.

One that no mirror has in time is recorded `failed` (`not_mirrored`): never sent, never silently downgraded. Each owner follows the same rule: one that adopts
such a message looks for its entry in the log, sends it when a mirror has it, and else gives the ledger more time before it lets the message fail:
what took the owner down may have taken the ledger's leader and a primary with it, and their successors need half a minute.

MongoDB is asked only while somebody waits: one read for all of them.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status
from controlplane.errors import Problem, StoreUnavailableError
from controlplane.ledger.published import UnreadableLogError
from controlplane.ledger.watermark import Watermark
from controlplane.store.book import Book, Fact
from controlplane.store.leases import Lease
from controlplane.tasks import going_on

__all__ = ["NOT_MIRRORED", "Hold"]

NOT_MIRRORED = "not_mirrored"
_POLL_SECONDS = 0.05
_ELSEWHERE_SECONDS = 0.5
_ADOPTED_MS = 60_000
"""More time for messages whose accepting node is gone: twice the longest failover that was measured (docs/operations.md)."""

Done = Callable[[Exception | None], None]
"""Called in the loop, once: with nothing when a mirror has it, else with why it is not known to have it."""


@dataclass(slots=True)
class _Held:
    place: tuple[str, str, int, int]
    deadline: int
    """Wall-clock time, ms."""
    waiters: list[Done] = field(default_factory=list)
    failing: bool = False


class Hold:
    """One per node and epoch."""

    def __init__(
        self, book: Book, watermark: Watermark, lease: Lease, clock: Clock, *, patience_seconds: float
    ) -> None:
        self._book = book
        self._watermark = watermark
        self._lease = lease
        self._clock = clock
        self._patience_ms = int(patience_seconds * 1000)
        self.released: Callable[[str], None] = lambda _mid: None
        """Told of each mid that may be sent now."""
        self._held: dict[str, _Held] = {}
        self._free: set[str] = set()
        """Open messages that were released."""
        self._deadlines: list[tuple[int, str]] = []
        self._work: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._news = False
        """Somebody came for whom nobody has looked yet."""

    def __len__(self) -> int:
        return len(self._held)

    def keeps(self, message: Message) -> bool:
        """Whether it must wait; then `released` is called when it need not any more, or it fails."""
        place, mid = message.mirror_first, message.mid
        if place is None or place[0] != self._lease.dc or message.attempt or mid in self._free:
            return False
        if mid not in self._held:
            adopted = place[1:3] != (self._lease.node, self._lease.epoch)
            deadline = message.accepted_at + self._patience_ms + (_ADOPTED_MS if adopted else 0)
            self._held[mid] = _Held(place, min(deadline, message.expires_at))
            heapq.heappush(self._deadlines, (self._held[mid].deadline, mid))
            self._news = True
            self._wake.set()
        return True

    def drop(self, message: Message) -> None:
        """The message is at its end, or another's."""
        self._free.discard(message.mid)
        held = self._held.pop(message.mid, None)
        if held is not None and held.waiters:
            problem = _refused(message, 503) if message.final else _undecided()
            for done in held.waiters:
                done(problem)

    def wait(self, event: Event, done: Done) -> None:
        """Hear what becomes of a message by its `accepted` event, which is committed."""
        held = self._held.get(event.mid)
        if held is not None:
            held.waiters.append(done)
        elif event.mid in self._free:
            done(None)
        else:
            self._work.put_nowait(self._follow(event, done))

    async def run(self) -> None:
        """Decide, until cancelled; then nobody is left without an answer."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch())
                while going_on():
                    group.create_task(await self._work.get())
        finally:
            for held in self._held.values():
                for done in held.waiters:
                    done(_undecided())
                held.waiters.clear()
            while not self._work.empty():
                self._work.get_nowait().close()

    async def _watch(self) -> None:
        while going_on():
            await self._wake.wait()
            while self._held and going_on():
                await asyncio.sleep(_POLL_SECONDS)
                try:
                    if await self._watermark.refresh() or self._news:
                        await self._release()
                except (StoreUnavailableError, UnreadableLogError):
                    self._news = True  # look again, whether or not the mirrors have more by then
                self._judge()
            self._wake.clear()

    async def _release(self) -> None:
        """Let go what a mirror has. A log has a term's events in order of q: behind one that is not there nobody looks."""
        self._news = False
        terms: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for mid, held in self._held.items():
            if not held.failing:
                terms.setdefault(held.place[1:3], []).append((held.place[3], mid))
        for (node, epoch), waiting in terms.items():
            upto = 0
            for q, mid in sorted(waiting):
                if q > upto:
                    upto = await self._watermark.upto(self._lease.dc, node, epoch, q)
                if q > upto:
                    break
                self._let_go(mid)

    def _let_go(self, mid: str) -> None:
        held = self._held.get(mid)
        if held is None or held.failing:
            return
        del self._held[mid]
        if self._book.get(mid) is not None:
            self._free.add(mid)
        for done in held.waiters:
            done(None)
        self.released(mid)

    def _judge(self) -> None:
        """What is past its time fails. Where that cannot be written in time either, those who wait hear that nothing is decided."""
        now = self._clock.now_ms()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, mid = heapq.heappop(self._deadlines)
            held = self._held.get(mid)
            if held is None:
                continue
            if held.failing or self._news:  # not written, or not looked for, since MongoDB is away
                for done in held.waiters:
                    done(_undecided())
                held.waiters.clear()
            heapq.heappush(self._deadlines, (now + self._patience_ms, mid))
            if not held.failing and not self._news:
                held.failing = True
                self._fail(mid)

    def _fail(self, mid: str) -> None:
        owner = (self._lease.dc, self._lease.node, self._lease.epoch)

        def done(event: Event | None, _error: BaseException | None) -> None:
            held = self._held.pop(mid, None) if event is None else None
            for waiter in held.waiters if held else ():
                waiter(_undecided())

        fact = Fact(
            Kind.FAILED, {}, None, NOT_MIRRORED, guard=lambda m: not m.final and m.owner == owner and not m.attempt, done=done
        )  # fmt: skip
        self._book.post(mid, fact)

    # -- repeated requests -------------------------------------------------------------------------------------------------

    async def _follow(self, event: Event, done: Done) -> None:
        """What became of a message that does not wait here: it is decided, or waits at another node."""
        deadline = self._clock.monotonic() + self._patience_ms / 1000
        try:
            while going_on():
                outcome = await self._outcome(event)
                if not isinstance(outcome, bool):
                    done(outcome)
                    return
                if outcome:
                    done(None)
                    return
                if self._clock.monotonic() >= deadline:
                    done(_undecided())
                    return
                await asyncio.sleep(_ELSEWHERE_SECONDS)
            done(_undecided())
        except asyncio.CancelledError:
            done(_undecided())
            raise
        except Exception as error:  # noqa: BLE001 - whoever asked gets an answer
            done(error)

    async def _outcome(self, event: Event) -> bool | Problem:
        """Whether a mirror has it; the Problem when it was refused."""
        story = await self._book.load(event.mid)
        message = story[0] if story else None
        if message is not None and message.final and message.reason == NOT_MIRRORED:
            return _refused(message, 409)
        if message is not None and message.attempt:
            return True
        if (
            event.dc != self._lease.dc
        ):  # this datacenter has it; the other one may still refuse it, if it does not hear so in time
            return self._clock.now_ms() > event.at + self._patience_ms
        await self._watermark.refresh()
        self._news = True  # whoever waits here must not miss what this look has seen
        if await self._watermark.upto(event.dc, event.node, event.epoch, event.q):
            return True
        return _refused(message, 409) if message is not None and message.final else False


def _refused(message: Message, status: int) -> Problem:
    """503 the first time, with the time to try again; 409 for every repetition: it will not be otherwise."""
    if message.reason == NOT_MIRRORED and message.status is Status.FAILED:
        detail = "No other datacenter confirmed in time that it has the message."
    else:
        detail = f"The message became {message.status.value} before another datacenter had it."
    return Problem(
        NOT_MIRRORED.replace("_", "-"),
        "Not held by a second datacenter",
        status,
        detail,
        "It was recorded as refused and will not be sent. Send it under a new Idempotency-Key (or none) when GET /v1/ledger shows a mirror that keeps up, or with durability `regional`.",
        headers={"Retry-After": "30"} if status == 503 else {},
        extra={"id": message.mid},
    )


def _undecided() -> Problem:
    return Problem(
        "accept-unconfirmed",
        "Acceptance not confirmed",
        503,
        "The message is written here; whether another datacenter has it is not decided yet.",
        "Send the same request again with the same Idempotency-Key: it will not be sent twice.",
        headers={"Retry-After": "2"},
    )
