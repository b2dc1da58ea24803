"""Which callbacks are to be sent now, in order per message and endpoint; what fails is parked for retries.

In memory is only what has not been tried yet. `settled_q` tells the checkpoint how far that is; `recover` takes up what a dead term had not tried.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import structlog

from controlplane.callbacks.attempt import Answer, Outcome, Sender
from controlplane.callbacks.guard import GuardedResolver
from controlplane.callbacks.payload import payload, settles
from controlplane.clock import Clock
from controlplane.domain.catalog import CallbackEndpoint, Snapshot, Tenant
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, fold
from controlplane.domain.retry import CALLBACK_SCHEDULE
from controlplane.errors import StoreUnavailableError
from controlplane.settings import Settings
from controlplane.store.callback_log import Attempt, CallbackLog, Parked
from controlplane.store.catalog import Catalog
from controlplane.store.events import EventReader
from controlplane.tasks import going_on

__all__ = ["OWN_URL", "Deliverer"]

_log = structlog.get_logger()

OWN_URL = "message"
"""The endpoint id of a message's own `callback_url`."""
_MAX_WAITING = 20_000
_CLAIM = 50
_POLL_SECONDS = 0.5
_FRESH_SECONDS = 60.0


class _First(NamedTuple):
    """A callback that has not been tried."""

    k: int
    q: int
    body: bytes
    since: float
    """Monotonic seconds. A body that has waited for long is built anew, in case its content was erased on another node."""


@dataclass(slots=True)
class _Lane:
    """Callbacks of one message to one endpoint, oldest first."""

    mid: str
    tenant: str
    endpoint: str
    url: str
    waiting: deque[_First] = field(default_factory=deque)


