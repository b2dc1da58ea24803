"""What stands, compared with what is declared, in one document. Changes nothing."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Document
from controlplane.store.cluster.identity import check_identity, election_ms, members_of, newest
from controlplane.store.cluster.layout import State, compare
from controlplane.store.cluster.members import Access, Connections, Probe
from controlplane.store.cluster.plan import differences, has_majority, settle_ids
from controlplane.store.cluster.report import Deadline
from controlplane.store.cluster.sharding import find_router, read_state
from controlplane.store.cluster.spec import ClusterSpec, SetSpec, StatusSpec
from controlplane.store.cluster.view import View

__all__ = ["describe"]

_LAG_SECONDS = 60
"""A member this far behind is a problem: after a failover it would have to catch up before it serves."""


async def describe(spec: StatusSpec, access: Access, deadline: Deadline) -> Document:
    """`{"sets": […], "cluster": {…} | null, "problems": [sentences]}`. `deadline` bounds the wait for a router."""
    problems: list[str] = []
    async with Connections(access) as connections:
        sets = [await _describe_set(each, connections, problems) for each in spec.sets]
        cluster = None
        if spec.cluster is not None:
            try:
                cluster = await _describe_cluster(spec.cluster, connections, deadline, problems)
            except (ConfigError, StoreUnavailableError) as error:
                problems.append(str(error))
            except PyMongoError as error:
                problems.append(f"The router's answer is not complete: {error}")
    return {"sets": sets, "cluster": cluster, "problems": problems}


async def _describe_set(spec: SetSpec, connections: Connections, problems: list[str]) -> Document:
    probes = await connections.probe_all(member.host for member in spec.members)
    try:
        check_identity(spec, list(probes.values()))
    except ConfigError as error:
        problems.append(str(error))
    known = newest(probe for probe in probes.values() if probe.config and probe.config["_id"] == spec.set)
    if known is not None and known.config is not None:
        others = [member.host for member in members_of(known.config) if member.host not in probes]
        probes |= await connections.probe_all(others)
        known = newest(probe for probe in probes.values() if probe.set_id == known.set_id)
    view = View(probes, known)
    missing = differences(view.members, settle_ids(view.members, spec.members)) if view.config is not None else []
    wanted = spec.election_ms
    if wanted is not None and view.config is not None and election_ms(view.config) != wanted:
        missing.append(f"elects another after {election_ms(view.config)} ms of silence, declared is {wanted}")
    primary = view.primary
    members = _members(spec, view)
    _judge_set(spec, view, members, problems)
    problems += [f"Set {spec.set}: {each}." for each in missing]
    return {
        "set": spec.set,
        "initiated": view.config is not None,
        "primary": primary.host if primary is not None else None,
        "members": members,
        "differences": missing,
    }


def _members(spec: SetSpec, view: View) -> list[Document]:
    """Declared ones and those found beside them, as the primary (else the best informed member) sees them."""
    hosts = {member.host: member.id for member in (*spec.members, *view.members)}
    status = (view.known.status if view.known is not None else None) or {}
    by_host = {str(each["name"]): each for each in status.get("members", ())}
    newest_at = max((each["optimeDate"] for each in by_host.values() if each.get("state") == 1), default=None)
    votes = {member.host: member.votes for member in view.members}
    return [
        _member(host, name, view.probes.get(host), by_host.get(host), newest_at) | {"votes": votes.get(host, 0)}
        for host, name in hosts.items()
    ]


def _member(host: str, name: int, probe: Probe | None, seen: Document | None, newest_at: datetime | None) -> Document:
    at = (seen or {}).get("optimeDate")
    known = newest_at is not None and at is not None and bool((seen or {}).get("health"))
    lag = max(0.0, (newest_at - at).total_seconds()) if known and newest_at is not None and at is not None else None
    answers = probe is not None and probe.hello is not None
    state = "NOT INITIATED" if answers and seen is None else "UNKNOWN"
    if seen is not None:
        state = str(seen["stateStr"]) if seen.get("health") else "DOWN"
    return {
        "id": name,
        "host": host,
        "state": state,
        "healthy": bool(seen and seen.get("health") and seen.get("state") in (1, 2)),
        "answers": answers,
        "why": probe.why if probe is not None else "",
        "lag_seconds": lag,
    }


def _judge_set(spec: SetSpec, view: View, members: list[Document], problems: list[str]) -> None:
    name = spec.set
    if view.config is None:
        problems.append(f"Set {name} is not initiated; run: heliograph cluster replica-set.")
    elif view.primary is None:
        problems.append(f"Set {name} has no primary that answers: it takes no writes.")
    elif not has_majority(view.members, view.healthy):
        problems.append(f"Set {name} has no healthy majority.")
    for each in members:
        if not each["answers"]:
            problems.append(f"Set {name}: {each['host']} does not answer: {each['why']}.")
        elif not each["healthy"] and view.config is not None:
            problems.append(f"Set {name}: {each['host']} is {each['state']}.")
        if (each["lag_seconds"] or 0) > _LAG_SECONDS:
            problems.append(f"Set {name}: {each['host']} is {each['lag_seconds']:.0f} s behind.")


async def _describe_cluster(
    spec: ClusterSpec, connections: Connections, deadline: Deadline, problems: list[str]
) -> Document:
    admin = await find_router(connections, spec.routers, deadline)
    routers = [await connections.hello(host) for host in spec.routers]
    problems += [f"The router {each.host} does not answer: {each.why}." for each in routers if each.hello is None]
    state = await read_state(admin)
    layout = compare(spec, state)
    problems += [f"{each[0].upper()}{each[1:]}." for each in layout.refusals + layout.findings]
    problems += [f"Not done yet: {action.detail}." for action in layout.actions]
    return {
        "version": (await admin.command("buildInfo"))["version"],
        "shards": [
            {"name": name, "hosts": each["host"], "state": each.get("state"), "draining": bool(each.get("draining"))}
            for name, each in state.shards.items()
        ],
        "collections": [await _collection(admin, name, each, state) for name, each in state.collections.items()],
        "users": [
            {"user": user, "roles": [{"role": role, "db": db} for role, db in sorted(roles)]}
            for user, roles in state.users.items()
        ],
        "default_write_concern": state.default.get("defaultWriteConcern"),
        "balancer": await _balancer(admin),
    }


async def _collection(admin: AsyncDatabase[Document], name: str, document: Document, state: State) -> Document:
    """Chunks per shard, from config.chunks (by the collection's UUID since 5.0)."""
    chunks = admin.client.get_database("config")["chunks"]
    counts: Counter[str] = Counter(dict.fromkeys(state.shards, 0))
    async for chunk in chunks.find({"uuid": document.get("uuid")}, {"shard": 1}):
        counts[str(chunk["shard"])] += 1
    return {"collection": name, "key": document["key"], "chunks": dict(counts)}


async def _balancer(admin: AsyncDatabase[Document]) -> dict[str, Any]:
    answer = await admin.command("balancerStatus")
    return {"mode": answer.get("mode"), "in_round": answer.get("inBalancerRound")}
