"""The router double in front of a real sharded cluster (config server, a shard of one member, a shard of three), with TLS and x509 throughout."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from bson import Timestamp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pymongo import AsyncMongoClient, MongoClient, ReturnDocument
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from controlplane.clock import SystemClock
from controlplane.domain.catalog import Tenant
from controlplane.domain.events import Event, Kind
from controlplane.embedded.mongod import binary
from controlplane.settings import Settings
from controlplane.store.backup import clear, create, open_archive, restore, verify
from controlplane.store.catalog import Catalog
from controlplane.store.client import connect
from controlplane.store.committer import Committer
from controlplane.store.leases import Checkpoint, Terms
from controlplane.store.schema import ensure_indexes
from controlplane.store.seal import Seal
from controlplane.store.slots import Slots
from tests.conftest import SECRET, drop_databases
from tests.simulators.network import free_port

ROUTER = Path(__file__).parents[2] / "lab" / "router.py"
NODE = "CN=node,OU=heliograph-client,O=heliograph-fra"
DATABASE = "heliograph"
SETS = {"cfg": 1, "a": 1, "b": 3}
PASSWORD = "a-password-for-tests"


class Authority:
    """A CA that signs for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        certificate = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._pem(certificate))

    def issue(self, name: str, unit: str, organization: str = "heliograph-fra") -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [(NameOID.ORGANIZATION_NAME, organization), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
        subject = x509.Name([x509.NameAttribute(*part) for part in [*parts, (NameOID.COMMON_NAME, name)]])
        alternatives = x509.SubjectAlternativeName(
            [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
        )
        path = self.folder / f"{name}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + self._pem(self._builder(subject, key).add_extension(alternatives, False)))
        return path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        return builder.not_valid_after(now + timedelta(days=1))

    def _pem(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class ShardedCluster:
    """The mongods, and the double in front of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.certificates = {
            "member": self.authority.issue("member", "heliograph-member"),
            "node": self.authority.issue("node", "heliograph-client"),
            "stranger": self.authority.issue("stranger", "heliograph-client"),
        }
        self.members = {name: [free_port() for _ in range(count)] for name, count in SETS.items()}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.port = free_port()

    def uri(
        self, who: str, port: int | None = None, more: str = "&authMechanism=MONGODB-X509&authSource=%24external"
    ) -> str:
        tls = f"tls=true&tlsCAFile={quote(str(self.authority.file))}&tlsCertificateKeyFile={quote(str(self.certificates[who]))}"
        return f"mongodb://127.0.0.1:{port or self.port}/?{tls}{more}" + ("&directConnection=true" if port else "")

    def start(self) -> None:
        for name, ports in self.members.items():
            for port in ports:
                self._start_member(name, port)
        for name, ports in self.members.items():
            self._initiate(name, ports)
        self._start_routers()

    def _start_member(self, name: str, port: int) -> None:
        data = self.folder / f"{name}-{port}"
        data.mkdir()
        command = [
            str(binary()), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--replSet", name,
            "--configsvr" if name == "cfg" else "--shardsvr", "--nounixsocket", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25",
            "--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(self.certificates["member"]), "--tlsCAFile", str(self.authority.file),
            "--clusterAuthMode", "x509", "--setParameter", "diagnosticDataCollectionEnabled=false", "--logpath", str(data / "log"),
            "--wiredTigerEngineConfigString=log=(file_max=8MB)",
        ]  # fmt: skip
        self.processes[port] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _initiate(self, name: str, ports: list[int]) -> None:
        members = [{"_id": i, "host": f"127.0.0.1:{port}", "priority": 1} for i, port in enumerate(ports)]
        config = {"_id": name, "members": members, "settings": {"electionTimeoutMillis": 2_000}}
        with MongoClient[dict[str, Any]](self.uri("member", ports[0])) as client:
            client.admin.command("replSetInitiate", config | ({"configsvr": True} if name == "cfg" else {}))
            self._wait(lambda: client.admin.command("hello")["isWritablePrimary"])

    def _router(self, name: str, port: int) -> subprocess.Popen[bytes]:
        config = {
            "sharding": {"configDB": "cfg/" + ",".join(f"127.0.0.1:{port}" for port in self.members["cfg"])},
            "net": {
                "port": port,
                "bindIp": "127.0.0.1",
                "tls": {
                    "mode": "requireTLS",
                    "certificateKeyFile": str(self.certificates["member"]),
                    "CAFile": str(self.authority.file),
                },
            },
            "security": {"clusterAuthMode": "x509"},
        }
        file = self.folder / f"{name}.conf"
        file.write_text(yaml.safe_dump(config))
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, str(ROUTER), "--config", str(file)]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def _start_routers(self) -> None:
        port = free_port()
        self.router, other = self._router("mongos", self.port), self._router("other", port)
        try:
            with (
                MongoClient[dict[str, Any]](self.uri("member")) as client,
                MongoClient[dict[str, Any]](self.uri("member", port)) as second,
            ):
                self.unheard = [second.admin.command("ping")]  # it has its table now, without a shard
                self._add_shards(client)
                self.unheard += [
                    second[DATABASE].plain.find_one(),
                    second[DATABASE].plain.insert_one({"_id": 1}).inserted_id,
                    second[DATABASE].plain.delete_one({"_id": 1}).deleted_count,
                ]
        finally:
            other.kill()
            other.wait()

    def _add_shards(self, client: MongoClient[dict[str, Any]]) -> None:
        for name in ("a", "b"):
            hosts = ",".join(f"127.0.0.1:{port}" for port in self.members[name])
            assert client.admin.command("addShard", f"{name}/{hosts}")["shardAdded"] == name
        roles = [{"role": "readWrite", "db": DATABASE}]
        client["$external"].command("createUser", NODE, roles=roles)
        client.admin.command("createUser", "scram", pwd=PASSWORD, roles=roles)
        client.admin.command("createUser", "admin", pwd=PASSWORD, roles=["clusterAdmin", "userAdminAnyDatabase"])

    @staticmethod
    def _wait(until: Any) -> None:
        deadline = time.monotonic() + 30
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> int:
        self.router.terminate()
        code = self.router.wait(20)
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        return code


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedCluster]:
    cluster = ShardedCluster(tmp_path_factory.mktemp("router"))
    try:
        cluster.start()
        yield cluster
    finally:
        code = cluster.stop()
        drop_databases(cluster.folder)
    assert code == 0, (cluster.folder / "mongos.log").read_text()
    assert '"Unexpected"' not in (cluster.folder / "mongos.log").read_text()


@asynccontextmanager
async def client_of(uri: str, **options: Any) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    client = AsyncMongoClient[dict[str, Any]](uri, **options)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def admin(cluster: ShardedCluster) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """With a member's certificate, as provisioning connects."""
    async with client_of(cluster.uri("member")) as client:
        yield client


@pytest.fixture
async def node(cluster: ShardedCluster) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """With a node's certificate, and retryable writes as is pymongo's default."""
    async with client_of(cluster.uri("node")) as client:
        yield client


async def counts(cluster: ShardedCluster, collection: str, database: str = DATABASE) -> dict[str, int]:
    """Documents on each shard's first reachable primary."""
    found = {}
    for name in ("a", "b"):
        for port in cluster.members[name]:
            async with client_of(cluster.uri("member", port)) as direct:
                if (await direct.admin.command("hello"))["isWritablePrimary"]:
                    found[name] = len(await direct[database][collection].find({}, {"_id": 1}).to_list())
    return found


async def sharded(admin: AsyncMongoClient[dict[str, Any]], name: str, key: dict[str, Any] | None = None) -> None:
    await admin.admin.command("shardCollection", f"{DATABASE}.{name}", key=key or {"mid": "hashed"})


class TestAdministration:
    """What provisioning sends to a mongos does here what it does there."""

    async def test_looks_like_mongos(self, admin):
        hello = await admin.admin.command("hello")
        assert (hello["msg"], hello["maxWireVersion"], "setName" in hello) == ("isdbgrid", 17, False)
        assert await admin.is_mongos
        assert (await admin.admin.command("buildInfo"))["version"] == "6.0.5"
        assert (await admin.admin.command("serverStatus"))["process"] == "mongos"
        with pytest.raises(OperationFailure, match="not supported through mongos"):
            await admin.admin.command("replSetGetStatus")

    async def test_shards(self, admin):
        assert [shard["_id"] for shard in (await admin.admin.command("listShards"))["shards"]] == ["a", "b"]
        assert await admin.config.shards.count_documents({}) == 2
        assert set((await admin.admin.command("getShardMap"))["map"]) == {"a", "b", "config"}

    def test_a_router_that_has_not_heard_of_the_first_shard_asks(self, cluster):
        """As mongos does; else what follows `addShard` would work or not with the router that a client happens to choose."""
        assert cluster.unheard == [{"ok": 1.0}, None, 1, 1]

    async def test_cluster_wide_settings(self, admin):
        concern = {"w": "majority", "wtimeout": 0}
        await admin.admin.command("setDefaultRWConcern", defaultWriteConcern=concern)
        assert (await admin.admin.command("getDefaultRWConcern"))["defaultWriteConcern"] == concern
        await admin.admin.command("setFeatureCompatibilityVersion", "6.0")
        for command, mode in (("balancerStop", "off"), ("balancerStart", "full")):
            await admin.admin.command(command)
            assert (await admin.admin.command("balancerStatus"))["mode"] == mode

    async def test_databases_and_collections_come_and_go(self, admin):
        await admin.admin.command("enableSharding", "fleeting")
        await admin.fleeting.plain.insert_one({"_id": 1})
        await admin.admin.command("shardCollection", "fleeting.ranged", key={"n": 1})
        await admin.fleeting.ranged.insert_one({"n": 1})
        await admin.fleeting.create_collection("made")
        assert sorted(await admin.fleeting.list_collection_names()) == ["made", "plain", "ranged"]
        assert (await admin.fleeting.command("dbStats"))["objects"] == 2
        assert (await admin.fleeting.command("collStats", "ranged"))["sharded"]
        assert "fleeting" in await admin.list_database_names()
        await admin.fleeting.drop_collection("ranged")
        assert sorted(await admin.fleeting.list_collection_names()) == ["made", "plain"]
        await admin.drop_database("fleeting")
        assert "fleeting" not in await admin.list_database_names()

    async def test_unknown_commands_are_named(self, admin):
        with pytest.raises(OperationFailure, match="router double: no such command: moveChunk") as raised:
            await admin.admin.command("moveChunk", "x.y")
        assert raised.value.code == 59
        with pytest.raises(OperationFailure, match="'shardVersion' of find"):
            await admin[DATABASE].command("find", "x", shardVersion=1)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"sharding": {"configDB": "cfg/h:1"}, "net": {"ipv6": True}}, "Unrecognized option: net.ipv6"),
            ({"net": {"port": 1}}, "sharding.configDB"),
            ({"sharding": {"configDB": "cfg/h:1"}, "net": {"tls": {"mode": "preferTLS"}}}, "net.tls.mode"),
        ],
    )
    def test_configuration_errors_are_named(self, tmp_path, config, reason):
        file = tmp_path / "mongos.conf"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, str(ROUTER), "--config", str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode != 0
        assert reason in ended.stderr


