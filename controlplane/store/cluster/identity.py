"""Do the members that answer belong to the declared set, and to one and the same? Pure: no I/O.

A replica set has an identity (`settings.replicaSetId`) from the moment when it was initiated; two sets of one name never merge.
What is refused here is refused before anything was changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controlplane.errors import ConfigError
from controlplane.store.client import Document
from controlplane.store.cluster.members import Probe
from controlplane.store.cluster.plan import Members
from controlplane.store.cluster.spec import Member, SetSpec

__all__ = ["check_identity", "documents", "election_ms", "members_of", "moved", "newest"]

_EMPTY = (
    "If its data is of no use, stop it, empty its data directory and start it; else declare the set to which it belongs"
)


def members_of(config: Document) -> Members:
    """The members of a replica set configuration, reduced to what can be declared."""
    return tuple(
        Member.model_construct(
            id=int(each["_id"]),
            host=str(each["host"]),
            priority=float(each.get("priority", 1)),
            votes=1 if each.get("votes", 1) else 0,
            hidden=bool(each.get("hidden", False)),
            tags=dict(each.get("tags", {})),
        )
        for each in config["members"]
    )


def documents(members: Members, config: Document | None = None) -> list[Document]:
    """`members` as replSetInitiate and replSetReconfig take them; fields that cannot be declared stay as they are in `config`."""
    old = {each["_id"]: each for each in (config or {}).get("members", ())}
    return [
        {name: value for name, value in old.get(member.id, {}).items() if name != "newlyAdded"}
        | {
            "_id": member.id,
            "host": member.host,
            "priority": member.priority,
            "votes": member.votes,
            "hidden": member.hidden,
            "tags": dict(member.tags),
        }
        for member in members
    ]


def election_ms(config: Document) -> int:
    """How long a primary may be silent before another is elected, milliseconds."""
    return int(config.get("settings", {}).get("electionTimeoutMillis", 10_000))


def newest(probes: Iterable[Probe]) -> Probe | None:
    """The one with the newest configuration: a primary, if there is one."""
    known = [probe for probe in probes if probe.config]
    return max(known, key=lambda probe: (probe.writable, probe.age), default=None)


def moved(probes: Mapping[str, Probe], current: Members, desired: Members) -> frozenset[int]:
    """Ids of members that are declared at another address, where the very same process answers (it says who it is)."""
    hosts = {member.id: member.host for member in current}
    known = newest(probes.values())
    return frozenset(
        member.id
        for member in desired
        if hosts.get(member.id, member.host) != member.host
        and (probe := probes.get(member.host)) is not None
        and probe.hello is not None
        and probe.hello.get("me") == hosts[member.id]
        and known is not None
        and probe.set_id == known.set_id
    )


def check_identity(spec: SetSpec, probes: Sequence[Probe]) -> None:
    """ConfigError, naming the member, what it says and what to do, when a member is not what was declared."""
    for probe in probes:
        _check_one(spec, probe)
    by_set: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.config:
            by_set.setdefault(probe.set_id, []).append(probe)
    if len(by_set) > 1:
        size = {
            name: max(len(probe.config["members"]) for probe in group if probe.config) for name, group in by_set.items()
        }
        *others, largest = sorted(by_set, key=lambda name: (len(by_set[name]), size[name]))
        stranger = by_set[others[0]][0]
        raise ConfigError(
            f"{stranger.host} was initiated apart from the others: its set {spec.set} has the identity {others[0]}, "
            f"that of {by_set[largest][0].host} is {largest}; two sets never merge. {_EMPTY}. Nothing was changed."
        )
    if (known := newest(probes)) is not None and known.config is not None:
        _check_members(spec, probes, known, known.config)


def _check_one(spec: SetSpec, probe: Probe) -> None:
    if probe.standalone:
        what = "is a router (mongos)" if (probe.hello or {}).get("msg") == "isdbgrid" else "runs without a replica set"
        raise ConfigError(f"{probe.host} {what}. Start mongod there with --replSet {spec.set}. Nothing was changed.")
    if not probe.config:
        return
    name = probe.config["_id"]
    if name != spec.set:
        raise ConfigError(
            f"{probe.host} belongs to the replica set {name}, declared is {spec.set}. {_EMPTY}. Nothing was changed."
        )
    if bool(probe.config.get("configsvr")) != (spec.role == "configsvr"):
        is_now = "is" if probe.config.get("configsvr") else "is not"
        raise ConfigError(
            f"The set {name} of {probe.host} {is_now} a config server's, its declared role is {spec.role}; this cannot be changed. "
            f"{_EMPTY}. Nothing was changed."
        )


def _check_members(spec: SetSpec, probes: Sequence[Probe], known: Probe, config: Document) -> None:
    current = members_of(config)
    hosts = {member.host for member in current}
    declared = {member.host for member in spec.members}
    if hosts <= declared or declared <= hosts or moved({probe.host: probe for probe in probes}, current, spec.members):
        return
    voters = {member.host for member in current if member.votes}
    if len(voters & declared) * 2 <= len(voters):
        raise ConfigError(
            f"{known.host} says that the set {spec.set} has the members {', '.join(sorted(hosts))}; most of them are not declared: "
            f"it looks like another set. Declare its members and change them a few at a time. {_EMPTY}. Nothing was changed."
        )
    for each in config["members"]:
        if each.get("arbiterOnly") and each["host"] in declared:
            raise ConfigError(
                f"{each['host']} is an arbiter; it cannot become a member with data. Declare the set without it, then with it again. "
                "Nothing was changed."
            )
