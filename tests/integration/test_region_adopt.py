"""Two datacenters: each answers for the other's messages, and after the loss of one the other takes over what was open."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from typer.testing import CliRunner

from controlplane.api import regions
from controlplane.cli import app
from controlplane.dispatch import comeback
from controlplane.ledger.mirror import Mirror
from controlplane.ledger.note import Verifier
from controlplane.ledger.peer_client import PeerError
from controlplane.ledger.proof import verify_document
from controlplane.ledger.scrub import Scrub
from controlplane.store.copies import Copies
from controlplane.store.ledger_scrub import ScrubStore
from tests.simulators.datacenter import datacenters, mirrored


def slug(problem: dict) -> str:
    return problem["type"].rsplit("/", 1)[1]


def later(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


@pytest.fixture
async def both(settings, tmp_path, carriers):
    async with datacenters(settings, tmp_path, "fra", "iad") as found:
        for each in found.values():
            each.carrier = await carriers()
            each.node.dc = each
        yield found["fra"], found["iad"]


async def lost(iad, monkeypatch) -> None:
    await iad.lose()
    monkeypatch.setattr(regions, "_ALIVE_MS", 0)


async def adopted(node, dc: str = "iad", **body) -> dict:
    status, answer = await node.call("POST", f"/v1/regions/{dc}/adopt", json=body, key=node.admin_key)
    assert status == 202, answer
    async with asyncio.timeout(20):
        while answer["state"] == "running":
            await asyncio.sleep(0.05)
            _, answer = await node.call("GET", f"/v1/regions/{dc}/adoptions/{answer['id']}", key=node.admin_key)
    return answer


class TestMirroredMessages:
    """Any datacenter answers for any message; only its own changes it; what is erased there is erased here."""

    async def test_read_prove_erase(self, both):
        fra, iad = both
        await iad.node.connect(iad.carrier)
        mid = (await iad.node.send(body="far away"))["id"]
        await iad.node.reaches(mid, "delivered")
        await mirrored(iad, fra)
        message = await fra.node.get(mid)
        assert (message["status"], message["body"]) == ("delivered", "far away")
        assert {event["datacenter"] for event in message["timeline"]} == {"iad"}
        status, problem = await fra.node.call("DELETE", f"/v1/messages/{mid}/content")
        assert (status, slug(problem), problem["datacenter"]) == (409, "other-datacenter", "iad")
        status, problem = await fra.node.call("POST", f"/v1/messages/{mid}/feedback", json={"outcome": "converted"})
        assert (status, slug(problem)) == (409, "other-datacenter")

        async def proof(dc):
            async with asyncio.timeout(15):
                while True:
                    status, found = await dc.node.call("GET", f"/v1/messages/{mid}/proof?payload=true")
                    assert status == 200, found
                    if found["complete"]:
                        return found
                    await asyncio.sleep(0.1)

        before = await proof(fra)
        [origin] = before["checkpoints"]
        key = Verifier.parse((await iad.ledger.store.log(origin)).vkey)
        assert verify_document(before, [key]).events[0].payload[1]["body"] == "far away"
        assert verify_document(await proof(iad), [key]).complete
        assert (await iad.node.call("DELETE", f"/v1/messages/{mid}/content"))[0] == 200
        await mirrored(iad, fra)
        async with asyncio.timeout(10):
            while not (await fra.node.get(mid))["erased"] or (await fra.node.get(mid))["body"]:
                await asyncio.sleep(0.05)
        stored = await fra.database["events"].find({"mid": mid}).to_list()
        assert "far away" not in str(stored)
        assert not any("cids" in document for document in stored)
        after = await proof(fra)
        report = verify_document(after, [key])
        assert [event.kind for event in report.events] == ["accepted", "submitted", "delivered", "erased"]
        assert [event["opening"] is None for event in after["events"]] == [True, True, True, False]
        assert verify_document(before, [key]).complete

    async def test_one_key_in_both_while_apart(self, both, monkeypatch):
        """Each has its own story under the plain id, and the other's under a second name; read, listed and proven like any."""
        fra, iad = both
        iad_key = Verifier.parse((await iad.ledger.store.logs(own=True))[0].vkey)
        keep = Mirror._keep

        async def cut(_self, _edge, _chunk):
            raise PeerError("cut")

        monkeypatch.setattr(Mirror, "_keep", cut)
        mids = set()
        for each in both:
            await each.node.connect(each.carrier)
            headers = {"idempotency-key": "order-4711"}
            body = {"to": "+4915112340001", "body": f"from {each.settings.datacenter}"}
            status, answer = await each.node.call("POST", "/v1/messages", json=body, headers=headers)
            assert status == 202
            mids.add(answer["id"])
            await each.node.reaches(answer["id"], "delivered")
        [mid] = mids
        second = f"{mid}@iad"
        monkeypatch.setattr(Mirror, "_keep", keep)
        async with asyncio.timeout(20):
            while await fra.database["events"].count_documents({"mid": second}) < 3:
                await asyncio.sleep(0.05)

        node = fra.node
        assert (await node.get(mid))["body"] == "from fra"
        message = await node.get(second)
        assert (message["id"], message["status"], message["body"]) == (second, "delivered", "from iad")
        _, listed = await node.call("GET", "/v1/messages?status=delivered&limit=1")
        _, rest = await node.call("GET", f"/v1/messages?status=delivered&cursor={listed['next']}")
        assert {each["id"] for each in listed["data"] + rest["data"]} == {mid, second}
        async with asyncio.timeout(15):
            while not (proof := (await node.call("GET", f"/v1/messages/{second}/proof?payload=true"))[1])["complete"]:
                await asyncio.sleep(0.1)
        report = verify_document(proof, [iad_key])
        assert (report.id, report.events[0].payload[1]["body"]) == (mid, "from iad")
        assert [(await node.call("GET", f"/v1/messages/{each}"))[0] for each in (f"{mid}@", f"{mid}@lhr", "@iad")] == [
            404
        ] * 3

        changes = (("DELETE", "content", None), ("POST", "feedback", {"outcome": "converted"}))

        async def refused() -> None:
            for method, what, body in changes:
                status, problem = await node.call(method, f"/v1/messages/{second}/{what}", json=body)
                assert (status, slug(problem)) == (409, "other-datacenter")

        await refused()
        await lost(iad, monkeypatch)
        assert (await adopted(node, dry_run=False))["state"] == "done"
        await refused()
        assert (await node.call("DELETE", f"/v1/messages/{mid}/content"))[0] == 200
        assert [(await node.get(each))["body"] for each in (mid, second)] == [None, None]
        assert await fra.database["events"].count_documents({"mid": second, "dc": "fra"}) == 0
        store = ScrubStore(fra.database)
        scrub = Scrub(store, Copies(fra.database, store), fra.ledger.settings, fra.ledger.clock)
        assert await scrub.verify_all() == []

    async def test_cancel_belongs_to_the_owner(self, both):
        fra, iad = both
        await iad.node.connect(iad.carrier)
        mid = (await iad.node.send(send_at=later(3600)))["id"]
        await mirrored(iad, fra)
        status, problem = await fra.node.call("POST", f"/v1/messages/{mid}/cancel")
        assert (status, slug(problem)) == (409, "other-datacenter")
        peer = {"entries": 0}
        async with asyncio.timeout(10):  # the events are there before the copy's size says so
            while peer["entries"] <= 1:
                _, found = await fra.node.call("GET", "/v1/regions", key=fra.node.admin_key)
                own, peer = found["data"]
        assert (own["datacenter"], own["own"], peer["datacenter"], peer["reachable"]) == ("fra", True, "iad", True)
        assert peer["newest_entry_age_seconds"] < 60

    async def test_global_over_real_ledgers(self, both):
        fra, iad = both
        await iad.node.connect(iad.carrier)
        status, answer = await iad.node.call(
            "POST", "/v1/messages", json={"to": "+4915112340001", "body": "both", "durability": "global"}
        )
        assert status == 202, answer
        stored = await fra.database["events"].find_one({"_id": f"{answer['id']}:0"})
        assert stored["data"]["body"] == "both"
        await iad.node.reaches(answer["id"], "delivered")