class TestShardedCollections:
    """All shards look like one collection."""

    async def test_spread_and_read_back(self, cluster, admin, node):
        await sharded(admin, "spread")
        collection = node[DATABASE].spread
        await collection.insert_many([{"_id": n, "mid": f"m{n}", "n": n % 7} for n in range(2_000)])
        found = await counts(cluster, "spread")
        assert sum(found.values()) == 2_000
        assert min(found.values()) > 500
        ids = [document["_id"] async for document in collection.find({}).sort("_id", 1).batch_size(300)]
        assert ids == list(range(2_000))
        assert await collection.count_documents({"n": 3}) == len(range(3, 2_000, 7))
        assert await collection.estimated_document_count() == 2_000
        assert sorted(await collection.distinct("n")) == list(range(7))
        groups = await (await collection.aggregate([{"$group": {"_id": "$n", "c": {"$sum": 1}}}])).to_list()
        assert sum(group["c"] for group in groups) == 2_000

    async def test_duplicates_are_reported_for_each_document(self, admin, node):
        await sharded(admin, "twice")
        collection = node[DATABASE].twice
        await collection.insert_one({"_id": 1, "mid": "a"})
        with pytest.raises(BulkWriteError) as raised:
            await collection.insert_many([{"_id": n, "mid": "a"} for n in (0, 1, 2)], ordered=False)
        (error,) = raised.value.details["writeErrors"]
        assert (error["index"], error["code"]) == (1, 11_000)
        assert await collection.count_documents({}) == 3

    async def test_changes(self, admin, node):
        await sharded(admin, "changed")
        collection = node[DATABASE].changed
        await collection.insert_many([{"_id": n, "mid": str(n)} for n in range(20)])
        assert (await collection.update_one({"_id": 3}, {"$set": {"x": 1}})).modified_count == 1
        assert (await collection.update_many({"mid": {"$in": ["4", "5"]}}, {"$set": {"x": 1}})).modified_count == 2
        assert (await collection.update_one({"mid": "new"}, {"$set": {"x": 2}}, upsert=True)).upserted_id is not None
        assert (await collection.delete_many({"x": 1})).deleted_count == 3
        await collection.with_options(write_concern=WriteConcern(w=0)).insert_one({"_id": "quiet", "mid": "q"})
        await collection.insert_one({"_id": "after", "mid": "q"})
        assert await collection.count_documents({"mid": "q"}) == 2
        with pytest.raises(OperationFailure, match="no findAndModify on a sharded collection"):
            await collection.find_one_and_update({"mid": "6"}, {"$set": {"x": 1}})

    async def test_indexes_reach_all_shards(self, cluster, admin, node):
        await sharded(admin, "indexed")
        await node[DATABASE].indexed.create_index([("at", 1)], name="at")
        assert "at" in await node[DATABASE].indexed.index_information()
        for name in ("a", "b"):
            async with client_of(cluster.uri("member", cluster.members[name][0])) as direct:
                assert "at" in await direct[DATABASE].indexed.index_information()
        await node[DATABASE].indexed.drop_index("at")
        assert "at" not in await node[DATABASE].indexed.index_information()


