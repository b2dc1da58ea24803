"""What the carriers answer, counted for each connector: outcomes, SMPP statuses, how long responses and receipts take.

On the path of a message there are only a few additions; what is asked for (the last minute, parts a second) is read from snapshots of the counts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import NamedTuple

from controlplane.clock import Clock
from controlplane.dispatch.outbox import Outbox
from controlplane.domain import node_state
from controlplane.domain.events import Event, Kind
from controlplane.domain.latency import BUCKETS, bucket
from controlplane.domain.message import Message
from controlplane.smpp.connection import Bind
from controlplane.smpp.status import name as status_name

__all__ = ["Tallies", "Tally"]

_MINUTE = 60.0
_NOW_SECONDS = 10.0
_FOLLOWED = 50_000
"""Submitted messages whose receipts are waited for; beyond, the oldest are not timed."""
_SUBMITTED, _DELIVERED, _UNDELIVERED = Kind.SUBMITTED, Kind.DELIVERED, Kind.UNDELIVERED
"""To look a member up in its class takes as long as all else that `on_event` does."""


class _Snapshot(NamedTuple):
    at: float
    submitted: int
    refused: int
    unanswered: int
    response: tuple[int, ...]
    receipt: tuple[int, ...]


class Tally:
    """Counts of one connector on this node, since its start."""

    __slots__ = ("_past", "receipt", "refused", "response", "submitted", "unanswered")

    def __init__(self, now: float) -> None:
        self.submitted = 0
        self.refused: Counter[int] = Counter()
        self.unanswered = 0
        self.response = [0] * BUCKETS
        self.receipt = [0] * BUCKETS
        self._past: deque[_Snapshot] = deque([self._snapshot(now)])

    def answered(self, status: int, parts: int, seconds: float) -> None:
        """A submit was answered in time."""
        if status:
            self.refused[status] += 1
        else:
            self.submitted += parts
        self.response[bucket(seconds)] += 1

    def _snapshot(self, now: float) -> _Snapshot:
        return _Snapshot(
            now,
            self.submitted,
            self.refused.total(),
            self.unanswered,
            tuple(self.response),
            tuple(self.receipt),
        )

    def look(self, now: float) -> tuple[_Snapshot, _Snapshot]:
        """(what was counted in the last minute, `at` being its length; the same of the last 10 s). Keeps a snapshot for later."""
        present = self._snapshot(now)
        while len(self._past) > 1 and self._past[1].at <= now - _MINUTE:
            self._past.popleft()
        minute = _less(present, self._past[0])
        near = next((past for past in reversed(self._past) if past.at <= now - _NOW_SECONDS), self._past[0])
        if now > self._past[-1].at:
            self._past.append(present)
        return minute, _less(present, near)


def _less(later: _Snapshot, earlier: _Snapshot) -> _Snapshot:
    return _Snapshot(
        later.at - earlier.at,
        later.submitted - earlier.submitted,
        later.refused - earlier.refused,
        later.unanswered - earlier.unanswered,
        tuple(a - b for a, b in zip(later.response, earlier.response, strict=True)),
        tuple(a - b for a, b in zip(later.receipt, earlier.receipt, strict=True)),
    )


class Tallies:
    """One per node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tallies: dict[str, Tally] = {}
        self._followed: OrderedDict[str, int] = OrderedDict()
        """mid → ms when it was submitted last."""

    def of(self, connector: str) -> Tally:
        """The connector's; it outlives its binds."""
        found = self._tallies.get(connector)
        if found is None:
            found = self._tallies[connector] = Tally(self._clock.monotonic())
        return found

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener: times receipts."""
        if not own:
            return
        kind = event.kind
        if kind is _SUBMITTED:
            followed = self._followed
            followed[message.mid] = event.at
            if len(followed) > _FOLLOWED:
                followed.popitem(last=False)
        elif message.settled_k == event.k:
            at = self._followed.pop(message.mid, None)
            if at is not None and (kind is _DELIVERED or kind is _UNDELIVERED):
                self.of(message.connector).receipt[bucket((event.at - at) / 1000)] += 1

    def state(self, outbox: Outbox, binds: list[Bind], oldest_ms: int | None) -> node_state.ConnectorState:
        """One connector as this node sees it. `oldest_ms`: since when its first message has been due."""
        now = self._clock.monotonic()
        tally = self.of(outbox.connector.name)
        minute, near = tally.look(now)
        return node_state.ConnectorState(
            name=outbox.connector.name,
            live=outbox.live,
            queued=len(outbox),
            oldest_seconds=0.0 if oldest_ms is None else max(0, self._clock.now_ms() - oldest_ms) / 1000,
            rate=outbox.throttle.rate,
            throughput=round((near.submitted + near.refused + near.unanswered) / max(near.at, 1.0), 2),
            submitted=tally.submitted,
            refused={status_name(status): count for status, count in tally.refused.items()},
            unanswered=tally.unanswered,
            recent={"submitted": minute.submitted, "refused": minute.refused, "unanswered": minute.unanswered},
            response=list(minute.response),
            receipt=list(minute.receipt),
            binds=[
                node_state.Bind(
                    name=bind.name,
                    bound=bind.bound,
                    in_flight=bind.in_flight,
                    window=bind.window,
                    bound_seconds=round(now - bind.bound_since, 1) if bind.bound_since is not None else None,
                    last_error=bind.last_error,
                )
                for bind in binds
            ],
        )
