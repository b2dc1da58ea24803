"""The Ansible inventory of a region (the YAML inventory format, as data). Pure; holds no secret."""

from __future__ import annotations

from typing import Any

from infra.config import Region
from infra.plan import Topology

__all__ = ["inventory"]


def inventory(region: Region, topology: Topology) -> dict[str, Any]:
    """Groups `hosts`, `config_servers`, one for each shard, `routers`, `nodes`, `ledgers`; each host with what stands on it."""
    hosts: dict[str, Any] = {}
    for host in region.hosts:
        hosts[host.name] = {
            "ansible_host": host.address,
            "ansible_port": region.ssh.port,
            "ansible_user": region.ssh.user,
            "ansible_become": region.ssh.user != "root",
            "heliograph_host_key": host.host_key,
            "heliograph_members": [
                {"set": m.set, "endpoint": m.endpoint, "unit": f"{m.unit}.service"}
                for s in topology.sets
                for m in s.members
                if m.host == host.name
            ],
            "heliograph_nodes": [
                {"name": n.name, "url": n.url, "unit": f"heliograph-node-{n.number}.service"}
                for n in topology.nodes
                if n.host == host.name
            ],
            "heliograph_ledgers": [
                {"name": one.name, "url": one.url, "unit": "heliograph-ledger.service"}
                for one in topology.ledgers
                if one.host == host.name
            ],
        }
    groups = {
        "config_servers": [m.host for m in topology.config_set.members],
        **{f"shard_{s.name.replace('-', '_')}": [m.host for m in s.members] for s in topology.shards},
        "routers": [r.host for r in topology.routers],
        "nodes": sorted({n.host for n in topology.nodes}),
        "ledgers": [one.host for one in topology.ledgers],
    }
    return {
        "all": {
            "hosts": hosts,
            "vars": {"heliograph_region": region.name},
            "children": {name: {"hosts": dict.fromkeys(members, None)} for name, members in groups.items()},
        }
    }
