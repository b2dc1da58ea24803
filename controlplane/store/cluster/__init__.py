"""MongoDB's replica sets and sharded cluster, brought into a declared state (`heliograph cluster`).

Concepts, from the bottom up:

- `spec` is what the caller declares; what would lose a majority by its shape is refused there.
- `plan` is pure: present members, declared members → safe reconfigurations, at most one voter each.
- `identity` is pure: do those who answer belong to one set, the declared one?
- `members` connects to each member directly (TLS, MONGODB-X509) and asks who it is.
- `view` is pure: what they say, taken together; `replica_set` looks, initiates or takes one step, looks again, until nothing differs and a majority is healthy.
- `rolling` lets a member go for a restart only while its set stands without it.
- `layout` is pure: a router's answers, the declaration → what to refuse, to do, to tell; `sharding` does it.
- `upkeep` lets the balancer rest, and raises the feature compatibility version, for upgrades; for backups it lets old states be kept.
- `status` tells all that, and changes nothing.
- `report` writes a line per change and finding.

Nothing is remembered between runs: what is to be done is what differs now. So a run may be killed at any moment, and two may run at once.
"""

from __future__ import annotations

from controlplane.store.cluster.members import Access
from controlplane.store.cluster.replica_set import converge_set
from controlplane.store.cluster.report import Deadline, Report
from controlplane.store.cluster.rolling import rejoined, release
from controlplane.store.cluster.sharding import converge_cluster
from controlplane.store.cluster.spec import (
    BalancerSpec,
    ClusterSpec,
    FeatureSpec,
    MoveSpec,
    SetSpec,
    SnapshotSpec,
    StatusSpec,
    read,
)
from controlplane.store.cluster.status import describe
from controlplane.store.cluster.upkeep import keep_snapshots, raise_features, set_balancer

__all__ = [
    "Access",
    "BalancerSpec",
    "ClusterSpec",
    "Deadline",
    "FeatureSpec",
    "MoveSpec",
    "Report",
    "SetSpec",
    "SnapshotSpec",
    "StatusSpec",
    "converge_cluster",
    "converge_set",
    "describe",
    "keep_snapshots",
    "raise_features",
    "read",
    "rejoined",
    "release",
    "set_balancer",
]
