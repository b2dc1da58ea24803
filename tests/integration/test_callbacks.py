"""Callbacks: signed, in order, retried, recovered, replayed."""

from __future__ import annotations

import asyncio
import json

import pytest
from standardwebhooks.webhooks import Webhook

from controlplane.callbacks import deliver
from tests.simulators.receiver import receiver


@pytest.fixture
async def hook():
    async with receiver() as found:
        yield found


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(deliver, "_pause", lambda _attempt: 300)


@pytest.fixture
async def ready(node, carriers):
    await node.connect(await carriers())
    return node


def kinds(hook) -> list[str]:
    return [json.loads(body)["type"] for _, body in hook.requests]


async def log_of(node, mid: str) -> list[dict]:
    _, page = await node.call("GET", f"/v1/callbacks/deliveries?message={mid}")
    return page["data"][::-1]


class TestCallbacks:
    """At least once, in order per message, with a signature that a stranger can check."""

    async def test_signed_by_standard_webhooks_and_in_order(self, ready, hook):
        mid = (await ready.send(callback_url=hook.url, reference="r-1"))["id"]
        await ready.until(lambda: len(hook.requests) == 2)
        assert kinds(hook) == ["message.submitted", "message.delivered"]
        (secret,) = ready.node.catalog.snapshot.tenants["sample"].callback_secrets
        for headers, body in hook.requests:
            data = Webhook(secret).verify(body, headers)["data"]
            assert (data["id"], data["reference"], data["to"]) == (mid, "r-1", "+4915112340001")
        sequences = [json.loads(body)["data"]["sequence"] for _, body in hook.requests]
        assert sequences == sorted(sequences)
        assert len({headers["webhook-id"] for headers, _ in hook.requests}) == 2
        assert [line["outcome"] for line in await log_of(ready, mid)] == ["delivered", "delivered"]

    async def test_both_secrets_sign_after_a_rotation(self, ready, hook):
        old = ready.node.catalog.snapshot.tenants["sample"].callback_secrets[0]
        status, answer = await ready.call("POST", "/v1/callbacks/rotate-secret")
        assert status == 200
        await ready.send(callback_url=hook.url)
        await ready.until(lambda: hook.requests)
        headers, body = hook.requests[0]
        Webhook(old).verify(body, headers)
        Webhook(answer["callback_secret"]).verify(body, headers)

    async def test_retried_in_order_until_it_is_taken(self, ready, hook, quick):
        hook.script = [(500, {}), (302, {"location": "http://127.0.0.1/"}), (503, {"retry-after": "1"})]
        mid = (await ready.send(callback_url=hook.url))["id"]
        async with asyncio.timeout(15):
            while len(hook.requests) < 5:
                await asyncio.sleep(0.05)
        assert kinds(hook) == ["message.submitted"] * 4 + ["message.delivered"]
        lines = await log_of(ready, mid)
        assert [line["outcome"] for line in lines] == ["retry", "retry", "retry", "delivered", "delivered"]
        assert len({headers["webhook-id"] for headers, _ in hook.requests}) == 2

    async def test_410_disables_the_endpoint(self, ready, hook):
        status, endpoint = await ready.call("POST", "/v1/callbacks", json={"url": hook.url, "events": ["delivered"]})
        assert status == 201
        hook.script = [(410, {})]
        await ready.send()
        await ready.until(lambda: not ready.node.catalog.snapshot.endpoints[endpoint["id"]].enabled)
        _, view = await ready.call("GET", f"/v1/callbacks/{endpoint['id']}")
        assert "410" in view["disabled_reason"]
        assert kinds(hook) == ["message.delivered"]

    async def test_replay_has_the_same_id(self, ready, hook):
        mid = (await ready.send(callback_url=hook.url))["id"]
        await ready.until(lambda: len(hook.requests) == 2)
        status, answer = await ready.call("POST", "/v1/callbacks/replay", json={"message": mid})
        assert (status, answer["queued"]) == (202, 2)
        await ready.until(lambda: len(hook.requests) == 4)
        ids = [headers["webhook-id"] for headers, _ in hook.requests]
        assert ids[:2] == ids[2:]
        status, _ = await ready.call("POST", "/v1/callbacks/replay", json={"message": mid}, key=ready.other_key)
        assert status == 404

    async def test_what_a_dead_node_had_not_sent_is_sent(self, ready, hook):
        mid = (await ready.send(callback_url=hook.url))["id"]
        await ready.until(lambda: len(hook.requests) == 2)
        message, events = await ready.node.book.load(mid)
        await ready.node.deliverer.recover([(message, events[-1])])
        await asyncio.sleep(1)
        assert len(hook.requests) == 2, "it is in the log: not sent again"
        await ready.node.database["callback_log"].delete_many({"mid": mid})
        await ready.node.deliverer.recover([(message, events[-1])])
        await ready.until(lambda: len(hook.requests) == 3)
        assert kinds(hook)[-1] == "message.delivered"

    async def test_one_slow_receiver_does_not_hold_the_checkpoint(self, ready, hook):
        hook.script = [(500, {})] * 10
        await ready.send(callback_url=hook.url)
        await ready.until(lambda: hook.requests)
        committed = ready.node.committer.settled_q
        await ready.until(lambda: ready.node.deliverer.settled_q(ready.node.committer.settled_q) >= committed)
        assert await ready.node.callback_log.waiting() == 1
