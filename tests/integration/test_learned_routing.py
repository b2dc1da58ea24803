"""The learned router end to end: real HTTP, MongoDB and SMPP; what it learns, shares, keeps and explains."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median

import pytest

from controlplane.domain.catalog import RoutingMode
from controlplane.routing.decision import same
from tests.simulators.node import running_node


async def _mode(node, mode, **fields):
    tenant = node.node.catalog.snapshot.tenants["sample"]
    await node.node.catalog.put(replace(tenant, routing=mode, **fields))


async def _send(node, count, *, rate=0.0, **fields):
    mids = []
    for _ in range(count):
        mids.append((await node.send(**fields))["id"])
        if rate:
            await asyncio.sleep(1 / rate)
    return mids


def _decision(message):
    (event,) = [event for event in message["timeline"] if event["kind"] == "submitted"]
    return event["decision"]


@pytest.fixture
async def two(node, carriers):
    """A cheap route and one that costs a little more; carriers answer at once."""
    cheap, dear = await carriers(suffix_rules=False), await carriers(suffix_rules=False)
    await node.connect(cheap, "cheap", price=5)
    await node.connect(dear, "dear", price=6)
    return node, cheap, dear


class TestModes:
    async def test_static_asks_nobody(self, two):
        node, _, _ = two
        message = await node.reaches((await node.send())["id"], "delivered")
        assert (message["route"], _decision(message)) == ("cheap", None)

    async def test_shadow_records_and_changes_nothing(self, two):
        node, _, _ = two
        await _mode(node, RoutingMode.SHADOW)
        for mid in await _send(node, 10):
            message = await node.reaches(mid, "delivered")
            decision = _decision(message)
            assert message["route"] == "cheap"
            assert (decision["mode"], {item["route"] for item in decision["candidates"]}) == (
                "shadow",
                {"cheap", "dear"},
            )

    async def test_learned_says_why(self, two):
        node, _, _ = two
        await _mode(node, RoutingMode.LEARNED)
        message = await node.reaches((await node.send())["id"], "delivered")
        decision = _decision(message)
        assert decision["chosen"] == message["route"]
        assert sum(item["propensity"] for item in decision["candidates"]) == pytest.approx(1.0, abs=1e-6)
        assert decision["why"] in next(item["text"] for item in message["timeline"] if item["kind"] == "submitted")

    @pytest.mark.parametrize("price", [1.0, 0.0])
    async def test_the_terms_of_the_tenant_decide(self, node, carriers, price):
        """Both deliver alike: the cheaper one is worth what it saves and is taken although the operator prefers the other, unless price weighs nothing."""
        await node.connect(await carriers(), "dear", price=8, priority=1)
        await node.connect(await carriers(), "cheap", price=5, priority=2)
        terms = {"transactional": {"value": 5.0, "price": price, "latency": 0.0}}
        await _mode(node, RoutingMode.LEARNED, routing_terms=terms)
        for mid in await _send(node, 300):
            await node.reaches(mid, "delivered")
        messages = [await node.reaches(mid, "delivered") for mid in await _send(node, 50)]
        worth = [{item["route"]: item["utility"] for item in _decision(m)["candidates"]} for m in messages]
        assert median(each["cheap"] - each["dear"] for each in worth) == pytest.approx(3 * price, abs=1.0)
        if price:
            assert sum(message["route"] == "cheap" for message in messages) >= 45

    async def test_a_record_is_replayed(self, two):
        node, _, _ = two
        await _mode(node, RoutingMode.LEARNED)
        for mid in await _send(node, 30):
            await node.reaches(mid, "delivered")
            records = [(event.data or {}).get("decision") for event in await node.node.reader.load(mid)]
            assert all(map(same, filter(None, records)))
            assert any(records)


class TestSilentFailure:
    """A carrier takes everything, delivers nothing, and says nothing."""

    async def test_traffic_moves_and_the_timeline_says_why(self, two):
        node, cheap, _ = two
        await _mode(node, RoutingMode.LEARNED)
        before = await _send(node, 400, rate=20, **{"class": "otp"})
        messages = [await node.reaches(mid, "delivered") for mid in before]
        assert sum(message["route"] == "cheap" for message in messages) >= 380
        cheap.exchange.change(receipt_missing=1.0)
        during = await _send(node, 400, rate=20, **{"class": "otp"})
        later = await _send(node, 100, rate=20, **{"class": "otp"})
        routes = [(await node.reaches(mid, "delivered", "submitted"))["route"] for mid in during]
        moved = routes.index("dear")
        assert moved / 20 <= 12, "seconds until the first message went the other way"
        messages = [await node.reaches(mid, "delivered", "submitted") for mid in later]
        assert sum(message["route"] == "dear" for message in messages) >= 99
        moved = next(message for message in messages if message["route"] == "dear")
        assert "cheap (not delivering at present)" in _decision(moved)["why"]
        status, answer = await node.call("POST", "/v1/route-searches", json={"to": "+4915112340001", "class": "otp"})
        assert status == 200
        assert next(item for item in answer["decision"]["candidates"] if item["route"] == "cheap")["excluded"]


class TestState:
    async def test_another_node_knows_within_seconds(self, two, settings, tmp_path):
        node, _, _ = two
        await _mode(node, RoutingMode.LEARNED)
        other = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        async with running_node(other) as second:
            for mid in await _send(node, 50):
                await node.reaches(mid, "delivered")
            await second.until(lambda: _tries(second) >= 45, 10)

    async def test_a_restart_forgets_nothing(self, settings, database, carriers):
        async with running_node(settings) as first:
            await first.seed()
            await first.connect(await carriers())
            await _mode(first, RoutingMode.LEARNED)
            for mid in await _send(first, 50):
                await first.reaches(mid, "delivered")
        async with running_node(settings) as second:
            assert _tries(second) == pytest.approx(50, rel=0.02)

    async def test_feedback_is_heard(self, two):
        node, _, _ = two
        await _mode(node, RoutingMode.LEARNED)
        mid = (await node.send())["id"]
        await node.reaches(mid, "delivered")
        told = []
        feedback = node.node.learner.feedback
        node.node.learner.feedback = lambda *args: told.append(args) or feedback(*args)
        for outcome in ("not_converted", "not_converted", "converted"):
            status, answer = await node.call("POST", f"/v1/messages/{mid}/feedback", json={"outcome": outcome})
            assert (status, answer["feedback"]) == (200, outcome)
        assert [(about, converted, tenant) for about, converted, tenant, _ in told] == [
            (mid, False, "sample"),
            (mid, True, "sample"),
        ]


def _tries(node):
    known = node.node.learner.routes(node.node._clock.now_ms())
    return sum(item["tries"] for item in known.values())


class TestReport:
    async def test_what_learning_gains(self, two):
        node, _, _ = two
        status, report = await node.call("GET", "/v1/routing/report")
        assert (status, report["messages"], report["utility"]) == (200, 0, None)
        await _mode(node, RoutingMode.LEARNED)
        for mid in await _send(node, 40):
            await node.reaches(mid, "delivered")
        status, report = await node.call("GET", "/v1/routing/report")
        assert status == 200, report
        assert (report["messages"] + report["skipped"], report["replayed"], report["identical"]) == (40, 40, 40)
        assert report["delivered_in_time"]["learned"] == pytest.approx(1.0, abs=0.05)
        status, problem = await node.call("GET", "/v1/routing/report?estimator=luck")
        assert (status, problem["errors"][0]["pointer"]) == (422, "/estimator")

    async def test_what_the_router_knows(self, two):
        node, _, _ = two
        await _mode(node, RoutingMode.SHADOW)
        for mid in await _send(node, 30):
            await node.reaches(mid, "delivered")
        status, known = await node.call("GET", "/v1/routing")
        assert status == 200
        (cheap,) = [item for item in known["routes"] if item["route"] == "cheap"]
        assert cheap["tries"] == pytest.approx(30, rel=0.02)
        assert cheap["in_time"] == pytest.approx(1.0)
        assert (known["held_back"], known["breaks"]) == ([], [])
