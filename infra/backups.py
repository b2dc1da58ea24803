"""What backups and restores run on a host: `heliograph backup …` in the control plane's image, as a node of the region. Pure; holds no secret."""

from __future__ import annotations

from typing import Any

from infra import render
from infra.config import Region
from infra.plan import Topology

__all__ = ["FOLDER", "KEEP_SECONDS", "backups"]

FOLDER = "/var/lib/heliograph/backups"
"""On a host; `<id>` below it is a backup."""
KEEP_SECONDS = 4 * 3_600
"""For so long MongoDB keeps old states while a backup runs: one that takes longer fails, and says so."""
_DEFAULT_SECONDS = 300
_LONGEST_SECONDS = 24 * 3_600


def backups(region: Region, topology: Topology) -> dict[str, Any]:
    """`{folder, keep, owner, runs: {host: specification of hostctl run, its argv still to be said}, snapshots: {on, off}, ledgers}`.

    Backups run where nodes do: their host has the region's secret key as a file, and a certificate for the router.
    """
    members = [member.endpoint for shard in topology.shards for member in shard.members]
    return {
        "folder": FOLDER,
        "keep": region.backups.keep,
        "owner": render.NODE_USER,
        "runs": {host: _run(region, topology, host) for host in dict.fromkeys(node.host for node in topology.nodes)},
        "snapshots": {
            name: render.cluster_run("snapshots", {"members": members, "seconds": seconds})
            for name, seconds in (("on", KEEP_SECONDS), ("off", _DEFAULT_SECONDS))
        },
        "ledgers": [
            {"name": one.name, "host": one.host, "url": one.url, "unit": "heliograph-ledger.service"}
            for one in topology.ledgers
        ],
    }


def _run(region: Region, topology: Topology, host: str) -> dict[str, Any]:
    """Settings as of a node; the peers are only written down, so that whoever reads the backup can verify their logs."""
    return {
        "argv": ["backup"],
        "user": render.NODE_USER,
        "volumes": [
            "/etc/heliograph/tls:/etc/heliograph/tls:ro",
            "/etc/heliograph/node:/etc/heliograph/node:ro",
            f"{FOLDER}:{FOLDER}",
        ],
        "environment": {
            "HELIOGRAPH_MONGODB_URI": render.mongodb_uri(topology, host),
            "HELIOGRAPH_SECRET_KEY_FILE": "/etc/heliograph/node/secret-key",
            "HELIOGRAPH_DATACENTER": region.name,
            "HELIOGRAPH_LEDGER_DOMAIN": region.ledger.domain,
            "HELIOGRAPH_LEDGER_PEERS": render.ledger_settings(region)["peers"],
        },
        "timeout": _LONGEST_SECONDS,
    }
