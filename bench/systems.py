"""The gateways under test: how each is set up (its best settings without throttling), started, and asked to send one message."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from bench.tools import BenchError, Process, Sink, free_port, listens, post, require, until
from controlplane.callbacks.sign import new_secret
from controlplane.domain.catalog import CallbackEndpoint, Connector, Key, Route, Scope, Tenant
from controlplane.embedded.mongod import Mongod, binary
from controlplane.settings import Settings, child_environment
from controlplane.store.catalog import Catalog
from controlplane.store.client import connect
from controlplane.store.seal import Seal, new_key

WINDOW = 100
"""Unanswered submit_sm on the one bind that each gateway holds, where it has such a setting."""
TEXT = "bench @@@@@@@@@@"
TO = "+4915112345678"


class System(ABC):
    """One gateway."""

    name: str
    durability: str
    ports: list[int]
    """Where its HTTP interface listens; one for each of its processes that has one."""

    def __init__(self) -> None:
        self._running: list[Process] = []

    @abstractmethod
    def start(self, work: Path, sink: Sink) -> None:
        """Start it and wait until it is bound to the sink."""

    @abstractmethod
    def request(self) -> bytes:
        """One message as a whole HTTP request."""

    def pids(self) -> list[int]:
        """The processes whose CPU time counts."""
        return [process.pid for process in self._running]

    def stop(self) -> None:
        """End it."""
        for process in reversed(self._running):
            process.stop()
        self._running = []


class Kannel(System):
    """bearerbox and smsbox. The spool store writes a file a message, without fsync."""

    def __init__(self, *, store: bool = True, told: bool = False) -> None:
        super().__init__()
        self.name = "kannel" if store else "kannel-nostore"
        self._told = told
        self._callback_port = 0
        self.durability = "spool file, no fsync" if store else "none (memory)"
        self._store = store

    def start(self, work: Path, sink: Sink) -> None:
        require("bearerbox", "smsbox")
        shutil.rmtree(work, ignore_errors=True)
        (work / "spool").mkdir(parents=True)
        admin, box, port = free_port(), free_port(), free_port()
        self.ports = [port]
        self._callback_port = sink.callback_port
        store = f'store-type = spool\nstore-location = "{work}/spool"\n' if self._store else ""
        config = work / "kannel.conf"
        config.write_text(f"""group = core
admin-port = {admin}
admin-interface = 127.0.0.1
admin-password = bench
smsbox-port = {box}
smsbox-interface = 127.0.0.1
box-allow-ip = "127.0.0.1"
log-file = "{work}/bearerbox.log"
log-level = 4
dlr-storage = internal
{store}
group = smsc
smsc = smpp
smsc-id = sink
host = 127.0.0.1
port = {sink.port}
transceiver-mode = true
smsc-username = bench
smsc-password = bench
system-type = ""
max-pending-submits = {WINDOW}

group = smsbox
bearerbox-host = 127.0.0.1
bearerbox-port = {box}
sendsms-port = {port}
sendsms-interface = 127.0.0.1
log-file = "{work}/smsbox.log"
log-level = 4