class TestUnshardedCollections:
    """They live on their database's primary shard, and everything works on them."""

    async def test_everything(self, node):
        collection = node[DATABASE].plain
        after = ReturnDocument.AFTER
        for n in (1, 2):
            assert await collection.find_one_and_update(
                {"_id": "x"}, {"$inc": {"n": 1}}, upsert=True, return_document=after
            ) == {"_id": "x", "n": n}
        assert (await collection.update_one({"_id": "y"}, {"$set": {"n": 5}}, upsert=True)).upserted_id == "y"
        assert sorted(await collection.distinct("n")) == [2, 5]
        assert await collection.estimated_document_count() == 2
        await collection.insert_many([{"_id": n} for n in range(500)])
        assert len(await collection.find({}).batch_size(50).to_list()) == 502
        async with collection.find({}).batch_size(2) as cursor:  # left early: killCursors
            assert await cursor.next()
        await collection.create_index("n", name="n")
        assert set(await collection.index_information()) == {"_id_", "n"}
        async with node.start_session(causal_consistency=True) as session:
            await collection.insert_one({"_id": "s"}, session=session)
            majority = collection.with_options(read_concern=ReadConcern("majority"))
            assert await majority.find_one({"_id": "s"}, session=session)

    async def test_nothing_there_yet(self, admin):
        assert await admin.nowhere.nothing.distinct("x") == []
        assert await admin.nowhere.nothing.estimated_document_count() == 0
        assert await admin.nowhere.nothing.find_one({}) is None
        assert await admin.nowhere.list_collection_names() == []
        await admin.nowhere.nothing.find_one_and_update({"_id": 1}, {"$set": {"x": 1}}, upsert=True)
        assert await admin.nowhere.nothing.distinct("x") == [1]
        await admin.drop_database("nowhere")

    async def test_sharded_behind_the_routers_back(self, cluster, admin):
        """Another router shards a collection: what ours believes does no harm."""
        await admin.elsewhere.late.insert_one({"_id": 1, "mid": 1})
        await admin.elsewhere.late.create_index("mid")
        (database,) = await admin.config.databases.find({"_id": "elsewhere"}).to_list()
        for port in cluster.members[database["primary"]]:
            async with client_of(cluster.uri("member", port)) as direct:
                if (await direct.admin.command("hello"))["isWritablePrimary"]:
                    await direct.elsewhere.command(
                        {
                            "_shardsvrCreateCollection": "late",
                            "shardKey": {"mid": 1},
                            "databaseVersion": database["version"],
                            "writeConcern": {"w": "majority"},
                        }
                    )
        assert await admin.elsewhere.late.distinct("mid") == [1]
        with pytest.raises(OperationFailure, match="sharded collection"):
            await admin.elsewhere.late.find_one_and_update({"_id": 1}, {"$set": {"x": 1}})
        await admin.drop_database("elsewhere")


