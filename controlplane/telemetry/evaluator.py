"""Evaluates the alert rules: one node of the datacenter does it every ten seconds, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from controlplane.clock import Clock
from controlplane.domain.alerts import Member, RouteRate, Seen, advance
from controlplane.domain.catalog import Snapshot
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.standing import Standing
from controlplane.store.alerts import Alerts
from controlplane.store.callback_log import CallbackLog
from controlplane.store.node_states import NodeStates
from controlplane.store.statistics import HOUR, MINUTE, Series, Statistics
from controlplane.store.topology import Topology
from controlplane.tasks import going_on

__all__ = ["Evaluator"]

_log = structlog.get_logger()
_ROUND_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_LATELY = 10 * MINUTE
_BEFORE = 24 * HOUR

T = TypeVar("T")


class Evaluator:
    """One per node."""

    def __init__(
        self,
        *,
        node: str,
        datacenter: str,
        alerts: Alerts,
        states: NodeStates,
        statistics: Statistics,
        standing: Standing,
        topology: Topology,
        callbacks: CallbackLog,
        catalog: Callable[[], Snapshot],
        clock: Clock,
        round_seconds: float = _ROUND_SECONDS,
    ) -> None:
        self._node = node
        self._datacenter = datacenter
        self._alerts = alerts
        self._states = states
        self._statistics = statistics
        self._standing = standing
        self._topology = topology
        self._callbacks = callbacks
        self._catalog = catalog
        self._clock = clock
        self._round_seconds = round_seconds

    async def run(self) -> None:
        """Until cancelled."""
        said = False
        while going_on():
            try:
                if await self._alerts.claim(self._node, self._round_seconds - _LOOK_SECONDS / 2):
                    await self.round()
                said = False
            except StoreUnavailableError as error:
                if not said:
                    _log.warning("alerts_not_evaluated", reason=str(error)[:200])
                said = True
            await asyncio.sleep(min(_LOOK_SECONDS, self._round_seconds))

    async def round(self) -> None:
        """Look, decide, write down. Raises StoreUnavailableError."""
        seen = await self.look()
        changed, history, dropped = advance(await self._alerts.all(), seen, self._clock.now_ms())
        await self._alerts.save(changed, history, dropped)
        for change in history:
            _log.warning("alert", alert=change.alert, state=change.what, text=change.text)

    async def look(self) -> Seen:
        """What the rules need. Raises StoreUnavailableError where the nodes' states cannot be read; else what is missing is None."""
        catalog = self._catalog()
        return Seen(
            nodes=await self._states.all(),
            connectors=list(catalog.connectors.values()),
            endpoints=list(catalog.endpoints.values()),
            routes=await _or_none(self._rates()),
            ledger_alarms=await _or_none(self._alarms()),
            members=await _or_none(self._members()),
            callbacks_parked=await _or_none(self._callbacks.waiting()),
        )

    async def _rates(self) -> list[RouteRate]:
        until = self._clock.now_ms() // 60_000 * 60 + MINUTE
        since = until - _LATELY
        here = {"datacenter": self._datacenter}
        lately = await self._statistics.series(
            since=since, until=until, step=_LATELY, by="route", tenant=None, where=here
        )
        today = since // HOUR * HOUR
        before = await self._statistics.series(
            since=today - _BEFORE, until=today, step=_BEFORE, by="route", tenant=None, where=here
        )
        past = {one.key: _finished(one) for one in before}
        return [RouteRate(one.key, *_finished(one), *past.get(one.key, (0, 0))) for one in lately if one.key]

    async def _alarms(self) -> list[dict[str, str]]:
        alarms: list[dict[str, str]] = (await self._standing.read())["alarms"]
        return alarms

    async def _members(self) -> list[Member] | None:
        found = await self._topology.read()
        if not found["complete"]:
            return None
        return [
            Member(member["host"], each["set"], member["healthy"], member["state"], member["lag_seconds"])
            for each in found["sets"]
            for member in each["members"]
        ]


async def _or_none(answer: Awaitable[T]) -> T | None:
    try:
        return await answer
    except StoreUnavailableError:
        return None


def _finished(one: Series) -> tuple[int, int]:
    delivered = one.counts["delivered"]
    return delivered + one.counts["undelivered"] + one.counts["failed"] + one.counts["expired"], delivered
