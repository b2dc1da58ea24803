"""What a submit's response, or its absence, means for the message: facts, and where it goes next.

| answer | meaning |
|---|---|
| ESME_ROK | `submitted`, with the carrier's id |
| ESME_RTHROTTLED | the bind slows; the part stays at the head of the queue, no retry spent |
| ESME_RMSGQFUL | the connector pauses; after some tries the message is diverted |
| temporary | `deferred`, again after a backoff; then diverted |
| permanent | `rerouted` to the next route; `failed` when there is none, or when another part has gone out already |
| none | `unknown`: held or sent again by the message's policy (owner) |
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from controlplane.clock import Clock
from controlplane.dispatch.outbox import Outbox, Unit
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState
from controlplane.domain.receipt import submit_key
from controlplane.domain.retry import Verdict, backoff, classify
from controlplane.store.book import Book, Fact
from controlplane.store.intents import IntentLog

__all__ = ["Judge"]

_TRIES_ON_A_ROUTE = 3
_QUEUE_FULL_TRIES = 5
_QUEUE_FULL_PAUSE = (0.5, 8.0)
_TEMPORARY_PAUSE = (1.0, 60.0)


class _Answer(NamedTuple):
    unit: Unit
    status: int
    late: bool


class Judge:
    """Stateless but for the counts of queue-full answers."""

    def __init__(
        self,
        book: Book,
        intents: IntentLog,
        clock: Clock,
        next_route: Callable[[Message, tuple[str, ...]], str | None],
        landed: Callable[[str], None],
    ) -> None:
        self._book = book
        self._intents = intents
        self._clock = clock
        self._next_route = next_route
        """(message, routes tried) → the best route left, or None."""
        self._landed = landed
        """Told of each mid whose submit got a durable outcome: the owner looks at it again."""
        self._queue_full: dict[str, int] = {}

    def response(self, outbox: Outbox, unit: Unit, status: int, message_id: str, *, late: bool) -> None:
        """A submit_sm_resp or generic_nack came. `late`: after its unit was called unknown."""
        verdict = classify(status)
        answer = _Answer(unit, status, late)
        if verdict is Verdict.OK:
            self._queue_full.pop(unit.message.mid, None)
            cids = (submit_key(unit.connector, message_id),) if message_id else ()
            self._record(answer, Kind.SUBMITTED, {"part_ids": [[part, message_id] for part in unit.parts]}, cids=cids)
        elif verdict is Verdict.THROTTLED and not late:
            outbox.throttle.slow(self._clock.monotonic())
            outbox.refused(unit)
        elif verdict is Verdict.QUEUE_FULL and not late:
            self._full(outbox, answer)
        elif verdict is Verdict.PERMANENT:
            self._divert(answer, "rejected")
        else:
            self._retry(answer)

    def no_response(self, unit: Unit, cause: str) -> None:
        """The submit went out and nothing came back: `cause` is timeout or connection_lost."""
        self._record(_Answer(unit, 0, False), Kind.UNKNOWN, {"parts": list(unit.parts)}, reason=cause)

    def unsendable(self, unit: Unit, why: str) -> None:
        """It cannot be written as a PDU, on any route: nothing was sent."""
        self._record(_Answer(unit, 0, False), Kind.FAILED, {}, reason=f"unsendable: {why}"[:200])

    def _full(self, outbox: Outbox, answer: _Answer) -> None:
        mid = answer.unit.message.mid
        tries = self._queue_full[mid] = self._queue_full.get(mid, 0) + 1
        base, cap = _QUEUE_FULL_PAUSE
        outbox.throttle.pause(self._clock.monotonic(), backoff(tries, base=base, cap=cap, jitter=_jitter()))
        if tries >= _QUEUE_FULL_TRIES and self._can_divert(answer.unit):
            del self._queue_full[mid]
            self._divert(answer, "queue_full")
        else:
            outbox.refused(answer.unit)

    def _can_divert(self, unit: Unit) -> bool:
        return self._next_route(unit.message, (*unit.message.tried, unit.route)) is not None

    def _retry(self, answer: _Answer) -> None:
        """A temporary refusal: the same route a few times, then another if there is one."""
        unit = answer.unit
        if unit.attempt % _TRIES_ON_A_ROUTE == 0 and self._can_divert(unit):
            self._divert(answer, "temporary")
            return
        base, cap = _TEMPORARY_PAUSE
        pause = backoff(unit.attempt, base=base, cap=cap, jitter=_jitter())
        retry_at = self._clock.now_ms() + int(pause * 1000)
        data = {"parts": list(unit.parts), "command_status": answer.status, "retry_at": retry_at}
        self._record(answer, Kind.DEFERRED, data, reason="temporary")

    def _divert(self, answer: _Answer, reason: str) -> None:
        unit = answer.unit
        tried = (*unit.message.tried, unit.route)
        untouched = all(part.state in (PartState.PENDING, PartState.UNKNOWN) for part in unit.message.parts)
        if untouched and self._next_route(unit.message, tried) is not None:
            data = {"parts": list(unit.parts), "command_status": answer.status, "tried": list(tried)}
            self._record(answer, Kind.REROUTED, data, reason=reason)
        else:
            self._record(answer, Kind.FAILED, {"command_status": answer.status}, reason=reason)

    def _record(
        self,
        answer: _Answer,
        kind: Kind,
        data: dict[str, Any],
        *,
        reason: str | None = None,
        cids: tuple[str, ...] = (),
    ) -> None:
        unit = answer.unit
        data = {"route": unit.route, "connector": unit.connector, "attempt": unit.attempt, **data}
        if unit.decision and not answer.late:
            data["decision"] = unit.decision
        guard = None if kind is Kind.SUBMITTED else _not_final
        fact = Fact(kind, data, unit.route, reason, cids, guard, partial(self._recorded, answer))
        self._book.post(unit.message.mid, fact, unit.message)

    def _recorded(self, answer: _Answer, _event: Event | None, _error: BaseException | None) -> None:
        unit = answer.unit
        mid = unit.message.mid
        if not answer.late:
            self._intents.resolve(unit.intent, len(unit.parts))
            self._book.land(mid)
        self._landed(mid)


def _not_final(message: Message) -> bool:
    return not message.final


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads retries, hides nothing