class TestAccess:
    """Nobody gets what a mongos would refuse."""

    async def test_a_node_may_write_and_not_administer(self, cluster, node):
        await node[DATABASE].mine.insert_one({"_id": 1})
        status = await node.admin.command("connectionStatus")
        assert status["authInfo"]["authenticatedUsers"] == [{"user": NODE, "db": "$external"}]
        for command in (
            {"addShard": "c/127.0.0.1:1"},
            {"shardCollection": f"{DATABASE}.x", "key": {"_id": 1}},
            {"createUser": "eve", "pwd": "x", "roles": ["root"]},
            {"balancerStop": 1},
            {"setFeatureCompatibilityVersion": "6.0"},
            {"find": "system.users"},
        ):
            with pytest.raises(OperationFailure, match="not authorized") as raised:
                await node.admin.command(command)
            assert raised.value.code == 13
        for database in ("other", "config", "admin", "local"):
            with pytest.raises(OperationFailure, match="not authorized"):
                await node[database].x.insert_one({})

    async def test_strangers_are_refused(self, cluster):
        async with client_of(cluster.uri("stranger")) as client:
            with pytest.raises(OperationFailure, match="Authentication failed") as raised:
                await client[DATABASE].x.find_one({})
            assert raised.value.code == 18
        async with client_of(cluster.uri("stranger", more="")) as client:
            await client.admin.command("ping")
            with pytest.raises(OperationFailure, match="command find requires authentication"):
                await client[DATABASE].x.find_one({})

    @pytest.mark.parametrize("mechanism", ["", "&authMechanism=SCRAM-SHA-1", "&authMechanism=SCRAM-SHA-256"])
    async def test_passwords(self, cluster, mechanism):
        uri = cluster.uri("stranger", more=f"&authSource=admin{mechanism}")
        async with client_of(uri, username="scram", password=PASSWORD) as client:
            await client[DATABASE].by_password.insert_one({})
            with pytest.raises(OperationFailure, match="not authorized"):
                await client.other.x.insert_one({})
        async with client_of(uri, username="scram", password="wrong") as client:
            with pytest.raises(OperationFailure, match="Authentication failed"):
                await client[DATABASE].by_password.insert_one({})

    async def test_an_administrator_administers_and_reads_no_messages(self, cluster):
        uri = cluster.uri("stranger", more="&authSource=admin")
        async with client_of(uri, username="admin", password=PASSWORD) as client:
            assert len((await client.admin.command("listShards"))["shards"]) == 2
            await client.admin.command("enableSharding", DATABASE)
            await client.admin.command("createUser", "temp", pwd=PASSWORD, roles=[{"role": "read", "db": DATABASE}])
            await client.admin.command("grantRolesToUser", "temp", roles=[{"role": "readWrite", "db": "temp"}])
            await client.admin.command("dropUser", "temp")
            with pytest.raises(OperationFailure, match="not authorized"):
                await client[DATABASE].spread.find_one({})


