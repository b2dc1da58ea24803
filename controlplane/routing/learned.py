"""The learned engine behind the Router protocol: the static router retrieves, the learner ranks what it found."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.domain.catalog import RoutingMode
from controlplane.routing.learner import Learner
from controlplane.routing.router import Exclusion, Plan, RouteRequest
from controlplane.routing.static import StaticRouter
from controlplane.routing.tuning import Terms

__all__ = ["LearnedRouter"]

_ASKED = (RoutingMode.LEARNED, RoutingMode.SHADOW)
"""Modes in which the learner decides; in any other the plan is the static router's."""


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
        """See Router. What has no mid is not sent yet: its plan is the static order."""
        return self._decided(request, self._static.plan(request), dry=False)

    def explain(self, request: RouteRequest) -> tuple[Plan, tuple[Exclusion, ...]]:
        """See Router. Candidates that the engine itself leaves out stay candidates; `Plan.decision` says so. Nothing is booked."""
        plan, excluded = self._static.explain(request)
        return self._decided(request, plan, dry=True), excluded

    def _decided(self, request: RouteRequest, plan: Plan, *, dry: bool) -> Plan:
        mode = self._mode(request.tenant)
        if mode not in _ASKED or not plan.candidates or not request.mid:
            return plan
        shadow = mode == RoutingMode.SHADOW
        decision = self._learner.decide_one(
            request,
            plan.candidates,
            max(request.at, self._now_ms()),
            self._terms(request.tenant, request.cls),
            shadow=shadow,
            dry=dry,
        )
        if shadow:
            return Plan(plan.candidates, plan.reason, decision)
        return Plan(decision.choice.candidates, decision.reason, decision)
