"""The resource graph: what is there, what it belongs to, and what it waits for. The order is what keeps a majority while everything is restarted."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import pulumi
import pytest

from infra.config import ConfigError
from infra.plan import Topology, plan
from tests.unit.infra import mocked
from tests.unit.infra.mocked import Run, run_region
from tests.unit.infra.sample import LEDGER_KEY, sample_peer, sample_region, sample_value

HOSTS = ("fra-1", "fra-2", "fra-3")
ARCHIVE = __file__  # any file will do: nothing is copied
VALUES = {
    "three hosts": sample_value(),
    "two nodes a host, image as archive": sample_value(
        control_plane={"nodes": 2, "image": {"archive": ARCHIVE}}, mongodb={"image": {"archive": ARCHIVE}}
    ),
    "one host": sample_value(1, safety="none", mongodb={"members": 1, "shards": [{"name": "a"}]}),
    "no carrier": sample_value(carrier=False, verify={"to": "+4915112340001"}),
}


@cache
def ran(name: str = "three hosts", *, preview: bool = False) -> Run:
    return run_region(VALUES[name], preview=preview)


def topology_of(name: str) -> Topology:
    value = VALUES[name]
    return plan(sample_region(len(value["hosts"]), **{k: v for k, v in value.items() if k != "hosts"}))


def commands(run: Run) -> set[str]:
    return {one.name for one in run.seen.values() if one.type == mocked.COMMAND}


class TestHost:
    """A host is ready when tool, system, images and certificates are there, in this order."""

    @pytest.mark.parametrize("host", HOSTS)
    def test_resources(self, host):
        run = ran()
        steps = ["hostctl", "host", "image-mongod", "image-controlplane", "keys", "certificates"]
        own = {f"{host}-{step}" for step in steps}
        assert own == {
            one.name for one in run.seen.values() if f"Host {host}" in run.parents(one) and ":Command" in one.type
        }
        before = {step: run.before(run.command(f"{host}-{step}")) & own for step in steps}
        assert before["hostctl"] == set()
        assert before["host"] == {f"{host}-hostctl"}
        for step in ("image-mongod", "image-controlplane", "keys"):
            assert before[step] == {f"{host}-hostctl", f"{host}-host"}
        assert f"{host}-keys" in before["certificates"]

    def test_hosts_do_not_wait_for_each_other(self):
        for host in HOSTS:
            assert {name[:5] for name in ran().before(ran().command(f"{host}-certificates"))} == {host}

    def test_archives(self):
        run = ran("two nodes a host, image as archive")
        for host in HOSTS:
            for image in ("mongod", "controlplane"):
                copy = run.find(":CopyToRemote", f"{host}-{image}-archive")
                assert copy.name in run.before(run.command(f"{host}-image-{image}"))
                assert (
                    copy.inputs["remotePath"]
                    == json.loads(run.command(f"{host}-image-{image}").inputs["stdin"])["archive"]
                )
                assert f"Host {host}" in run.parents(copy)

    def test_certificates_are_for_the_request(self):
        """What a host asked for is what it is given, each behind the key that it made."""
        spec = json.loads(ran().command("fra-2-certificates").inputs["stdin"])
        files = {file["path"]: file for file in spec["files"]}
        assert set(files) == {f"/etc/heliograph/tls/{name}.pem" for name in ("ca", "member", "node", "api", "ledger")}
        assert files["/etc/heliograph/tls/member.pem"]["prepend"] == "/etc/heliograph/keys/member.2026-01-01.key"
        assert files["/etc/heliograph/tls/member.pem"]["owner"] == "heliograph-data"
        assert files["/etc/heliograph/tls/node.pem"]["owner"] == "heliograph"
        assert {file["mode"] for path, file in files.items() if "ca.pem" not in path} == {"400"}


class TestQuadlet:
    """A bundle is one component with one command that installs it and can take it back."""

    def test_one_command_each(self):
        run = ran()
        for one in [one for one in run.seen.values() if one.type.endswith(":Quadlet")]:
            (child,) = [other for other in run.seen.values() if other.parent == one.urn]
            assert child.name == one.name
            assert child.dependencies == one.dependencies
            assert child.inputs["create"].endswith("hostctl install")
            assert child.inputs["update"] == child.inputs["create"]
            assert child.inputs["delete"].endswith("hostctl remove")
            spec = json.loads(child.inputs["stdin"])
            assert spec["token"] == "offline"
            assert child.name.endswith(spec["name"])


@pytest.mark.parametrize("name", VALUES)
class TestReplicaSet:
    """Members start and restart one after another, each on a host that is ready; the set itself comes after all of them."""

    def test_in_order(self, name):
        run = ran(name)
        for one in topology_of(name).sets:
            members = [f"{m.host}-mongod-{one.name}" for m in one.members]
            for earlier, later in pairwise(members):
                assert earlier in run.before(run.command(later))
                assert later not in run.before(run.command(earlier))
            assert set(members) <= run.before(run.command(one.name))
            for member in one.members:
                command = run.command(f"{member.host}-mongod-{one.name}")
                ready = {f"{member.host}-{step}" for step in ("image-mongod", "image-controlplane", "certificates")}
                assert ready <= run.before(command)
                assert run.parents(command)[:3] == [
                    f"Quadlet {command.name}", f"ReplicaSet {one.name}", "ShardedCluster fra"
                ]  # fmt: skip

    def test_sets_do_not_wait_for_each_other(self, name):
        run = ran(name)
        topology = topology_of(name)
        for one in topology.sets:
            others = {other.name for other in topology.sets if other is not one}
            assert not others & run.before(run.command(one.name))


@pytest.mark.parametrize("name", VALUES)
class TestShardedCluster:
    """Routers after the config servers; shards are added when every set and router stands."""

    def test_in_order(self, name):
        run = ran(name)
        topology = topology_of(name)
        for router in topology.routers:
            assert topology.config_set.name in run.before(run.command(f"{router.host}-router"))
        before = run.before(run.command("fra-shards"))
        assert {one.name for one in topology.sets} | {f"{r.host}-router" for r in topology.routers} <= before
        assert run.parents(run.command("fra-shards")) == ["ShardedCluster fra", "Region fra"]


@pytest.mark.parametrize("name", VALUES)
class TestControlPlane:
    """The first key after the cluster, nodes one after another, the test message last of all."""

    def test_in_order(self, name):
        run = ran(name)
        topology = topology_of(name)
        assert "fra-shards" in run.before(run.command("fra-seed"))
        nodes = [f"{node.host}-node-{node.number}" for node in topology.nodes]
        assert len(nodes) == len(set(nodes))
        for earlier, later in pairwise(nodes):
            assert earlier in run.before(run.command(later))
        for node in topology.nodes:
            before = run.before(run.command(f"{node.host}-node-{node.number}"))
            assert {"fra-seed", f"{node.host}-secret-key", f"{node.host}-router"} <= before

    def test_ledgers_follow_one_after_another(self, name):
        run = ran(name)
        topology = topology_of(name)
        ledgers = [f"{one.host}-ledger" for one in topology.ledgers]
        assert ledgers == sorted(one for one in commands(run) if one.endswith("-ledger"))
        for earlier, later in pairwise([f"{n.host}-node-{n.number}" for n in topology.nodes] + ledgers):
            assert earlier in run.before(run.command(later))
        for one in ledgers:
            command = run.command(one)
            files = {file["path"]: file for file in json.loads(command.inputs["stdin"])["files"]}
            assert files["/etc/heliograph/ledger/key"] == {
                "path": "/etc/heliograph/ledger/key", "content": LEDGER_KEY, "mode": "400", "owner": "heliograph"
            }  # fmt: skip
            assert "stdin" in command.secrets
            assert LEDGER_KEY not in json.dumps({key: value for key, value in command.inputs.items() if key != "stdin"})

    def test_verify_is_last(self, name):
        run = ran(name)
        assert run.before(run.command("fra-verify")) | {"fra-verify"} >= commands(run)

    def test_carrier(self, name):
        run = ran(name)
        carriers = {one for one in commands(run) if one.endswith("-carrier")}
        wanted = topology_of(name).carrier
        assert carriers == ({f"{wanted}-carrier"} if wanted else set())
        assert carriers <= run.before(run.command("fra-seed"))


@pytest.mark.parametrize("name", VALUES)
class TestRegion:
    """The whole graph is known before anything runs: a preview lists exactly what `up` makes."""

    def test_nothing_inside_apply(self, name):
        run = ran(name)
        assert sorted(run.constructed) == sorted(f"{one.type} {one.name}" for one in run.seen.values())

    def test_all_below_the_region(self, name):
        run = ran(name)
        for one in run.seen.values():
            assert one.type == "heliograph:infra:Region" or run.parents(one)[-1] == "Region fra"

    def test_outputs(self, name):
        outputs = ran(name).result.outputs
        assert outputs["urls"] == [node.url for node in topology_of(name).nodes]
        assert list(outputs["losses"]) == [host["name"] for host in VALUES[name]["hosts"]]
        assert "PRIVATE" not in json.dumps(outputs)
        assert LEDGER_KEY not in json.dumps(outputs)
        assert outputs["peer"]["urls"] == [one.url for one in topology_of(name).ledgers]


class TestPreview:
    """What only a running host can answer, a preview does not know; the graph does not depend on it."""

    def test_lists_everything(self):
        name = "two nodes a host, image as archive"
        preview = ran(name, preview=True)
        assert set(preview.seen) == set(ran(name).seen)
        known, unknown = (run.command("fra-1-certificates").inputs["stdin"] for run in (ran(name), preview))
        assert known.startswith("{")
        assert not unknown.startswith("{")


class TestSecondRun:
    """A second `up` changes nothing."""

    def test_again_is_the_same(self):
        """A second run has the same inputs, byte by byte."""
        again = run_region(VALUES["two nodes a host, image as archive"])
        assert {urn: one.inputs for urn, one in again.seen.items()} == {
            urn: one.inputs for urn, one in ran("two nodes a host, image as archive").seen.items()
        }


class TestGrowth:
    """A shard or a node more changes what knows of it, and restarts nothing that stands."""

    @staticmethod
    def changed(value: dict) -> tuple[set[str], set[str]]:
        """(new, changed) commands beside the sample region."""
        before, after = ran(), run_region(value)
        old = {one.urn: one for one in before.seen.values() if one.type == mocked.COMMAND}
        new = {one.urn: one for one in after.seen.values() if one.type == mocked.COMMAND}
        assert set(old) <= set(new)
        return (
            {new[urn].name for urn in set(new) - set(old)},
            {new[urn].name for urn in old if new[urn].inputs != old[urn].inputs},
        )

    def test_a_shard_more(self):
        new, changed = self.changed(sample_value(mongodb={"shards": [{"name": name} for name in "abc"]}))
        assert new == {"fra-c", *(f"{host}-mongod-fra-c" for host in HOSTS)}
        assert changed == {"fra-shards", "fra-verify", *(f"{host}-host" for host in HOSTS)}  # the firewall's ports

    def test_a_node_more(self):
        new, changed = self.changed(sample_value(control_plane={"nodes": 2}))
        assert new == {f"{host}-node-2" for host in HOSTS}
        assert changed <= {"fra-verify", *(f"{host}-host" for host in HOSTS)}

    def test_a_new_image(self):
        new, changed = self.changed(
            sample_value(control_plane={"image": {"reference": f"localhost/cp@sha256:{'c' * 64}"}})
        )
        assert new == set()
        assert changed == {
            "fra-1-carrier",
            "fra-verify",
            *(f"{host}-{what}" for host in HOSTS for what in ("image-controlplane", "node-1", "ledger")),
        }

    def test_a_peer_more(self):
        """Nodes and ledgers know it, and the firewall; nothing of MongoDB is touched."""
        new, changed = self.changed(sample_value(ledger={"peers": [sample_peer()]}))
        assert new == set()
        assert changed == {"fra-verify", *(f"{host}-{what}" for host in HOSTS for what in ("host", "node-1", "ledger"))}


class TestRefused:
    """A configuration that is wrong ends before the first resource."""

    def test_nothing_registered(self):
        with pytest.raises(ConfigError):
            run_region(sample_value(mongodb={"members": 5}))

    def test_harness_raises_what_the_program_raises(self):
        with pytest.raises(pulumi.RunError, match="no"):
            mocked.run(lambda: (_ for _ in ()).throw(pulumi.RunError("no")))