class TestMembersSurvive:
    """Nothing that a client sends makes a mongod abort."""

    async def test_odd_commands(self, cluster, admin):
        await sharded(admin, "odd")
        database = admin[DATABASE]
        await database.odd.insert_many([{"_id": n, "mid": n} for n in range(200)])  # txnNumber: a retryable write
        with pytest.raises(OperationFailure) as raised:
            async with admin.start_session() as session, await session.start_transaction():
                await database.odd.insert_one({"mid": 1}, session=session)
        assert raised.value.code == 263
        transaction: dict[str, Any] = {"txnNumber": 1, "autocommit": False, "startTransaction": True}
        commands: list[dict[str, Any]] = [
            {"find": "odd", **transaction},
            {"insert": "odd", "documents": [{"_id": 1}], **transaction},
            {"update": "odd", "updates": [{"q": {"mid": 1}, "u": {"$set": {"mid": 9}}}], "txnNumber": 5},
            {"update": "odd", "updates": [{"q": {"mid": 1}, "u": {"$set": {"mid": 9}}}], "stmtIds": [1]},
            {"update": "odd", "updates": [{"q": {"mid": n}, "u": {"_id": n, "mid": 9 * n}} for n in range(9)]},
            {"find": "odd", "readConcern": {"level": "snapshot"}, "singleBatch": True},
            {"find": "odd", "readConcern": {"level": "snapshot", "atClusterTime": Timestamp(1, 1)}},
            {"find": "odd", "readConcern": {"level": "majority", "afterClusterTime": Timestamp(2**31, 1)}},
            {"find": "odd", "$clusterTime": {"clusterTime": Timestamp(2**31, 1)}, "shardVersion": 1},
            {"find": 5}, {"find": ""}, {"find": "a\0b"}, {"find": b"1234567890123456"},
            {"getMore": 5, "collection": "odd"}, {"getMore": "x", "collection": 7}, {"killCursors": "odd", "cursors": ["x", {}]},
            {"insert": "odd"}, {"insert": "odd", "documents": []},
            {"insert": "system.buckets.x", "documents": [{}]}, {"insert": "system.views", "documents": [{}]},
            {"aggregate": "odd", "pipeline": 7}, {"aggregate": 1, "pipeline": [{"$currentOp": {}}], "cursor": {}},
            {"aggregate": "odd", "pipeline": [{"$mergeCursors": {}}], "cursor": {}},
            {"aggregate": "odd", "pipeline": [{"$lookup": {"from": "x", "as": "y", "pipeline": [{"$merge": "z"}]}}], "cursor": {}},
            {"aggregate": "odd", "pipeline": [{"$out": "z"}], "cursor": {}}, {"aggregate": "odd", "pipeline": [{"$changeStream": {}}]},
            {"aggregate": "odd", "pipeline": [], "cursor": {}, "fromMongos": True, "needsMerge": True},
            {"count": "odd", "skip": "x"}, {"distinct": "odd"}, {"distinct": "odd", "key": {}}, {"createIndexes": "odd", "indexes": 5},
            {"commitTransaction": 1}, {"abortTransaction": 1}, {"explain": {"find": "odd"}}, {"shardCollection": 5}, {"enableSharding": {}},
            {"addShard": 5}, {"removeShard": []}, {"usersInfo": {"x": 1}}, {"setDefaultRWConcern": 1}, {"collStats": 1}, {"drop": ""},
            {"saslStart": 1}, {"saslContinue": 1}, {"authenticate": 1}, {"getParameter": "*"}, {"": 1}, {"dropDatabase": 1, "x": 1},
        ]  # fmt: skip
        for command in commands:
            try:
                await database.command(command)
            except PyMongoError as error:
                assert isinstance(error, OperationFailure), (command, error)
        assert all(process.poll() is None for process in cluster.processes.values())
        assert await database.odd.count_documents({}) == 200

    async def test_broken_messages(self, cluster, node):
        context = ssl.create_default_context(cafile=str(cluster.authority.file))
        context.load_cert_chain(cluster.certificates["node"])
        for message in (
            b"GET / HTTP/1.1\r\n\r\n" * 4,
            b"\xff" * 64,
            b"\x15\0\0\0" + b"\1\0\0\0" * 2 + b"\xdd\7\0\0" + b"\0" * 5,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port, ssl=context)
            writer.write(message)
            assert await reader.read() == b""
            writer.transport.abort()
        assert await node.admin.command("ping")


