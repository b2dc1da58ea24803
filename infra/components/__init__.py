"""The parts of a region, each a Pulumi component: `Region` has `Host`s with `Images` and `Certificates`, a `ShardedCluster` of `ReplicaSet`s, a `ControlPlane`.

Children have their component as parent, nothing is created inside `apply`, and every command goes through `_command.host_command`. The order is told by
`depends_on`: hosts, images, certificates; members of one set after another; the set; routers; the sharded cluster; nodes one after another; the test message.
"""
