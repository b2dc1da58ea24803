"""Any node answers for all nodes of its datacenter: states, connectors, topology; and tries a connector's settings. Real HTTP, MongoDB and SMPP."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as tried

from tests.integration.test_api_schemathesis import CHECKS, hypothesis_given
from tests.simulators.network import free_port
from tests.simulators.node import running_node


async def _nodes(node):
    status, answer = await node.call("GET", "/v1/nodes", key=node.admin_key)
    assert status == 200, answer
    return {found["node"]: found for found in answer["data"]}


async def _eventually(read, ready, seconds=10.0):
    """What `read` gives once `ready` holds of it."""
    async with asyncio.timeout(seconds):
        while not ready(found := await read()):
            await asyncio.sleep(0.1)
    return found


@pytest.fixture
async def second(node, settings, tmp_path):
    other = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
    async with running_node(other) as running:
        yield running


class TestNodes:
    """Nodes share nothing: each is seen through any other, and one that is gone is told from one that has stopped."""

    async def test_each_sees_all_with_their_binds(self, node, second, carriers):
        await node.connect(await carriers(), "sim", binds=2)
        both = await _eventually(
            lambda: _nodes(node),
            lambda found: len(found) == 2 and all(one["connectors"] for one in found.values()),
        )
        other = both["node-2"]
        assert (other["status"], other["this"], other["ready"], both["node-1"]["this"]) == (
            "running",
            False,
            True,
            True,
        )
        assert [bind["name"] for bind in other["connectors"][0]["binds"]] == ["sim/1", "sim/2"]
        assert other["gauges"]["lease_valid"] == 1.0

    async def test_gone_and_stopped(self, node, settings, tmp_path):
        status, _ = await node.call("DELETE", "/v1/nodes/node-1", key=node.admin_key)
        assert status == 409
        for name in ("clean", "killed"):
            other = settings.model_copy(update={"node": name, "state_dir": tmp_path / name})
            async with running_node(other) as running:
                await _eventually(lambda: _nodes(node), lambda found, name=name: name in found)
                if name == "killed":  # its last word stays as it is
                    running.node.watch.stop = _nothing
        found = await _eventually(lambda: _nodes(node), lambda found: found["killed"]["status"] == "gone")
        assert found["clean"]["status"] == "stopped"
        assert (await node.call("DELETE", "/v1/nodes/killed", key=node.admin_key))[0] == 204
        assert "killed" not in await _nodes(node)
        assert (await node.call("DELETE", "/v1/nodes/killed", key=node.admin_key))[0] == 404

    async def test_not_for_one_tenants_key(self, node):
        for path in ("/v1/nodes", "/v1/topology", "/v1/alerts"):
            status, problem = await node.call("GET", path)
            assert (status, problem["title"]) == (403, "Not for one tenant"), path


async def _nothing():
    return None


class TestConnectorState:
    """What is shown of a connector is what all nodes have done with it."""

    async def test_joined_over_nodes(self, node, second, carriers):
        carrier = await carriers(response_ms="5")
        await node.connect(carrier, "sim")
        await second.until(lambda: "sim" in second.node.binds.live)
        for running in (node, second):
            running.key = node.key
            for _ in range(10):
                await running.reaches((await running.send())["id"], "delivered")

        async def read():
            return (await node.call("GET", "/v1/connectors/sim", key=node.admin_key))[1]["state"]

        state = await _eventually(read, lambda state: state["submitted"] == 20)
        assert (state["nodes"], state["live_nodes"], state["bound"], state["queued"]) == (2, 2, 2, 0)
        assert (state["success"], state["refused"], state["unanswered"]) == (1.0, {}, 0)
        assert state["throughput"] > 0
        assert 0.005 <= state["response_seconds"]["p50"] <= 0.1
        assert 0.01 <= state["receipt_seconds"]["p95"] <= 2.0
        status, listed = await node.call("GET", "/v1/connectors", key=node.admin_key)
        assert (status, listed["data"][0]["state"]["submitted"]) == (200, 20)

    async def test_refusals_are_counted_by_status(self, node, carriers):
        await node.connect(await carriers(), "sim")
        await node.reaches((await node.send(to="+4915112340004"))["id"], "failed")
        state = (await node.call("GET", "/v1/connectors/sim", key=node.admin_key))[1]["state"]
        assert (state["refused"], state["recent"]["refused"], state["success"]) == ({"ESME_RINVDSTADR": 1}, 1, 0.0)

    async def test_one_tenants_key_sees_whether_it_works_and_no_more(self, node, carriers):
        await node.connect(await carriers(), "sim", tenant="other", tls_server_name="smsc.example")
        status, one = await node.call("GET", "/v1/connectors/sim")
        assert (status, one["state"]) == (200, {"name": "sim", "live": True, "bound": 1})
        assert (await node.call("GET", "/v1/connectors"))[1]["data"] == [one]
        status, whole = await node.call("GET", "/v1/connectors/sim", key=node.admin_key)
        assert whole.keys() - one.keys() == {"tenant", "host", "port", "system_id", "tls_ca", "tls_server_name"}
        assert {key: one[key] for key in one if key != "state"}.items() <= whole.items()
        assert len(whole["state"]["binds"]) == 1
        await node.call("POST", "/v1/connectors/sim/drain", key=node.admin_key)
        await node.until(lambda: "sim" not in node.node.binds.live)
        assert (await node.call("GET", "/v1/connectors/sim"))[1]["state"] is None

    async def test_drain_and_enable(self, node, carriers):
        await node.connect(await carriers(), "sim")
        status, view = await node.call("POST", "/v1/connectors/sim/drain", key=node.admin_key)
        assert (status, view["enabled"]) == (200, False)
        await node.until(lambda: "sim" not in node.node.binds.live)
        assert (await node.call("GET", "/v1/connectors/sim", key=node.admin_key))[1]["state"] is None
        await node.call("POST", "/v1/connectors/sim/enable", key=node.admin_key)
        await node.until(lambda: "sim" in node.node.binds.live)
        assert (await node.call("POST", "/v1/connectors/none/drain", key=node.admin_key))[0] == 404


def _settings(carrier, **fields):
    return {"host": "127.0.0.1", "port": carrier.port, "system_id": "heliograph", "password": "secret", **fields}


class TestTrial:
    """A trial says in words at which step it ended, sends nothing, and takes no working bind its place."""

    async def _try(self, node, **body):
        status, answer = await node.call("POST", "/v1/connectors/test", key=node.admin_key, json=body)
        assert status == 200, answer
        return answer, [(step["step"], step["ok"]) for step in answer["steps"]]

    async def test_a_good_account(self, node, carriers):
        answer, steps = await self._try(node, settings=_settings(await carriers()))
        assert [step for step, _ in steps] == ["dns", "tcp", "bind", "enquire_link", "unbind"]
        assert (answer["ok"], answer["result"]) == (True, "The carrier takes this account.")
        assert "secret" not in str(answer)

    async def test_a_stored_one_by_name(self, node, carriers):
        carrier = await carriers()
        await node.connect(carrier, "sim")
        assert (await self._try(node, name="sim"))[0]["ok"]
        kept = _settings(carrier)
        del kept["password"]
        assert (await self._try(node, name="sim", settings=kept))[0]["ok"]
        stranger = kept | {"port": free_port()}  # the stored password is nobody else's
        status, problem = await node.call(
            "POST", "/v1/connectors/test", key=node.admin_key, json={"name": "sim", "settings": stranger}
        )
        assert (status, problem["errors"][0]["pointer"]) == (422, "/settings/password")
        assert (await node.call("POST", "/v1/connectors/test", key=node.admin_key, json={"name": "none"}))[0] == 404
        assert (await node.call("POST", "/v1/connectors/test", key=node.admin_key, json={}))[0] == 422
        assert (await node.call("POST", "/v1/connectors/test", json={"name": "sim"}))[0] == 403

    async def test_a_refused_bind(self, node, carriers):
        answer, steps = await self._try(node, settings=_settings(await carriers(bind_status=0x0E)))
        assert steps[-1] == ("bind", False)
        assert "ESME_RINVPASWD: The carrier says that the password is wrong." in answer["result"]
        assert answer["next_step"].startswith("Correct the password")

    async def test_nobody_listens(self, node, carriers):
        settings = _settings(await carriers()) | {"port": free_port()}
        answer, steps = await self._try(node, settings=settings)
        assert steps[-1] == ("tcp", False)
        assert "No connection to 127.0.0.1" in answer["result"]

    async def test_a_name_without_address(self, node, carriers):
        answer, steps = await self._try(node, settings=_settings(await carriers(), host="carrier.invalid"))
        assert steps == [("dns", False)]
        assert answer["result"].startswith("carrier.invalid has no address")

    async def test_a_peer_that_is_silent(self, node, carriers):
        answer, steps = await self._try(node, settings=_settings(await carriers(silence=True)))
        assert steps[-1] == ("bind", False)
        assert answer["milliseconds"] <= 10_000
        assert "No answer" in answer["result"]

    async def test_a_certificate_of_a_stranger(self, node, carriers, tmp_path):
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=carrier.test",
        ]
        command += [
            "-addext",
            "subjectAltName=DNS:carrier.test",
            "-keyout",
            str(tmp_path / "k"),
            "-out",
            str(tmp_path / "c"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        carrier = await carriers(tls_certificate=tmp_path / "c", tls_key=tmp_path / "k")
        answer, steps = await self._try(node, settings=_settings(carrier, tls=True))
        assert steps[-1] == ("tls", False)
        assert "self-signed certificate" in answer["result"]
        good = _settings(carrier, tls=True, tls_ca=(tmp_path / "c").read_text(), tls_server_name="carrier.test")
        assert (await self._try(node, settings=good))[0]["ok"]
        answer, steps = await self._try(node, settings=good | {"tls_server_name": "other.test"})
        assert "not good for other.test" in answer["result"]
        plain = await carriers()
        answer, steps = await self._try(node, settings=_settings(plain, tls=True))
        assert steps[-1] == ("tls", False)

    async def test_a_full_account_is_left_alone(self, node, carriers):
        carrier = await carriers(max_binds=1)
        await node.connect(carrier, "sim", max_binds=1)
        _, steps = await self._try(node, name="sim")
        assert steps == [("slot", False)]
        assert "sim" in node.node.binds.live

    async def test_a_receipt_that_comes_meanwhile_is_not_lost(self, node, carriers):
        """The trial's bind refuses it for now; the carrier gives it to the real one."""
        carrier = await carriers(receipt_ms="700-900", receipt_other_bind=True)
        await node.connect(carrier, "sim")
        mids = [(await node.send())["id"] for _ in range(5)]
        for _ in range(5):
            await self._try(node, name="sim")
        for mid in mids:
            await node.reaches(mid, "delivered")