class TestProduct:
    """The store works on it as it is."""

    @pytest.fixture
    def settings(self, cluster, tmp_path) -> Settings:
        return Settings(
            mongodb_uri=cluster.uri("node"),
            database=DATABASE,
            secret_key=SECRET,
            node="node-1",
            state_dir=tmp_path,
            lease_seconds=3,
            lease_renew_seconds=0.5,
            lease_margin_seconds=0.5,
            testing=True,
        )

    async def test_store(self, cluster, admin, settings):
        await sharded(admin, "events")
        database = connect(settings)
        clock = SystemClock()
        try:
            await ensure_indexes(database)
            await ensure_indexes(database)
            catalog = Catalog(database, Seal(SECRET.encode()))
            await catalog.put(Tenant(id="t", name="T"))
            assert catalog.snapshot.tenants["t"].name == "T"
            terms = Terms(database, settings, clock)
            lease = await terms.open("host")
            await terms.renew(lease, Checkpoint(q=1))
            assert lease.valid
            slots = Slots(database, lease, clock)
            slot = await slots.take("carrier", 2)
            assert slot == "carrier/0"
            assert await slots.keep(slot)
            await self._commit(database, clock)
        finally:
            await database.client.close()
        assert min((await counts(cluster, "events")).values()) > 0

    async def _commit(self, database, clock) -> None:
        committer = Committer(database, datacenter="fra", node="node-1", epoch=1, clock=clock)
        rival = Committer(database, datacenter="fra", node="node-2", epoch=1, clock=clock)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run()) for one in (committer, rival)]
            drafts = [
                Event(
                    mid=f"{n:026d}",
                    k=0,
                    tenant="t",
                    kind=Kind.ACCEPTED,
                    at=1,
                    data={"to": "+49", "parts": 1},
                    prev=None,
                )
                for n in range(1_000)
            ]
            events = await asyncio.gather(*map(committer.append, drafts))
            lost = await rival.append(
                Event(mid=f"{0:026d}", k=0, tenant="t", kind=Kind.CANCELLED, at=1, data={}, prev=None)
            )
            await rival.drain()
            for task in tasks:
                task.cancel()
        assert all(events)
        assert lost is None
        assert await database.events.count_documents({"n": "node-1"}) == 1_000


