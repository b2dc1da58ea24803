"""`heliograph cluster` on real mongods; where it is killed, in a process of its own."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import ipaddress
import json
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from controlplane.cli import main
from controlplane.embedded.mongod import binary
from tests.conftest import drop_databases
from tests.simulators.network import free_port

# pymongo leaves the socket of a connection that is given up while TLS is being spoken to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROUTER = Path(__file__).parents[2] / "lab" / "router.py"
READY = [
    sys.executable,
    "-c",
    "import sys, controlplane.store.cluster; from controlplane.cluster_command import cluster; print('ready', file=sys.stderr, flush=True); cluster()",
]


def name(common: str, unit: str) -> x509.Name:
    pairs = (
        (NameOID.ORGANIZATION_NAME, "heliograph-fra"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        (NameOID.COMMON_NAME, common),
    )
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in pairs])


@dataclass
class Pki:
    """An authority and certificates signed by it; PEM with key."""

    home: Path
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.ca = self.home / "ca.pem"
        self.issuer = name("ca", "heliograph-ca")
        self.ca.write_bytes(self._sign(self.issuer, self.key, authority=True).public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, key: Any, *, authority: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def certificate(self, common: str, unit: str = "heliograph-member") -> Path:
        path = self.home / f"{common}.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(
            self._sign(name(common, unit), key, authority=False).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path


@dataclass
class Machines:
    """mongods of one replica set on loopback, and the command towards them."""

    home: Path
    set: str
    role: str | None = None
    pki: Pki | None = None
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)

    def start(self, *ids: int, replica_set: str | None = None) -> None:
        for each in ids:
            port = self.ports.setdefault(each, free_port())
            data = self.home / f"{self.set}-{each}"
            data.mkdir(parents=True, exist_ok=True)
            command = [str(binary()), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
            command += [
                "--replSet",
                replica_set or self.set,
                "--oplogSize",
                "32",
                "--wiredTigerCacheSizeGB",
                "0.25",
                "--nounixsocket",
                "--wiredTigerEngineConfigString=log=(file_max=8MB)",  # 300 MB for each otherwise
            ]
            command += ["--setParameter", "diagnosticDataCollectionEnabled=false", "--logpath", str(data / "log")]
            command += [f"--{self.role}"] if self.role else []
            if self.pki is not None:
                certificate = self.pki.certificate(f"member-{each}")
                command += [
                    "--tlsMode",
                    "requireTLS",
                    "--tlsCAFile",
                    str(self.pki.ca),
                    "--tlsCertificateKeyFile",
                    str(certificate),
                ]
                command += ["--clusterAuthMode", "x509", "--auth"]
            self.processes[each] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, *ids: int, how: int = signal.SIGKILL) -> None:
        for each in ids or tuple(self.processes):
            process = self.processes.pop(each)
            process.send_signal(how)
            process.wait()

    def host(self, identity: int) -> str:
        return f"127.0.0.1:{self.ports.setdefault(identity, free_port())}"

    def members(self, *ids: int, **fields: dict[int, Any]) -> list[dict[str, Any]]:
        return [
            {"id": each, "host": self.host(each), "tags": {"host": f"fra-{each}"}}
            | {key: values[each] for key, values in fields.items() if each in values}
            for each in ids
        ]

    def spec(self, *ids: int, **fields: dict[int, Any]) -> dict[str, Any]:
        return {"set": self.set, "role": self.role or "replica", "members": self.members(*ids, **fields)}

    @property
    def options(self) -> list[str]:
        if self.pki is None:
            return []
        return ["--ca", str(self.pki.ca), "--certificate", str(self.pki.certificate("deployer"))]

    def popen(self, verb: str, spec: Any) -> subprocess.Popen[str]:
        """In a process that has just begun its work, to be killed."""
        process = subprocess.Popen(
            [*READY, verb, *self.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.stdin.write(json.dumps(spec))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, verb: str, spec: Any, *options: str) -> Answer:
        """As main() of a process, in this one: a start costs more than the work."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch("sys.argv", ["heliograph", "cluster", verb, *self.options, *options]),
            mock.patch("sys.stdin", io.StringIO(json.dumps(spec))),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        return Answer(ended.value.code or 0, out.getvalue(), err.getvalue())

    def converge(self, spec: Any, *options: str) -> list[dict[str, Any]]:
        answer = self.run("replica-set", spec, *options)
        assert answer.code == 0, answer
        return answer.lines

    def client(self, identity: int, *, direct: bool = True) -> MongoClient[dict[str, Any]]:
        tls: dict[str, Any] = {}
        if self.pki is not None:
            tls = {
                "tls": True,
                "tlsCAFile": str(self.pki.ca),
                "tlsCertificateKeyFile": str(self.pki.home / "deployer.pem"),
            }
            tls |= {"authMechanism": "MONGODB-X509", "authSource": "$external"}
        where = {"directConnection": True} if direct else {"replicaSet": self.set}
        return MongoClient(f"mongodb://{self.host(identity)}/", serverSelectionTimeoutMS=15_000, **where, **tls)

    def hasten(self, identity: int) -> None:
        """Elections after 2 s, not 10: settings that cannot be declared are kept."""
        config = self.config(identity)
        config["settings"]["electionTimeoutMillis"] = 2000
        config["version"] += 1
        with self.client(identity) as client:
            client.admin.command("replSetReconfig", config)

    def config(self, identity: int) -> dict[str, Any]:
        with self.client(identity) as client:
            return client.admin.command("replSetGetConfig")["config"]


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [line.get("change") or line.get("result") or "finding" for line in lines]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Makes sets that end with the module."""
    made: list[Machines] = []

    def make(name: str, **values: Any) -> Machines:
        made.append(Machines(tmp_path_factory.mktemp(name), name, **values))
        return made[-1]

    yield make
    for each in made:
        each.stop()
        drop_databases(each.home)


@pytest.fixture(scope="module")
def fra(machines, tmp_path_factory):
    """Five mongods with TLS and x509; the tests of `TestOneSet` build on each other."""
    found = machines("fra-a", pki=Pki(tmp_path_factory.mktemp("pki")))
    found.start(0, 1, 2, 3, 4)
    return found


class Writer(threading.Thread):
    """Writes with w: majority all the time, and remembers for how long it could not."""

    def __init__(self, machines: Machines) -> None:
        super().__init__(daemon=True)
        self.client = machines.client(2, direct=False)
        self.done = threading.Event()
        self.written = 0
        self.longest = 0.0

    def run(self) -> None:
        last = time.monotonic()
        collection = self.client.test.writes
        while not self.done.is_set():
            try:
                collection.update_one({"_id": self.written}, {"$set": {"x": 1}}, upsert=True)
            except PyMongoError:
                time.sleep(0.05)
                continue
            self.written += 1
            self.longest = max(self.longest, time.monotonic() - last)
            last = time.monotonic()
            time.sleep(0.02)

    def __enter__(self) -> Writer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
        assert self.client.test.writes.count_documents({}) >= self.written
        self.client.close()


class TestOneSet:
    """From bare mongods to five members and back, with a primary throughout and nothing acknowledged lost."""

    def test_fresh_and_again(self, fra):
        lines = fra.converge(fra.spec(0, 1, 2, priority={0: 2}))
        assert kinds(lines) == ["initiated", "converged"]
        assert lines[-1] == {"result": "converged", "changes": 1}
        assert [member["priority"] for member in fra.config(0)["members"]] == [2, 1, 1]
        with fra.client(0, direct=False) as client:
            client.admin.command("ping")
            fra.hasten(next(each for each in (0, 1, 2) if client.primary == ("127.0.0.1", fra.ports[each])))
        assert fra.converge(fra.spec(0, 1, 2, priority={0: 2})) == [{"result": "converged", "changes": 0}]

    def test_five_and_three_again(self, fra):
        with Writer(fra) as writer:
            lines = fra.converge(fra.spec(0, 1, 2, 3, 4, priority={0: 2}))
            assert kinds(lines) == ["added", "added", "votes", "votes", "converged"]
            lines = fra.converge(fra.spec(2, 3, 4, priority={3: 3}))
            # the higher priority may take over by itself before the primary is asked to step down
            assert [kind for kind in kinds(lines) if kind != "stepped_down"] == [
                "changed",
                "removed",
                "removed",
                "converged",
            ]
        assert writer.written > 20
        assert writer.longest < 15
        assert sorted(member["_id"] for member in fra.config(2)["members"]) == [2, 3, 4]

    def test_priorities_and_tags(self, fra):
        spec = fra.spec(2, 3, 4, priority={3: 3}, tags={4: {"host": "fra-9", "rack": "1"}})
        assert kinds(fra.converge(spec)) == ["changed", "converged"]
        assert fra.config(4)["members"][2]["tags"] == {"host": "fra-9", "rack": "1"}
        assert fra.converge(spec)[-1]["changes"] == 0

    def test_elections(self, fra):
        spec = fra.spec(2, 3, 4, priority={3: 3}, tags={4: {"host": "fra-9", "rack": "1"}}) | {"election_seconds": 4}
        answer = fra.run("status", {"sets": [spec]})
        assert any(
            "after 2000 ms of silence, declared is 4000" in problem for problem in json.loads(answer.out)["problems"]
        )
        assert kinds(fra.converge(spec)) == ["settings", "converged"]
        assert fra.config(4)["settings"]["electionTimeoutMillis"] == 4000
        assert fra.converge(spec)[-1]["changes"] == 0

    def test_status(self, fra):
        answer = fra.run(
            "status", {"sets": [fra.spec(2, 3, 4, priority={3: 3}, tags={4: {"host": "fra-9", "rack": "1"}})]}
        )
        found = json.loads(answer.out)
        assert answer.code == 0, found["problems"]
        assert found["problems"] == []
        assert found["sets"][0]["primary"] in [fra.host(each) for each in (2, 3, 4)]
        assert all(member["lag_seconds"] < 30 for member in found["sets"][0]["members"])
        answer = fra.run("status", {"sets": [fra.spec(2, 3, 4)]})
        assert answer.code == 3
        assert any("has priority 3, declared is 1" in problem for problem in json.loads(answer.out)["problems"])

    def test_one_that_is_well_goes_when_another_votes_in_its_place(self, fra):
        """Declared under the same id: all the while three members vote."""
        fra.start(6)
        members = fra.members(2, 3, 4, priority={3: 3})
        members[2]["host"] = fra.host(6)
        with Writer(fra) as writer:
            lines = fra.converge(fra.spec(2, 3, priority={3: 3}) | {"members": members})
        assert [line for line in kinds(lines) if line != "stepped_down"] == ["added", "votes", "removed", "converged"]
        assert writer.written > 0
        assert {member["host"] for member in fra.config(2)["members"]} == {fra.host(each) for each in (2, 3, 6)}
        assert kinds(fra.converge(fra.spec(2, 3, priority={3: 3}) | {"members": members})) == ["converged"]
        back = fra.spec(2, 3, 4, priority={3: 3}, tags={4: {"host": "fra-9", "rack": "1"}})
        assert set(kinds(fra.converge(back))) >= {"added", "votes", "removed"}
        fra.stop(6)

    def test_without_the_certificate(self, fra):
        answer = Machines(fra.home, fra.set, ports=fra.ports).run("replica-set", fra.spec(2, 3, 4), "--timeout", "2")
        assert answer.code == 2
        assert fra.host(2) in answer.err

    def test_a_member_down_is_a_finding(self, fra):
        spec = fra.spec(2, 3, 4, priority={3: 3}, tags={4: {"host": "fra-9", "rack": "1"}})
        fra.stop(2)
        lines = fra.converge(spec)
        assert kinds(lines) == ["finding", "converged"]
        assert fra.host(2) in lines[0]["finding"]
        answer = fra.run("status", {"sets": [spec]})
        assert answer.code == 3
        assert any(fra.host(2) in problem for problem in json.loads(answer.out)["problems"])

    def test_a_dead_member_is_replaced_but_no_living_one_removed(self, fra):
        before = fra.config(4)
        answer = fra.run("replica-set", fra.spec(2, 3, 5, priority={3: 3}), "--timeout", "3")
        assert answer.code == 2
        assert f"{fra.host(5)}" in answer.err
        assert fra.config(4)["version"] == before["version"]
        lines = fra.converge(fra.spec(0, 3, 4, priority={3: 3}))  # a removed one comes back in place of the dead one
        assert set(kinds(lines)) >= {"added", "votes", "removed"}
        assert sorted(member["_id"] for member in fra.config(3)["members"]) == [0, 3, 4]


class TestRestart:
    """A member is let go only while its set stands without it, and is back before the next one goes."""

    def move(self, fra: Machines, identity: int) -> dict[str, Any]:
        return {"set": fra.set, "member": fra.host(identity), "members": [fra.host(each) for each in (0, 3, 4)]}

    def test_the_primary_hands_over(self, fra):
        with fra.client(0, direct=False) as client:
            client.admin.command("ping")
            primary = next(each for each in (0, 3, 4) if client.primary == ("127.0.0.1", fra.ports[each]))
        answer = fra.run("release", self.move(fra, primary))
        assert kinds(answer.lines) == ["stepped_down", "converged"], answer
        assert kinds(fra.run("release", self.move(fra, primary)).lines) == ["converged"]
        fra.stop(primary, how=signal.SIGTERM)
        others = [each for each in (0, 3, 4) if each != primary]
        answer = fra.run("release", self.move(fra, others[0]), "--timeout", "3")
        assert answer.code == 2
        assert "the others have no majority without it" in answer.err
        answer = fra.run("rejoined", self.move(fra, primary), "--timeout", "2")
        assert answer.code == 2
        fra.start(primary)
        assert kinds(fra.run("rejoined", self.move(fra, primary)).lines) == ["converged"]
        assert kinds(fra.run("release", self.move(fra, others[0])).lines)[-1] == "converged"

    def test_a_stranger_is_refused(self, fra):
        spec = self.move(fra, 3) | {"member": "127.0.0.1:1"}
        answer = fra.run("release", spec)
        assert answer.code == 2
        assert "is not among the members" in answer.err


class TestRefusals:
    """What is not ours, or could lose its majority, is refused with a sentence, and nothing is changed."""

    def test_alone_is_adopted_and_a_stranger_refused(self, machines):
        muc = machines("muc-a")
        muc.start(0, 1, 2)
        muc.start(3, replica_set="other")
        for each in (0, 3):
            with muc.client(each) as client:
                members = [{"_id": each, "host": muc.host(each)}]
                client.admin.command("replSetInitiate", {"_id": "other" if each == 3 else "muc-a", "members": members})
        answer = muc.run("replica-set", muc.spec(0, 1, 3))
        assert answer.code == 2
        assert f"{muc.host(3)} belongs to the replica set other, declared is muc-a" in answer.err
        assert len(muc.config(0)["members"]) == len(muc.config(3)["members"]) == 1

        lines = muc.converge(muc.spec(0, 1, 2))
        assert kinds(lines) == ["added", "added", "votes", "votes", "changed", "converged"]  # changed: its tags

        answer = muc.run("replica-set", muc.spec(0, 1))
        assert answer.code == 2
        assert "2 voters" in answer.err
        muc.stop(1, 2)
        answer = muc.run("replica-set", muc.spec(0), "--timeout", "3")
        assert answer.code == 2
        assert "no majority" in answer.err or "no primary" in answer.err
        assert len(muc.config(0)["members"]) == 3

    def test_unreachable_and_misnamed(self, machines):
        ber = machines("ber-a")
        ber.start(0, 1)
        for each in (0, 1):
            with ber.client(each) as client:
                client.admin.command("hello")
        answer = ber.run("replica-set", ber.spec(0, 1, 2), "--timeout", "2")
        assert answer.code == 2
        assert f"{ber.host(2)} (" in answer.err
        assert f"{ber.host(1)} (" not in answer.err
        ber.start(2, replica_set="else")
        answer = ber.run("replica-set", ber.spec(0, 1, 2), "--timeout", "20")
        assert answer.code == 2
        assert "set name did not match" in answer.err
        assert ber.host(2) in answer.err
        with ber.client(0) as client, pytest.raises(PyMongoError, match="no replset config"):
            client.admin.command("replSetGetConfig")


class TestCut:
    """The command may be killed at any moment; it goes on from there."""

    def test_killed_eight_times(self, machines):
        ham = machines("ham-a", role="configsvr")
        ham.start(0, 1, 2, 3, 4)
        chance = random.Random(8)
        specs = [ham.spec(0, 1, 2), ham.spec(0, 1, 2, 3, 4), ham.spec(1, 2, 4, priority={4: 2})]
        for number in range(8):
            process = ham.popen("replica-set", specs[number * len(specs) // 8])
            time.sleep(chance.uniform(0.05, 1.5))
            process.kill()
            process.communicate()
        lines = ham.converge(specs[-1])
        assert lines[-1]["result"] == "converged"
        assert ham.converge(specs[-1]) == [{"result": "converged", "changes": 0}]
        config = ham.config(4)
        assert sorted((each["_id"], each["votes"], each["priority"]) for each in config["members"]) == [
            (1, 1, 1),
            (2, 1, 1),
            (4, 1, 2),
        ]
        assert config["configsvr"]


NODE = "CN=node,OU=heliograph-client,O=heliograph-fra"


@pytest.fixture(scope="class")
def region(machines, tmp_path_factory):
    """Config server, two shards, a router; TLS and x509. Sets are initiated by the command itself."""
    home = tmp_path_factory.mktemp("region")
    pki = Pki(home)
    sets = {"cfg": machines("cfg", role="configsvr", pki=pki)}
    sets |= {name: machines(name, role="shardsvr", pki=pki) for name in ("fra-x", "fra-y")}
    for each in sets.values():
        each.start(0)
        each.converge(each.spec(0))
    port = free_port()
    tls = {"mode": "requireTLS", "certificateKeyFile": str(pki.certificate("router")), "CAFile": str(pki.ca)}
    config = {
        "sharding": {"configDB": f"cfg/{sets['cfg'].host(0)}"},
        "net": {"port": port, "bindIp": "127.0.0.1", "tls": tls},
        "security": {"clusterAuthMode": "x509"},
    }
    (home / "mongos.yaml").write_text(yaml.safe_dump(config))
    with (home / "router.log").open("wb") as log:
        router = subprocess.Popen(
            [sys.executable, str(ROUTER), "--config", str(home / "mongos.yaml")], stdout=log, stderr=log
        )
    yield sets, f"127.0.0.1:{port}"
    router.terminate()
    router.wait()


def cluster_spec(region, *shards: str, **more: Any) -> dict[str, Any]:
    sets, router = region
    roles = [{"role": "readWrite", "db": "heliograph"}]
    return {
        "routers": [router],
        "shards": [{"name": name, "members": [sets[name].host(0)]} for name in shards],
        "database": "heliograph",
        "collections": {"events": {"key": {"mid": "hashed"}}},
        "users": [{"user": NODE, "roles": roles}],
    } | more


class TestShards:
    """The cluster grows to what is declared and never moves or loses data for it."""

    def test_from_nothing_through_a_kill(self, region):
        command = region[0]["cfg"]
        spec = cluster_spec(region, "fra-x", "fra-y")
        spec["routers"].insert(0, f"127.0.0.1:{free_port()}")  # one is down
        process = command.popen("shards", spec)
        time.sleep(3)  # the router that is down takes some of it
        process.kill()
        before = [json.loads(line) for line in process.communicate()[0].splitlines()]
        answer = command.run("shards", spec)
        assert answer.code == 0, answer
        done = [line["change"] for line in (*before, *answer.lines) if "change" in line]
        assert set(done) <= {"write_concern", "shard", "database", "collection", "user"}
        again = command.run("shards", spec)
        assert again.lines == [{"result": "converged", "changes": 0}], again

    def test_roles_change_and_strangers_are_told(self, region):
        command = region[0]["cfg"]
        users = [{"user": NODE, "roles": [{"role": "read", "db": "heliograph"}]}]
        answer = command.run("shards", cluster_spec(region, "fra-x", "fra-y", users=users))
        assert kinds(answer.lines) == ["user", "converged"], answer
        other = [{"user": NODE.replace("node", "ledger"), "roles": []}]
        answer = command.run("shards", cluster_spec(region, "fra-x", "fra-y", users=other))
        assert kinds(answer.lines) == ["user", "finding", "converged"], answer
        assert NODE in answer.lines[1]["finding"]

    def test_refused_and_nothing_changed(self, region):
        command = region[0]["cfg"]
        answer = command.run("shards", cluster_spec(region, "fra-x"))
        assert answer.code == 2
        assert answer.out == ""
        assert "the shard fra-y" in answer.err
        assert "use the drain operation" in answer.err
        answer = command.run(
            "shards", cluster_spec(region, "fra-x", "fra-y", collections={"events": {"key": {"mid": 1}}})
        )
        assert answer.code == 2
        assert "is sharded by {mid: hashed}, declared is {mid: 1}" in answer.err
        answer = command.run("shards", cluster_spec(region, "fra-x", "fra-y") | {"routers": [region[0]["cfg"].host(0)]})
        assert answer.code == 2
        assert "is no router" in answer.err

    def test_status(self, region):
        sets, router = region
        users = [{"user": NODE.replace("node", name), "roles": []} for name in ("ledger", "node")]
        users[1]["roles"] = [{"role": "read", "db": "heliograph"}]
        spec = cluster_spec(region, "fra-x", "fra-y", users=users)
        answer = sets["cfg"].run("status", {"sets": [each.spec(0) for each in sets.values()], "cluster": spec})
        found = json.loads(answer.out)
        assert answer.code == 0, found["problems"]
        assert sorted(shard["name"] for shard in found["cluster"]["shards"]) == ["fra-x", "fra-y"]
        (events,) = [each for each in found["cluster"]["collections"] if each["collection"] == "heliograph.events"]
        assert sum(events["chunks"].values()) >= 2
        assert found["cluster"]["balancer"]["mode"] in ("full", "off")
        down = f"127.0.0.1:{free_port()}"
        answer = sets["cfg"].run("status", {"cluster": cluster_spec(region, "fra-x", routers=[down, router])})
        assert answer.code == 3
        problems = " ".join(json.loads(answer.out)["problems"])
        assert "fra-y" in problems
        assert f"The router {down} does not answer" in problems


class TestUpkeep:
    """What an upgrade does around the restarts."""

    def test_the_balancer_rests_and_runs_again(self, region):
        sets, router = region
        for running in (False, True):
            spec = {"routers": [f"127.0.0.1:{free_port()}", router], "running": running}  # one is down
            first, second = sets["cfg"].run("balancer", spec), sets["cfg"].run("balancer", spec)
            assert kinds(first.lines) == ["balancer", "converged"], first
            assert kinds(second.lines) == ["converged"], second

    def test_features(self, region):
        """Another version than that of the programs is refused; the present one is nothing to do; members that do not follow are named."""
        sets, router = region
        spec = {"routers": [router], "members": [each.host(0) for each in sets.values()]}
        answer = sets["cfg"].run("features", spec | {"version": "7.0"})
        assert answer.code == 2
        assert "runs 6.0.5" in answer.err
        assert "Upgrade every member first" in " ".join(answer.err.split())
        config = spec | {"members": [sets["cfg"].host(0)], "version": "6.0"}
        answer = sets["cfg"].run("features", config)
        assert (answer.code, kinds(answer.lines)) == (0, ["converged"]), answer
        # Shards that come by the router double keep 5.0, and a config server of 6.0 does not tell them.
        answer = sets["cfg"].run("features", spec | {"version": "6.0"})
        assert answer.code == 2
        assert sets["fra-x"].host(0) in answer.err
        assert "still has another" in " ".join(answer.err.split())

    def test_old_states_are_kept_for_longer_and_no_longer(self, region):
        sets, _router = region
        members = [each.host(0) for each in sets.values()]
        for seconds in (14_400, 300):
            spec = {"members": members, "seconds": seconds}
            first, second = sets["cfg"].run("snapshots", spec), sets["cfg"].run("snapshots", spec)
            assert kinds(first.lines) == ["snapshots", "converged"], first
            assert kinds(second.lines) == ["converged"], second
        answer = sets["cfg"].run("snapshots", {"members": [f"127.0.0.1:{free_port()}", *members], "seconds": 301})
        assert (answer.code, kinds(answer.lines)) == (2, ["snapshots"])
        assert "Run this again" in " ".join(answer.err.split())
