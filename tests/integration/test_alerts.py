"""Alerts end to end: a real carrier goes away, the alert fires, is taken on, silenced, and ends; one evaluation however many nodes."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.store.alerts import Alerts
from tests.simulators.node import running_node


async def _alerts(node, query=""):
    status, answer = await node.call("GET", f"/v1/alerts{query}", key=node.admin_key)
    assert status == 200, answer
    return answer


async def _until(node, identity, status, seconds=40.0):
    async with asyncio.timeout(seconds):
        while True:
            found = {alert["id"]: alert for alert in (await _alerts(node))["data"]}
            if identity in found and found[identity]["status"] == status:
                return found[identity]
            await asyncio.sleep(0.2)


@pytest.fixture
async def watching(node, monkeypatch):
    """Evaluates as fast as it can, so that a test need not wait for the next round."""
    node.node.watch.evaluator._round_seconds = 1.0
    monkeypatch.setattr("controlplane.domain.alerts._CLEAR_MS", 2_000)
    return node


async def _act(node, identity, verb, body=None, method="POST"):
    return await node.call(method, f"/v1/alerts/{identity}/{verb}", key=node.admin_key, json=body)


class TestLife:
    """fired → acknowledged → silenced → resolved, each with who and when."""

    async def test_a_connector_goes_down_and_comes_back(self, watching, carriers):
        node = watching
        carrier = await carriers()
        await node.connect(carrier, "sim")
        carrier.exchange.change(bind_status=0x0D)
        for session in list(carrier.exchange.sessions):
            session.cut()
        alert = await _until(node, "connector-down:sim", "firing")
        assert (alert["severity"], alert["subject"], alert["acknowledged"]) == ("critical", "sim", None)
        assert "No bind of connector sim" in alert["what"]
        assert "POST /v1/connectors/test" in alert["next_step"]

        status, taken = await _act(node, alert["id"], "acknowledge", {"note": "called the carrier"})
        assert (status, taken["status"], taken["acknowledged"]["note"]) == (200, "acknowledged", "called the carrier")
        status, quiet = await _act(node, alert["id"], "silence", {"reason": "planned work", "minutes": 5})
        assert (status, quiet["status"], quiet["silenced"]["reason"]) == (200, "silenced", "planned work")
        status, loud = await _act(node, alert["id"], "silence", method="DELETE")
        assert (status, loud["status"], loud["silenced"]) == (200, "acknowledged", None)

        carrier.exchange.change(bind_status=0)
        for verb in ("drain", "enable"):  # binds at once, rather than after its pause
            await node.call("POST", f"/v1/connectors/sim/{verb}", key=node.admin_key)
        ended = await _until(node, alert["id"], "resolved")
        assert (ended["acknowledged"], ended["resolved_at"] > ended["fired_at"]) == (None, True)
        status, problem = await _act(node, alert["id"], "acknowledge", {})
        assert (status, problem["type"].rpartition("/")[2]) == (409, "not-firing")
        status, history = await node.call("GET", "/v1/alerts/history?alert=connector-down:sim", key=node.admin_key)
        assert [line["what"] for line in history["data"]] == [
            "resolved",
            "unsilenced",
            "silenced",
            "acknowledged",
            "fired",
        ]
        assert history["data"][3]["by"] == node.node.catalog.snapshot.keys[node.node.seal.digest_key(node.admin_key)].id
        answer = await _alerts(node, "?status=resolved")
        assert (answer["counts"]["resolved"] >= 1, answer["evaluated_by"]) == (True, "node-1")

    async def test_a_ledger_that_does_not_run(self, watching):
        """GET /v1/ledger's alarms are alerts with the same words."""
        alert = await _until(watching, "ledger:no-leader", "firing")
        assert alert["what"] == "No ledger leads in this datacenter."
        status, found = await watching.call("GET", "/v1/alerts/ledger:no-leader", key=watching.admin_key)
        assert (status, found["id"]) == (200, alert["id"])

    async def test_what_is_not_there(self, node):
        for call in (
            ("GET", "/v1/alerts/none:x"),
            ("POST", "/v1/alerts/none:x/acknowledge"),
            ("DELETE", "/v1/alerts/none:x/silence"),
        ):
            body = {"json": {}} if call[0] == "POST" else {}
            assert (await node.call(*call, key=node.admin_key, **body))[0] == 404
        assert (await _act(node, "none:x", "silence", {"minutes": 5}))[0] == 422


class TestRounds:
    """Ten seconds have one evaluation, however many nodes there are."""

    async def test_one_of_many(self, database):
        stores = [Alerts(database) for _ in range(8)]
        for _ in range(3):
            won = await asyncio.gather(*(store.claim(f"n{i}", 0.4) for i, store in enumerate(stores)))
            assert sum(won) == 1
            assert (await stores[0].last_round())[1] == f"n{won.index(True)}"
            await asyncio.sleep(0.5)

    async def test_another_node_goes_on(self, watching, settings, tmp_path):
        other = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        async with running_node(other) as second:
            second.admin_key = watching.admin_key
            second.node.watch.evaluator._round_seconds = 1.0
            watching.node.watch.evaluator._round_seconds = 1e9
            async with asyncio.timeout(20):
                while (await _alerts(second))["evaluated_by"] != "node-2":
                    await asyncio.sleep(0.1)
