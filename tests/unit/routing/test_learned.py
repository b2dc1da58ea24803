"""The learned router keeps the static one's rules, and each tenant's mode."""

from __future__ import annotations

import pytest

from controlplane.domain.catalog import Connector, MessageClass, Route, RoutingMode, SenderType, Snapshot
from controlplane.routing import LearnedRouter, Learner, RouteRequest, StaticRouter, Terms
from controlplane.routing.decision import unpack

NOW = 1_788_220_800_000
ROUTES = {
    route.name: route
    for route in (
        Route(name="first", connector="one", price=2, priority=1),
        Route(name="second", connector="two", price=3, priority=2),
        Route(name="down", connector="three", price=1, priority=0),
        Route(name="marketing", connector="one", classes=frozenset({"marketing"})),
    )
}
SNAPSHOT = Snapshot(
    version=1,
    connectors={
        name: Connector(name=name, host="h", port=1, system_id="", password="") for name in ("one", "two", "three")
    },
    routes=ROUTES,
)
LIVE = frozenset({"one", "two"})


def routers() -> tuple[StaticRouter, LearnedRouter, Learner]:
    static, learner = StaticRouter(lambda: SNAPSHOT, lambda: LIVE), Learner(node="n")
    for n in range(20):
        learner.refused("first", request("learned"), NOW + n, connector="one")
    return (
        static,
        LearnedRouter(
            static,
            learner,
            mode=lambda tenant: tenant,
            terms=lambda tenant, cls: Terms(40.0) if tenant == "learned" else None,
            now_ms=lambda: NOW + 1_000,
        ),
        learner,
    )


def request(tenant: str, **values) -> RouteRequest:
    return RouteRequest(
        **{
            "tenant": tenant,
            "to": "+4915112345678",
            "sender_type": SenderType.LONG,
            "cls": MessageClass.OTP,
            "parts": 2,
            "sender": "+4912345678",
            "mid": "m",
            **values,
        }
    )


class TestModes:
    """static: as it was; shadow: recorded only; learned: another order of the same candidates."""

    def test_static_is_the_static_plan(self):
        static, router, _ = routers()
        assert router.plan(request(RoutingMode.STATIC)) is static.plan(request(RoutingMode.STATIC))

    def test_shadow_keeps_the_order_and_records_the_decision(self):
        static, router, _ = routers()
        plan, base = router.plan(request(RoutingMode.SHADOW)), static.plan(request(RoutingMode.SHADOW))
        assert (plan.candidates, plan.reason) == (base.candidates, base.reason)
        assert plan.decision is not None
        assert plan.decision.chosen == "second"
        assert unpack(plan.decision.record).shadow

    def test_learned_reorders(self):
        _, router, _ = routers()
        plan = router.plan(request(RoutingMode.LEARNED))
        assert [candidate.route.name for candidate in plan.candidates] == ["second", "first", "down"]
        assert plan.reason.startswith("second: the only usable route; ")
        assert plan.decision is not None
        assert unpack(plan.decision.record).value == 40.0

    def test_tenants_of_all_modes_beside_each_other(self):
        _, router, _ = routers()
        modes = [RoutingMode.LEARNED, RoutingMode.STATIC, RoutingMode.SHADOW, RoutingMode.LEARNED]
        plans = [router.plan(request(mode, mid=f"m{i}")) for i, mode in enumerate(modes)]
        assert [plan.candidates[0].route.name for plan in plans] == ["second", "first", "first", "second"]
        assert [plan.decision is not None for plan in plans] == [True, False, True, True]


class TestRules:
    """What the static router excludes never comes back."""

    @pytest.mark.parametrize("mode", list(RoutingMode))
    def test_exclusions(self, mode):
        static, router, _ = routers()
        plan, excluded = router.explain(request(mode))
        base, expected = static.explain(request(mode))
        assert excluded == expected
        assert {item.route: item.rule for item in excluded} == {"marketing": "class"}
        assert set(plan.candidates) == set(base.candidates)

    def test_an_explanation_books_nothing(self):
        _, router, learner = routers()
        plan = router.plan(request(RoutingMode.LEARNED))
        before = learner.surplus("learned", "otp")
        explained, _ = router.explain(request(RoutingMode.LEARNED))
        assert explained.decision is not None
        assert plan.decision is not None
        assert explained.decision.ranked == plan.decision.ranked
        assert learner.surplus("learned", "otp") == before > 0
        router.plan(request(RoutingMode.LEARNED))
        assert learner.surplus("learned", "otp") > before

    def test_tried_routes_are_not_decided_about(self):
        _, router, _ = routers()
        plan = router.plan(request(RoutingMode.LEARNED, tried=("second",)))
        assert "second" not in [candidate.route.name for candidate in plan.candidates]

    def test_no_route(self):
        _, router, _ = routers()
        plan = router.plan(request(RoutingMode.LEARNED, tried=tuple(ROUTES)))
        assert plan.candidates == ()
        assert plan.decision is None
