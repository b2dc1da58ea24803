"""durability `global`: nothing is answered 202, and nothing is sent, before a second datacenter has it; a message is never silently downgraded."""

from __future__ import annotations

import asyncio
import time

import pytest

from controlplane.bootstrap import Node
from tests.simulators.ledger import running_ledger, with_peer
from tests.simulators.node import running_node


def slug(problem: dict) -> str:
    return problem["type"].rsplit("/", 1)[1]


GLOBAL = {"to": "+4915112340001", "body": "both", "durability": "global"}


@pytest.fixture
def settings(settings):
    return with_peer(settings, accept_timeout_seconds=2.0)


@pytest.fixture
async def ledger(settings, database):
    async with running_ledger(settings, database) as running:
        yield running


@pytest.fixture
async def ready(node, carriers):
    node.carrier = await carriers()
    await node.connect(node.carrier)
    return node


class TestAccept:
    """202 after a mirror has it; else 503, and the message is recorded as refused and never sent."""

    async def test_accepted_once_a_mirror_has_it(self, ready, ledger):
        ledger.cosigning.add("mirror")
        status, answer = await ready.call("POST", "/v1/messages", json=GLOBAL)
        assert status == 202, answer
        message = await ready.reaches(answer["id"], "delivered")
        assert message["durability"] == "global"

    async def test_not_before(self, ready, ledger):
        async with asyncio.TaskGroup() as group:
            call = group.create_task(ready.call("POST", "/v1/messages", json=GLOBAL))
            await ready.until(lambda: len(ready.node.hold) == 1)
            await asyncio.sleep(0.5)
            assert not call.done()
            assert ready.carrier.exchange.counts["accepted"] == 0
            ledger.cosigning.add("mirror")
        status, answer = call.result()
        assert status == 202
        await ready.reaches(answer["id"], "delivered")

    async def test_a_witness_is_not_enough(self, ready, ledger):
        ledger.cosigning.add("witness")
        status, problem = await ready.call("POST", "/v1/messages", json=GLOBAL)
        assert (status, slug(problem)) == (503, "not-mirrored")

    async def test_refused_in_time_and_for_good(self, ready, ledger):
        began = time.monotonic()
        headers = {"Idempotency-Key": "once"}
        async with ready.http.post(
            ready.base_url + "/v1/messages", json=GLOBAL, headers={"authorization": f"Bearer {ready.key}", **headers}
        ) as answer:
            problem = await answer.json(content_type=None)
            assert (answer.status, slug(problem)) == (503, "not-mirrored")
            assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 3.5
        ledger.cosigning.add("mirror")
        await ledger.settle(ready.node.database)
        status, repeated = await ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers)
        assert (status, slug(repeated), repeated["detail"]) == (409, "not-mirrored", problem["detail"])
        message = await ready.get(problem["id"])
        assert (message["status"], message["reason"]) == ("failed", "not_mirrored")
        assert "Refused" in message["timeline"][-1]["text"]
        await asyncio.sleep(0.3)
        assert ready.carrier.exchange.counts["accepted"] == 0

    async def test_another_body_under_the_same_key(self, ready, ledger):
        ledger.cosigning.add("mirror")
        headers = {"Idempotency-Key": "k"}
        assert (await ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers))[0] == 202
        status, problem = await ready.call("POST", "/v1/messages", json=GLOBAL | {"body": "x"}, headers=headers)
        assert (status, slug(problem)) == (422, "idempotency-key-reused")
        status, _ = await ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers)
        assert status == 202

    async def test_repetitions_while_it_waits_hear_the_same(self, ready, ledger):
        headers = {"Idempotency-Key": "many"}
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers)) for _ in range(20)
            ]
            await ready.until(lambda: len(ready.node.hold) == 1)
            ledger.cosigning.add("mirror")
        assert {call.result()[0] for call in calls} == {202}
        assert len({call.result()[1]["id"] for call in calls}) == 1

    async def test_batches(self, ready, ledger):
        ledger.cosigning.add("mirror")
        messages = [GLOBAL | {"body": f"{n}", "durability": ("global", "regional")[n % 2]} for n in range(40)]
        status, answer = await ready.call("POST", "/v1/batches", json={"messages": messages})
        assert (status, answer["accepted"]) == (202, 40)
        ledger.cosigning.clear()
        status, answer = await ready.call("POST", "/v1/batches", json={"messages": messages})
        assert (answer["accepted"], answer["rejected"]) == (20, 20)
        assert {slug(item["error"]) for item in answer["results"][::2]} == {"not-mirrored"}

    async def test_cancelled_while_it_waits(self, ready, ledger):
        async with asyncio.TaskGroup() as group:
            call = group.create_task(ready.call("POST", "/v1/messages", json=GLOBAL))
            await ready.until(lambda: len(ready.node.hold) == 1)
            mid = next(iter(ready.node.hold._held))
            assert (await ready.call("POST", f"/v1/messages/{mid}/cancel"))[0] == 200
        assert (call.result()[0], slug(call.result()[1])) == (503, "not-mirrored")

    async def test_scheduled_is_decided_at_once(self, ready, ledger):
        ledger.cosigning.add("mirror")
        later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        status, answer = await ready.call("POST", "/v1/messages", json=GLOBAL | {"send_at": later})
        assert (status, answer["status"]) == (202, "scheduled")

    async def test_one_after_the_other(self, ready, ledger):
        """Nothing but their own entries ever moves the mirror: each must be seen at once."""
        ledger.cosigning.add("mirror")
        later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        for _ in range(15):
            status, answer = await ready.call("POST", "/v1/messages", json=GLOBAL | {"send_at": later})
            assert status == 202, answer

    async def test_without_a_ledger_at_all(self, ready):
        status, problem = await ready.call("POST", "/v1/messages", json=GLOBAL)
        assert (status, slug(problem)) == (503, "not-mirrored")


