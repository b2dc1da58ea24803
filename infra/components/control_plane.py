"""The nodes, the ledgers, the built-in carrier, the first key, and the message that proves that all of it works."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import pulumi

from infra import render
from infra.components._command import host_command
from infra.components.host import Host
from infra.components.quadlet import Quadlet
from infra.config import Region
from infra.plan import Topology

__all__ = ["ControlPlane", "SecretInputs"]


class SecretInputs:
    """What nodes and ledgers are given as secrets."""

    def __init__(
        self,
        secret_key: pulumi.Output[str],
        admin_key: pulumi.Output[str],
        ledger_key: pulumi.Output[str],
        revoked_key: pulumi.Output[str] | None = None,
    ) -> None:
        self.secret_key = secret_key
        self.admin_key = admin_key
        self.ledger_key = ledger_key
        self.revoked_key = revoked_key


class ControlPlane(pulumi.ComponentResource):
    """Nodes, and then ledgers, start one after another, so that a new image never takes all of them away at once."""

    def __init__(
        self,
        topology: Topology,
        region: Region,
        hosts: Mapping[str, Host],
        secrets: SecretInputs,
        cluster: pulumi.Resource,
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("heliograph:infra:ControlPlane", region.name, None, opts)
        secret = render.File("/etc/heliograph/node/secret-key", "", "400", render.NODE_USER)
        keyed = {
            name: Quadlet(
                host,
                render.node_base(),
                pulumi.ResourceOptions(parent=self, depends_on=host.ready),
                secrets=[(secret, secrets.secret_key)],
            )
            for name, host in hosts.items()
        }
        last: list[pulumi.Resource] = []
        first = hosts[topology.nodes[0].host]
        if topology.carrier:
            carrier = hosts[topology.carrier]
            last = [
                Quadlet(
                    carrier,
                    render.carrier(region, carrier.config.address),
                    pulumi.ResourceOptions(parent=self, depends_on=carrier.ready),
                )
            ]
        seeded = self._seed(topology, region, first, secrets, [cluster, keyed[first.config.name], *last])
        last = [seeded]
        for node in topology.nodes:
            options = pulumi.ResourceOptions(parent=self, depends_on=[*last, keyed[node.host]])
            last = [Quadlet(hosts[node.host], render.node(region, topology, node), options)]
        key = render.File("/etc/heliograph/ledger/key", "", "400", render.NODE_USER)
        for ledger in topology.ledgers:
            options = pulumi.ResourceOptions(parent=self, depends_on=[*last, keyed[ledger.host]])
            bundle = render.ledger(region, topology, ledger)
            last = [Quadlet(hosts[ledger.host], bundle, options, secrets=[(key, secrets.ledger_key)])]
        self._verify(topology, region, first, secrets, last)
        self.register_outputs({})

    def _seed(
        self, topology: Topology, region: Region, host: Host, secrets: SecretInputs, after: list[pulumi.Resource]
    ) -> pulumi.Resource:
        keys = pulumi.Output.all(secrets.admin_key, *([secrets.revoked_key] if secrets.revoked_key else []))
        spec = keys.apply(lambda known: render.seed_run(region, topology, host.config.name, known[0], known[1:]))
        return host_command(
            f"{region.name}-seed", host.reach, "run", spec, opts=pulumi.ResourceOptions(parent=self, depends_on=after)
        )

    def _verify(
        self, topology: Topology, region: Region, host: Host, secrets: SecretInputs, after: list[pulumi.Resource]
    ) -> None:
        """Runs again whenever anything changed that a message goes through, or was mended."""
        survey = host.survey
        everything = [
            (place, survey.token(*place), bundle.as_spec())
            for place, bundle in render.everything(region, topology).items()
        ]
        because = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        host_command(
            f"{region.name}-verify",
            host.reach,
            "run",
            secrets.admin_key.apply(lambda key: render.verify_run(region, topology, key) | {"because": because}),
            opts=pulumi.ResourceOptions(parent=self, depends_on=after),
        )
