#!/usr/bin/env python3
"""The lab's router double: stands for `mongos`, which no package registry has.

A shard server of MongoDB 6.0 carries the router's own code: as `__system` one may send it `clusterInsert`, `clusterFind`, `clusterUpdate`,
`clusterDelete`, `clusterAggregate` and `clusterGetMore`, and it targets, splits, versions and merges over all shards as mongos does. The double speaks the
wire protocol to clients, authenticates them, and hands those commands to the primary of a shard; what mongos does beyond that (administration,
commands on unsharded collections, users) it does itself with the config server's and the shards' own internal commands. It is started, configured
and stopped as mongos is: `mongos --config FILE`.

Gaps, against a real mongos:

- No multi-document transactions (error 263), no retryable writes: `txnNumber` is dropped, and a write whose outcome is not known is returned to the
  client as an error without a label that would make it try again.
- No findAndModify on sharded collections (error 115). `distinct` on sharded collections only for keys without a dot.
- No change streams, `$out`, `$merge`, aggregations on a database, `explain`, `mapReduce`, `renameCollection`, `collMod`, zones, `moveChunk`, `split`, resharding.
- Reads always go to primaries: read preferences are ignored. Nor are sessions passed on, or cluster times but with
  `atClusterTime`: causal consistency comes from majority reads and writes alone.
- An abandoned cursor lives on the shards until they time it out (ten minutes); `killCursors` only makes the double forget it.
- An operation goes on when its client has left. One under way to a member that has fallen silent (cut off, not dead) comes back when the member
  does, or never: the client's own socket timeout ends it, and the shards' routers need about ten seconds to turn to the new primary.
- An operation with `maxTimeMS` that expires may say NetworkInterfaceExceededTimeLimit instead of MaxTimeMSExpired.
- Authorisation is by action and resource of the user's privileges as the config server lists them; finer rules of mongos (own user's data, what an upsert needs,
  `listDatabases` cut down to what one may see, what `$lookup` may reach) are not there. Changes show within three seconds.
- Deadlines, pool sizes and counters are not configurable; `serverStatus`, `getParameter` and the like say little. `rotateCertificates` takes new
  certificates for new connections, but trusts former CAs until the next start.
- Only MongoDB 6.0: later versions changed these internal commands.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import yaml
from bson import CodecOptions, DatetimeConversion, Int64, ObjectId, Timestamp
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

VERSION = "6.0.5"
_MAX_MESSAGE = 48_000_000
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_CHECKSUM, _MORE_TO_COME = 1, 2
_RAW = CodecOptions(document_class=RawBSONDocument, datetime_conversion=DatetimeConversion.DATETIME_MS)
_PLAIN = CodecOptions[dict[str, Any]](datetime_conversion=DatetimeConversion.DATETIME_MS)

_PRIMARY_SECONDS = 15.0
_HELLO_SECONDS = 5.0
_CONNECT_SECONDS = 5.0
_CONNECTIONS = 64
_BUFFER = 1 << 20
_TABLE_SECONDS = 2.0
_USER_SECONDS = 3.0
_CURSOR_SECONDS = 900.0
_QUIESCE_SECONDS = 5.0

_NOT_APPLIED = {10107, 13435, 13436}
"""NotWritablePrimary, NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary: refused before anything was done."""
_MOVED = _NOT_APPLIED | {91, 189, 10058, 11600, 11602}
"""Also ShutdownInProgress, PrimarySteppedDown and the interruptions: the outcome of a write is open."""
_STALE = {249, 13388}
_UNSHARDED = {"e": ObjectId("0" * 24), "t": Timestamp(0, 0), "v": Timestamp(0, 0)}
_MAJORITY = {"writeConcern": {"w": "majority"}}
_NAMES = {
    6: "HostUnreachable", 8: "UnknownError", 13: "Unauthorized", 18: "AuthenticationFailed", 22: "InvalidBSON", 26: "NamespaceNotFound",
    43: "CursorNotFound", 59: "CommandNotFound", 70: "ShardNotFound", 72: "InvalidOptions", 73: "InvalidNamespace", 91: "ShutdownInProgress",
    115: "CommandNotSupported", 125: "CommandFailed", 133: "FailedToSatisfyReadPreference", 263: "OperationNotSupportedInTransaction",
    334: "MechanismUnavailable",
}  # fmt: skip

Document = dict[str, Any]


class CommandError(Exception):
    """What the client gets as an error."""

    def __init__(self, code: int, message: str, **more: Any) -> None:
        super().__init__(message)
        name = _NAMES.get(code, f"Location{code}")
        self.document = {"ok": 0.0, "errmsg": message, "code": code, "codeName": name, **more}


class UnreachedError(Exception):
    """No connection: nothing was sent."""


def log(message: str, severity: str = "I", **attributes: Any) -> None:
    """One line of JSON on stdout, shaped as MongoDB's."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"t": {"$date": stamp}, "s": severity, "c": "ROUTER", "msg": message, "attr": attributes}
    print(json.dumps(line, default=str), flush=True)


# -- the wire ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Command:
    """A command as it came. Documents stay raw: only the top level of the body is decoded, document sequences not at all."""

    fields: Document
    sequences: bytes = b""
    sequence_names: tuple[str, ...] = ()
    quiet: bool = False

    @property
    def name(self) -> str:
        """The first key."""
        return next(iter(self.fields), "")

    @property
    def db(self) -> str:
        """The database it speaks of."""
        return str(self.fields.get("$db", ""))

    @property
    def namespace(self) -> str:
        """What the command names; InvalidNamespace if that is no name."""
        value = self.fields[self.name]
        if not isinstance(value, str) or not value or "\0" in value:
            raise CommandError(73, f"router double: {self.name} needs a name, not {value!r:.50}")
        return value

    def encoded(self, target: str = "", **changes: Any) -> bytes:
        """The OP_MSG payload under another name, with some fields added or replaced."""
        name, *names = self.fields
        fields = {target or name: self.fields[name], **{key: self.fields[key] for key in names}, **changes}
        return b"\0\0\0\0" + self.sequences + b"\0" + bson.encode(fields)


def parse(payload: bytes) -> Command:
    """An OP_MSG's payload. Raises BSONError, ValueError or struct.error for what is none."""
    (flags,) = struct.unpack_from("<I", payload)
    end = len(payload) - (4 if flags & _CHECKSUM else 0)
    position, body, names = 4, b"", []
    sequences = []
    while position < end:
        kind = payload[position]
        (size,) = struct.unpack_from("<i", payload, position + 1)
        if size < 5 or position + 1 + size > end or kind > 1:
            raise ValueError("malformed section")
        if kind == 0:
            body = payload[position + 1 : position + 1 + size]
        else:
            names.append(payload[position + 5 : payload.index(b"\0", position + 5, end)].decode())
            sequences.append(payload[position : position + 1 + size])
        position += 1 + size
    return Command(decode(body), b"".join(sequences), tuple(names), bool(flags & _MORE_TO_COME))


def decode(body: bytes) -> Document:
    """The top level of a document."""
    return dict(RawBSONDocument(body, _RAW))


