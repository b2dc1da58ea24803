"""The topology planner. Pure: a region's configuration → which member, router and node stands where, on which port, with which priority.

It refuses what would lose a majority when `safety` says that nothing may: two members of a set on one host, a majority in one failure domain, even voters
(MongoDB manual, "Replica Set Deployment Architectures"). The placement never moves what stands: it depends on each set's own hosts only, so that a further
shard, host or node leaves the others where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from infra import quorum
from infra.config import ConfigError, Host, Region, Safety

__all__ = ["Ledger", "Member", "Node", "ReplicaSet", "Router", "Topology", "plan"]

CONFIG = "config"
CARRIER_PORT = 2775
LEDGERS = 3
"""At most, in a datacenter: one leads, the others wait for its lease."""


@dataclass(frozen=True, slots=True)
class Member:
    """One mongod: a member of a replica set on a host."""

    set: str
    id: int
    """Its place in the set; `heliograph cluster` gives a host that is there already the id that the set knows it by."""
    host: str
    address: str
    port: int
    priority: float
    """2 for the preferred primary, 1 for the others."""

    @property
    def endpoint(self) -> str:
        """`address:port`."""
        return f"{self.address}:{self.port}"

    @property
    def unit(self) -> str:
        """Of systemd, without the suffix."""
        return f"heliograph-mongod-{self.set}"


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """A config set or a shard."""

    name: str
    """As MongoDB knows it: `<region>-<shard>`."""
    role: str
    """`configsvr` or `shardsvr`."""
    members: tuple[Member, ...]

    @property
    def majority(self) -> int:
        """How many members must live."""
        return quorum.majority(len(self.members))

    def survives(self, lost: set[str]) -> bool:
        """Whether a majority is left when these hosts are gone."""
        return quorum.has_majority([quorum.Voter(member.host) for member in self.members], lost)


@dataclass(frozen=True, slots=True)
class Router:
    """One mongos."""

    host: str
    address: str
    port: int

    @property
    def endpoint(self) -> str:
        """`address:port`."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Node:
    """One control-plane process."""

    name: str
    """Unique in the datacenter: `<host>-<number>`."""
    number: int
    host: str
    address: str
    port: int

    @property
    def url(self) -> str:
        """Of its API."""
        return f"https://{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """One ledger process."""

    name: str
    """Unique among nodes and ledgers: `<host>-ledger`."""
    host: str
    address: str
    port: int

    @property
    def url(self) -> str:
        """Where the other ledgers reach it."""
        return f"https://{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that stands in a region."""

    region: str
    hosts: tuple[Host, ...]
    config_set: ReplicaSet
    shards: tuple[ReplicaSet, ...]
    routers: tuple[Router, ...]
    nodes: tuple[Node, ...]
    ledgers: tuple[Ledger, ...]
    carrier: str | None
    """The host of the built-in carrier."""

    @property
    def sets(self) -> tuple[ReplicaSet, ...]:
        """All replica sets, the config servers first."""
        return (self.config_set, *self.shards)

    def ports(self, host: str) -> dict[int, str]:
        """Port → what listens there, on this host."""
        found = {m.port: f"mongod of {m.set}" for s in self.sets for m in s.members if m.host == host}
        found |= {r.port: "mongos" for r in self.routers if r.host == host}
        found |= {n.port: f"node {n.name}" for n in self.nodes if n.host == host}
        found |= {one.port: "ledger" for one in self.ledgers if one.host == host}
        if self.carrier == host:
            found[CARRIER_PORT] = "carrier simulator"
        return found

    def losses(self) -> dict[str, list[str]]:
        """Host → the replica sets that have no majority when it is lost. Empty lists = the region goes on."""
        return {host.name: [s.name for s in self.sets if not s.survives({host.name})] for host in self.hosts}


def plan(region: Region) -> Topology:
    """The topology of a region. Raises ConfigError with a line for each rule that it would break."""
    by_name = {host.name: host for host in region.hosts}
    mongodb = region.mongodb
    problems: list[str] = []
    sets: list[ReplicaSet] = []
    wanted = [(CONFIG, "configsvr", mongodb.config_hosts, mongodb.config_port, 0)]
    wanted += [(s.name, "shardsvr", s.hosts, s.port or mongodb.shard_port + i, i) for i, s in enumerate(mongodb.shards)]
    for name, role, chosen, port, number in wanted:
        hosts = _hosts_of(name, chosen, region, problems)
        members = [by_name[host] for host in hosts]
        problems += _quorum_problems(name, members, region.safety)
        sets.append(_replica_set(f"{region.name}-{name}", role, members, port, preferred=number))
    if problems:
        raise ConfigError("\n".join(problems))
    nodes = tuple(
        Node(f"{host.name}-{number}", number, host.name, host.address, region.control_plane.port + number - 1)
        for host in region.hosts
        for number in range(1, region.control_plane.nodes + 1)
    )
    topology = Topology(
        region=region.name,
        hosts=region.hosts,
        config_set=sets[0],
        shards=tuple(sets[1:]),
        routers=tuple(Router(host.name, host.address, mongodb.router_port) for host in region.hosts),
        nodes=nodes,
        ledgers=_ledgers(region, [by_name[member.host] for member in sets[0].members]),
        carrier=region.hosts[0].name if region.carrier else None,
    )
    _check_ports(topology)
    return topology


