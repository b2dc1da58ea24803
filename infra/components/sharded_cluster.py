"""MongoDB: replica sets, routers, the sharded cluster over them."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi

from infra import render
from infra.components._command import host_command
from infra.components.host import Host
from infra.components.quadlet import Quadlet
from infra.config import Region
from infra.plan import ReplicaSet as ReplicaSetPlan
from infra.plan import Topology

__all__ = ["ReplicaSet", "ShardedCluster"]


class ReplicaSet(pulumi.ComponentResource):
    """The members of one set and the set itself.

    Each member waits for the one before it. At the first `up` that only costs seconds; at a later one, when all are restarted for a new image or
    configuration, it is what keeps a majority: one at a time, and each only when the set stands without it.
    """

    def __init__(
        self, plan: ReplicaSetPlan, region: Region, hosts: Mapping[str, Host], opts: pulumi.ResourceOptions
    ) -> None:
        super().__init__("heliograph:infra:ReplicaSet", plan.name, None, opts)
        last: list[pulumi.Resource] = []
        for member in plan.members:
            host = hosts[member.host]
            bundle = render.member(region, plan, member)
            last = [Quadlet(host, bundle, pulumi.ResourceOptions(parent=self, depends_on=[*host.ready, *last]))]
        self.ready = host_command(
            plan.name,
            hosts[plan.members[0].host].reach,
            "run",
            render.cluster_run("replica-set", render.set_spec(region, plan)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=last),
        )
        self.register_outputs({})


class ShardedCluster(pulumi.ComponentResource):
    """Config servers, shards, a router on each host; shards added, collections sharded, users made."""

    def __init__(
        self, topology: Topology, region: Region, hosts: Mapping[str, Host], opts: pulumi.ResourceOptions
    ) -> None:
        super().__init__("heliograph:infra:ShardedCluster", region.name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        sets = [ReplicaSet(one, region, hosts, child) for one in topology.sets]
        last: list[pulumi.Resource] = [one.ready for one in sets]
        for router in (
            topology.routers
        ):  # after the members, as MongoDB wants it, and one after another, so that the nodes always have some
            options = pulumi.ResourceOptions(parent=self, depends_on=[*hosts[router.host].ready, *last])
            last = [Quadlet(hosts[router.host], render.router(region, topology, router), options)]
        self.ready = host_command(
            f"{region.name}-shards",
            hosts[topology.routers[0].host].reach,
            "run",
            render.cluster_run("shards", render.shard_spec(topology)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=last),
        )
        self.register_outputs({})
