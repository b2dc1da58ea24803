"""How MongoDB stands, as far as this node may see: replica sets with their members' roles and lag, config servers, routers.

What needs which right:

| read | by | right |
|---|---|---|
| a member's role, its last write | `hello` to the member itself | none: it is answered before authentication (manual, reference/command/hello) |
| the shards and config servers behind a router, the routers | `getShardMap`, `config.mongos` | `clusterMonitor` on `admin` |
| states, heartbeats and lag as the set itself sees them | `replSetGetStatus` | `clusterMonitor` on `admin` |

So a replica set can be shown without any right; a sharded cluster needs `clusterMonitor`, which reads and changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from controlplane.settings import Settings
from controlplane.store.client import Database, Document, border

__all__ = ["Topology"]

_HELLO_MS = 1_500
_UNAUTHORIZED = 13
_UNKNOWN_COMMANDS = (59, 115)
_NOT_CREDENTIALS = re.compile(r"(?i)(tls|ssl|net)\w*=")
_FRESH_SECONDS = 2.0


class Topology:
    """One per node. Keeps a connection to each member; `close` ends them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._uri = settings.mongodb_uri.get_secret_value()
        self._members: dict[str, AsyncMongoClient[Document]] = {}
        self._reading = asyncio.Lock()
        self._last: tuple[float, Document] | None = None

    async def close(self) -> None:
        """End the connections to members."""
        while self._members:
            await self._members.popitem()[1].close()

    async def read(self) -> Document:
        """`{kind, complete, not_seen, sets: [{set, role, members: […]}], routers: […]}`. Raises StoreUnavailableError.

        `kind` is replica_set or sharded; `complete` is false where something is not permitted: `not_seen` says what, and which right is missing.
        A member is `{host, role, state, healthy, answers, lag_seconds, heartbeat_at, why}`; role is primary, secondary, arbiter, other or unknown.
        """
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._last is None or now - self._last[0] > _FRESH_SECONDS:
                self._last = now, await self._read()
            return self._last[1]

    async def _read(self) -> Document:
        admin = self._database.client.admin
        with border():
            hello = await admin.command("hello")
        not_seen: list[str] = []
        if hello.get("msg") == "isdbgrid":
            sets, routers = await self._behind_router(not_seen)
            kind = "sharded"
        else:
            hosts = [*hello.get("hosts", ()), *hello.get("passives", ()), *hello.get("arbiters", ())]
            found = await self._asked(str(hello.get("setName", "")), "data", hosts, {str(hello.get("me", "")): hello})
            status = await self._permitted("replSetGetStatus", not_seen)
            sets, routers, kind = [_with_status(found, status)], [], "replica_set"
        await self._forget({member["host"] for each in sets for member in each["members"]})
        return {
            "kind": kind,
            "version": await self._version(),
            "complete": kind == "replica_set" or not not_seen,
            "not_seen": not_seen,
            "sets": sets,
            "routers": routers,
        }

    async def _behind_router(self, not_seen: list[str]) -> tuple[list[Document], list[Document]]:
        answer = await self._permitted("getShardMap", not_seen)
        sets = await asyncio.gather(
            *(
                self._asked(place.partition("/")[0], "config" if name == "config" else "shard", _hosts(place))
                for name, place in sorted(
                    (answer or {}).get("map", {}).items(), key=lambda item: (item[0] != "config", item[0])
                )
            )
        )
        routers: list[Document] = []
        if answer is not None:
            try:
                documents = await self._database.client["config"]["mongos"].find({}).to_list()
            except PyMongoError as error:
                not_seen.append(f"routers: {_refusal(error)}")
            else:
                routers = [_router(document) for document in documents]
        return list(sets), routers

    async def _permitted(self, command: str, not_seen: list[str]) -> Document | None:
        """The command's answer; None where it is not permitted, or not known there, which is then in `not_seen`."""
        with border():
            try:
                return await self._database.client.admin.command(command)
            except OperationFailure as error:
                if error.code not in (_UNAUTHORIZED, *_UNKNOWN_COMMANDS):
                    raise
                not_seen.append(f"{command}: {_refusal(error)}")
                return None

    async def _version(self) -> str:
        with border():
            return str((await self._database.client.admin.command("buildInfo"))["version"])

    # -- members -------------------------------------------------------------------------------------------------------

    async def _asked(
        self, name: str, role: str, hosts: Iterable[str], said: Mapping[str, Document] = MappingProxyType({})
    ) -> Document:
        """A set as its members describe themselves; those in `said` have done so already."""
        found = await asyncio.gather(*(self._hello(host, said.get(host)) for host in dict.fromkeys(hosts)))
        members = list(found)
        newest = max((m["last_write"] for m in members if m["role"] == "primary" and m["last_write"]), default=None)
        for member in members:
            at = member.pop("last_write")
            behind = (newest - at).total_seconds() if newest is not None and at is not None else None
            member["lag_seconds"] = None if behind is None or member["role"] == "arbiter" else max(0.0, behind)
        return {"set": name, "role": role, "members": members}

    async def _hello(self, host: str, hello: Document | None) -> Document:
        member: Document = {
            "host": host,
            "role": "unknown",
            "state": "not reached from this node",
            "healthy": False,
            "answers": False,
            "lag_seconds": None,
            "heartbeat_at": None,
            "why": "",
            "last_write": None,
        }
        try:
            hello = hello or await self._client(host).admin.command("hello")
        except (PyMongoError, OSError) as error:
            member["why"] = str(error).split(" (configured timeouts")[0].split(", Timeout:")[0][:200]
            return member
        role = _role(hello)
        return member | {
            "role": role,
            "state": role.upper() if role != "other" else "RECOVERING",
            "healthy": role in ("primary", "secondary", "arbiter"),
            "answers": True,
            "last_write": hello.get("lastWrite", {}).get("lastWriteDate"),
        }

    def _client(self, host: str) -> AsyncMongoClient[Document]:
        """A direct connection to one member, with the TLS of our own URI and without its credentials: only `hello` goes over it."""
        client = self._members.get(host)
        if client is None:
            client = self._members[host] = AsyncMongoClient(
                _direct(self._uri, host),
                appname="heliograph-topology",
                connectTimeoutMS=_HELLO_MS,
                serverSelectionTimeoutMS=_HELLO_MS,
                socketTimeoutMS=_HELLO_MS,
                maxPoolSize=1,
                retryReads=False,
                serverMonitoringMode="poll",
            )
        return client

    async def _forget(self, hosts: set[str]) -> None:
        for host in [host for host in self._members if host not in hosts]:
            await self._members.pop(host).close()


