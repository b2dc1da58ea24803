"""Direct connections to members, and what each says of itself.

Only commands that MongoDB 8.0 takes directly on a shard are sent here: hello, replSetGetConfig, replSetGetStatus, replSetInitiate,
replSetReconfig, replSetStepDown (https://www.mongodb.com/docs/manual/reference/supported-shard-direct-commands/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure, PyMongoError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Document

__all__ = ["TRANSIENT", "Access", "Connections", "Probe", "is_transient", "step_down"]

_SELECT_MS = 2_500
_SOCKET_MS = 60_000
_PROBE_SECONDS = 5.0
_STEP_DOWN_SECONDS = 60
_CATCH_UP_SECONDS = 10
_NO_REPLICATION = 76
_NOT_YET_INITIALIZED = 94
_INVALID_CONFIG = 93  # of a member that was removed

TRANSIENT = frozenset(
    {
        *(
            6,
            7,
            50,
            64,
            74,
            89,
            91,
            109,
            133,
            189,
        ),  # host unreachable … reconfiguration in progress, primary stepped down
        *(
            262,
            308,
            9001,
            10107,
            11600,
            11602,
            13435,
            13436,
        ),  # time limit, configuration not committed yet, not primary …
    }
)
"""Error codes after which the same is worth another try (src/mongo/base/error_codes.yml)."""


def is_transient(error: PyMongoError) -> bool:
    """Is it worth another try? Connections that broke, elections, reconfigurations under way."""
    return isinstance(error, ConnectionFailure) or (isinstance(error, OperationFailure) and error.code in TRANSIENT)


@dataclass(frozen=True, slots=True)
class Access:
    """TLS and MONGODB-X509 with a certificate of the cluster's members (`__system`); without files plain text, for tests."""

    ca: Path | None = None
    certificate: Path | None = None

    def client(self, host: str) -> AsyncMongoClient[Document]:
        """A direct connection, made at the first command. ConfigError when a file cannot be used."""
        options: dict[str, Any] = {}
        if self.ca is not None and self.certificate is not None:
            options = {
                "tls": True,
                "tlsCAFile": str(self.ca),
                "tlsCertificateKeyFile": str(self.certificate),
                "authMechanism": "MONGODB-X509",
                "authSource": "$external",
            }
        elif self.ca is not None or self.certificate is not None:
            raise ConfigError(
                "--ca and --certificate belong together. Give both, or neither for a MongoDB without TLS."
            )
        try:
            return AsyncMongoClient(
                f"mongodb://{host}/",
                directConnection=True,
                appname="heliograph-cluster",
                connectTimeoutMS=_SELECT_MS,
                serverSelectionTimeoutMS=_SELECT_MS,
                socketTimeoutMS=_SOCKET_MS,
                serverMonitoringMode="poll",
                retryWrites=False,
                retryReads=False,
                **options,
            )
        except (ConfigurationError, ValueError, OSError) as error:
            raise ConfigError(
                f"--ca {self.ca} or --certificate {self.certificate} is not usable: {error}. Give PEM files."
            ) from error


@dataclass(frozen=True, slots=True)
class Probe:
    """What a member says; `hello` is None when it does not answer, and `why` says so."""

    host: str
    hello: Document | None = None
    config: Document | None = None
    status: Document | None = None
    why: str = ""
    standalone: bool = False
    """Runs without --replSet, or is a router."""

    @property
    def writable(self) -> bool:
        """Is it, by its own word, the primary?"""
        return bool(self.hello and self.hello.get("isWritablePrimary") and self.config)

    @property
    def set_id(self) -> str:
        """The replica set's identity, made when it was initiated; "" without one."""
        return str((self.config or {}).get("settings", {}).get("replicaSetId", ""))

    @property
    def age(self) -> tuple[int, int]:
        """(term, version) of its configuration: the higher is the newer."""
        config = self.config or {}
        return int(config.get("term", -1)), int(config.get("version", -1))


