"""How MongoDB stands, seen with the rights that a node has: through a router with x509, and in a plain replica set that loses a member."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from controlplane.domain.node_state import NodeState
from controlplane.embedded.mongod import binary
from controlplane.settings import Settings
from controlplane.store.alerts import Alerts
from controlplane.store.client import connect
from controlplane.store.node_states import NodeStates
from controlplane.store.statistics import Statistics
from controlplane.store.topology import Topology
from tests.conftest import SECRET
from tests.integration.lab.test_router import NODE, ShardedCluster, cluster
from tests.simulators.network import free_port

__all__ = ["cluster"]  # a fixture

# pymongo leaves the socket of a connection that is given up while TLS is being spoken to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@asynccontextmanager
async def seen_from(uri: str, tmp_path) -> AsyncIterator[Topology]:
    settings = Settings(mongodb_uri=uri, secret_key=SECRET, state_dir=tmp_path, testing=True)
    database = connect(settings)
    topology = Topology(database, settings)
    try:
        yield topology
    finally:
        await topology.close()
        await database.client.close()


class TestBehindARouter:
    """A node's user sees shards, config servers and routers with clusterMonitor, and is told what it lacks without."""

    async def test_without_the_role_and_with_it(self, cluster: ShardedCluster, tmp_path):
        async with seen_from(cluster.uri("node"), tmp_path) as topology:
            found = await topology.read()
            assert (found["kind"], found["complete"], found["sets"]) == ("sharded", False, [])
            assert found["not_seen"] == [
                "getShardMap: not permitted: this node's MongoDB user lacks the role clusterMonitor on admin"
            ]
        with MongoClient[dict[str, Any]](cluster.uri("member")) as admin:
            admin["$external"].command("grantRolesToUser", NODE, roles=[{"role": "clusterMonitor", "db": "admin"}])
        async with seen_from(cluster.uri("node"), tmp_path) as topology:
            async with asyncio.timeout(10):  # the double looks at roles every three seconds
                while not (found := await topology.read())["complete"]:
                    await asyncio.sleep(0.5)
        sets = {one["set"]: one for one in found["sets"]}
        assert [(name, one["role"], len(one["members"])) for name, one in sets.items()] == [
            ("cfg", "config", 1),
            ("a", "shard", 1),
            ("b", "shard", 3),
        ]
        roles = sorted(member["role"] for member in sets["b"]["members"])
        assert roles == ["primary", "secondary", "secondary"]
        assert all(member["healthy"] and member["lag_seconds"] is not None for member in sets["b"]["members"])

    async def test_what_nodes_write_goes_through_a_router(self, cluster: ShardedCluster, tmp_path):
        """Updates by pipeline, upserts, $$NOW, TTL indexes: as the shards take them, with a node's rights."""
        settings = Settings(mongodb_uri=cluster.uri("node"), secret_key=SECRET, state_dir=tmp_path, testing=True)
        database = connect(settings)
        states, alerts = NodeStates(database, gone_seconds=5), Alerts(database)
        statistics = Statistics(database, datacenter="a")
        try:
            for keeper in (states, alerts, statistics):
                await keeper.ensure_indexes()
            for epoch, version in ((2, "new"), (2, "$newer"), (1, "former self")):
                await states.save(NodeState(node="n", datacenter="a", epoch=epoch, version=version, started_at=1))
            (seen,) = await states.all()
            assert (seen.state.version, seen.gone, seen.age_seconds < 5) == ("$newer", False, True)
            assert [await alerts.claim("n", 60), await alerts.claim("m", 60)] == [True, False]
        finally:
            await database.client.close()


class Three:
    """A replica set of three without authentication."""

    def __init__(self, home) -> None:
        self.home = home
        self.ports = [free_port() for _ in range(3)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def uri(self) -> str:
        return f"mongodb://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/?replicaSet=three"

    def start(self) -> None:
        for port in self.ports:
            data = self.home / str(port)
            data.mkdir()
            command = [str(binary()), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
            command += ["--replSet", "three", "--oplogSize", "32", "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket"]
            command += ["--setParameter", "diagnosticDataCollectionEnabled=false", "--logpath", str(data / "log")]
            self.processes[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        members = [{"_id": n, "host": f"127.0.0.1:{port}"} for n, port in enumerate(self.ports)]
        config = {"_id": "three", "members": members, "settings": {"electionTimeoutMillis": 2_000}}
        with MongoClient[dict[str, Any]](f"mongodb://127.0.0.1:{self.ports[0]}/?directConnection=true") as client:
            while True:  # until all of them listen
                try:
                    client.admin.command("replSetInitiate", config)
                except OperationFailure as error:
                    assert error.code == 74
                    time.sleep(0.2)
                else:
                    return

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def three(tmp_path) -> Iterator[Three]:
    made = Three(tmp_path)
    made.start()
    yield made
    made.stop()


class TestReplicaSet:
    """Roles and lag as they are, and a member that is away as away."""

    async def test_a_member_goes_away(self, three, tmp_path):
        async with seen_from(three.uri, tmp_path) as topology:
            async with asyncio.timeout(40):
                while True:
                    found = await topology.read()
                    if sorted(m["role"] for m in found["sets"][0]["members"]) == ["primary", "secondary", "secondary"]:
                        break
                    await asyncio.sleep(0.5)
            away = next(m["host"] for m in found["sets"][0]["members"] if m["role"] == "secondary")
            three.processes[int(away.rpartition(":")[2])].kill()
            async with asyncio.timeout(40):
                while True:
                    found = await topology.read()
                    member = next(m for m in found["sets"][0]["members"] if m["host"] == away)
                    if member["state"] == "DOWN":
                        break
                    await asyncio.sleep(0.5)
            assert (member["healthy"], member["answers"], member["role"]) == (False, False, "unknown")
            assert member["why"] != ""
            assert sum(m["healthy"] for m in found["sets"][0]["members"]) == 2