def _direct(uri: str, host: str) -> str:
    """`uri` for one host of it: without credentials, set name and database, with the options of its TLS and network."""
    scheme, _, rest = uri.partition("://")
    options = [option for option in rest.partition("?")[2].split("&") if _NOT_CREDENTIALS.match(option)]
    if scheme == "mongodb+srv" and not any(option.lower().startswith(("tls=", "ssl=")) for option in options):
        options.append("tls=true")
    return f"mongodb://{host}/?{'&'.join([*options, 'directConnection=true'])}"


def _hosts(place: str) -> list[str]:
    """`set/host:port,host:port` → the hosts."""
    return [host for host in place.partition("/")[2].split(",") if host]


def _role(hello: Mapping[str, Any]) -> str:
    if hello.get("isWritablePrimary"):
        return "primary"
    if hello.get("secondary"):
        return "secondary"
    return "arbiter" if hello.get("arbiterOnly") else "other"


def _refusal(error: PyMongoError) -> str:
    if isinstance(error, OperationFailure) and error.code == _UNAUTHORIZED:
        return "not permitted: this node's MongoDB user lacks the role clusterMonitor on admin"
    return f"not read: {error}"[:200]


def _with_status(found: Document, status: Mapping[str, Any] | None) -> Document:
    """The set's own view over what its members said: it knows of members that only it reaches, and measures lag by the oplog."""
    by_host = {str(member["name"]): member for member in (status or {}).get("members", ())}
    newest = max((m["optimeDate"] for m in by_host.values() if m.get("state") == 1 and "optimeDate" in m), default=None)
    for member in found["members"]:
        seen = by_host.get(member["host"])
        if seen is None:
            continue
        up = bool(seen.get("health"))
        member["state"] = str(seen["stateStr"]) if up else "DOWN"
        member["healthy"] = up and seen.get("state") in (1, 2, 7)
        member["heartbeat_at"] = _iso(seen.get("lastHeartbeatRecv"))
        if newest is not None and "optimeDate" in seen and up:
            member["lag_seconds"] = max(0.0, (newest - seen["optimeDate"]).total_seconds())
        if seen.get("lastHeartbeatMessage"):
            member["why"] = member["why"] or str(seen["lastHeartbeatMessage"])[:200]
    return found


def _router(document: Mapping[str, Any]) -> Document:
    return {
        "host": str(document["_id"]),
        "version": document.get("mongoVersion"),
        "heartbeat_at": _iso(document.get("ping")),
    }


def _iso(at: object) -> str | None:
    return (
        at.replace(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if isinstance(at, datetime)
        else None
    )
