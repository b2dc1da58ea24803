"""Two datacenters, from bare hosts to SMS through faults, by the real engine on hosts with real systemd and podman.

The tests of this file are one story and run in its order: each begins with what the one before it left.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controlplane.ledger.note import Verifier
from controlplane.ledger.proof import verify_document
from tests.lab import images
from tests.lab.doctor import require_lab
from tests.lab.hosts import Host, Lab
from tests.lab.load import read
from tests.lab.tools import prepare
from tests.lab.world import DATA_DISK_MB, Fault, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRA, IAD = ["fra-1", "fra-2", "fra-3"], ["iad-1", "iad-2", "iad-3"]
CONFIG, SHARD_A, SHARD_B, LEDGER = 27019, 27020, 27021, 8442
CUTS = 10
RATE = 25.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    require_lab()
    tools = await asyncio.to_thread(prepare)
    made = await asyncio.to_thread(images.build)
    async with Lab(tools, data_disk_mb=DATA_DISK_MB) as lab:
        await lab.boot([*FRA, *IAD])
        world = World(lab, made, tmp_path_factory.mktemp("world"))
        yield world
        print("\n[lab] record:", json.dumps(world.record, indent=1))


@pytest.fixture(scope="module")
def fra(world: World) -> list[Host]:
    return [world.lab.hosts[name] for name in FRA]


@pytest.fixture(scope="module")
def iad(world: World) -> list[Host]:
    return [world.lab.hosts[name] for name in IAD]


async def test_a_new_stack_is_written_as_the_readme_says(world: World, fra: list[Host], iad: list[Host]) -> None:
    said = await world.stack("fra", fra, ["a", "b"])
    assert "SHA256:" in said
    assert "pulumi up --stack fra" in said
    await world.stack("iad", iad, ["a"], beside="fra")
    assert await world.project.secret("iad", "secretKey") == await world.project.secret("fra", "secretKey")
    text = world.project.stack_file("fra").read_text()
    assert "PRIVATE KEY" not in text
    assert text.count("secure:") == 5
    await world.peers("fra", "iad")
    assert [peer["name"] for peer in world.project.region("fra")["ledger"]["peers"]] == ["iad"]


class TestRefusals:
    """Whatever is wrong is named before the first change, and the hosts stay as they were."""

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda region: region["hosts"][0].update(address="10.81.1.99"), "fra-1 (10.81.1.99) cannot be reached"),
            (
                lambda region: region["hosts"][1].update(host_key=region["hosts"][2]["host_key"]),
                "fra-2 (10.81.1.12) answers with another SSH host key",
            ),
            (lambda region: region["mongodb"].update(members=2), "mongodb.members: 2 voters tolerate no more failures"),
            (
                lambda region: region["mongodb"].update(shards=[{"name": "a", "hosts": ["fra-1", "fra-1", "fra-2"]}]),
                "a: two members would stand on fra-1",
            ),
            (lambda region: region["ssh"].update(user="nobody"), "refuses the SSH key for user nobody"),
            (lambda region: region["mongodb"].update(min_free_gb=4000), "GiB free and needs 4000.0"),
        ],
        ids=["unreachable", "host key", "even voters", "two on one host", "user", "full disk"],
    )
    async def test_configuration(
        self, world: World, fra: list[Host], change: Callable[[dict[str, Any]], None], says: str
    ) -> None:
        path = world.project.stack_file("fra")
        kept = path.read_text()
        world.project.edit("fra", change)
        try:
            done = await world.project.up("fra")
        finally:
            path.write_text(kept)
        assert done.code != 0
        assert says in done.text
        assert "nothing was changed" in done.text
        assert not [name for _, name, _ in done.steps]

    async def test_hosts_all_in_one_list(self, world: World, fra: list[Host]) -> None:
        """Wrong system on one, a busy port on another, a foreign database on the third; a wrong clock is in the unit tests: the lab shares its clock."""
        before = [await world.snapshot(host) for host in fra]
        await fra[0].run("sed -i.lab s/^VERSION_ID=.*/VERSION_ID=11/ $(readlink -f /etc/os-release)")
        await fra[1].run("systemd-run --unit=squatter python3 -m http.server 27017 --bind 10.81.1.12")
        await fra[2].run("mkdir -p /var/lib/heliograph/data/fra-a; touch /var/lib/heliograph/data/fra-a/WiredTiger")
        await asyncio.sleep(1)
        done = await world.project.up("fra")
        await fra[0].run("mv $(readlink -f /etc/os-release).lab $(readlink -f /etc/os-release)")
        await fra[1].run("systemctl stop squatter")
        await fra[2].run("rm -r /var/lib/heliograph/data")
        assert done.code != 0
        assert "fra-1: runs debian 11; Heliograph is made for Debian 13" in done.text
        assert "fra-2: port 27017, for mongos, is taken by python3" in done.text
        assert "fra-3: the data directory of fra-a holds a database that Heliograph did not make" in done.text
        assert [await world.snapshot(host) for host in fra] == before

    async def test_wrong_passphrase(self, world: World) -> None:
        world.project.passphrase.chmod(0o600)
        right = world.project.passphrase.read_text()
        world.project.passphrase.write_text("wrong")
        try:
            done = await world.project.up("fra")
        finally:
            world.project.passphrase.write_text(right)
        assert done.code != 0
        assert "incorrect passphrase" in done.text


class TestUp:
    """A region stands after one `up`; a second one changes nothing; it delivers."""

    async def test_from_bare_hosts(self, world: World, fra: list[Host]) -> None:
        world.record["bare"] = [await world.snapshot(host) for host in fra]
        done = await world.up("fra")
        world.record.pop("bare")
        steps = [(name, round(at)) for _, name, at in done.steps]
        world.note(
            "up from bare (fra: 2 shards × 3, 3 config members, 3 nodes)",
            {"seconds": round(done.seconds), "steps": steps},
        )
        assert set(done.changed) == {"create"}
        outputs = await world.project.outputs("fra")
        assert outputs["losses"] == {"fra-1": [], "fra-2": [], "fra-3": []}
        assert set(outputs["inventory"]["all"]["children"]) == {
            "config_servers",
            "shard_fra_a",
            "shard_fra_b",
            "routers",
            "nodes",
            "ledgers",
        }

    async def test_a_second_up_changes_nothing(self, world: World) -> None:
        done = await world.up("fra")
        assert done.changed == {}
        world.note("second up", {"seconds": round(done.seconds)})

    async def test_messages_are_delivered_and_spread_over_both_shards(self, world: World, fra: list[Host]) -> None:
        batch = {"messages": [{"to": f"+99900{n:03d}1111", "body": f"hello {n}"} for n in range(200)]}
        [(status, answer)] = await world.api("fra", [("POST", "/v1/batches", batch)])
        assert status == 202
        ids = [one["id"] for one in answer["results"]]
        for _ in range(60):
            states = {message["status"] for message in await world.messages("fra", ids)}
            if states == {"delivered"}:
                break
            await asyncio.sleep(1)
        assert states == {"delivered"}
        counts = {}
        for port in (SHARD_A, SHARD_B):
            host = await world.primary(fra, port)
            counts[port] = int(await world.mongo(host, port, "print(client.heliograph.events.count_documents({}))"))
        world.note("documents by shard", counts)
        assert min(counts.values()) > 0.3 * max(counts.values())
        assert sum(counts.values()) >= 600

    async def test_least_privilege_and_tls(self, world: World, fra: list[Host]) -> None:
        """A node's certificate writes its database and administers nothing; without a certificate nobody speaks to a member."""
        script = """
import json, sys
from pymongo import MongoClient
from pymongo.errors import PyMongoError
base = dict(directConnection=True, tls=True, tlsCAFile="/etc/heliograph/tls/ca.pem", serverSelectionTimeoutMS=3000)
node = MongoClient("mongodb://10.81.1.11:27019/", tlsCertificateKeyFile="/etc/heliograph/tls/node.pem", authMechanism="MONGODB-X509", authSource="$external", **base)
def tried(call):
    try:
        call()
        return "allowed"
    except PyMongoError as error:
        return type(error).__name__ + " " + str(getattr(error, "code", ""))
print(json.dumps({
  "shut down": tried(lambda: node.admin.command("shutdown")),
  "drop config": tried(lambda: node.config.shards.delete_many({})),
  "create user": tried(lambda: node["$external"].command("createUser", "CN=x", roles=[])),
  "no certificate": tried(lambda: MongoClient("mongodb://10.81.1.11:27019/", **base).admin.command("ping")),
  "no tls": tried(lambda: MongoClient("mongodb://10.81.1.11:27019/", directConnection=True, serverSelectionTimeoutMS=3000).admin.command("ping")),
}))
"""
        run = "podman run --rm -i --network=host --user=0 -v /etc/heliograph/tls:/etc/heliograph/tls:ro --entrypoint /opt/heliograph/bin/python"
        found = json.loads(await fra[0].run(f"{run} $(cat /etc/heliograph/controlplane.image) -", stdin=script))
        assert {found[name] for name in ("shut down", "drop config", "create user")} == {"OperationFailure 13"}
        assert "allowed" not in found.values()
        for port, who in ((SHARD_A, "mongod"), (LEDGER, "the ledger")):
            outside = await world.lab.call(
                ["bash", "-c", f"timeout 3 bash -c '</dev/tcp/10.81.1.11/{port}' && echo open || echo closed"]
            )
            assert outside.stdout.strip() == "closed", f"the firewall lets a stranger reach {who}"
        script = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/etc/heliograph/tls/ca.pem")
