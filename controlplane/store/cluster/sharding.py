"""Bring a sharded cluster to its declared shards, collections and users, through a router.

Through the router go only hello, listShards, addShard, enableSharding, shardCollection, createUser, updateUser, usersInfo,
getDefaultRWConcern, setDefaultRWConcern, listDatabases, balancerStatus, buildInfo, and find on `config`
(MongoDB manual, reference/command/nav-sharding). The balancer is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Document
from controlplane.store.cluster.layout import Action, State, compare
from controlplane.store.cluster.members import Access, Connections, Probe, is_transient
from controlplane.store.cluster.report import Deadline, Report
from controlplane.store.cluster.spec import ClusterSpec, Shard

__all__ = ["converge_cluster", "find_router", "read_state"]


async def converge_cluster(spec: ClusterSpec, access: Access, report: Report, deadline: Deadline) -> None:
    """Do what is missing; idempotent. ConfigError: a refusal, nothing was changed. StoreUnavailableError: not reached in time."""
    async with Connections(access) as connections:
        while True:
            try:
                router = await find_router(connections, spec.routers, deadline)
                await _pass(spec, connections, router, report, deadline)
            except PyMongoError as error:
                words = _words(error)
                if not is_transient(error):
                    raise ConfigError(f"The cluster refuses: {words}. Correct it, then run this again.") from error
                if not await deadline.pause():
                    raise StoreUnavailableError(
                        f"The cluster is not as declared after {deadline.seconds:g} s: {words}. See to routers and shards; then run this again."
                    ) from error
            else:
                return


def _words(error: PyMongoError) -> str:
    return str((error.details or {}).get("errmsg", error)) if isinstance(error, OperationFailure) else str(error)


async def find_router(connections: Connections, routers: Sequence[str], deadline: Deadline) -> AsyncDatabase[Document]:
    """The `admin` database of the first router that answers. ConfigError when one of them is no router."""
    while True:
        silent: list[Probe] = []
        for host in routers:
            probe = await connections.hello(host)
            if probe.hello is None:
                silent.append(probe)
            elif probe.hello.get("msg") != "isdbgrid":
                raise ConfigError(f'{host} is no router (mongos). Declare under "routers" where mongos listens.')
            else:
                return connections[host].admin
        if not await deadline.pause():
            who = "; ".join(f"{probe.host} ({probe.why})" for probe in silent)
            raise StoreUnavailableError(
                f"No router answers within {deadline.seconds:g} s: {who}. Start one; then run this again."
            )


async def read_state(admin: AsyncDatabase[Document]) -> State:
    """What the router says. Raises pymongo's errors."""
    shards = (await admin.command("listShards"))["shards"]
    databases = (await admin.command("listDatabases", nameOnly=True))["databases"]
    config = admin.client.get_database("config")
    known = await config["databases"].find({}).to_list()
    collections = await config["collections"].find({}).to_list()
    users = (await admin.client.get_database("$external").command("usersInfo", 1))["users"]
    return State(
        shards={str(each["_id"]): each for each in shards},
        default=await admin.command("getDefaultRWConcern"),
        databases=frozenset(str(each["name"]) for each in databases) | {str(each["_id"]) for each in known},
        collections={  # 8.0 lists there unsharded ones too, "unsplittable"; old versions kept dropped ones
            str(each["_id"]): each for each in collections if not (each.get("unsplittable") or each.get("dropped"))
        },
        users={
            str(each["user"]): frozenset((str(role["role"]), str(role["db"])) for role in each["roles"])
            for each in users
        },
    )


async def _pass(
    spec: ClusterSpec, connections: Connections, admin: AsyncDatabase[Document], report: Report, deadline: Deadline
) -> None:
    layout = compare(spec, await read_state(admin))
    if layout.refusals:
        raise ConfigError(f"The cluster is not as declared, and nothing was changed: {'; '.join(layout.refusals)}.")
    for action in layout.actions:
        if action.shard is not None:
            await _wait_for_primary(connections, action.shard, deadline)
        await _do(admin, action)
        report.change(action.change, action.detail)
    for finding in layout.findings:
        report.finding(finding)


async def _do(admin: AsyncDatabase[Document], action: Action) -> None:
    try:
        await admin.client.get_database(action.database).command(action.command)
    except OperationFailure as error:
        if is_transient(error):
            raise
        raise ConfigError(
            f"The router refuses {next(iter(action.command))} ({action.detail}): {_words(error)}. Correct it, then run this again."
        ) from error


async def _wait_for_primary(connections: Connections, shard: Shard, deadline: Deadline) -> None:
    while True:
        probes = await connections.probe_all(shard.members)
        for probe in probes.values():
            if probe.config is not None and probe.config["_id"] != shard.name:
                raise ConfigError(
                    f"{probe.host} belongs to the replica set {probe.config['_id']}, not to {shard.name}. Declare where {shard.name} is."
                )
        if any(probe.writable for probe in probes.values()):
            return
        if not await deadline.pause():
            who = "; ".join(f"{probe.host} ({probe.why or 'no primary'})" for probe in probes.values())
            raise StoreUnavailableError(
                f"The shard {shard.name} has no primary within {deadline.seconds:g} s: {who}. "
                "Bring it up (heliograph cluster replica-set); then run this again."
            )
