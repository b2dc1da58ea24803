"""The learned engine behind the Router protocol: the static router retrieves, the learner ranks what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controlplane.domain.catalog import RoutingMode
from controlplane.routing.decision import Decision
from controlplane.routing.learner import Learner
from controlplane.routing.router import Exclusion, Plan, RouteRequest
from controlplane.routing.static import StaticRouter
from controlplane.routing.tuning import Terms

__all__ = ["LearnedRouter"]


class LearnedRouter:
    """A Router whose order is learned, for the tenants that want it. Hard rules are the static router's: nothing that it excludes comes back."""

    def __init__(
        self,
        static: StaticRouter,
        learner: Learner,
        *,
        mode: Callable[[str], str],
        terms: Callable[[str, str], Terms | None],
        now_ms: Callable[[], int],
    ) -> None:
        """`mode` of a tenant: a RoutingMode; `terms` of a tenant and class, None for the class's own."""
        self._static, self._learner = static, learner
        self._mode, self._terms, self._now_ms = mode, terms, now_ms

    def plan(self, request: RouteRequest) -> Plan:
        """See Router."""
        return self.plans((request,))[0]

    def plans(self, requests: Sequence[RouteRequest]) -> list[Plan]:
        """One plan per request; together they cost much less than each alone. What has no mid is not sent yet: its plan is the static order."""
        return self._plans(requests, dry=False)

    def explain(self, request: RouteRequest) -> tuple[Plan, tuple[Exclusion, ...]]:
        """See Router. Candidates that the engine itself leaves out stay candidates; `Plan.decision` says so. Nothing is booked."""
        _, excluded = self._static.explain(request)
        return self._plans((request,), dry=True)[0], excluded

    def _plans(self, requests: Sequence[RouteRequest], *, dry: bool) -> list[Plan]:
        plans = [self._static.plan(request) for request in requests]
        modes = [self._mode(request.tenant) for request in requests]
        for mode in (RoutingMode.SHADOW, RoutingMode.LEARNED):
            mine = [i for i, plan in enumerate(plans) if modes[i] == mode and plan.candidates and requests[i].mid]
            if mine:
                for i, plan in zip(
                    mine, self._decided(mode, [(requests[i], plans[i]) for i in mine], dry=dry), strict=True
                ):
                    plans[i] = plan
        return plans

    def _decided(self, mode: str, asked: Sequence[tuple[RouteRequest, Plan]], *, dry: bool) -> list[Plan]:
        requests = [request for request, _ in asked]
        shadow = mode == RoutingMode.SHADOW
        decisions = self._learner.decide(
            requests,
            [plan.candidates for _, plan in asked],
            max(requests[0].at, self._now_ms()) if requests[0].at else self._now_ms(),
            [self._terms(request.tenant, request.cls) for request in requests],
            shadow=shadow,
            dry=dry,
        )
        if shadow:
            return [
                Plan(plan.candidates, plan.reason, decision)
                for (_, plan), decision in zip(asked, decisions, strict=True)
            ]
        return [_in_order(plan, decision) for (_, plan), decision in zip(asked, decisions, strict=True)]


def _in_order(plan: Plan, decision: Decision) -> Plan:
    found = plan.candidates
    rest = found[len(decision.order) :]
    return Plan(tuple([found[i] for i in decision.order]) + rest, decision.reason, decision)