class Deliverer:
    """One per node and epoch."""

    def __init__(
        self, catalog: Catalog, reader: EventReader, log: CallbackLog, settings: Settings, clock: Clock
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._log = log
        self._settings = settings
        self._clock = clock
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._ready: asyncio.Queue[_Lane] = asyncio.Queue()
        self._open: dict[int, int] = {}
        """q → callbacks of that event that are neither sent nor parked."""
        self._order: list[int] = []
        self._parked: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Messages and endpoints that this node has parked: what comes later waits behind, in order."""
        self._indexed = Snapshot()
        self._of_tenant: dict[str, list[CallbackEndpoint]] = {}
        self.sent = 0
        self.failed = 0

    # -- what is to be sent ----------------------------------------------------------------------------------------------

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener: this node tells of the events that it wrote itself."""
        if event.kind is Kind.ERASED:
            self._forget_bodies(message)
        elif own and settles(message, event):
            self._enqueue(message, event, event.q)

    def _forget_bodies(self, message: Message) -> None:
        """Content was erased: what waits to be sent is built anew, without it."""
        for endpoint in (OWN_URL, *(endpoint.id for endpoint in self._endpoints().get(message.tenant, ()))):
            lane = self._lanes.get((message.mid, endpoint))
            if lane is not None:
                lane.waiting = deque(first._replace(body=b"") for first in lane.waiting)

    def _enqueue(self, message: Message, event: Event, q: int) -> None:
        targets = self._targets(message, event)
        if not targets:
            return
        first = _First(event.k, q, payload(message, event), self._clock.monotonic())
        for endpoint, url in targets:
            if q:
                self._open[q] = self._open.get(q, 0) + 1
                heapq.heappush(self._order, q)
            key = (message.mid, endpoint)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane(message.mid, message.tenant, endpoint, url)
                self._ready.put_nowait(lane)
            lane.waiting.append(first)

    def _targets(self, message: Message, event: Event) -> list[tuple[str, str]]:
        if message.callback_url:
            return [(OWN_URL, message.callback_url)]
        return [
            (endpoint.id, endpoint.url)
            for endpoint in self._endpoints().get(message.tenant, ())
            if not endpoint.events or event.kind.value in endpoint.events
        ]

    def _endpoints(self) -> dict[str, list[CallbackEndpoint]]:
        """The enabled endpoints of each tenant."""
        snapshot = self._catalog.snapshot
        if snapshot is not self._indexed:
            self._indexed = snapshot
            self._of_tenant = {}
            for endpoint in snapshot.endpoints.values():
                if endpoint.enabled:
                    self._of_tenant.setdefault(endpoint.tenant, []).append(endpoint)
        return self._of_tenant

    @property
    def waiting(self) -> int:
        """Messages and endpoints with callbacks that have not been tried."""
        return len(self._lanes)

    def settled_q(self, committed: int) -> int:
        """Callbacks of this term's events up to here are sent or parked; `committed`: every event up to there has been told to `on_event`."""
        while self._order and self._order[0] not in self._open:
            heapq.heappop(self._order)
        return min(self._order[0] - 1, committed) if self._order else committed

    async def recover(self, events: list[tuple[Message, Event]]) -> None:
        """Send what a dead term may not have sent; parked at once, so that it is durable before that term is closed."""
        now = self._clock.now_ms()
        for message, event in events:
            if not settles(message, event):
                continue
            settled = await self._log.settled(message.mid)
            for endpoint, url in self._targets(message, event):
                if (event.k, endpoint) not in settled:
                    await self._log.park(Parked(message.mid, message.tenant, endpoint, url, (event.k,), 0), now)

    async def replay(self, *, tenant: str, mid: str, endpoint: str | None = None, k: int | None = None) -> int:
        """Send a message's callbacks again (all, or of one event, to one endpoint); how many. The webhook-id stays the same."""
        events = await self._reader.load(mid)
        if not events or events[0].tenant != tenant:
            return 0
        now = self._clock.now_ms()
        count = 0
        message = Message(mid=mid, tenant=tenant)
        for event in events:
            message.apply(event)
            if not settles(message, event) or k not in (None, event.k):
                continue
            for target, url in self._targets(message, event):
                if endpoint in (None, target):
                    await self._log.park(Parked(mid, tenant, target, url, (event.k,), 0, replay=True), now)
                    count += 1
        return count

    # -- sending -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until cancelled."""
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(allow_private=self._settings.callback_allow_private),
            limit=self._settings.callback_concurrency,
            limit_per_host=max(1, self._settings.callback_concurrency // 4),
            ttl_dns_cache=10,
        )
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
            sender = Sender(
                session,
                self._clock,
                timeout=self._settings.callback_timeout_seconds,
                allow_private=self._settings.callback_allow_private,
            )
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.callback_concurrency):
                    group.create_task(self._work(sender))
                group.create_task(self._retry(sender))

    async def _work(self, sender: Sender) -> None:
        while going_on():
            lane = await self._ready.get()
            try:
                await self._send_lane(sender, lane)
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
                self._ready.put_nowait(lane)

    async def _send_lane(self, sender: Sender, lane: _Lane) -> None:
        """First tries. The first that fails parks the rest of the lane with it."""
        crowded = self._ready.qsize() > _MAX_WAITING
        while lane.waiting:
            first = lane.waiting[0]
            item = Parked(lane.mid, lane.tenant, lane.endpoint, lane.url, (first.k,), 0)
            again = 0 if crowded or self._is_parked(lane) else await self._try_first(sender, item, first)
            if again is not None:
                rest = tuple(waiting.k for waiting in lane.waiting)
                due = self._clock.now_ms() + again
                tried = 1 if again else 0
                await self._log.park(Parked(lane.mid, lane.tenant, lane.endpoint, lane.url, rest, tried), due)
                self._remember_parked(lane)
                while lane.waiting:
                    self._settle(lane.waiting.popleft().q)
                break
            self._settle(lane.waiting.popleft().q)
        del self._lanes[lane.mid, lane.endpoint]

    def _is_parked(self, lane: _Lane) -> bool:
        return (lane.mid, lane.endpoint) in self._parked

    def _remember_parked(self, lane: _Lane) -> None:
        self._parked[lane.mid, lane.endpoint] = None
        if len(self._parked) > _MAX_WAITING:
            self._parked.popitem(last=False)

    def _settle(self, q: int) -> None:
        if q:
            self._open[q] -= 1
            if not self._open[q]:
                del self._open[q]

    async def _retry(self, sender: Sender) -> None:
        while going_on():
            await asyncio.sleep(_POLL_SECONDS)
            try:
                items = await self._log.claim(_CLAIM)
                await asyncio.gather(*(self._send_parked(sender, item) for item in items))
            except StoreUnavailableError as error:
                _log.warning("callback_retries_paused", reason=str(error)[:200])

    async def _send_parked(self, sender: Sender, item: Parked) -> None:
        for k in item.ks:
            again = await self._try(sender, item, k)
            if again is not None:
                await self._log.postpone(item, self._clock.now_ms() + again)
                return
            await self._log.sent(item, k, last=k == item.ks[-1])

    async def _try_first(self, sender: Sender, item: Parked, first: _First) -> int | None:
        if not first.body or self._clock.monotonic() - first.since > _FRESH_SECONDS:
            return await self._try(sender, item, first.k)
        return await self._post(sender, item, first.k, first.body)

    async def _try(self, sender: Sender, item: Parked, k: int) -> int | None:
        events = await self._reader.load(item.mid)
        message = fold(event for event in events if event.k <= k)
        if message is None or k >= len(events):
            return None
        return await self._post(sender, item, k, payload(message, events[k]))

    async def _post(self, sender: Sender, item: Parked, k: int, body: bytes) -> int | None:
        """One attempt, logged. None: this callback needs no further try; else milliseconds to the next."""
        tenant = self._catalog.snapshot.tenants.get(item.tenant)
        endpoint = self._catalog.snapshot.endpoints.get(item.endpoint)
        if tenant is None or (item.endpoint != OWN_URL and (endpoint is None or not endpoint.enabled)):
            return None
        url = item.url if endpoint is None else endpoint.url
        answer = await sender.post(url, _secrets(tenant), f"{item.mid}:{k}:{item.endpoint}", body)
        last = item.attempt >= len(CALLBACK_SCHEDULE) and answer.outcome is Outcome.RETRY
        await self._log.append(self._line(item, k, url, answer, exhausted=last))
        await self._consequences(endpoint, answer)
        if last or answer.outcome is not Outcome.RETRY:
            return None
        return max(_pause(item.attempt), answer.retry_after * 1000)

    async def _consequences(self, endpoint: CallbackEndpoint | None, answer: Answer) -> None:
        if answer.outcome is Outcome.DELIVERED:
            self.sent += 1
            return
        self.failed += 1
        if answer.outcome is Outcome.GONE and endpoint is not None:
            _log.warning("callback_endpoint_gone", endpoint=endpoint.id, tenant=endpoint.tenant)
            await self._catalog.disable_endpoint(endpoint.id, "it answered 410 Gone")

    def _line(self, item: Parked, k: int, url: str, answer: Answer, *, exhausted: bool) -> Attempt:
        parts = urlsplit(url)
        return Attempt(
            mid=item.mid,
            k=k,
            tenant=item.tenant,
            endpoint=item.endpoint,
            url=f"{parts.scheme}://{parts.netloc}{parts.path}",
            at=self._clock.now_ms(),
            attempt=item.attempt + 1,
            outcome="exhausted" if exhausted else answer.outcome.value,
            status=answer.status,
            ms=answer.ms,
            error=answer.error,
        )


def _secrets(tenant: Tenant) -> tuple[str, ...]:
    return tenant.callback_secrets


def _pause(attempt: int) -> int:
    """Milliseconds to the next try, jittered by a fifth."""
    seconds = CALLBACK_SCHEDULE[min(attempt, len(CALLBACK_SCHEDULE) - 1)]
    return int(seconds * 1000 * (0.9 + 0.2 * random.random()))  # noqa: S311 - spreads
