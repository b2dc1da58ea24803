"""The planner: whatever the region looks like, it is either refused or keeps what `safety` promises."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import ConfigError, Safety, parse_region
from infra.plan import CARRIER_PORT, Topology, plan
from tests.unit.infra.sample import HOST_KEYS, sample_region, sample_value

FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def value_of(domains: list[str], *, members: int, safety: str, **mongodb: Any) -> dict[str, Any]:
    """A region with a host for each of `domains`."""
    value = sample_value(1, safety=safety)
    value["hosts"] = [
        {"name": f"h{n}", "address": f"10.0.0.{n}", "host_key": HOST_KEYS[0], "failure_domain": domain}
        for n, domain in enumerate(domains, 1)
    ]
    value["mongodb"] |= {"members": members, **mongodb}
    return value


@st.composite
def regions(draw: st.DrawFn) -> dict[str, Any]:
    """Random, and right often enough: hosts of a set are a sample, sometimes of the wrong size or with one twice."""
    domains = draw(st.lists(st.sampled_from(["", "r1", "r2", "r3", "r4"]), min_size=1, max_size=9))
    members = draw(st.sampled_from([1, 3, 3, 3, 5, 7]))
    names = [f"h{n}" for n in range(1, len(domains) + 1)]

    def hosts() -> list[str]:
        if draw(st.integers(0, 9)) == 0:
            return draw(st.lists(st.sampled_from(names), max_size=8))
        return list(draw(st.permutations(names)))[:members]

    shards = [{"name": f"s{n}", "hosts": hosts()} for n in range(draw(st.integers(1, 4)))]
    value = value_of(
        domains,
        members=members,
        safety=draw(st.sampled_from([s.value for s in Safety])),
        shards=shards,
        config_hosts=hosts(),
        router_port=draw(st.sampled_from([27017, 27017, 27021])),
    )
    value["control_plane"] |= {"nodes": draw(st.integers(1, 4)), "port": draw(st.sampled_from([8443, 8443, 27015]))}
    return value


def planned(value: dict[str, Any]) -> Topology | None:
    try:
        return plan(parse_region(value))
    except ConfigError as error:
        assert str(error).strip()
        return None


def listening(topology: Topology) -> list[tuple[str, int]]:
    """(host, port) of everything, counted here and not by the topology."""
    found = [(m.host, m.port) for s in topology.sets for m in s.members]
    found += [(r.host, r.port) for r in topology.routers] + [(n.host, n.port) for n in topology.nodes]
    found += [(one.host, one.port) for one in topology.ledgers]
    return found + ([(topology.carrier, CARRIER_PORT)] if topology.carrier else [])


class TestWhatStands:
    """A planned region keeps its majorities, its ports apart and its primaries spread; else it is refused."""

    @FAST
    @given(regions())
    def test_members(self, value):
        if (topology := planned(value)) is None:
            return
        for one in topology.sets:
            hosts = [m.host for m in one.members]
            assert len(set(hosts)) == len(hosts) == value["mongodb"]["members"]
            assert len(hosts) % 2 == 1
            assert [m.id for m in one.members] == list(range(len(hosts)))
            assert sum(m.priority > 1 for m in one.members) == (1 if len(hosts) > 1 else 0)

    @FAST
    @given(regions())
    def test_any_one_loss(self, value):
        if (topology := planned(value)) is None or value["safety"] == "none":
            return
        domain = {h["name"]: h["failure_domain"] or h["name"] for h in value["hosts"]}
        losses = [{name} for name in domain]
        if value["safety"] == "failure_domain":
            losses += [{name for name in domain if domain[name] == lost} for lost in set(domain.values())]
        for gone in losses:
            for one in topology.sets:
                alive = [m for m in one.members if m.host not in gone]
                assert 2 * len(alive) > len(one.members), (gone, one.name)
        assert not any(topology.losses().values())

    @FAST
    @given(regions())
    def test_ledgers(self, value):
        """As many as three, and no single loss that a region is made to survive takes all of them."""
        if (topology := planned(value)) is None:
            return
        hosts = [one.host for one in topology.ledgers]
        assert len(set(hosts)) == len(hosts) == min(3, len(topology.config_set.members))
        if value["safety"] == "none":
            return
        domain = {h["name"]: h["failure_domain"] or h["name"] for h in value["hosts"]}
        assert len(set(hosts)) > 1
        if value["safety"] == "failure_domain":
            assert len({domain[host] for host in hosts}) > 1

    @FAST
    @given(regions())
    def test_ports(self, value):
        if (topology := planned(value)) is None:
            return
        every = listening(topology)
        assert max(Counter(every).values()) == 1
        for host in topology.hosts:
            assert set(topology.ports(host.name)) == {port for name, port in every if name == host.name}

    @FAST
    @given(st.integers(1, 8), st.sampled_from([3, 5]))
    def test_primaries_spread(self, shards, members):
        """Shards over the same hosts prefer each of them in turn."""
        named = [{"name": f"s{n}"} for n in range(shards)]
        topology = plan(parse_region(value_of([""] * members, members=members, safety="host", shards=named)))
        preferred = Counter({host.name: 0 for host in topology.hosts})
        preferred.update(m.host for s in topology.shards for m in s.members if m.priority == 2)
        assert max(preferred.values()) - min(preferred.values()) <= 1

    def test_random_regions_are_of_both_kinds(self):
        """The properties above say something: neither everything is refused nor everything planned."""
        seen: Counter[bool] = Counter()

        @settings(FAST, max_examples=80, database=None, derandomize=True)
        @given(regions())
        def count(value: dict[str, Any]) -> None:
            seen[planned(value) is None] += 1

        count()
        assert min(seen[True], seen[False]) > 8, seen


class TestGrowth:
    """What stands stays where it is when a region grows: no member, id or port changes."""

    @staticmethod
    def standing(topology: Topology) -> set[Any]:
        members = {m for s in topology.sets for m in s.members}
        return members | set(topology.routers) | set(topology.nodes) | set(topology.ledgers)

    @FAST
    @given(regions())
    def test_grown(self, value):
        if (before := planned(value)) is None:
            return
        n = len(value["hosts"]) + 1
        members = [m.host for m in before.config_set.members]
        host = {"name": f"h{n}", "address": f"10.0.0.{n}", "host_key": HOST_KEYS[0]}
        # Sets that said nothing stood on all hosts, and must name them now.
        stand = {
            shard["name"]: shard["hosts"] or [host["name"] for host in value["hosts"]]
            for shard in value["mongodb"]["shards"]
        }
        named = [{"name": name, "hosts": hosts} for name, hosts in stand.items()]
        grown = [
            value
            | {
                "hosts": [*value["hosts"], host],
                "mongodb": value["mongodb"] | {"shards": named, "config_hosts": members},
            },
            value | {"mongodb": value["mongodb"] | {"shards": [*named, {"name": "new", "hosts": members}]}},
            value | {"control_plane": value["control_plane"] | {"nodes": value["control_plane"]["nodes"] + 1}},
        ]
        for bigger in grown:
            after = planned(bigger)
            if after is not None:  # else the new one's ports clash
                assert self.standing(before) < self.standing(after)

    def test_grown_for_sure(self):
        before = plan(sample_region())
        after = plan(sample_region(mongodb={"shards": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}))
        assert self.standing(before) < self.standing(after)
        assert len(after.shards) == 3

    def test_shard_ports_follow(self):
        ports = [s.members[0].port for s in plan(sample_region()).sets]
        assert ports == [27019, 27020, 27021]
        assert all(a < b for a, b in pairwise(ports))


THREE = ["", "", ""]
REFUSED = {
    "even members": (
        value_of([""] * 4, members=4, safety="host"),
        ["mongodb.members: 4 voters", "use 3 or 5"],
    ),
    "two members on one host": (
        value_of(THREE, members=3, safety="host", config_hosts=["h1", "h1", "h2"]),
        ["config: two members would stand on h1", "one host carries one member of a set"],
    ),
    "two members on one host, whatever the safety": (
        value_of(THREE, members=3, safety="none", shards=[{"name": "a", "hosts": ["h1", "h2", "h2"]}]),
        ["a: two members would stand on h2"],
    ),
    "majority in one domain": (
        value_of(["r1", "r1", "r2"], members=3, safety="failure_domain"),
        ["config: 2 of 3 members stand in r1", "a: 2 of 3 members stand in r1", "Spread them over three domains"],
    ),
    "one member": (
        value_of([""], members=1, safety="host"),
        ["config: 1 member cannot lose a host", "use 3 members, or safety: none"],
    ),
    "a single host for three members": (
        value_of([""], members=3, safety="host"),
        ["config: 3 members need 3 hosts and there are 1", "say safety: none and members: 1"],
    ),
    "too few hosts": (
        value_of(["", ""], members=5, safety="host"),
        ["a: 5 members need 5 hosts and there are 2", "add 3 hosts"],
    ),
    "too many hosts": (
        value_of([""] * 4, members=3, safety="host"),
        ["config: say which 3 of the 4 hosts carry it", "hosts: [h1, h2, h3]"],
    ),
    "named too few": (
        value_of(THREE, members=3, safety="host", config_hosts=["h1", "h2"]),
        ["config: 2 hosts are named for 3 members", "name 3, or set mongodb.members to 2"],
    ),
    "unknown host": (
        value_of(THREE, members=3, safety="host", config_hosts=["h1", "h2", "h9"]),
        ["no host is called h9", "hosts are h1, h2, h3"],
    ),
    "port clash": (
        value_of(THREE, members=3, safety="host", router_port=27020),
        [
            "h1: fra-a and mongos would both listen on 27020",
            "move one (mongodb.*_port, control_plane.port, ledger.port)",
        ],
    ),
    "port of the carrier": (
        value_of(THREE, members=3, safety="host", config_port=CARRIER_PORT),
        ["h1: fra-config and the carrier would both listen on 2775"],
    ),
    "ports that do not exist": (
        value_of(THREE, members=3, safety="host", shard_port=65535, shards=[{"name": "a"}, {"name": "b"}]),
        ["h1: fra-b would listen on 65536", "lower mongodb.shard_port"],
    ),
}


class TestRefusals:
    """What would lose a majority, or cannot stand, is refused with the mend in the sentence."""

    @pytest.mark.parametrize(("value", "said"), REFUSED.values(), ids=REFUSED)
    def test_refused(self, value, said):
        with pytest.raises(ConfigError) as error:
            plan(parse_region(value))
        for part in said:
            assert part in str(error.value)

    def test_all_at_once(self):
        value = value_of(["r1", "r1", "r1"], members=3, safety="failure_domain", config_hosts=["h1", "h1", "h2"])
        with pytest.raises(ConfigError) as error:
            plan(parse_region(value))
        assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["config", "config", "a", "b"]
