"""Static routing: exact retrieval, a total order, and a reason for each route that is out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as hs

from controlplane.domain.catalog import Connector, MessageClass, Route, SenderType, Snapshot
from controlplane.routing import RouteRequest, StaticRouter

routes = hs.lists(
    hs.builds(
        Route,
        name=hs.text("abcdef", min_size=1, max_size=3),
        connector=hs.sampled_from(["up", "down", "off", "gone"]),
        prefixes=hs.lists(hs.text("49", max_size=3), min_size=1, max_size=3).map(tuple),
        classes=hs.frozensets(hs.sampled_from([c.value for c in MessageClass]), min_size=1),
        sender_types=hs.frozensets(hs.sampled_from([s.value for s in SenderType]), min_size=1),
        price=hs.integers(0, 5),
        priority=hs.integers(0, 2),
        enabled=hs.booleans(),
    ),
    max_size=8,
    unique_by=lambda route: route.name,
)


def router_of(found: list[Route]) -> StaticRouter:
    connectors = {
        name: Connector(name=name, host="h", port=1, system_id="", password="", enabled=name != "off")
        for name in ("up", "down", "off")
    }
    snapshot = Snapshot(version=1, connectors=connectors, routes={route.name: route for route in found})
    live = frozenset({"up"})
    return StaticRouter(lambda: snapshot, lambda: live)


def request(**values) -> RouteRequest:
    return RouteRequest(
        **{
            "tenant": "t",
            "to": "+494",
            "sender_type": SenderType.LONG,
            "cls": MessageClass.OTP,
            "parts": 2,
            "sender": "+4912345678",
            **values,
        }
    )


class TestPlan:
    """Candidates and exclusions are all routes, each once."""

    @given(routes, hs.text("49", min_size=1, max_size=5), hs.none() | hs.integers(0, 10))
    def test_nothing_is_forgotten(self, found, digits, max_price):
        plan, excluded = router_of(found).explain(request(to="+" + digits, max_price=max_price))
        chosen = [candidate.route.name for candidate in plan.candidates]
        assert sorted(chosen + [item.route for item in excluded]) == sorted(route.name for route in found)
        for candidate in plan.candidates:
            matching = [prefix for prefix in candidate.route.prefixes if digits.startswith(prefix)]
            assert candidate.prefix == max(matching, key=len)
            assert max_price is None or candidate.price <= max_price
        assert [c.healthy for c in plan.candidates] == sorted((c.healthy for c in plan.candidates), reverse=True)

    @given(routes)
    def test_tried_is_never_chosen(self, found):
        names = tuple(route.name for route in found)
        assert router_of(found).plan(request(tried=names)).candidates == ()

    def test_order_and_reason(self):
        found = [
            Route(name="dear", connector="up", price=5, priority=1),
            Route(name="cheap", connector="up", price=1, priority=1),
            Route(name="exact", connector="up", price=9, priority=1, prefixes=("49",)),
            Route(name="dead", connector="down", priority=0),
        ]
        plan = router_of(found).plan(request())
        assert [c.route.name for c in plan.candidates] == ["exact", "cheap", "dear", "dead"]
        assert "more exact" in plan.reason