class TestAdoption:
    """Unattempted messages are sent by policy, submitted ones wait for their receipts, nothing is done twice."""

    async def open_messages(self, iad) -> dict[str, str]:
        """One of each kind, open in iad."""
        await iad.node.connect(iad.carrier, "sim", response_seconds=1.0)
        found = {
            "submitted": (await iad.node.send(to="+4915112340005"))["id"],
            "unknown": (await iad.node.send(to="+4915112340008", unknown_policy="hold"))["id"],
            "scheduled": (await iad.node.send(send_at=later(3600)))["id"],
            "soon": (await iad.node.send(send_at=later(6)))["id"],
            "delivered": (await iad.node.send())["id"],
        }
        for name in ("submitted", "unknown", "delivered"):
            await iad.node.reaches(found[name], name)
        outbox = iad.node.node.binds.outboxes["sim"]
        outbox.push = lambda _message, _route, _decision: None  # nothing is sent any more
        found["otp"] = await self.send(iad, "otp")
        found["marketing"] = await self.send(iad, "marketing")
        return found

    async def send(self, dc, cls: str) -> str:
        return (await dc.node.send(**{"class": cls}))["id"]

    async def test_loss_of_a_datacenter(self, both, monkeypatch):
        fra, iad = both
        await fra.node.connect(fra.carrier, "sim")
        mids = await self.open_messages(iad)
        await mirrored(iad, fra)
        status, problem = await fra.node.call(
            "POST", "/v1/regions/iad/adopt", json={"dry_run": False}, key=fra.node.admin_key
        )
        assert (status, slug(problem)) == (409, "region-alive")
        await lost(iad, monkeypatch)
        dry = await adopted(fra.node)
        assert (dry["state"], dry["adopted"], dry["damaged"]) == ("done", 0, 0)
        counts = dry["counts"]
        assert (counts["submitted"], counts["unknown"], counts["hold"]) == (1, 1, 1)
        assert counts["scheduled"] + counts["send"] == 3  # the time of one comes soon
        assert await fra.database["events"].count_documents({"kind": "adopted"}) == 0

        done = await adopted(fra.node, dry_run=False)
        assert (done["state"], done["adopted"], done["counts"].keys()) == ("done", 6, counts.keys())
        node = fra.node
        message = await node.reaches(mids["otp"], "delivered")
        assert [event["kind"] for event in message["timeline"]][:2] == ["accepted", "adopted"]
        assert "after the loss of iad" in message["timeline"][1]["text"]
        message = await node.get(mids["marketing"])
        assert (message["status"], message["reason"]) == ("unknown", "region_lost")
        assert (await node.get(mids["submitted"]))["status"] == "submitted"
        assert (await node.get(mids["unknown"]))["status"] == "unknown"
        assert (await node.get(mids["scheduled"]))["status"] == "scheduled"
        await node.reaches(mids["soon"], "delivered")
        assert fra.carrier.exchange.counts["accepted"] == 2

        again = await adopted(node, dry_run=False)
        assert (again["adopted"], again["counts"]) == (0, {})
        status, _ = await node.call("POST", f"/v1/messages/{mids['scheduled']}/cancel")
        assert status == 200
        status, message = await node.call("DELETE", f"/v1/messages/{mids['delivered']}/content")
        assert (status, message["erased"]) == (200, True)  # what it left is fra's to erase

    async def test_hold_sends_nothing(self, both, monkeypatch):
        fra, iad = both
        await fra.node.connect(fra.carrier, "sim")
        mids = await self.open_messages(iad)
        await mirrored(iad, fra)
        await lost(iad, monkeypatch)
        environment = {"HELIOGRAPH_URL": fra.node.base_url, "HELIOGRAPH_API_KEY": fra.node.admin_key}
        arguments = ["region", "adopt", "iad", "--apply", "--hold", "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
        assert result.exit_code == 0, result.output
        found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
        assert (found["adopted"], "send" in found["counts"]) == (6, False)
        for name in ("otp", "marketing", "unknown"):
            assert (await fra.node.get(mids[name]))["status"] == "unknown"
        await asyncio.sleep(1.0)
        assert fra.carrier.exchange.counts["accepted"] <= 1  # the one whose time came

    async def test_comes_back(self, both, monkeypatch):
        """Nothing that was open is sent again before it is known what the other took over; what the other never heard of is sent here."""
        fra, iad = both
        monkeypatch.setattr(comeback, "_ADOPTABLE_MS", 0)
        await fra.node.connect(fra.carrier, "sim")
        await iad.node.connect(iad.carrier, "sim")
        iad.node.node.binds.outboxes["sim"].push = lambda _message, _route, _decision: None  # nothing is sent any more
        theirs = [await self.send(iad, "otp") for _ in range(5)]
        await mirrored(iad, fra)
        keep = Mirror._keep

        async def cut(_self, _edge, _chunk):
            raise PeerError("cut")

        monkeypatch.setattr(Mirror, "_keep", cut)
        ours = await self.send(iad, "otp")
        await lost(iad, monkeypatch)
        done = await adopted(fra.node, dry_run=False)
        assert (done["adopted"], done["counts"]) == (5, {"send": 5})
        for mid in theirs:
            await fra.node.reaches(mid, "delivered")

        await iad.start_node()
        assert not iad.node.node.lease.undoubted
        fresh = (await iad.node.send())["id"]  # new messages are none of this
        await iad.node.reaches(fresh, "delivered")
        status, ready = await iad.node.call("GET", "/readyz")
        assert (status, ready["ready"]) == (200, True)
        assert ready["checks"]["former_messages"].startswith("fra has not said whether it took over what was open here")
        await iad.stop_node()
        await iad.start_node()  # one that waited is no proof that the datacenter was there
        assert not iad.node.node.lease.undoubted
        await iad.start_ledger()
        async with asyncio.timeout(20):
            while "not mirrored" not in (await iad.node.call("GET", "/readyz"))[1]["checks"]["former_messages"]:
                await asyncio.sleep(0.05)
        assert iad.carrier.exchange.counts["accepted"] == 1
        monkeypatch.setattr(Mirror, "_keep", keep)
        await iad.node.reaches(ours, "delivered")
        assert (await iad.node.call("GET", "/readyz"))[1]["checks"]["former_messages"] == "ok"
        for mid in theirs:
            story = await iad.node.reaches(mid, "delivered")
            assert [event["datacenter"] for event in story["timeline"]][:2] == ["iad", "fra"]
        assert (iad.carrier.exchange.counts["accepted"], fra.carrier.exchange.counts["accepted"]) == (2, 5)
        assert await iad.database["comebacks"].count_documents({"_id": iad.node.node.lease.id}) == 0

        await iad.stop_node()
        monkeypatch.setattr(comeback, "_ADOPTABLE_MS", 60_000)
        await iad.start_node()  # a restart
        assert iad.node.node.lease.undoubted

    async def test_comes_back_without_peers(self, both, monkeypatch):
        """The operator says that nobody took anything over."""
        fra, iad = both
        monkeypatch.setattr(comeback, "_ADOPTABLE_MS", 0)
        await iad.node.connect(iad.carrier, "sim")
        iad.node.node.binds.outboxes["sim"].push = lambda _message, _route, _decision: None
        mid = await self.send(iad, "otp")
        await fra.lose()
        await iad.lose()
        await iad.start_node()
        async with asyncio.timeout(10):
            while "fra" not in iad.node.node.comeback.problem:
                await asyncio.sleep(0.05)
        assert (await iad.node.get(mid))["status"] != "delivered"
        await iad.stop_node()
        await iad.start_node(dispatch_without_peers=True)
        await iad.node.reaches(mid, "delivered")

    async def test_refusals(self, both):
        fra, _ = both
        key = {"key": fra.node.admin_key}
        assert (await fra.node.call("POST", "/v1/regions/iad/adopt", json={}))[0] == 403
        assert (await fra.node.call("POST", "/v1/regions/nowhere/adopt", json={}, **key))[0] == 404
        status, problem = await fra.node.call("POST", "/v1/regions/fra/adopt", json={}, **key)
        assert (status, slug(problem)) == (409, "own-datacenter")
        assert (await fra.node.call("GET", "/v1/regions/iad/adoptions/none", **key))[0] == 404