def error_code(reply: bytes) -> int:
    """0 for success."""
    document = RawBSONDocument(reply, _RAW)
    return 0 if document["ok"] == 1 else int(document.get("code", 8))


def payload_of(document: Document) -> bytes:
    """An OP_MSG payload."""
    return b"\0\0\0\0\0" + bson.encode(document)


async def read_message(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Request id, opcode, payload."""
    size, request, _, opcode = struct.unpack("<iiii", await reader.readexactly(16))
    if not 16 < size <= _MAX_MESSAGE:
        raise ConnectionError(f"a message of {size} bytes")
    return request, opcode, await reader.readexactly(size - 16)


def frame(payload: bytes, request: int, response_to: int, opcode: int = _OP_MSG) -> bytes:
    """Header and payload."""
    return struct.pack("<iiii", 16 + len(payload), request, response_to, opcode) + payload


# -- settings ----------------------------------------------------------------------------------------------------------


class Settings:
    """The configuration file, in MongoDB's words."""

    _KNOWN = frozenset([
        "sharding.configDB", "net.port", "net.bindIp", "net.tls.mode", "net.tls.certificateKeyFile", "net.tls.CAFile", "net.tls.clusterFile",
        "net.tls.allowConnectionsWithoutCertificates", "security.clusterAuthMode",
    ])  # fmt: skip

    def __init__(self, document: Any) -> None:
        self.parsed = document
        values = dict(self._flat(document, ""))
        for key in values:
            if key not in self._KNOWN:
                raise ValueError(f"Unrecognized option: {key}")
        name, slash, hosts = str(values.get("sharding.configDB", "")).partition("/")
        if not (name and slash and hosts):
            raise ValueError("sharding.configDB: expected name/host:port,host:port")
        self.config_set, self.config_hosts = name, hosts.split(",")
        self.port = int(values.get("net.port", 27017))
        self.addresses = [part.strip() for part in str(values.get("net.bindIp", "127.0.0.1")).split(",")]
        self.tls = values.get("net.tls.mode", "disabled") != "disabled"
        self._key = values.get("net.tls.certificateKeyFile")
        self._ca = values.get("net.tls.CAFile")
        self._client_key = values.get("net.tls.clusterFile", self._key)
        if not self.tls:
            return
        for key, wanted in (("net.tls.mode", "requireTLS"), ("security.clusterAuthMode", "x509")):
            if values.get(key) != wanted:
                raise ValueError(f"{key}: with TLS the router double knows only {wanted}")
        for key, path in (("net.tls.certificateKeyFile", self._key), ("net.tls.CAFile", self._ca)):
            if not path or not Path(path).is_file():
                raise ValueError(f"{key}: no such file: {path}")
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        optional = values.get("net.tls.allowConnectionsWithoutCertificates")
        self.server_context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        self.member_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.load_certificates()

    @classmethod
    def _flat(cls, value: Any, prefix: str) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from cls._flat(inner, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    def load_certificates(self) -> None:
        """Read the files (again): new connections use what they say."""
        self.server_context.load_cert_chain(self._key)
        self.server_context.load_verify_locations(self._ca)
        self.member_context.load_cert_chain(self._client_key)
        self.member_context.load_verify_locations(self._ca)
        # the standard library has no public way to read a certificate that no peer presented
        self.cluster = membership(ssl._ssl._test_decode_cert(self._key)["subject"])  # type: ignore[attr-defined]


_ATTRIBUTES = {
    "commonName": "CN", "organizationalUnitName": "OU", "organizationName": "O", "countryName": "C", "stateOrProvinceName": "ST",
    "localityName": "L", "domainComponent": "DC", "userId": "UID", "streetAddress": "STREET",
}  # fmt: skip


def subject_text(subject: Iterable[Iterable[tuple[str, str]]]) -> str:
    """The subject as RFC 2253 and MongoDB write it: the most specific part first."""

    def escaped(value: str) -> str:
        text = "".join(f"\\{sign}" if sign in ',+"\\<>;' else sign for sign in value)
        text = f"\\{text}" if text[:1] in ("#", " ") else text
        return f"{text[:-1]}\\ " if text.endswith(" ") and len(text) > 1 else text

    parts = ["+".join(f"{_ATTRIBUTES.get(name, name)}={escaped(value)}" for name, value in part) for part in subject]
    return ",".join(reversed(parts))


def membership(subject: Iterable[Iterable[tuple[str, str]]]) -> frozenset[tuple[str, str]]:
    """What members of one cluster have in common: O, OU and DC."""
    wanted = {"organizationName", "organizationalUnitName", "domainComponent"}
    return frozenset(pair for part in subject for pair in part if pair[0] in wanted)


# -- members -----------------------------------------------------------------------------------------------------------


class Connection:
    """To one member; one request at a time."""

    _requests = itertools.count(1)

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str, settings: Settings, *, authenticate: bool = True) -> Connection:
        """Connect, as `__system` where there is TLS. Raises UnreachedError."""
        host, _, port = address.rpartition(":")
        context = settings.member_context if settings.tls else None
        self = None
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self = cls(*await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, limit=_BUFFER))
                if context and authenticate:
                    login = {"authenticate": 1, "mechanism": "MONGODB-X509", "$db": "$external"}
                    reply = decode(await self.call(payload_of(login)))
                    if reply["ok"] != 1:
                        raise ConnectionError(reply.get("errmsg"))  # noqa: TRY301
                return self
        except BaseException as error:
            if self is not None:
                self.abort()
            if isinstance(error, OSError | EOFError):
                raise UnreachedError(f"{address}: {error!r}") from None
            raise

    async def call(self, payload: bytes) -> bytes:
        """The reply's body. Raises OSError, EOFError."""
        self._writer.write(frame(payload, next(self._requests), 0))
        await self._writer.drain()
        return (await read_message(self._reader))[2][5:]

    @property
    def broken(self) -> bool:
        """Known to be of no use."""
        return self._reader.at_eof() or self._writer.is_closing()

    def abort(self) -> None:
        """Whoever waits for a reply gets an error."""
        self._writer.transport.abort()