class TestTopology:
    """What MongoDB is made of, as far as this node may see."""

    async def test_a_replica_set(self, node, mongod):
        status, found = await node.call("GET", "/v1/topology", key=node.admin_key)
        assert status == 200, found
        assert (found["kind"], found["complete"], found["not_seen"]) == ("replica_set", True, [])
        (one,) = found["sets"]
        (member,) = one["members"]
        assert (one["set"], member["host"], member["role"]) == ("rs0", f"127.0.0.1:{mongod.port}", "primary")
        assert (member["state"], member["healthy"], member["lag_seconds"]) == ("PRIMARY", True, 0.0)


class TestConformance:
    """With a key that may see everything, too, the API is what its document says."""

    async def test_deployment_statistics_alerts(self, node, carriers):
        await node.connect(await carriers())
        await node.reaches((await node.send())["id"], "delivered")
        await node.node.watch.recorder.flush()
        await asyncio.to_thread(self.run_all, node.base_url, node.admin_key)

    @staticmethod
    def run_all(base_url: str, key: str) -> None:
        schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json").include(
            tag=["deployment", "statistics", "alerts"]
        )
        names = []
        for result in schema.get_all_operations():
            operation = result.ok()

            @tried(
                max_examples=40, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def check(case):
                response = case.call(base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=10)
                case.validate_response(response, checks=CHECKS)

            hypothesis_given(operation, check)
            names.append(operation.label)
        assert len(names) == 11, names