class TestNoPeer:
    """Where no second datacenter is configured nothing is accepted."""

    @pytest.fixture
    def settings(self, settings):
        return settings.model_copy(update={"ledger_peers": ()})

    async def test_refused_at_once(self, ready):
        status, problem = await ready.call("POST", "/v1/messages", json=GLOBAL)
        assert (status, slug(problem)) == (501, "no-peer")
        _, page = await ready.call("GET", "/v1/messages")
        assert page["data"] == []


class TestOwnerDies:
    """Whoever adopts a message that waits follows the same rule."""

    async def orphan(self, settings, key: str) -> str:
        """A global message whose node is gone before it was decided."""
        dead_settings = settings.model_copy(update={"node": "dead"})
        async with running_node(dead_settings) as dead, asyncio.TaskGroup() as group:
            call = group.create_task(dead.call("POST", "/v1/messages", key=key, json=GLOBAL))
            await dead.until(lambda: len(dead.node.hold) == 1)
            [mid] = dead.node.hold._held
            dead.stop.set()
        assert (call.result()[0], slug(call.result()[1])) == (503, "accept-unconfirmed")
        return mid

    async def test_sent_when_a_mirror_has_it(self, settings, database, ledger, carriers):
        carrier = await carriers()
        async with running_node(settings) as node:
            await node.seed()
            await node.connect(carrier)
            mid = await self.orphan(settings, node.key)
            await node.until(lambda: len(node.node.hold) == 1)
            await asyncio.sleep(settings.accept_timeout_seconds + 0.5)
            assert carrier.exchange.counts["accepted"] == 0  # past its first deadline: it gets more time
            ledger.cosigning.add("mirror")
            message = await node.reaches(mid, "delivered")
            assert "adopted" in [event["kind"] for event in message["timeline"]]

    async def test_fails_when_no_mirror_comes(self, settings, database, ledger, carriers, monkeypatch):
        from controlplane.dispatch import hold

        monkeypatch.setattr(hold, "_ADOPTED_MS", 1_000)
        carrier = await carriers()
        async with running_node(settings) as node:
            await node.seed()
            await node.connect(carrier)
            mid = await self.orphan(settings, node.key)
            message = await node.reaches(mid, "failed")
            assert message["reason"] == "not_mirrored"
            assert carrier.exchange.counts["accepted"] == 0

    async def test_scheduled_long_ago_is_found_in_the_log(self, settings, database, ledger, carriers):
        """It was answered 202; at its time another node, long after the deadline, knows that it was."""
        ledger.cosigning.add("mirror")
        carrier = await carriers()
        async with running_node(settings) as node:
            await node.seed()
            await node.connect(carrier)
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6))
            async with running_node(settings.model_copy(update={"node": "dead"})) as dead:
                status, answer = await dead.call("POST", "/v1/messages", key=node.key, json=GLOBAL | {"send_at": at})
                assert status == 202
            ledger.cosigning.clear()
            message = await node.reaches(answer["id"], "delivered", seconds=20)
            assert "adopted" in [event["kind"] for event in message["timeline"]]


class TestAnotherNode:
    """A repetition that comes to another node than the first request."""

    async def test_hears_what_was_decided(self, ready, ledger, settings, tmp_path):
        headers = {"Idempotency-Key": "elsewhere"}
        async with running_node(
            settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        ) as second:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers))
                await ready.until(lambda: len(ready.node.hold) == 1)
                again = group.create_task(
                    second.call("POST", "/v1/messages", key=ready.key, json=GLOBAL, headers=headers)
                )
                await asyncio.sleep(0.3)
                assert not again.done()
                ledger.cosigning.add("mirror")
            assert (first.result()[0], again.result()[0]) == (202, 202)
            ledger.cosigning.clear()
            headers = {"Idempotency-Key": "refused"}
            assert (await ready.call("POST", "/v1/messages", json=GLOBAL, headers=headers))[0] == 503
            status, problem = await second.call("POST", "/v1/messages", key=ready.key, json=GLOBAL, headers=headers)
            assert (status, slug(problem)) == (409, "not-mirrored")
            assert isinstance(second.node, Node)
