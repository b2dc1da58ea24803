"""Counts what this node's events say by minute, tenant, route and class, and writes the counts every ten seconds.

On the path of a message there are a dictionary look-up and some additions. A minute's rows stay in memory until nothing is added to them any more; each write
replaces the documents of the minutes that changed, and each sixth one those of the hours, so a write whose outcome is not known is simply done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from controlplane.clock import Clock
from controlplane.domain.catalog import Route
from controlplane.domain.events import Event
from controlplane.domain.message import Message
from controlplane.domain.statistics import WIDTH, count
from controlplane.errors import StoreUnavailableError
from controlplane.store.statistics import HOUR, MINUTE, Bunch, Statistics
from controlplane.tasks import going_on

__all__ = ["Recorder"]

_log = structlog.get_logger()
_FLUSH_SECONDS = 10.0
_HOURS_EVERY = 6
"""Writes of minutes to one of hours, which hold every tenant's rows of up to an hour."""
_SETTLED_MINUTES = 2
"""Events are committed at most some seconds after they were drafted: a minute that is over for so long changes no more."""

_Key = tuple[str, str, str]
"""(tenant, route, class)."""
_Rows = dict[_Key, list[int]]


class Recorder:
    """One per node and epoch."""

    def __init__(
        self,
        statistics: Statistics,
        clock: Clock,
        *,
        term: str,
        routes: Callable[[], Mapping[str, Route]],
        deadlines_ms: Mapping[str, int],
    ) -> None:
        self._statistics = statistics
        self._clock = clock
        self._term = term
        self._routes = routes
        self._deadlines = deadlines_ms
        self._minutes: dict[int, _Rows] = {}
        """Minute (number since the epoch) → its rows."""
        self._hours: dict[int, _Rows] = {}
        """Hour → what its settled minutes had."""
        self._dirty: set[int] = set()
        self._dirty_hours: set[int] = set()
        self._writing = asyncio.Lock()
        self._from = self._until = 0
        """Events from then to before then (ms) are counted in `_rows`, which are those of `_minute`."""
        self._minute = -1
        self._rows: _Rows = {}
        self._changed = False
        self._floor = 0
        """The oldest minute that is not settled: what comes late counts there."""
        self._currencies: dict[str, str] = {}
        """Route → its currency when it was last known."""

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener."""
        if not own:
            return
        if not self._from <= event.at < self._until:
            self._turn(event.at)
        self._changed = True
        key = (message.tenant, event.route or message.route, message.cls)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = [0] * WIDTH
        count(row, message, event, self._price, self._deadlines)

    def _turn(self, at: int) -> None:
        """Count in the minute of `at` (ms) from now on; where that is settled, in the oldest one that is not."""
        self._mark()
        minute = max(at // 60_000, self._floor)
        self._from, self._until = at // 60_000 * 60_000, (at // 60_000 + 1) * 60_000
        self._minute = minute
        self._rows = self._minutes.setdefault(minute, {})

    def _mark(self) -> None:
        if self._changed:
            self._changed = False
            self._dirty.add(self._minute)

    def _price(self, name: str) -> int:
        route = self._routes().get(name)
        return route.price if route is not None else 0

    async def run(self) -> None:
        """Write until cancelled."""
        writes = 0
        while going_on():
            await asyncio.sleep(_FLUSH_SECONDS)
            writes += 1
            try:
                await self.flush(hours=writes % _HOURS_EVERY == 0)
            except StoreUnavailableError as error:
                _log.warning("statistics_not_written", reason=str(error)[:200])

    async def flush(self, *, hours: bool = True) -> None:
        """Write what changed; `hours`: those too. Raises StoreUnavailableError; the counts are kept for the next time."""
        async with self._writing:
            await self._flush(hours=hours)

    async def _flush(self, *, hours: bool) -> None:
        self._mark()
        dirty, self._dirty = self._dirty, set()
        self._dirty_hours |= {minute // 60 for minute in dirty}
        dirty_hours: set[int] = set()
        if hours:
            dirty_hours, self._dirty_hours = self._dirty_hours, set()
        try:
            bunches: list[Bunch] = []
            for minute in sorted(dirty):
                bunches += self._bunches(MINUTE, minute, self._minutes[minute])
            for hour in sorted(dirty_hours):
                bunches += self._bunches(HOUR, hour, self._hour(hour))
            await self._statistics.save(self._term, bunches, self._clock.now_ms())
        except BaseException:
            self._dirty |= dirty
            self._dirty_hours |= dirty_hours
            raise
        self._retire()

    def _hour(self, hour: int) -> _Rows:
        total = {key: list(row) for key, row in self._hours.get(hour, {}).items()}
        for minute, rows in self._minutes.items():
            if minute // 60 == hour:
                _add(total, rows)
        return total

    def _retire(self) -> None:
        """Forget minutes that are written and settled, and hours that are written and have none left to come."""
        self._mark()  # what was counted while the others were written
        last = self._floor = max(self._floor, self._clock.now_ms() // 60_000 - _SETTLED_MINUTES)
        for minute in [minute for minute in self._minutes if minute < last and minute not in self._dirty]:
            _add(self._hours.setdefault(minute // 60, {}), self._minutes.pop(minute))
        self._from = self._until = 0  # the next event finds its minute anew
        kept = self._dirty_hours | {minute // 60 for minute in self._minutes}
        self._hours = {hour: rows for hour, rows in self._hours.items() if hour >= last // 60 or hour in kept}

    def _bunches(self, step: int, number: int, rows: _Rows) -> list[Bunch]:
        tenants: dict[str, dict[tuple[str, str, str], list[int]]] = {}
        self._currencies |= {name: route.currency for name, route in self._routes().items()}
        for (tenant, name, cls), row in rows.items():
            tenants.setdefault(tenant, {})[name, cls, self._currencies.get(name, "")] = row
        return [Bunch(step, number * step, tenant, found) for tenant, found in tenants.items()]


def _add(total: _Rows, rows: _Rows) -> None:
    for key, row in rows.items():
        into = total.setdefault(key, [0] * WIDTH)
        for place, value in enumerate(row):
            into[place] += value