if sys.argv[2:]:
    context.load_cert_chain(sys.argv[2])
print(urllib.request.urlopen(sys.argv[1], context=context, timeout=5).read().decode())
"""
        asked = f"python3 - https://10.81.1.11:{LEDGER}/livez"
        assert (await fra[1].call(asked, stdin=script)).code, "the ledger answers somebody without a certificate"
        assert (await fra[1].run(f"{asked} /etc/heliograph/tls/ledger.pem", stdin=script)).strip() == "ok"

    async def test_no_secret_in_process_lists_or_journals(self, world: World, fra: list[Host]) -> None:
        secrets = [await world.project.secret("fra", name) for name in ("secretKey", "adminKey", "ledgerKey")]
        for host in fra:
            seen = await host.run(
                "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; journalctl --no-pager -q"
            )
            assert not [secret for secret in secrets if secret in seen]
            assert "PRIVATE KEY" not in seen


class TestDrift:
    """What was edited by hand is found by `verify` and mended by `up`, and nothing else is touched."""

    async def test_edited_unit(self, world: World, fra: list[Host]) -> None:
        code, report = await world.project.verify("fra")
        assert (code, report["problems"]) == (0, [])
        assert [one["status"] for one in report["messages"]] == ["delivered"] * 3
        unit = "/etc/containers/systemd/heliograph-node-1.container"
        await fra[1].run(f"sed -i s/StopTimeout=40/StopTimeout=1/ {unit}")
        code, report = await world.project.verify("fra")
        assert code == 3
        assert report["problems"] == [f"fra-2: node-1: {unit} was changed"]
        done = await world.up("fra")
        assert done.changed == {"update": ["fra-2-node-1", "fra-verify"]}
        assert "StopTimeout=40" in await fra[1].run(f"cat {unit}")
        assert (await world.project.verify("fra"))[0] == 0
        assert (await world.up("fra")).changed == {}


class TestCuts:
    """An `up` that is cut at any moment leaves nothing that the next one cannot finish."""

    async def test_ten_cuts_then_converges(self, world: World, iad: list[Host]) -> None:
        world.record["iad bare"] = [await world.snapshot(host) for host in iad]
        chance = random.Random(7)
        cuts = []
        most = 45
        while len(cuts) < CUTS:
            done = await world.project.up("iad", cut_after=(chance.randint(3, most), chance.uniform(0, 0.5)))
            if done.code == 0:  # all is there: the further cuts strike while every node is changed
                most = 7
                level = "debug" if world.project.region("iad")["control_plane"].get("log_level") != "debug" else "info"
                world.project.edit("iad", lambda region, level=level: region["control_plane"].update(log_level=level))
                continue
            at = world.project.journal()[-1].rpartition("::")[2]
            cuts.append({"after": round(done.seconds, 1), "steps done": len(done.steps), "last": at})
            await world.project.cancel("iad")
        world.note("cuts (iad)", {"cuts": cuts, "state files put back": world.project.restored})
        await world.up("iad")
        assert (await world.up("iad")).changed == {}
        code, report = await world.project.verify("iad")
        assert (code, report["problems"]) == (0, [])

    async def test_messages_in_the_second_datacenter(self, world: World) -> None:
        [(status, answer)] = await world.api(
            "iad", [("POST", "/v1/messages", {"to": "+9990000000042", "body": "hello"})]
        )
        assert status == 202
        world.record["iad message"] = answer["id"]


class TestTwoRegions:
    """What one region accepts is in the other's hands soon after, and each vouches for the other's log."""

    async def test_a_message_of_one_is_read_in_the_other(self, world: World) -> None:
        begun = time.monotonic()
        batch = {"messages": [{"to": f"+99900{n:03d}1111", "body": f"hello {n}"} for n in range(50)]}
        [(status, answer)] = await world.api("fra", [("POST", "/v1/batches", batch)])
        assert status == 202
        ids = [one["id"] for one in answer["results"]]
        there: dict[str, float] = {}
        states: set[str] = set()
        while time.monotonic() - begun < 120 and states != {"delivered"}:
            found = await world.messages("iad", ids)
            states = {message["status"] for message in found}
            if "HTTP 404" not in states:
                there.setdefault("readable", round(time.monotonic() - begun, 1))
            await asyncio.sleep(0.5)
        assert states == {"delivered"}
        there["delivered, as seen there"] = round(time.monotonic() - begun, 1)
        world.note("50 messages of fra in iad, seconds after they were offered", there)
        assert await world.messages("iad", ids) == await world.messages("fra", ids)

    async def test_each_vouches_for_the_other(self, world: World) -> None:
        """All that is sequenced is published, witnessed and mirrored; the copy has the original's root."""
        stands = await world.mirrored("fra", "iad")
        world.note("logs", {name: log["published"] for name, log in stands.items()})
        assert {name.split("/")[2] for name in stands} == {"fra", "iad"}

    async def test_proofs(self, world: World) -> None:
        """Of a message of fra, given out by both; verified with the keys that the stacks give out. On fra's own iad's witness and mirror have signed too."""
        [(_, answer)] = await world.api("fra", [("POST", "/v1/messages", {"to": "+9990000001111", "body": "proof"})])
        await asyncio.sleep(3)
        await world.mirrored("fra", "iad")
        peers = {stack: (await world.project.outputs(stack))["peer"] for stack in ("fra", "iad")}
        known = {*peers["fra"]["log_keys"], peers["iad"]["witness_key"], peers["iad"]["mirror_key"]}
        for stack, cosigners in (("fra", 2), ("iad", 0)):
            [(status, proof)] = await world.api(stack, [("GET", f"/v1/messages/{answer['id']}/proof", None)])
            assert (status, proof["complete"]) == (200, True)
            keys = [Verifier.parse(key) for key in proof["keys"].values()]
            trusted = [key for key in keys if base64.b64encode(key.public).decode() in known]
            assert len(verify_document(proof, trusted, cosigners).events) >= 3