group = sendsms-user
username = bench
password = bench
""")
        self._running = [Process(["bearerbox", config], work / "bearerbox.out")]
        until("bearerbox", lambda: listens(box))
        self._running.append(Process(["smsbox", config], work / "smsbox.out"))
        until("smsbox", lambda: listens(port))
        time.sleep(1.0)

    def request(self) -> bytes:
        text = TEXT.replace(" ", "+")
        query = f"username=bench&password=bench&from=12345&to={TO[1:]}&text={text}"
        if self._told:
            query += "&dlr-mask=1&dlr-url=" + quote(f"http://127.0.0.1:{self._callback_port}/?state=%d", safe="")
        return f"GET /cgi-bin/sendsms?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Jasmin(System):
    """jasmind with its redis and rabbitmq. Queues are not durable: a restart of rabbitmq loses what was accepted."""

    name = "jasmin"
    durability = "none (rabbitmq, transient)"

    def __init__(self, venv: Path) -> None:
        super().__init__()
        self._venv = venv

    def start(self, work: Path, sink: Sink) -> None:
        require("redis-server", "epmd")
        server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        daemon = self._venv / "bin" / "jasmind.py"
        if not server.exists() or not daemon.exists():
            raise BenchError("rabbitmq-server or Jasmin is missing. Run: bench/prepare")
        shutil.rmtree(work, ignore_errors=True)
        for folder in ("etc/jasmin/resource", "etc/jasmin/store", "var/log/jasmin"):
            (work / folder).mkdir(parents=True)
        spec = next(self._venv.glob("lib/python*/site-packages/txamqp/specs/standard/amqp0-9-1.stripped.xml"))
        shutil.copy(spec, work / "etc/jasmin/resource/amqp0-9-1.xml")
        redis, amqp, epmd, dist, cli, port = (free_port() for _ in range(6))
        self.ports = [port]
        self._running = [
            Process(
                ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                work / "redis.log",
                cwd=work,
            )
        ]
        (work / "rabbit.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{amqp}\n")
        environment = {
            **os.environ,
            "HOME": str(work),
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"bench{amqp}@localhost",
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_MNESIA_BASE": str(work / "mnesia"),
            "RABBITMQ_LOG_BASE": str(work / "rabbit-log"),
            "RABBITMQ_CONFIG_FILE": str(work / "rabbit"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(work / "plugins"),
        }
        self._running.append(Process(["epmd"], work / "epmd.log", env=environment))
        self._running.append(Process([server], work / "rabbit.log", env=environment))
        until("rabbitmq", lambda: listens(amqp), 90)
        smpp = free_port()
        config = work / "etc/jasmin/jasmin.cfg"
        config.write_text(_jasmin_config(cli, port, smpp, redis, amqp))
        time.sleep(1.0)
        self._running.append(
            Process(
                [self._venv / "bin" / "python", daemon, "-c", config],
                work / "jasmin.log",
                env={**os.environ, "ROOT_PATH": str(work)},
            )
        )
        until("jasmind", lambda: listens(cli) and listens(port))
        time.sleep(1.0)
        _jcli(cli, sink.port)
        time.sleep(2.0)

    def request(self) -> bytes:
        text = TEXT.replace(" ", "+")
        query = f"username=bench&password=bench&from=12345&to={TO[1:]}&content={text}"
        return f"GET /send?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _jasmin_config(cli: int, http: int, smpp: int, redis: int, amqp: int) -> str:
    quiet = "log_level = ERROR\n"
    return (
        f"[jcli]\nauthentication = False\nbind = 127.0.0.1\nport = {cli}\n{quiet}"
        f"[http-api]\nbind = 127.0.0.1\nport = {http}\n{quiet}"
        f"[smpp-server]\nbind = 127.0.0.1\nport = {smpp}\n{quiet}"
        f"[redis-client]\nport = {redis}\n{quiet}"
        f"[amqp-broker]\nport = {amqp}\n{quiet}"
        + "".join(f"[{name}]\n{quiet}" for name in ("sm-listener", "router", "client-management", "service-smppclient"))
    )


def _jcli(port: int, sink_port: int) -> None:
    """Jasmin is configured over its telnet console."""
    blocks = (
        ("group -a", "gid bench", "ok"),
        ("user -a", "uid bench", "gid bench", "username bench", "password bench", "ok"),
        (
            "smppccm -a",
            "cid sink",
            "host 127.0.0.1",
            f"port {sink_port}",
            "username bench",
            "password bench",
            "submit_throughput 0",
            "ok",
        ),
        ("smppccm -1 sink",),
        ("mtrouter -a", "type DefaultRoute", "connector smppc(sink)", "rate 0", "ok"),
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as console:
        time.sleep(0.5)
        console.recv(4096)
        for line in (line for block in blocks for line in block):
            console.sendall(line.encode() + b"\r\n")
            answer = b""
            while not answer.rstrip().endswith((b"jcli :", b">")):
                answer += console.recv(4096)
            if b"rror" in answer or b"ailed" in answer:
                raise BenchError(f"jCli refused {line!r}: {answer.decode(errors='replace')}")


class Heliograph(System):
    """One or more nodes over a real mongod: every acceptance and every outcome is majority-written and journaled."""

    def __init__(
        self,
        *,
        members: int = 1,
        nodes: int = 1,
        told: bool = False,
        ledger: bool = False,
        routing: str = "static",
        routes: int = 1,
        max_open: int = 1_000_000,
    ) -> None:
        super().__init__()
        suffix = "".join((f"-{members}members" if members > 1 else "", f"-{nodes}nodes" if nodes > 1 else ""))
        self.name = "heliograph" + suffix
        self.durability = f"majority of {members}, journaled (fsync)"
        self._members = members
        self._nodes = nodes
        self._told = told
        self._ledger = ledger
        self._routing = routing
        self._routes = routes
        """All over the one connector: what differs is what they cost."""
        self._max_open = max_open
        self._ledgers: list[Process] = []
        self._mongods: list[Process] = []
        self._single: Mongod | None = None
        self.key = ""
        self.uri = ""

    def start(self, work: Path, sink: Sink) -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self.uri = self._start_mongod(work)
        secret = secrets.token_hex(32)
        (work / "secret").write_text(secret)
        self.key = new_key()
        settings = Settings(mongodb_uri=self.uri, secret_key=secret)
        asyncio.run(self._seed(settings, sink))
        self.ports = [free_port() for _ in range(self._nodes)]
        for number, port in enumerate(self.ports, 1):
            environment = child_environment(
                mongodb_uri=self.uri,
                secret_key_file=work / "secret",
                node=f"node-{number}",
                state_dir=work,
                port=port,
                callback_allow_private="true",
                default_rate=1_000_000,
                max_open_messages=self._max_open,
                log_level="warning",
            )
            command = [sys.executable, "-m", "controlplane", "node"]
            self._running.append(Process(command, work / f"node-{number}.log", env=environment))
        for port in self.ports:
            until("the node", lambda port=port: listens(port))  # type: ignore[misc]
        if self._ledger:
            self._start_ledger(work)
        time.sleep(1.0)

    def _start_ledger(self, work: Path) -> None:
        key, port = work / "ledger.key", free_port()
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
        environment = child_environment(
            mongodb_uri=self.uri,
            secret_key_file=work / "secret",
            ledger_key_file=key,
            node="ledger-1",
            state_dir=work,
            port=port,
            log_level="warning",
        )
        command = [sys.executable, "-m", "controlplane", "ledger"]
        self._ledgers.append(Process(command, work / "ledger.log", env=environment))
        until("the ledger", lambda: listens(port))

    def _start_mongod(self, work: Path) -> str:
        if self._members == 1:
            self._single = Mongod(work / "mongo", free_port(), cache_gb=1.0)
            self._single.start()
            return self._single.uri
        ports = [free_port() for _ in range(self._members)]
        for port in ports:
            data = work / f"mongo-{port}"
            data.mkdir()
            arguments = [
                *(str(binary()), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"),
                *("--replSet", "rs0", "--oplogSize", "512", "--wiredTigerCacheSizeGB", "1", "--nounixsocket"),
            ]
            self._mongods.append(Process(arguments, work / f"mongo-{port}.log"))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        for port in ports:
            until("mongod", lambda port=port: listens(port))  # type: ignore[misc]
        _initiate(ports)
        return f"mongodb://{hosts}/?replicaSet=rs0"

    async def _seed(self, settings: Settings, sink: Sink) -> None:
        database = connect(settings)
        seal = Seal(settings.secret)
        catalog = Catalog(database, seal)
        await catalog.refresh()
        digest = seal.digest_key(self.key)
        await catalog.put(Tenant(id="bench", name="Bench", callback_secrets=(new_secret(),), routing=self._routing))
        scopes = frozenset({Scope.MESSAGES_READ, Scope.MESSAGES_WRITE})
        await catalog.put(Key(id="bench", tenant="bench", name="bench", scopes=scopes, digest=digest, hint="hg"))
        connector = Connector(
            name="sink",
            host="127.0.0.1",
            port=sink.port,
            system_id="bench",
            password="bench",
            window=WINDOW,
            rate=100_000,
        )
        await catalog.put(connector)
        for number in range(self._routes):
            await catalog.put(Route(name=f"sink-{number + 1}", connector="sink", price=5 + number % 3))
        if self._told:
            url = f"http://127.0.0.1:{sink.callback_port}/"
            await catalog.put(CallbackEndpoint(id="bench", tenant="bench", url=url, events=frozenset({"delivered"})))
        await database.client.close()

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    def request(self, *, idempotent: bool = False, text: str = TEXT) -> bytes:
        headers = self.headers() | ({"Idempotency-Key": "bench-@@@@@@@@@@"} if idempotent else {})
        return post("/v1/messages", json.dumps({"to": TO, "body": text, "from": "12345"}).encode(), headers)

    def batch(self, size: int) -> bytes:
        items = [{"to": TO, "body": TEXT, "from": "12345"} for _ in range(size)]
        return post("/v1/batches", json.dumps({"messages": items}).encode(), self.headers())

    def pids(self) -> list[int]:
        return self.node_pids + self.mongod_pids + self.ledger_pids

    @property
    def node_pids(self) -> list[int]:
        return [process.pid for process in self._running]

    @property
    def ledger_pids(self) -> list[int]:
        return [process.pid for process in self._ledgers]

    @property
    def mongod_pids(self) -> list[int]:
        single = [self._single.process.pid] if self._single and self._single.process else []
        return [process.pid for process in self._mongods] + single

    def stop(self) -> None:
        for process in (*self._running, *self._ledgers, *self._mongods):
            process.stop()
        if self._single:
            self._single.stop()
        self._running, self._ledgers, self._mongods, self._single = [], [], [], None


def _initiate(ports: list[int]) -> None:
    members = [{"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(ports)]
    with MongoClient(f"mongodb://127.0.0.1:{ports[0]}/?directConnection=true") as client:
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})

        def whole() -> bool:
            try:
                states = [member["stateStr"] for member in client.admin.command("replSetGetStatus")["members"]]
            except PyMongoError:
                return False
            return sorted(states) == ["PRIMARY", *["SECONDARY"] * (len(ports) - 1)]

        until("the replica set", whole, 60)
