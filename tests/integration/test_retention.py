"""Retention: what final messages say about people goes when its time is over; the proofs stay. Any node does it, and nothing happens twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.ledger.proof import verify_document
from controlplane.smpp.pdu import DeliverSm
from controlplane.store import erasure
from controlplane.store.erasure import RETENTION, erased
from tests.simulators.ledger import running_ledger, with_peer
from tests.simulators.node import running_node


@pytest.fixture
def settings(settings):
    return with_peer(settings)


@pytest.fixture
async def ready(node, carriers, monkeypatch):
    monkeypatch.setattr(erasure, "_PAUSE_SECONDS", 0.01)
    node.carrier = await carriers()
    await node.connect(node.carrier, tenant="sample")
    return node


async def keep(node, days: int | None, tenant: str = "sample") -> None:
    record = node.node.catalog.snapshot.tenants[tenant]
    await node.node.catalog.put(replace(record, retention_days=days))


async def turn(node, *, again: bool = True) -> None:
    """One turn of its retention; `again` although a node has just been at it."""
    if again:
        await node.node.database[RETENTION].update_many({}, {"$set": {"until": 0}})
    await node.node.retention.turn()


async def contents(node, *mids: str) -> list[bool]:
    """Whether each message's text is still there."""
    return [(await node.get(mid))["body"] is not None for mid in mids]


class TestErasure:
    """Final messages that are old enough, and no others."""

    async def test_final_ones_only(self, ready):
        done = [(await ready.send(body=f"{n}"))["id"] for n in range(5)]
        waiting = (await ready.send(to="+4915112340005"))["id"]
        for mid in done:
            await ready.reaches(mid, "delivered")
        await ready.reaches(waiting, "submitted")
        await keep(ready, 1)
        await turn(ready)
        assert await contents(ready, *done, waiting) == [True] * 6
        await keep(ready, 0)
        await turn(ready)
        assert await contents(ready, *done, waiting) == [False] * 5 + [True]
        message = await ready.get(done[0])
        assert (message["status"], message["erased"], message["to"]) == ("delivered", True, None)
        assert message["timeline"][-1]["reason"] == "retention"
        assert "retention" in message["timeline"][-1]["text"]
        assert "15112340001" not in str(await ready.node.database["events"].find({"mid": done[0]}).to_list())

        await ready.node.database["events"].update_many({"mid": waiting, "k": 0}, {"$set": {"data.expires_at": 1}})
        async with running_node(
            ready.node.settings.model_copy(update={"node": "n2", "receipt_grace_seconds": 1})
        ) as other:
            ready.stop.set()
            other.key = ready.key
            await other.reaches(waiting, "expired", seconds=20)
            await turn(other)
            assert await contents(other, waiting) == [False]

    async def test_messages_from_phones(self, ready):
        session = next(session for session in ready.carrier.exchange.sessions if session.bound and session.receives)
        session.deliver(
            DeliverSm(source_addr="4915112340001", dest_addr="12345", short_message=b"hello"), lambda _status: None
        )
        async with asyncio.timeout(10):
            while not (page := await ready.call("GET", "/v1/messages?status=received"))[1]["data"]:
                await asyncio.sleep(0.05)
        mid = page[1]["data"][0]["id"]
        await keep(ready, 0)
        await turn(ready)
        assert await contents(ready, mid) == [False]

    async def test_proofs_stay(self, ready, settings, database):
        async with running_ledger(settings, database, loop=False) as ledger:
            mid = (await ready.send(body="to be forgotten"))["id"]
            await ready.reaches(mid, "delivered")
            await ledger.settle(database)
            await asyncio.sleep(0.3)
            _, before = await ready.call("GET", f"/v1/messages/{mid}/proof?payload=true")
            await keep(ready, 0)
            await turn(ready)
            await ledger.settle(database)
            await asyncio.sleep(0.3)
            _, after = await ready.call("GET", f"/v1/messages/{mid}/proof?payload=true")
            assert verify_document(before, ledger.vkeys).complete
            assert verify_document(after, ledger.vkeys).complete
            assert [event["opening"] is None for event in after["events"]] == [True, True, True, False]
            assert "to be forgotten" not in str(after)

    async def test_others_are_left_alone(self, ready):
        mine, theirs, elsewhere = [(await ready.send())["id"] for _ in range(3)]
        for mid in (mine, theirs, elsewhere):
            await ready.reaches(mid, "delivered")
        await ready.node.database["events"].update_many({"mid": theirs}, {"$set": {"t": "other"}})
        await ready.node.database["events"].update_many({"mid": elsewhere}, {"$set": {"dc": "iad"}})
        await keep(ready, 0)
        await turn(ready)
        events = {mid: await ready.node.reader.load(mid) for mid in (mine, theirs, elsewhere)}
        assert [events[mid][0].data is None for mid in events] == [True, False, False]


class TestAgainAndAgain:
    """Cut short anywhere, done by several: the outcome is the same, and nothing is written twice."""

    async def test_several_chunks_and_two_nodes(self, ready, settings, tmp_path, monkeypatch):
        monkeypatch.setattr(erasure, "_CHUNK", 7)
        mids = [(await ready.send(body=f"{n}"))["id"] for n in range(40)]
        for mid in mids:
            await ready.reaches(mid, "delivered")
        await keep(ready, 0)
        async with running_node(settings.model_copy(update={"node": "n2", "state_dir": tmp_path / "2"})) as second:
            async with asyncio.timeout(10):
                while second.node.catalog.snapshot.tenants["sample"].retention_days != 0:
                    await asyncio.sleep(0.05)
            await asyncio.gather(*(turn(node, again=False) for node in (ready, second, ready)))
        assert await contents(ready, *mids) == [False] * 40
        kinds = [d["kind"] for d in await ready.node.database["events"].find({}).to_list()]
        assert kinds.count("erased") == 40
        assert kinds.count("void") == 0
        await turn(ready)
        assert await ready.node.database["events"].count_documents({"kind": "erased"}) == 40

    async def test_cut_short_between_event_and_content(self, ready):
        mid = (await ready.send())["id"]
        await ready.reaches(mid, "delivered")
        message, _ = await ready.node.book.load(mid)
        await ready.node.book.record(mid, erased(message, "retention"))
        stored = await ready.node.database["events"].find({"mid": mid, "data.to": {"$exists": True}}).to_list()
        assert stored
        await keep(ready, 0)
        await turn(ready)
        assert not await ready.node.database["events"].find({"mid": mid, "data.to": {"$exists": True}}).to_list()
        assert await ready.node.database["events"].count_documents({"mid": mid, "kind": "erased"}) == 1

    async def test_a_late_receipt_says_nothing_again(self, ready):
        mid = (await ready.send())["id"]
        await ready.reaches(mid, "delivered")
        [cid] = [c for event in await ready.node.reader.load(mid) for c in event.cids]
        await keep(ready, 0)
        await turn(ready)
        assert await ready.node.reader.by_carrier_ids([cid]) == []


class TestSetting:
    """An operator sets it for each tenant."""

    async def test_over_the_api(self, ready):
        admin = {"key": ready.admin_key}
        _, view = await ready.call("GET", "/v1/tenants/other", **admin)
        assert view["retention_days"] is None
        for days, expected in ((0, 422), (-1, 422), (30, 200), (None, 200)):
            body = {"name": "Other", "retention_days": days}
            status, view = await ready.call("PUT", "/v1/tenants/other", json=body, **admin)
            assert status == expected
            if status == 200:
                assert view["retention_days"] == days