class TestBackup:
    """A backup through a router is of one instant on all shards, and is put back through one into collections that are sharded already."""

    async def test_all_shards_at_one_instant(self, cluster, admin, tmp_path):
        for database in ("first", "second"):
            await admin.admin.command("shardCollection", f"{database}.events", key={"mid": "hashed"})
        first = Settings(mongodb_uri=cluster.uri("member"), database="first", secret_key=SECRET, datacenter="fra")
        second = first.model_copy(update={"database": "second"})
        stop, written = asyncio.Event(), 0

        async def write(database) -> None:
            """One after another, now on this shard and now on that one: what is there at one instant has no gap."""
            nonlocal written
            while not stop.is_set():
                event = {"_id": f"{written}:0", "mid": str(written), "kind": "accepted", "dc": "fra", "n": written}
                await database.events.insert_one(event)
                written += 1

        source, target = connect(first), connect(second)
        try:
            padding = [{"_id": f"p{n}", "mid": f"p{n}", "kind": "x", "pad": "x" * 900} for n in range(20_000)]
            for at in range(0, len(padding), 1_000):  # the double would take its time over all of them
                await source.events.insert_many(padding[at : at + 1_000])
            async with asyncio.TaskGroup() as group:
                group.create_task(write(source))
                while written < 20:
                    await asyncio.sleep(0.01)
                before = written
                manifest = await create(source, first, tmp_path / "b", SystemClock(), lambda _text: None)
                after = written
                stop.set()
            assert before < after
            archive = open_archive(tmp_path / "b", first.secret)
            verify(archive, lambda _text: None)
            assert await restore(target, archive, lambda _text: None)
            numbers = sorted([one["n"] async for one in target.events.find({"n": {"$exists": True}})])
            assert numbers == list(range(len(numbers)))
            assert before <= len(numbers) == manifest.messages < after
            shares = await counts(cluster, "events", "second")
            assert sum(shares.values()) == manifest.documents
            assert min(shares.values()) > 5_000
            assert not await restore(target, archive, lambda _text: None)
            assert await clear(target) == manifest.documents
            assert await restore(target, archive, lambda _text: None)
        finally:
            await source.client.close()
            await target.client.close()

    async def test_a_node_may(self, cluster, admin, tmp_path):
        """Its user's `readWrite` is enough to back up, to empty and to put back."""
        settings = Settings(mongodb_uri=cluster.uri("node"), database=DATABASE, secret_key=SECRET, datacenter="fra")
        database = connect(settings)
        try:
            manifest = await create(database, settings, tmp_path / "b", SystemClock(), lambda _text: None)
            assert await clear(database) >= manifest.documents  # leases, which no backup has, go too
            assert await restore(database, open_archive(tmp_path / "b", settings.secret), lambda _text: None)
        finally:
            await database.client.close()


