"""What an upgrade of MongoDB does around the restarts: the balancer rests, and at the very end the feature compatibility version is raised. And for
backups: members keep old states for longer.

Through the router go only balancerStatus, balancerStop, balancerStart, buildInfo and setFeatureCompatibilityVersion; members are asked buildInfo and
getParameter, setParameter (MongoDB manual, release-notes/8.0-upgrade-sharded-cluster, tutorial/manage-sharded-cluster-balancer).
"""

from __future__ import annotations

from pymongo.errors import PyMongoError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Document
from controlplane.store.cluster.members import Access, Connections, is_transient
from controlplane.store.cluster.report import Deadline, Report
from controlplane.store.cluster.sharding import find_router
from controlplane.store.cluster.spec import BalancerSpec, FeatureSpec, SnapshotSpec

__all__ = ["keep_snapshots", "raise_features", "set_balancer"]

_WINDOW = "minSnapshotHistoryWindowInSeconds"
_CONFIRM_FROM = 7
"""The first version that wants `confirm: true`; those before it refuse it."""


async def set_balancer(spec: BalancerSpec, access: Access, report: Report, deadline: Deadline) -> None:
    """Start or stop it; stopped, return once no round is under way. StoreUnavailableError when that takes too long."""
    async with Connections(access) as connections:
        while True:
            try:
                admin = await find_router(connections, spec.routers, deadline)
                status = await admin.command("balancerStatus")
                if (status["mode"] != "off") != spec.running:
                    await admin.command("balancerStart" if spec.running else "balancerStop")
                    report.change("balancer", "runs" if spec.running else "rests")
                    continue
                waiting = "" if spec.running or not status.get("inBalancerRound") else "a round is under way"
            except PyMongoError as error:
                if not is_transient(error):
                    raise ConfigError(f"The router refuses: {error}. Correct it, then run this again.") from error
                waiting = str(error)
            if not waiting:
                return
            if not await deadline.pause():
                raise StoreUnavailableError(
                    f"The balancer is not as wanted after {deadline.seconds:g} s: {waiting}. Run this again."
                )


async def keep_snapshots(spec: SnapshotSpec, access: Access, report: Report) -> None:
    """Let each member keep old states for so long. StoreUnavailableError, naming who does not, when one does not answer; a restart brings MongoDB's 300 s back."""
    changed, silent = [], []
    async with Connections(access) as connections:
        for host in spec.members:
            admin = connections[host].admin
            try:
                was = (await admin.command({"getParameter": 1, _WINDOW: 1}))[_WINDOW]
                if was != spec.seconds:
                    await admin.command({"setParameter": 1, _WINDOW: spec.seconds})
                    changed.append(host)
            except PyMongoError as error:
                silent.append(f"{host} ({error})")
    if changed:
        report.change("snapshots", f"of {spec.seconds} s are kept by {', '.join(changed)}")
    if silent:
        raise StoreUnavailableError(
            f"Members do not say for how long they keep old states: {', '.join(silent)}. Run this again."
        )


async def raise_features(spec: FeatureSpec, access: Access, report: Report, deadline: Deadline) -> None:
    """Set the feature compatibility version of all shards, when every member runs that version and none has another.

    ConfigError while a member's program is of another version: it would not start again. StoreUnavailableError when a member does not answer.
    """
    async with Connections(access) as connections:
        try:
            seen = await _members(connections, spec)
            if wrong := [f"{host} runs {version}" for host, (version, _) in seen.items() if not _is(version, spec)]:
                raise ConfigError(
                    f"The features of {spec.version} stay off: {', '.join(wrong)}. Upgrade every member first. Nothing was changed."
                )
            if not (others := _others(seen, spec)):
                return
            admin = await find_router(connections, spec.routers, deadline)
            confirm = {"confirm": True} if int(spec.version.partition(".")[0]) >= _CONFIRM_FROM else {}
            await admin.command({"setFeatureCompatibilityVersion": spec.version, **confirm})
            if left := _others(await _members(connections, spec), spec):
                raise StoreUnavailableError(
                    f"The cluster took the version {spec.version}, and {', '.join(left)} still has another. See these members' journals; then run this again."
                )
            report.change(
                "features", f"of {spec.version} on {', '.join(others)}; older programs no longer open this data"
            )
        except PyMongoError as error:
            raise StoreUnavailableError(
                f"The feature compatibility version is not set on all shards: {error}. Run this again; it may be repeated."
            ) from error


async def _members(connections: Connections, spec: FeatureSpec) -> dict[str, tuple[str, Document]]:
    """Each with its program's version, and its feature compatibility version's document."""
    return {host: await _member(connections, host) for host in spec.members}


def _others(seen: dict[str, tuple[str, Document]], spec: FeatureSpec) -> list[str]:
    """Who has not, or not only, the wanted version."""
    return [host for host, (_, features) in seen.items() if features != {"version": spec.version}]


async def _member(connections: Connections, host: str) -> tuple[str, Document]:
    admin = connections[host].admin
    found = await admin.command({"getParameter": 1, "featureCompatibilityVersion": 1})
    return str((await admin.command("buildInfo"))["version"]), dict(found["featureCompatibilityVersion"])


def _is(version: str, spec: FeatureSpec) -> bool:
    return version.startswith(f"{spec.version}.")