class TestChanges:
    """A change of the configuration changes exactly what it should."""

    async def test_a_node_more(self, world: World) -> None:
        world.project.edit("iad", lambda region: region["control_plane"].update(nodes=2))
        done = await world.up("iad")
        assert done.changed == {
            "create": [f"{host}-node-2" for host in IAD],
            "update": ["iad-verify", *(f"{host}-host" for host in IAD)],  # the firewall knows the new port
        } or done.changed == {"create": [f"{host}-node-2" for host in IAD], "update": ["iad-verify"]}

    async def test_a_shard_more(self, world: World) -> None:
        world.project.edit("iad", lambda region: region["mongodb"].update(shards=[{"name": "a"}, {"name": "b"}]))
        done = await world.up("iad")
        assert done.changed == {
            "create": sorted(["iad-b", *(f"{host}-mongod-iad-b" for host in IAD)]),
            "update": sorted(["iad-shards", "iad-verify", *(f"{host}-host" for host in IAD)]),
        }

    async def test_a_new_image_under_load(self, world: World) -> None:
        """Nodes are restarted one after another; no message is lost and clients that try again are served."""
        image = world.image(world.images.controlplane_next)
        nodes = [f"{host}-node-{n}" for host in IAD for n in (1, 2)]
        async with world.load("iad", "upgrade", RATE / 2, 900) as out:
            world.project.edit("iad", lambda region: region["control_plane"].update(image=image))
            done = await world.up("iad")
            images = [f"{host}-{what}" for host in IAD for what in ("controlplane-archive", "image-controlplane")]
            ledgers = [f"{host}-ledger" for host in IAD]
            assert done.changed == {"update": sorted(["iad-1-carrier", "iad-verify", *nodes, *ledgers, *images])}
        ledger = read(out)
        counts = await world.settled("iad", ledger)
        errors = ledger.errors(0, 1e12)
        figures = {"offered": ledger.offered, "accepted": len(ledger.accepted), "outcomes": counts, "errors": errors}
        world.note("new image under load", figures)
        assert len(ledger.accepted) == ledger.offered
        assert set(counts) <= {"delivered", "unknown"}