class TestFailover:
    """A shard loses its primary: nothing acknowledged is lost, and writes go on."""

    async def test_kill_the_primary_while_inserting(self, cluster, admin):
        await sharded(admin, "ledger")
        durable = WriteConcern(w="majority", j=True)
        acknowledged: list[int] = []
        failures: list[str] = []
        async with client_of(cluster.uri("node"), retryWrites=False) as client:
            collection = client[DATABASE].get_collection("ledger", write_concern=durable)
            victim = await self._primary(cluster, "b")

            async def insert(start: int, until: float) -> None:
                n = start
                while time.monotonic() < until:
                    ids = range(n, n + 20)
                    n += 20
                    try:
                        await collection.insert_many([{"_id": i, "mid": i} for i in ids], ordered=False)
                    except PyMongoError as error:
                        failures.append(str(error)[:200])
                        await asyncio.sleep(0.1)
                    else:
                        acknowledged.extend(ids)

            async with asyncio.TaskGroup() as group:
                for worker in range(4):
                    group.create_task(insert(worker * 10_000_000, time.monotonic() + 8))
                await asyncio.sleep(1)
                cluster.processes[victim].send_signal(signal.SIGKILL)
                killed = time.monotonic()
            await self._until_both_shards_take_writes(collection)
            assert time.monotonic() - killed < 30
            assert await self._primary(cluster, "b") != victim
            majority = collection.with_options(read_concern=ReadConcern("majority"))
            found = {document["_id"] async for document in majority.find({}, {"_id": 1})}
        assert len(acknowledged) > 100
        assert set(acknowledged) <= found

    async def _until_both_shards_take_writes(self, collection) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    await collection.insert_many([{"mid": f"after {n}"} for n in range(50)])
                except PyMongoError:
                    await asyncio.sleep(0.1)
                else:
                    return

    async def _primary(self, cluster: ShardedCluster, name: str) -> int:
        for port in cluster.members[name]:
            if cluster.processes[port].poll() is None:
                async with client_of(cluster.uri("member", port)) as direct:
                    if (await direct.admin.command("hello"))["isWritablePrimary"]:
                        return port
        raise AssertionError(f"{name} has no primary")