def _sentence(host: str, error: BaseException) -> str:
    """The first part of what pymongo says: it puts the host before, its settings and its view of the topology behind."""
    if isinstance(error, TimeoutError):
        return f"no answer within {_PROBE_SECONDS:.0f} s"
    if isinstance(error, OperationFailure):
        words = str((error.details or {}).get("errmsg", error))
        if error.code == 18:
            return f"refuses the certificate: {words}"
        return f"asks for a certificate (--certificate): {words}" if error.code == 13 else words
    return str(error).split(" (configured timeouts")[0].split(", Timeout:")[0].removeprefix(f"{host}: ")


async def _no_connection(host: str) -> str:
    """Why no connection can be made; "" when it can."""
    name, _, port = host.rpartition(":")
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(name.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        return _sentence(host, error)
    writer.close()
    return ""


class Connections:
    """Keeps one client per host; close by leaving the context."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._clients: dict[str, AsyncMongoClient[Document]] = {}
        self._stack = AsyncExitStack()
        self._silent: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def __getitem__(self, host: str) -> AsyncMongoClient[Document]:
        if (client := self._clients.get(host)) is None:
            client = self._clients[host] = self._access.client(host)
            self._stack.push_async_callback(client.close)
        return client

    async def hello(self, host: str) -> Probe:
        """Only whether, and as what, it answers: all that a router is asked. Raises nothing of pymongo's."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return Probe(host, await self[host].admin.command("hello"))
        except (PyMongoError, TimeoutError) as error:
            return Probe(host, why=_sentence(host, error))

    async def probe(self, host: str) -> Probe:
        """Ask a member who it is. Raises nothing of pymongo's. One that was silent is asked for a connection first: pymongo waits, even when refused."""
        if host in self._silent and (why := await _no_connection(host)):
            return Probe(host, why=why)
        found = await self._ask(host)
        (self._silent.add if found.hello is None else self._silent.discard)(host)
        return found

    async def _ask(self, host: str) -> Probe:
        admin = self[host].admin
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                hello: Document = await admin.command("hello")
                if hello.get("msg") == "isdbgrid":
                    return Probe(host, hello, standalone=True)
                try:
                    config: Document = (await admin.command("replSetGetConfig"))["config"]
                except OperationFailure as error:
                    if error.code not in (_NO_REPLICATION, _NOT_YET_INITIALIZED):
                        raise
                    return Probe(host, hello, standalone=error.code == _NO_REPLICATION)
                try:
                    status: Document = await admin.command("replSetGetStatus")
                except OperationFailure as error:
                    if error.code not in (_NOT_YET_INITIALIZED, _INVALID_CONFIG):
                        raise
                    return Probe(host, hello, config)
                return Probe(host, hello, config, status)
        except (PyMongoError, TimeoutError) as error:
            return Probe(host, why=_sentence(host, error))

    async def probe_all(self, hosts: Iterable[str]) -> dict[str, Probe]:
        """All of them at once, in the order given."""
        async with asyncio.TaskGroup() as group:
            asked = {host: group.create_task(self.probe(host)) for host in dict.fromkeys(hosts)}
        return {host: task.result() for host, task in asked.items()}


async def step_down(connections: Connections, name: str, primary: str) -> str:
    """Let another be elected; never by force: who is not caught up would lose nothing, but stop all writes. Returns why it did not yet, "" when it did.

    StoreUnavailableError when the primary will not, whatever one waits for.
    """
    command = {"replSetStepDown": _STEP_DOWN_SECONDS, "secondaryCatchUpPeriodSecs": _CATCH_UP_SECONDS}
    try:
        await connections[primary].admin.command(command)
    except PyMongoError as error:
        if not is_transient(error):
            raise StoreUnavailableError(
                f"{primary}, the primary of {name}, must step down and does not: {error}. See why the others lag; then run this again."
            ) from error
        return f"{primary} did not step down yet: {error}"
    return ""