def _hosts_of(name: str, chosen: Sequence[str], region: Region, problems: list[str]) -> list[str]:
    every = [host.name for host in region.hosts]
    members = region.mongodb.members
    if chosen:
        if len(chosen) != members:
            problems.append(
                f"{name}: {len(chosen)} hosts are named for {members} members; name {members}, or set mongodb.members to {len(chosen)}"
            )
        return list(chosen)
    if len(every) == members:
        return every
    if len(every) < members:
        mend = (
            "with a single host say safety: none and members: 1"
            if len(every) == 1
            else f"add {members - len(every)} hosts"
        )
        problems.append(f"{name}: {members} members need {members} hosts and there are {len(every)}; {mend}")
        return []
    problems.append(
        f"{name}: say which {members} of the {len(every)} hosts carry it, such as hosts: [{', '.join(every[:members])}]"
    )
    return []


def _quorum_problems(name: str, members: Sequence[Host], safety: Safety) -> list[str]:
    """Why this placement loses its majority although `safety` says that it must not."""
    if not members:
        return []
    found = []
    hosts = Counter(member.name for member in members)
    if twice := [host for host, count in hosts.items() if count > 1]:
        found.append(f"{name}: two members would stand on {', '.join(twice)}; one host carries one member of a set")
    if safety is Safety.NONE:
        return found
    if len(members) < 3:
        found.append(
            f"{name}: {len(members)} member cannot lose a host; use 3 members, or safety: none if that is what you want"
        )
    if safety is Safety.FAILURE_DOMAIN:
        domains = Counter(member.failure_domain or member.name for member in members)
        domain, most = domains.most_common(1)[0]
        if len(members) - most < quorum.majority(len(members)):
            found.append(
                f"{name}: {most} of {len(members)} members stand in {domain}; with it the majority is gone. Spread them over three domains"
            )
    return found


def _replica_set(name: str, role: str, hosts: Sequence[Host], port: int, *, preferred: int) -> ReplicaSet:
    members = tuple(
        Member(
            name, index, host.name, host.address, port, 2 if index == preferred % len(hosts) and len(hosts) > 1 else 1
        )
        for index, host in enumerate(hosts)
    )
    return ReplicaSet(name, role, members)


def _ledgers(region: Region, hosts: Sequence[Host]) -> tuple[Ledger, ...]:
    """On hosts of config servers, which are spread as `safety` wants it: one of each failure domain before a second of any."""
    seen: Counter[str] = Counter()
    turns = []
    for host in hosts:
        domain = host.failure_domain or host.name
        turns.append((seen[domain], host))
        seen[domain] += 1
    chosen = [host for _, host in sorted(turns, key=lambda turn: turn[0])[:LEDGERS]]
    return tuple(Ledger(f"{host.name}-ledger", host.name, host.address, region.ledger.port) for host in chosen)


def _check_ports(topology: Topology) -> None:
    for host in topology.hosts:
        claims: list[tuple[int, str]] = [
            (m.port, m.set) for s in topology.sets for m in s.members if m.host == host.name
        ]
        claims += [(r.port, "mongos") for r in topology.routers if r.host == host.name]
        claims += [(n.port, f"node {n.name}") for n in topology.nodes if n.host == host.name]
        claims += [(one.port, "the ledger") for one in topology.ledgers if one.host == host.name]
        claims += [(CARRIER_PORT, "the carrier")] if topology.carrier == host.name else []
        if beyond := [f"{who} would listen on {port}" for port, who in claims if port > 65535]:
            raise ConfigError(
                f"{host.name}: {beyond[0]}, and ports end at 65535; lower mongodb.shard_port or control_plane.port"
            )
        for port, count in Counter(port for port, _ in claims).items():
            if count > 1:
                who = " and ".join(what for claimed, what in claims if claimed == port)
                raise ConfigError(
                    f"{host.name}: {who} would both listen on {port}; move one (mongodb.*_port, control_plane.port, ledger.port)"
                )
