"""Static routing: what can send now first, then the operator's priority, then the longest prefix, then the price, then the name."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.domain.catalog import Snapshot
from controlplane.routing.candidates import PrefixIndex, candidate, exclusion, unreachable
from controlplane.routing.router import Candidate, Exclusion, Plan, RouteRequest

__all__ = ["StaticRouter"]


_KEPT = 10_000
"""Plans remembered; they are forgotten all at once."""


class StaticRouter:
    """A Router that learns nothing. A route whose connector is down stays a candidate, behind those that are up.

    What two requests of the same kind to the same prefix get is the same, so plans are remembered until the catalog or the live connectors change.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], live: Callable[[], frozenset[str]]) -> None:
        self._snapshot = snapshot
        self._live = live
        """Connectors that could submit now: the same object as long as they are the same."""
        self._index = PrefixIndex(Snapshot())
        self._planned_for: frozenset[str] = frozenset()
        self._plans: dict[tuple[object, ...], Plan] = {}

    def plan(self, request: RouteRequest) -> Plan:
        """See Router."""
        index, live = self._current(), self._live()
        if live is not self._planned_for or len(self._plans) >= _KEPT:
            self._planned_for = live
            self._plans.clear()
        _, to, sender_type, cls, parts, max_price, tried, sender = request[:8]
        key = (to[: index.longest + 1], sender_type if sender else None, cls, parts, max_price, tried)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._ranked(
                [
                    candidate(route, prefix, request, healthy=route.connector in live)
                    for prefix, route in index.of(to).values()
                    if exclusion(route, request) is None
                ]
            )
        return plan

    def explain(self, request: RouteRequest) -> tuple[Plan, tuple[Exclusion, ...]]:
        """See Router."""
        index = self._current()
        reached = index.of(request.to)
        excluded = [
            unreachable(route, index.snapshot) for name, route in index.snapshot.routes.items() if name not in reached
        ]
        excluded += [why for _, route in reached.values() if (why := exclusion(route, request)) is not None]
        return self.plan(request), tuple(sorted(excluded, key=lambda item: item.route))

    def _current(self) -> PrefixIndex:
        snapshot = self._snapshot()
        if self._index.snapshot is not snapshot:
            self._index = PrefixIndex(snapshot)
            self._plans.clear()
        return self._index

    def _ranked(self, candidates: list[Candidate]) -> Plan:
        candidates.sort(key=_rank)
        return Plan(tuple(candidates), _reason(candidates))


def _rank(item: Candidate) -> tuple[bool, int, int, int, str]:
    return not item.healthy, item.route.priority, -len(item.prefix), item.price, item.route.name


def _reason(ranked: list[Candidate]) -> str:
    if not ranked:
        return "no route may carry it"
    first = ranked[0]
    if len(ranked) == 1:
        return f"{first.route.name}: the only route that may carry it"
    second = ranked[1]
    if first.healthy != second.healthy:
        why = f"{second.route.name} has no live bind"
    elif first.route.priority != second.route.priority:
        why = f"priority {first.route.priority} before {second.route.priority}"
    elif len(first.prefix) != len(second.prefix):
        why = f"prefix {first.prefix or '(any)'} is more exact than {second.prefix or '(any)'}"
    elif first.price != second.price:
        why = f"price {first.price} before {second.price}"
    else:
        why = "equal to the next; first by name"
    return f"{first.route.name}: {why}"