class TestFailover:
    """Faults under load: nothing that was accepted is lost, and clients see errors only for as long as an election takes."""

    async def test_faults_under_load(self, world: World, fra: list[Host]) -> None:
        faults: list[Fault] = []
        carrier_cuts: list[float] = []  # the simulator forgets the receipts that it owed
        async with world.load("fra", "failover", RATE, 900) as out:
            await asyncio.sleep(10)
            for cause in (self._kill_primary, self._lose_host, self._partition, self._restart_everything):
                fault = Fault(cause.__name__.strip("_"), time.monotonic())
                await cause(world, fra, fault)
                if FRA[0] in fault.notes.get("power cut", ()):
                    carrier_cuts.append(fault.notes["at"])
                await self._healthy(world, fra)
                await asyncio.sleep(5)
                fault.ended = time.monotonic()
                faults.append(fault)
        ledger = read(out)
        counts = await world.settled("fra", ledger)
        rows = [
            {
                "fault": f.name,
                "outage_seconds": round(ledger.outage(f.begun, f.ended), 1),
                "errors": ledger.errors(f.begun, f.ended),
                **f.notes,
            }
            for f in faults
        ]
        world.note("faults", rows)
        world.note(
            "load through the faults", {"offered": ledger.offered, "accepted": len(ledger.accepted), "outcomes": counts}
        )
        assert len(ledger.accepted) == ledger.offered, "a client that tried for two minutes was never served"
        assert sum(counts.values()) == len(ledger.accepted)
        assert not [status for status in counts if status.startswith("HTTP")], "an accepted message is gone"
        assert set(counts) <= {"delivered", "submitted", "unknown"}, counts
        forgotten = [
            m for m in await world.messages("fra", list(ledger.accepted.values())) if m["status"] == "submitted"
        ]
        taken = [event["at"] for m in forgotten for event in m["timeline"] if event["kind"] == "submitted"]
        strange = [
            at for at in taken if not any(0 < cut - datetime.fromisoformat(at).timestamp() < 60 for cut in carrier_cuts)
        ]
        assert not strange, "without a receipt, though the carrier had no power cut right after it took them"

    async def _kill_primary(self, world: World, fra: list[Host], fault: Fault) -> None:
        host = await world.primary(fra, SHARD_A)
        await host.kill_unit("heliograph-mongod-fra-a")
        fault.notes["killed"] = f"mongod of fra-a on {host.name}"
        await asyncio.sleep(1)
        assert (await world.primary(fra, SHARD_A)).name

    async def _lose_host(self, world: World, fra: list[Host], fault: Fault) -> None:
        host = await world.primary(fra, SHARD_B)
        fault.notes |= {"at": time.time(), "power cut": [host.name]}
        await host.power_off()
        await asyncio.sleep(25)
        await host.start()

    async def _partition(self, world: World, fra: list[Host], fault: Fault) -> None:
        host = await world.primary(fra, SHARD_A)
        with world.lab.partition(host) as cut:
            await asyncio.sleep(25)
            others = [one for one in fra if one is not host]
            assert (await world.primary(others, SHARD_A)) is not host
            fault.notes |= {"partitioned": host.name, "packets_dropped": cut.counter()}
        assert fault.notes["packets_dropped"] > 0

    async def _restart_everything(self, world: World, fra: list[Host], fault: Fault) -> None:
        fault.notes |= {"at": time.time(), "power cut": [host.name for host in fra]}
        for host in fra:
            await host.power_off()
        await asyncio.gather(*[host.start() for host in fra])

    async def _healthy(self, world: World, fra: list[Host]) -> None:
        """All units run and all members are back."""
        for _ in range(240):  # systemd gives a mongod that was killed up to 150 s to be cleared away
            states = [(await host.run("systemctl is-active 'heliograph-*'", check=False)).split() for host in fra]
            if all(state == "active" for every in states for state in every):
                return
            await asyncio.sleep(1)
        raise AssertionError(states)

    async def test_the_region_is_well_afterwards(self, world: World) -> None:
        code, report = await world.project.verify("fra")
        assert (code, report["problems"]) == (0, [])

    async def test_the_ledgers_have_caught_up(self, world: World) -> None:
        begun = time.monotonic()
        logs = await world.mirrored("fra", "iad", seconds=300)
        sizes = {name: log["published"] for name, log in logs.items()}
        world.note("logs after the faults", sizes | {"seconds waited": round(time.monotonic() - begun, 1)})


