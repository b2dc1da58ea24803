"""The whole: a datacenter's hosts, its sharded cluster, its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from infra import inventory
from infra.certificates import Authority
from infra.components.control_plane import ControlPlane, SecretInputs
from infra.components.host import Host
from infra.components.sharded_cluster import ShardedCluster
from infra.config import Region as RegionConfig
from infra.plan import Topology
from infra.survey import Survey

__all__ = ["Region"]


class Region(pulumi.ComponentResource):
    """Outputs: `urls`, `authority` (PEM for clients), `inventory` (for Ansible), `losses` (host → replica sets that have no majority without it), `peer` (for `ledger.peers` of others)."""

    def __init__(
        self,
        config: RegionConfig,
        topology: Topology,
        authority: Authority,
        ssh_key: pulumi.Output[str],
        secrets: SecretInputs,
        survey: Survey,
        peer: Mapping[str, Any],
    ) -> None:
        super().__init__("heliograph:infra:Region", config.name)
        child = pulumi.ResourceOptions(parent=self)
        hosts = {host.name: Host(host, config, topology, authority, ssh_key, survey, child) for host in config.hosts}
        cluster = ShardedCluster(topology, config, hosts, child)
        ControlPlane(topology, config, hosts, secrets, cluster.ready, child)
        self.outputs = {
            "urls": [node.url for node in topology.nodes],
            "authority": authority.bundle,
            "inventory": inventory.inventory(config, topology),
            "losses": topology.losses(),
            "peer": dict(peer),
        }
        self.register_outputs(self.outputs)
