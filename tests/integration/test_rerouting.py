"""A message that one route reports undelivered goes to the next, for tenants that learn: one final status, whatever the first carrier says later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.catalog import RoutingMode
from controlplane.domain.events import Kind


@pytest.fixture
async def learned(node):
    """The sample tenant in mode `learned`."""
    tenant = node.node.catalog.snapshot.tenants["sample"]
    await node.node.catalog.put(replace(tenant, routing=RoutingMode.LEARNED))
    return node


async def _kinds(node, mid):
    return [event["kind"] for event in (await node.get(mid))["timeline"]]


class TestUndelivered:
    """Real carriers: one that cannot deliver, one that can."""

    async def test_goes_to_the_next_route(self, learned, carriers):
        await learned.connect(await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0}), "bad", priority=1)
        await learned.connect(await carriers(), "good", priority=2, price=30)
        answer = await learned.send()
        message = await learned.reaches(answer["id"], "delivered", "undelivered")
        assert (message["status"], message["route"]) == ("delivered", "good")
        assert await _kinds(learned, answer["id"]) == ["accepted", "submitted", "undelivered", "submitted", "delivered"]
        assert "next route" in message["timeline"][2]["text"]

    async def test_is_the_end_where_no_route_is_left(self, learned, carriers):
        await learned.connect(await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0}), "bad")
        await learned.connect(await carriers(suffix_rules=False, outcomes={"REJECTD": 1.0}), "worse")
        answer = await learned.send()
        message = await learned.reaches(answer["id"], "undelivered")
        assert {event["route"] for event in message["timeline"] if event["kind"] == "submitted"} == {"bad", "worse"}
        assert (await _kinds(learned, answer["id"])).count("undelivered") == 2

    async def test_every_part_goes(self, learned, carriers):
        await learned.connect(await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0}), "bad", priority=1)
        good = await carriers()
        await learned.connect(good, "good", priority=2, price=30)
        answer = await learned.send(body="x" * 400)
        message = await learned.reaches(answer["id"], "delivered", "undelivered")
        assert [part["connector"] for part in message["part_states"]] == ["good"] * 3

    async def test_a_static_tenant_is_told_at_once(self, node, carriers):
        await node.connect(await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0}), "bad", priority=1)
        await node.connect(await carriers(), "good", priority=2, price=30)
        answer = await node.send()
        await node.reaches(answer["id"], "undelivered")
        assert await _kinds(node, answer["id"]) == ["accepted", "submitted", "undelivered"]

    async def test_what_the_first_carrier_says_later_moves_nothing(self, learned, carriers):
        """It repeats itself, with other words, while the second carrier has the message."""
        bad = await carriers(
            suffix_rules=False, outcomes={"UNDELIV": 1.0}, receipt_duplicates=1, receipt_intermediate=True
        )
        await learned.connect(bad, "bad", priority=1)
        await learned.connect(await carriers(receipt_ms="600"), "good", priority=2, price=30)
        answer = await learned.send()
        message = await learned.reaches(answer["id"], "delivered", "undelivered")
        assert message["status"] == "delivered"
        kinds = await _kinds(learned, answer["id"])
        assert kinds.count("delivered") == 1
        assert learned.node.book.get(answer["id"]) is None

    async def test_nothing_of_it_stays_in_memory(self, learned, carriers):
        await learned.connect(await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0}), "bad", priority=1)
        await learned.connect(await carriers(), "good", priority=2, price=30)
        for _ in range(20):
            answer = await learned.send()
            await learned.reaches(answer["id"], "delivered")
        book = learned.node.book
        assert (book.open, book._carrier_ids, book._former) == ({}, {}, {})


class TestLateReceipt:
    """The first carrier delivers after all."""

    async def test_after_the_end_it_is_kept_and_moves_nothing(self, learned, carriers):
        bad = await carriers(suffix_rules=False, outcomes={"UNDELIV": 1.0})
        await learned.connect(bad, "bad", priority=1)
        await learned.connect(await carriers(), "good", priority=2, price=30)
        answer = await learned.send()
        await learned.reaches(answer["id"], "delivered")
        events = await learned.node.reader.load(answer["id"])
        (first,) = [event for event in events if event.kind is Kind.SUBMITTED and event.route == "bad"]
        receipt = next(event for event in events if event.kind is Kind.UNDELIVERED).data["receipt"]
        from controlplane.domain.receipt import Receipt

        late = Receipt(**{**receipt, "state": "DELIVRD", "error": "000"})
        taken = await learned.node.correlator.receive("bad", "auto", "+4915112340001", late)
        assert taken, first.cids
        message = await learned.get(answer["id"])
        assert message["status"] == "delivered"
        assert message["part_states"][0]["connector"] == "good"
        assert (await _kinds(learned, answer["id"]))[-1] == "delivered"