class TestDestroy:
    """`pulumi destroy` leaves the hosts as they were found, but for the data; a later `up` finds it again."""

    async def test_hosts_as_found_and_data_kept(self, world: World, iad: list[Host]) -> None:
        await world.destroy("iad")
        assert [await world.snapshot(host) for host in iad] == world.record.pop("iad bare")
        kept = await iad[0].run("ls /var/lib/heliograph/data/iad-a/WiredTiger")
        assert kept.strip().endswith("WiredTiger")

    async def test_up_again_finds_the_data(self, world: World) -> None:
        await world.up("iad")
        [message] = await world.messages("iad", [world.record.pop("iad message")])
        assert message["status"] == "delivered"

    async def test_its_ledger_goes_on_where_it_was(self, world: World) -> None:
        await world.mirrored("fra", "iad", seconds=300)


class TestOneHost:
    """What `infra.new` writes for a single host stands up as it is, and says that it survives nothing."""

    async def test_a_small_region(self, world: World) -> None:
        [host] = await world.lab.boot(["iad-4"])
        await world.stack("solo", [host], None)
        assert world.project.region("solo")["safety"] == "none"
        await world.up("solo")
        assert (await world.project.outputs("solo"))["losses"] == {"iad-4": ["solo-config", "solo-a"]}
        assert (await world.project.verify("solo"))[0] == 0


async def test_record(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The figures of this run, for docs/operations.md."""
    path = Path(tmp_path_factory.getbasetemp()) / "lab-record.json"
    path.write_text(json.dumps(world.record, indent=1))
    assert world.record["faults"]