class Member:
    """One mongod and the connections to it."""

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        self._settings = settings
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._probe: Connection | None = None
        self.asked = False
        """Whether an answer to `hello` is awaited."""

    async def call(self, payload: bytes) -> bytes:
        """One request. Raises UnreachedError if it was not sent; OSError, EOFError if its outcome is open."""
        async with self._slots:
            connection = self._usable() or await Connection.open(self.address, self._settings)
            self._open.add(connection)
            try:
                reply = await connection.call(payload)
            except BaseException:
                self._open.discard(connection)
                connection.abort()
                raise
            self._idle.append(connection)
            return reply

    def _usable(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.broken:
                return connection
            self._open.discard(connection)
            connection.abort()
        return None

    async def hello(self) -> Document | None:
        """What it says of itself; None if it doesn't, and then nobody waits for it any longer."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                if self._probe is None:
                    self._probe = await Connection.open(self.address, self._settings, authenticate=False)
                return decode(await self._probe.call(payload_of({"hello": 1, "$db": "admin"})))
        except (OSError, EOFError, UnreachedError, BSONError):
            self.close()
            return None

    def close(self) -> None:
        """Break every connection."""
        for connection in (*self._open, self._probe):
            if connection:
                connection.abort()
        self._open.clear()
        self._idle.clear()
        self._probe = None


class ReplicaSet:
    """Follows a set's members and its primary."""

    def __init__(self, name: str, hosts: Iterable[str], settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._members = {host: Member(host, settings) for host in hosts}
        self._election: Any = None
        self._known = asyncio.Event()
        self._doubt = asyncio.Event()
        self.leader: Member | None = None

    async def watch(self) -> None:
        """Ask every member, each second or when somebody doubts; until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    for member in self._members.values():
                        if not member.asked:  # one that hangs keeps nobody else waiting
                            member.asked = True
                            group.create_task(self._ask(member))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1.0 if self.leader else 0.1):
                            await self._doubt.wait()
                        await asyncio.sleep(0.02)
                    self._doubt.clear()
        finally:
            for member in self._members.values():
                member.close()

    async def _ask(self, member: Member) -> None:
        hello = await member.hello()
        member.asked = False
        if self._members.get(member.address) is not member:
            return  # removed meanwhile
        if hello is None or hello.get("setName") != self.name or not hello.get("isWritablePrimary"):
            self.lost(member, look=False)
            return
        election = hello.get("electionId", ObjectId("0" * 24))
        if self.leader not in (None, member) and self._election > election:
            return  # a former primary that has not heard yet
        if self.leader is not member:
            log("Primary found", set=self.name, member=member.address)
        self.leader, self._election = member, election
        self._known.set()
        current = {*hello.get("hosts", ()), *hello.get("passives", ())}
        for host in current - self._members.keys():
            self._members[host] = Member(host, self._settings)
        for host in self._members.keys() - current - {member.address}:
            self._members.pop(host).close()

    def lost(self, member: Member, *, look: bool = True) -> None:
        """This one is no primary, it seems."""
        if self.leader is member:
            log("Primary lost", "W", set=self.name, member=member.address)
            self.leader = None
            self._known.clear()
        if look:
            self._doubt.set()

    async def primary(self, deadline: float) -> Member:
        """Wait for a primary; FailedToSatisfyReadPreference when none shows up."""
        try:
            async with asyncio.timeout_at(deadline):
                while (leader := self.leader) is None:
                    self._doubt.set()
                    await self._known.wait()
                return leader
        except TimeoutError:
            wanted = 'Could not find host matching read preference { mode: "primary" } for set'
            raise CommandError(133, f"{wanted} {self.name}") from None


# -- the cluster -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Table:
    """What the config server says of databases, sharded collections and defaults."""

    databases: dict[str, Document] = field(default_factory=dict)
    sharded: dict[str, Document] = field(default_factory=dict)
    defaults: Document = field(default_factory=dict)

    def defaults_for(self, command: Command, spec: Spec) -> Document:
        """The cluster-wide read and write concern where the client has none."""
        names = set((spec.fields or "").split()) - command.fields.keys()
        return {key: value for key, value in self.defaults.items() if key in names and value}


@dataclass(slots=True)
class Cursor:
    """Where a cursor lives, and whose it is."""

    member: Member
    merged: bool
    owner: Any
    used: float


class Cluster:
    """The config server, the shards and the routing table."""

    def __init__(self, settings: Settings, group: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._group = group
        self.config = ReplicaSet(settings.config_set, settings.config_hosts, settings)
        self.shards: dict[str, ReplicaSet] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._table: Table | None = None
        self._turn = 0
        self._cursors: dict[int, Cursor] = {}

    async def follow(self) -> None:
        """Keep the routing table fresh, until cancelled; without the config server the last one stays in force."""
        self._watches[""] = self._group.create_task(self.config.watch())
        while True:
            with contextlib.suppress(CommandError):
                await self.refresh()
            now = time.monotonic()
            self._cursors = {key: one for key, one in self._cursors.items() if now - one.used < _CURSOR_SECONDS}
            await asyncio.sleep(_TABLE_SECONDS)

    def close(self) -> None:
        """Follow nothing any more."""
        for task in self._watches.values():
            task.cancel()

    async def table(self) -> Table:
        """The present one; a new one where there is none, or none with a shard: another router may just have added the first."""
        return self._table if self._table and self.shards else await self.refresh()

    async def refresh(self) -> Table:
        """Read it anew."""
        shards, databases, collections, defaults = await asyncio.gather(
            self.read_config("shards"),
            self.read_config("databases"),
            self.read_config("collections"),
            self.ask(self.config, {"getDefaultRWConcern": 1, "$db": "admin"}, repeatable=True),
        )
        self._follow_shards({shard["_id"]: shard["host"] for shard in shards})
        self._table = Table(
            {database["_id"]: database for database in databases},
            {one["_id"]: one for one in collections if not one.get("dropped")},
            {"writeConcern": defaults.get("defaultWriteConcern"), "readConcern": defaults.get("defaultReadConcern")},
        )
        return self._table

    def _follow_shards(self, found: dict[str, str]) -> None:
        for name in self.shards.keys() - found.keys():
            log("Shard is gone", shard=name)
            del self.shards[name]
            self._watches.pop(name).cancel()
        for name in found.keys() - self.shards.keys():
            log("Shard found", shard=name)
            set_name, _, hosts = found[name].partition("/")
            self.shards[name] = ReplicaSet(set_name, hosts.split(","), self._settings)
            self._watches[name] = self._group.create_task(self.shards[name].watch())

    async def read_config(self, collection: str) -> list[Document]:
        """Documents of the config database."""
        command = {"find": collection, "readConcern": {"level": "majority"}, "$db": "config"}
        reply = await self.ask(self.config, {**command, "batchSize": 100_000, "singleBatch": True}, repeatable=True)
        return list(reply["cursor"]["firstBatch"])

    async def ask(self, place: ReplicaSet, command: Document, *, repeatable: bool = False) -> Document:
        """Our own command to a set's primary; CommandError when it refuses."""
        reply = bson.decode((await self.run(lambda: place, payload_of(command), repeatable=repeatable))[1])
        if reply["ok"] != 1:
            raise CommandError(reply.get("code", 8), reply.get("errmsg", "no reason given"))
        return reply

    async def run(self, choose: Callable[[], ReplicaSet], payload: bytes, *, repeatable: bool) -> tuple[Member, bytes]:
        """Send it to a primary. Sent again when it was surely not applied, or is `repeatable`; else its error is the client's."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PRIMARY_SECONDS
        while True:
            place = choose()
            member = await place.primary(deadline)
            again = loop.time() < deadline
            try:
                reply = await member.call(payload)
            except (UnreachedError, OSError, EOFError) as error:
                place.lost(member)
                if not again or not (repeatable or isinstance(error, UnreachedError)):
                    raise CommandError(6, f"No answer from {member.address}: {error!r}") from None
            else:
                code = error_code(reply)
                if code in _MOVED:
                    place.lost(member)
                if not again or code not in (_MOVED if repeatable else _NOT_APPLIED):
                    return member, reply
            await asyncio.sleep(0.05)

    def any_shard(self) -> ReplicaSet:
        """A shard to act as router: in turn, those with a primary first."""
        if not self.shards:
            raise CommandError(70, "No shards found")
        shards = list(self.shards.values())
        ready = [shard for shard in shards if shard.leader] or shards
        self._turn += 1
        return ready[self._turn % len(ready)]

    def shard(self, name: str) -> ReplicaSet:
        """A shard by its id."""
        if name not in self.shards:
            raise CommandError(70, f"Shard {name} not found")
        return self.shards[name]

    async def database(self, name: str, *, create: bool = False) -> Document:
        """Primary shard and version; NamespaceNotFound if there is no such database."""
        found = (await self.table()).databases.get(name)
        if found is None and create:
            command = {"_configsvrCreateDatabase": name, **_MAJORITY, "$db": "admin"}
            await self.ask(self.config, command)
        if found is None or found["primary"] not in self.shards:
            found = (await self.refresh()).databases.get(name)
        if found is None:
            raise CommandError(26, f"database {name} not found")
        return found

    async def versioned(
        self, db: str, make: Callable[[Document], bytes], *, create: bool, repeatable: bool
    ) -> tuple[Member, bytes]:
        """A command to a database's primary shard, with its version, so that the shard refuses what our table has wrong."""
        for _ in range(5):
            database = await self.database(db, create=create)
            shard = self.shard(database["primary"])
            member, reply = await self.run(lambda: shard, make(database["version"]), repeatable=repeatable)  # noqa: B023
            if error_code(reply) not in _STALE:
                break
            await asyncio.sleep(0.05)
            await self.refresh()
        return member, reply

    async def owners(self, collection: Document) -> list[ReplicaSet]:
        """The shards that have chunks of a sharded collection."""
        command = {"distinct": "chunks", "key": "shard", "query": {"uuid": collection["uuid"]}, "$db": "config"}
        reply = await self.ask(self.config, {**command, "readConcern": {"level": "majority"}}, repeatable=True)
        return [self.shard(name) for name in sorted(reply["values"])]

    # -- cursors -------------------------------------------------------------------------------------------------------

    def remember(self, member: Member, reply: bytes, owner: Any, *, merged: bool = False) -> bytes:
        """The reply; noted where its cursor lives, if it has one."""
        cursor = RawBSONDocument(reply, _RAW).get("cursor")
        if cursor is not None and cursor["id"]:
            self._cursors[cursor["id"]] = Cursor(member, merged, owner, time.monotonic())
        return reply

    def cursor(self, key: int, owner: Any) -> Cursor:
        """CursorNotFound unless it is there and theirs."""
        cursor = self._cursors.get(key)
        if cursor is None or cursor.owner != owner:
            raise CommandError(43, f"cursor id {key} not found")
        cursor.used = time.monotonic()
        return cursor

    def forget(self, key: int) -> None:
        """The cursor is used up."""
        self._cursors.pop(key, None)


# -- users -------------------------------------------------------------------------------------------------------------

Name = tuple[str, str]
"""User and database."""
INTERNAL: Name = ("__system", "local")


class Users:
    """Who may do what, as the config server says; remembered for a few seconds."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[Name, tuple[float, Document | None]] = {}

    async def find(self, name: Name) -> Document | None:
        """The user with its privileges."""
        until, user = self._known.get(name, (0.0, None))
        if time.monotonic() >= until:
            command = {"usersInfo": {"user": name[0], "db": name[1]}, "showPrivileges": True, "$db": "admin"}
            users = (await self._cluster.ask(self._cluster.config, command, repeatable=True))["users"]
            user = users[0] if users else None
            self._known[name] = (time.monotonic() + (_USER_SECONDS if user else 0), user)
        return user

    def forget(self) -> None:
        """Something about users was changed."""
        self._known.clear()

    async def permits(self, name: Name, action: str, db: str | None, collection: str) -> bool:
        """Whether the user may; `db` None asks for the cluster as a whole."""
        if name == INTERNAL or not action:
            return True
        user = await self.find(name)
        return user is not None and any(
            action in privilege["actions"] and self._covers(privilege["resource"], db, collection)
            for privilege in user["inheritedPrivileges"]
        )

    @staticmethod
    def _covers(resource: Document, db: str | None, collection: str) -> bool:
        if resource.get("anyResource") or db is None:
            return bool(resource.get("anyResource") or resource.get("cluster"))
        if "db" not in resource:
            return False
        any_db = resource["db"] == "" and db not in ("config", "local")
        any_collection = resource["collection"] == "" and not collection.startswith("system.")
        return (any_db or resource["db"] == db) and (any_collection or resource["collection"] == collection)


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spec:
    """How a command is run, what it needs, and the fields that it may have (None: any)."""

    method: str
    action: str = ""
    scope: str = "ns"
    fields: str | None = ""
    target: str = ""
    majority: bool = False
    """Sent on with a write concern of ours."""
    sharded: str = ""
    """The method for a sharded collection."""
    open: bool = False
    """Needs no authentication."""

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.action in ("find", "listIndexes", "listCollections")


_READ = "readConcern collation hint let"
_DDL = "writeConcern"
_WRITE = "writeConcern ordered bypassDocumentValidation"
_CHANGES = "let query sort remove update new fields upsert collation arrayFilters hint"

COMMANDS = {
    "insert": Spec("merged", "insert", fields=f"{_WRITE} documents", target="clusterInsert"),
    "update": Spec("merged", "update", fields=f"{_WRITE} let updates", target="clusterUpdate"),
    "delete": Spec("merged", "remove", fields=f"{_WRITE} let deletes", target="clusterDelete"),
    "find": Spec("merged", "find", fields=f"{_READ} filter projection sort skip limit batchSize singleBatch allowDiskUse returnKey showRecordId min max tailable awaitData noCursorTimeout allowPartialResults", target="clusterFind"),
    "aggregate": Spec("aggregate", "find", fields=f"{_READ} pipeline cursor allowDiskUse", target="clusterAggregate"),
    "getMore": Spec("get_more", fields="collection batchSize", scope="own"),
    "killCursors": Spec("kill_cursors", fields="cursors", scope="own"),
    "findAndModify": Spec("plain", "update", sharded="refused", fields=f"{_WRITE} {_CHANGES}"),
    "count": Spec("plain", "find", sharded="count_all", fields=f"{_READ} query limit skip fields"),
    "distinct": Spec("plain", "find", sharded="distinct_all", fields=f"{_READ} key query"),
    "create": Spec("plain", "createCollection", sharded="refused", fields=f"{_DDL} capped size max validator validationLevel validationAction collation expireAfterSeconds"),
    "createIndexes": Spec("plain", "createIndex", sharded="each_shard", fields=f"{_DDL} indexes commitQuorum"),
    "dropIndexes": Spec("plain", "dropIndex", sharded="each_shard", fields=f"{_DDL} index"),
    "listIndexes": Spec("plain", "listIndexes", sharded="one_shard", fields="cursor"),
    "listCollections": Spec("plain", "listCollections", "db", "filter nameOnly authorizedCollections cursor"),
    "listDatabases": Spec("list_databases", "listDatabases", "cluster", "filter nameOnly authorizedDatabases"),
    "drop": Spec("drop", "dropCollection", fields=_DDL),
    "dropDatabase": Spec("drop", "dropDatabase", "db", _DDL),
    "collStats": Spec("stats", "collStats", fields="scale"),
    "dbStats": Spec("stats", "dbStats", "db", "scale"),
    "addShard": Spec("on_config", "addShard", "cluster", "name", "_configsvrAddShard", majority=True),
    "removeShard": Spec("on_config", "removeShard", "cluster", "", "_configsvrRemoveShard", majority=True),
    "listShards": Spec("list_shards", "listShards", "cluster"),
    "enableSharding": Spec("enable_sharding", "enableSharding", "named", "primaryShard"),
    "shardCollection": Spec("shard_collection", "enableSharding", "named", f"{_DDL} key unique numInitialChunks presplitHashedZones collation"),
    "balancerStart": Spec("on_config", "update", "balancer", _DDL, "_configsvrBalancerStart"),
    "balancerStop": Spec("on_config", "update", "balancer", _DDL, "_configsvrBalancerStop"),
    "balancerStatus": Spec("on_config", "find", "balancer", _DDL, "_configsvrBalancerStatus"),
    "getShardMap": Spec("on_config", "getShardMap", "cluster", ""),
    "setDefaultRWConcern": Spec("on_config", "setDefaultRWConcern", "cluster", f"{_DDL} defaultReadConcern defaultWriteConcern", majority=True),
    "getDefaultRWConcern": Spec("on_config", "getDefaultRWConcern", "cluster", ""),
    "setFeatureCompatibilityVersion": Spec("on_config", "setFeatureCompatibilityVersion", "cluster", f"{_DDL} downgradeOnDiskChanges", majority=True),
    **{name: Spec("on_users", action, "db", None, majority=not name.endswith("Info")) for name, action in {
        "createUser": "createUser", "updateUser": "changePassword", "dropUser": "dropUser", "dropAllUsersFromDatabase": "dropUser",
        "grantRolesToUser": "grantRole", "revokeRolesFromUser": "revokeRole", "createRole": "createRole", "updateRole": "grantRole",
        "dropRole": "dropRole", "dropAllRolesFromDatabase": "dropRole", "grantRolesToRole": "grantRole", "revokeRolesFromRole": "revokeRole",
        "grantPrivilegesToRole": "grantRole", "revokePrivilegesFromRole": "revokeRole", "usersInfo": "viewUser", "rolesInfo": "viewRole",
    }.items()},
    "serverStatus": Spec("server_status", "serverStatus", "cluster", None),
    "getParameter": Spec("get_parameter", "getParameter", "cluster", None),
    "getCmdLineOpts": Spec("get_cmd_line_opts", "getCmdLineOpts", "cluster"),
    "rotateCertificates": Spec("rotate_certificates", "rotateCertificates", "cluster"),
    "replSetGetStatus": Spec("repl_set_get_status", "replSetGetStatus", "cluster"),
    **dict.fromkeys(("endSessions", "refreshSessions", "killSessions"), Spec("nothing", fields=None)),
    **dict.fromkeys(("hello", "isMaster", "ismaster"), Spec("hello", fields=None, open=True)),
    **dict.fromkeys(("buildInfo", "buildinfo"), Spec("build_info", fields=None, open=True)),
    "ping": Spec("nothing", fields=None, open=True),
    "connectionStatus": Spec("connection_status", fields=None, open=True),
    "authenticate": Spec("authenticate", fields=None, open=True),
    "saslStart": Spec("sasl", fields=None, open=True),
    "saslContinue": Spec("sasl", fields=None, open=True),
    "logout": Spec("logout", fields=None, open=True),
}  # fmt: skip
COMMANDS["findandmodify"] = COMMANDS["findAndModify"]

_TRANSACTIONS = {"commitTransaction", "abortTransaction", "prepareTransaction", "coordinateCommitTransaction"}
_DROPPED = {"lsid", "txnNumber", "apiVersion", "apiStrict", "apiDeprecationErrors", "stmtId", "stmtIds"}
_STAGES = frozenset(
    [
        "$addFields", "$bucket", "$bucketAuto", "$count", "$densify", "$facet", "$fill", "$geoNear", "$graphLookup", "$group", "$limit",
        "$lookup", "$match", "$project", "$redact", "$replaceRoot", "$replaceWith", "$sample", "$set", "$setWindowFields", "$skip", "$sort",
        "$sortByCount", "$unionWith", "$unset", "$unwind",
    ]
)  # fmt: skip
_NO_STAGES = {"$out", "$merge", "$mergeCursors", "$changeStream"}
_ON_CONFIG = ("admin", "config")
_SUMS = "collections views objects count size dataSize storageSize indexes indexSize totalIndexSize totalSize"
_NOTHING = {
    "count": {"n": 0},
    "distinct": {"values": []},
    "listCollections": {"cursor": {"id": Int64(0), "ns": "$cmd.listCollections", "firstBatch": []}},
}


def keys_within(value: Any) -> Iterable[str]:
    """Every key at any depth."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from keys_within(inner)


class Session:
    """One client's connection."""

    _ids = itertools.count(1)

    def __init__(self, router: Router, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._router = router
        self._cluster = router.cluster
        self._users = router.users
        self._settings = router.settings
        self._reader = reader
        self._writer = writer
        self._id = next(self._ids)
        self._user: Name | None = None if router.settings.tls else INTERNAL
        self._sasl_connection: Connection | None = None

    async def run(self) -> None:
        """Answer until the client leaves."""
        try:
            while True:
                request, opcode, payload = await read_message(self._reader)
                if opcode == _OP_MSG:
                    reply = await self._message(payload)
                    answer = frame(b"\0\0\0\0\0" + reply, 0, request) if reply is not None else b""
                elif opcode == _OP_QUERY:
                    body = struct.pack("<iqii", 8, 0, 0, 1) + await self._query(payload)
                    answer = frame(body, 0, request, _OP_REPLY)
                else:
                    raise ConnectionError(f"opcode {opcode}")
                self._writer.write(answer)
                await self._writer.drain()
        except asyncio.IncompleteReadError:
            pass
        except (OSError, BSONError, ValueError, LookupError, struct.error, RecursionError) as error:
            log("Connection ended", connection=self._id, reason=repr(error))
        finally:
            self._close_sasl()
            self._writer.transport.abort()

    async def _message(self, payload: bytes) -> bytes | None:
        command = parse(payload)
        reply = await self._answer(command)
        return None if command.quiet else reply

    async def _query(self, payload: bytes) -> bytes:
        """OP_QUERY is only how old handshakes say hello."""
        fields = decode(payload[payload.index(b"\0", 4) + 9 :])
        command = Command({**fields, "$db": "admin"})
        if COMMANDS.get(command.name) is not COMMANDS["hello"]:
            return bson.encode(CommandError(59, f"router double: OP_QUERY {command.name}").document)
        return await self._answer(command)

    async def _answer(self, command: Command) -> bytes:
        self._router.active += 1
        try:
            reply = await self._execute(command)
            return reply if isinstance(reply, bytes) else bson.encode({"ok": 1.0, **reply})
        except CommandError as failure:
            return bson.encode(failure.document)
        except (BSONError, UnicodeError, TypeError, OverflowError, LookupError, RecursionError) as error:
            return bson.encode(CommandError(22, f"router double: {command.name}: {error!r}").document)
        finally:
            self._router.active -= 1

    async def _execute(self, command: Command) -> bytes | Document:
        name, fields = command.name, command.fields
        if name in _TRANSACTIONS or "startTransaction" in fields or "autocommit" in fields:
            raise CommandError(263, "router double: no multi-document transactions")
        spec = COMMANDS.get(name)
        if spec is None:
            raise CommandError(59, f"router double: no such command: {name}")
        if self._user is None and not spec.open:
            raise CommandError(13, f"command {name} requires authentication")
        self._restrict(command, spec)
        if not await self._permitted(command, spec):
            raise CommandError(13, f"not authorized on {command.db} to execute command {name}")
        return await getattr(self, f"_{spec.method}")(command, spec)

    @staticmethod
    def _restrict(command: Command, spec: Spec) -> None:
        """Drop what belongs to sessions; refuse what we don't know, so that no member sees what only its own kind may say."""
        fields, name = command.fields, command.name
        kept = {"$db"}
        if "atClusterTime" in (fields.get("readConcern") or {}):
            kept.add("$clusterTime")  # the shard that is asked may not have heard of that time
        for key in [key for key in fields if key in _DROPPED or (key[:1] == "$" and key not in kept)]:
            del fields[key]
        if spec.fields is None:
            return
        allowed = {*spec.fields.split(), name, *kept, "maxTimeMS", "comment"}
        for key in (*fields, *command.sequence_names):
            if key not in allowed:
                raise CommandError(40415, f"router double: field '{key}' of {name} is unknown")

    async def _permitted(self, command: Command, spec: Spec) -> bool:
        if spec.open or spec.scope == "own":
            return True
        db: str | None = command.db
        collection = ""
        match spec.scope:
            case "ns":
                collection = command.namespace
            case "named":
                db, _, collection = command.namespace.partition(".")
            case "balancer":
                db, collection = "config", "settings"
            case "cluster":
                db = None
        return await self._users.permits(self._user, spec.action, db, collection)

    # -- data ----------------------------------------------------------------------------------------------------------

    async def _merged(self, command: Command, spec: Spec) -> bytes:
        """What a shard's router code does for us."""
        if command.db in _ON_CONFIG:
            return await self._config_data(command, spec)
        self._check_namespace(command, spec)
        table = await self._cluster.table()
        sharded = f"{command.db}.{command.namespace}" in table.sharded
        home = None if sharded else table.databases.get(command.db, {}).get("primary")

        def choose() -> ReplicaSet:
            return self._cluster.shards.get(home) or self._cluster.any_shard()

        payload = command.encoded(spec.target, **table.defaults_for(command, spec))
        member, reply = await self._cluster.run(choose, payload, repeatable=spec.reads)
        return self._cluster.remember(member, reply, self._user, merged=True)

    async def _config_data(self, command: Command, spec: Spec) -> bytes:
        """The databases that the config server has."""
        changes = {} if spec.reads else _MAJORITY
        if spec.action == "find":
            changes = {"readConcern": {"level": "majority"}}
        member, reply = await self._cluster.run(
            lambda: self._cluster.config, command.encoded(**changes), repeatable=spec.reads
        )
        return self._cluster.remember(member, reply, self._user)

    @staticmethod
    def _check_namespace(command: Command, spec: Spec) -> None:
        if command.db in ("", "local", "$external", *_ON_CONFIG):
            raise CommandError(73, f"router double: {command.name} on the database '{command.db}'")
        if not spec.reads and str(command.fields[command.name]).startswith("system."):
            raise CommandError(73, f"router double: {command.name} on a system collection")

    async def _aggregate(self, command: Command, spec: Spec) -> bytes:
        pipeline = bson.decode(bson.encode({"p": command.fields.get("pipeline")}), _PLAIN)["p"]
        if not isinstance(pipeline, list) or not all(isinstance(stage, dict) for stage in pipeline):
            raise CommandError(14, "router double: pipeline must be an array of stages")
        unknown = {key for stage in pipeline for key in stage} - _STAGES
        unknown |= {key for key in keys_within(pipeline) if key in _NO_STAGES or key.startswith("$_")}
        if unknown:
            raise CommandError(40324, f"router double: no such stage: {', '.join(sorted(unknown))}")
        return await self._merged(command, spec)

    async def _get_more(self, command: Command, spec: Spec) -> bytes:
        key = command.fields["getMore"]
        cursor = self._cluster.cursor(key, self._user)
        try:
            reply = await cursor.member.call(command.encoded("clusterGetMore" if cursor.merged else ""))
        except (OSError, EOFError, UnreachedError) as error:
            self._cluster.forget(key)
            raise CommandError(6, f"Connection to {cursor.member.address} was lost: {error!r}") from None
        answer = RawBSONDocument(reply, _RAW)
        if answer.get("code") == 43 or (answer["ok"] == 1 and not answer["cursor"]["id"]):
            self._cluster.forget(key)
        return reply

    async def _kill_cursors(self, command: Command, spec: Spec) -> Document:
        killed, unknown = [], []
        for key in command.fields.get("cursors", ()):
            try:
                cursor = self._cluster.cursor(key, self._user)
            except CommandError:
                unknown.append(key)
                continue
            self._cluster.forget(key)
            killed.append(key)
            if not cursor.merged:
                with contextlib.suppress(OSError, EOFError, UnreachedError):
                    await cursor.member.call(command.encoded(cursors=[Int64(key)]))
        return {"cursorsKilled": killed, "cursorsNotFound": unknown, "cursorsAlive": [], "cursorsUnknown": []}

    # -- collections and databases -------------------------------------------------------------------------------------

    async def _plain(self, command: Command, spec: Spec) -> Any:
        """As it is on the database's primary shard, which refuses it if the collection is sharded; then, what `spec.sharded` does."""
        if command.db in _ON_CONFIG:
            return await self._config_data(command, spec)
        self._check_namespace(command, spec)
        namespace = f"{command.db}.{command.fields[command.name]}"
        ddl = not spec.reads and command.name != "findAndModify"
        table = await (self._cluster.refresh() if ddl else self._cluster.table())
        if not spec.sharded or namespace not in table.sharded:
            version = {} if command.name == "listCollections" else {"shardVersion": _UNSHARDED}
            options = {**version, **table.defaults_for(command, spec)}
            try:
                member, reply = await self._cluster.versioned(
                    command.db,
                    lambda version: command.encoded(databaseVersion=version, **options),
                    create=not spec.reads and command.name != "dropIndexes",
                    repeatable=spec.reads,
                )
            except CommandError as error:
                if error.document["code"] == 26 and command.name in _NOTHING:
                    return _NOTHING[command.name]
                raise
            table = await self._cluster.table()
            if not spec.sharded or namespace not in table.sharded or error_code(reply) not in _STALE:
                return self._cluster.remember(member, reply, self._user)
        return await getattr(self, f"_{spec.sharded}")(
            command, table.defaults_for(command, spec), table.sharded[namespace]
        )

    async def _refused(self, command: Command, defaults: Document, collection: Document) -> bytes:
        raise CommandError(115, f"router double: no {command.name} on a sharded collection")

    async def _count_all(self, command: Command, defaults: Document, collection: Document) -> Document:
        stages = [{f"${key}": command.fields[key]} for key in ("skip", "limit") if command.fields.get(key)]
        found = await self._merge(command, [*stages, {"$count": "n"}])
        return {"n": found[0]["n"] if found else 0}

    async def _distinct_all(self, command: Command, defaults: Document, collection: Document) -> Document:
        key = str(command.fields.get("key", ""))
        if not key or "." in key or key.startswith("$"):
            raise CommandError(115, f"router double: no distinct of '{key}' on a sharded collection")
        found = await self._merge(command, [{"$unwind": f"${key}"}, {"$group": {"_id": f"${key}"}}])
        return {"values": [one["_id"] for one in found]}

    async def _merge(self, command: Command, stages: list[Document]) -> list[Document]:
        """The result of an aggregation of ours over all shards."""
        names = {"readConcern", "collation", "hint", "maxTimeMS"} & command.fields.keys()
        pipeline = [{"$match": command.fields.get("query", {})}, *stages]
        body = {"clusterAggregate": command.namespace, "pipeline": pipeline, "cursor": {"batchSize": 1_000_000}}
        body |= {name: command.fields[name] for name in names} | {"$db": command.db}
        _, reply = await self._cluster.run(self._cluster.any_shard, payload_of(body), repeatable=True)
        answer = decode(reply)
        if answer["ok"] != 1 or answer["cursor"]["id"]:
            raise CommandError(answer.get("code", 17217), answer.get("errmsg", "router double: too large a result"))
        return list(answer["cursor"]["firstBatch"])

    async def _each_shard(self, command: Command, defaults: Document, collection: Document) -> bytes | Document:
        raw = {}
        for shard in await self._cluster.owners(collection):
            _, reply = await self._cluster.run(lambda: shard, command.encoded(**defaults), repeatable=True)  # noqa: B023
            if error_code(reply):
                return reply
            raw[shard.name] = RawBSONDocument(reply, _RAW)
        return {"raw": raw}

    async def _one_shard(self, command: Command, defaults: Document, collection: Document) -> bytes:
        owners = await self._cluster.owners(collection)
        member, reply = await self._cluster.run(lambda: owners[0], command.encoded(), repeatable=True)
        return self._cluster.remember(member, reply, self._user)

    async def _list_databases(self, command: Command, spec: Spec) -> Document:
        await self._cluster.refresh()
        body = {"listDatabases": 1, "filter": command.fields.get("filter", {}), "$db": "admin"}
        found: dict[str, int] = {}
        for place in (self._cluster.config, *self._cluster.shards.values()):
            for one in (await self._cluster.ask(place, body, repeatable=True))["databases"]:
                name = one["name"]
                if name != "local" and (name in _ON_CONFIG) == (place is self._cluster.config):
                    found[name] = found.get(name, 0) + one["sizeOnDisk"]
        if command.fields.get("nameOnly"):
            return {"databases": [{"name": name} for name in sorted(found)]}
        sizes = [{"name": name, "sizeOnDisk": Int64(size), "empty": not size} for name, size in sorted(found.items())]
        return {"databases": sizes, "totalSize": Int64(sum(found.values()))}

    async def _drop(self, command: Command, spec: Spec) -> bytes | Document:
        whole = command.name == "dropDatabase"
        self._check_namespace(command, spec)
        body = {"_shardsvrDropDatabase": 1} if whole else {"_shardsvrDropCollection": command.namespace}
        body |= {**_MAJORITY, "$db": command.db}
        await self._cluster.refresh()
        try:
            _, reply = await self._cluster.versioned(
                command.db,
                lambda version: payload_of({**body, "databaseVersion": version}),
                create=False,
                repeatable=True,
            )
        except CommandError as error:
            if not whole or error.document["code"] != 26:
                raise
            return {"dropped": command.db}
        await self._cluster.refresh()
        return {"dropped": command.db} if whole and not error_code(reply) else reply

    async def _stats(self, command: Command, spec: Spec) -> Document:
        """Sums over the shards."""
        table = await self._cluster.refresh()
        places = list(self._cluster.shards.values())
        sharded = table.sharded.get(f"{command.db}.{command.fields[command.name]}")
        if command.name == "collStats":
            home = self._cluster.shard((await self._cluster.database(command.db))["primary"])
            places = await self._cluster.owners(sharded) if sharded else [home]
        replies = [await self._cluster.ask(place, command.fields, repeatable=True) for place in places]
        keys = {key for key in _SUMS.split() if all(key in reply for reply in replies)}
        sums = {key: sum(reply[key] for reply in replies) for key in sorted(keys)}
        if command.name == "dbStats":
            return {"db": command.db, **sums}
        return {"ns": replies[0]["ns"], "sharded": bool(sharded), "nindexes": replies[0]["nindexes"], **sums}

    # -- administration ------------------------------------------------------------------------------------------------

    async def _on_config(self, command: Command, spec: Spec) -> bytes:
        """The config server's primary does it, perhaps under another name."""
        command.fields.pop("writeConcern", None)
        payload = command.encoded(spec.target, **(_MAJORITY if spec.majority else {}))
        _, reply = await self._cluster.run(lambda: self._cluster.config, payload, repeatable=not spec.majority)
        if spec.majority:
            log("Administration", command=command.name, user=self._user, ok=not error_code(reply))
            await self._cluster.refresh()
        return reply

    async def _on_users(self, command: Command, spec: Spec) -> bytes:
        try:
            return await self._on_config(command, spec)
        finally:
            self._users.forget()

    async def _list_shards(self, command: Command, spec: Spec) -> Document:
        return {"shards": await self._cluster.read_config("shards")}

    async def _enable_sharding(self, command: Command, spec: Spec) -> Document:
        fields = command.fields
        options = {"primaryShardId": fields["primaryShard"]} if "primaryShard" in fields else {}
        body = {"_configsvrCreateDatabase": fields["enableSharding"], **options, **_MAJORITY, "$db": "admin"}
        await self._cluster.ask(self._cluster.config, body, repeatable=True)
        await self._cluster.refresh()
        return {}

    async def _shard_collection(self, command: Command, spec: Spec) -> bytes | Document:
        namespace = command.namespace
        db, _, collection = namespace.partition(".")
        options = {
            key: value
            for key, value in command.fields.items()
            if key in ("unique", "numInitialChunks", "presplitHashedZones", "collation")
        }
        body = {
            "_shardsvrCreateCollection": collection,
            "shardKey": command.fields.get("key"),
            **options,
            **_MAJORITY,
            "$db": db,
        }
        await self._cluster.refresh()
        _, reply = await self._cluster.versioned(
            db, lambda version: payload_of({**body, "databaseVersion": version}), create=True, repeatable=True
        )
        ok = not error_code(reply)
        log("Administration", command=command.name, user=self._user, ok=ok)
        await self._cluster.refresh()
        return {"collectionsharded": namespace} if ok else reply

    # -- itself --------------------------------------------------------------------------------------------------------

    async def _nothing(self, command: Command, spec: Spec) -> Document:
        return {}

    async def _hello(self, command: Command, spec: Spec) -> Document:
        if self._router.stopping:
            raise CommandError(91, "The server is in quiesce mode and will shut down")
        reply = {
            "ismaster" if command.name != "hello" else "isWritablePrimary": True, "helloOk": True, "msg": "isdbgrid",
            "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": _MAX_MESSAGE, "maxWriteBatchSize": 100_000,
            "localTime": datetime.now(UTC), "logicalSessionTimeoutMinutes": 30, "connectionId": self._id,
            "maxWireVersion": 17, "minWireVersion": 0,
        }  # fmt: skip
        wanted = command.fields.get("saslSupportedMechs")
        if isinstance(wanted, str):
            db, _, user = wanted.partition(".")
            if found := await self._users.find((user, db)):
                reply["saslSupportedMechs"] = found.get("mechanisms", [])
        return reply

    async def _build_info(self, command: Command, spec: Spec) -> Document:
        version = [int(part) for part in VERSION.split(".")]
        return {
            "version": VERSION,
            "versionArray": [*version, 0],
            "modules": ["router double"],
            "bits": 64,
            "maxBsonObjectSize": 16_777_216,
        }

    async def _connection_status(self, command: Command, spec: Spec) -> Document:
        found = await self._users.find(self._user) if self._user not in (None, INTERNAL) else None
        users = [{"user": self._user[0], "db": self._user[1]}] if self._user else []
        return {
            "authInfo": {
                "authenticatedUsers": users,
                "authenticatedUserRoles": found["inheritedRoles"] if found else [],
            }
        }

    async def _server_status(self, command: Command, spec: Spec) -> Document:
        router = self._router
        uptime = time.monotonic() - router.started
        return {
            "host": f"{os.uname().nodename}:{self._settings.port}", "version": VERSION, "process": "mongos", "pid": Int64(os.getpid()),
            "uptime": uptime, "uptimeMillis": Int64(uptime * 1000), "localTime": datetime.now(UTC),
            "connections": {"current": len(router.sessions), "totalCreated": router.accepted, "active": router.active},
        }  # fmt: skip

    async def _get_parameter(self, command: Command, spec: Spec) -> Document:
        raise CommandError(72, "no option found to get")

    async def _get_cmd_line_opts(self, command: Command, spec: Spec) -> Document:
        return {"argv": sys.argv, "parsed": self._settings.parsed}

    async def _rotate_certificates(self, command: Command, spec: Spec) -> Document:
        try:
            self._settings.load_certificates()
        except OSError as error:
            raise CommandError(140, f"router double: certificates not rotated: {error}") from None
        return {}

    async def _repl_set_get_status(self, command: Command, spec: Spec) -> Document:
        raise CommandError(125, "replSetGetStatus is not supported through mongos", info="mongos")

    # -- authentication ------------------------------------------------------------------------------------------------

    async def _authenticate(self, command: Command, spec: Spec) -> Document:
        certificate = self._writer.get_extra_info("peercert")
        if command.fields.get("mechanism") != "MONGODB-X509" or not certificate:
            raise CommandError(18, "router double: authenticate knows MONGODB-X509, and wants a client certificate")
        subject = subject_text(certificate["subject"])
        internal = bool(self._settings.cluster) and membership(certificate["subject"]) == self._settings.cluster
        known = internal or await self._users.find((subject, "$external"))
        if not known or command.fields.get("user", subject) != subject:
            log("Authentication failed", "W", connection=self._id, user=subject)
            raise CommandError(18, "Authentication failed.")
        self._user = INTERNAL if internal else (subject, "$external")
        return {"dbname": "$external", "user": subject}

    async def _sasl(self, command: Command, spec: Spec) -> bytes:
        """SCRAM: the config server's primary checks; we only carry, and then ask it who that was."""
        if command.name == "saslStart":
            self._close_sasl()
            if str(command.fields.get("mechanism")) not in ("SCRAM-SHA-1", "SCRAM-SHA-256"):
                raise CommandError(334, f"router double: no mechanism {command.fields.get('mechanism')}")
            deadline = asyncio.get_running_loop().time() + _PRIMARY_SECONDS
            member = await self._cluster.config.primary(deadline)
            try:
                self._sasl_connection = await Connection.open(member.address, self._settings, authenticate=False)
            except UnreachedError as error:
                raise CommandError(6, str(error)) from None
        if self._sasl_connection is None:
            raise CommandError(17, "No SASL session state found")
        try:
            reply = await self._sasl_connection.call(command.encoded())
            answer = bson.decode(reply)
            if answer["ok"] == 1 and answer["done"]:
                status = bson.decode(
                    await self._sasl_connection.call(payload_of({"connectionStatus": 1, "$db": "admin"}))
                )
                (user,) = status["authInfo"]["authenticatedUsers"]
                self._user = (user["user"], user["db"])
        except (OSError, EOFError) as error:
            self._close_sasl()
            raise CommandError(6, f"The config server's primary was lost: {error!r}") from None
        if answer["ok"] != 1 or answer["done"]:
            self._close_sasl()
        return reply

    def _close_sasl(self) -> None:
        if self._sasl_connection is not None:
            self._sasl_connection.abort()
            self._sasl_connection = None

    async def _logout(self, command: Command, spec: Spec) -> Document:
        self._user = None if self._settings.tls else INTERNAL
        return {}


class Router:
    """The process."""

    def __init__(self, settings: Settings, group: asyncio.TaskGroup) -> None:
        self.settings = settings
        self.cluster = Cluster(settings, group)
        self.users = Users(self.cluster)
        self.sessions: set[asyncio.StreamWriter] = set()
        self.started = time.monotonic()
        self.accepted = 0
        self.active = 0
        self.stopping = False

    async def serve(self, stop: asyncio.Event) -> None:
        """Listen until told to stop, then let what is under way come to its end."""
        settings = self.settings
        context = settings.server_context if settings.tls else None
        server = await asyncio.start_server(self._accept, settings.addresses, settings.port, ssl=context, limit=_BUFFER)
        log("Waiting for connections", port=settings.port, addresses=settings.addresses, tls=settings.tls)
        await stop.wait()
        log("Shutting down")
        self.stopping = True
        server.close()
        deadline = time.monotonic() + _QUIESCE_SECONDS
        while self.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for writer in self.sessions:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.sessions.add(writer)
        try:
            await Session(self, reader, writer).run()
        finally:
            self.sessions.discard(writer)


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_exception_handler(
        lambda _, context: log("Unexpected", "E", what=context["message"], error=repr(context.get("exception")))
    )
    async with asyncio.TaskGroup() as group:
        router = Router(settings, group)
        following = group.create_task(router.cluster.follow())
        await router.serve(stop)
        following.cancel()
        router.cluster.close()


def main() -> None:
    """As mongos is called."""
    parser = argparse.ArgumentParser(prog="mongos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", "-f", type=Path, required=True)
    parser.add_argument("--version", action="version", version=f"mongos version v{VERSION}\nrouter double")
    path = parser.parse_args().config
    try:
        settings = Settings(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"{path}: {error}")
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
