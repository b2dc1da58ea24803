"""One bare Linux host made ready: the tool, users, packages, kernel, firewall, images, certificates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi_command import remote

from infra import render
from infra.certificates import Authority, Subject
from infra.components._command import Reach, host_command
from infra.components.quadlet import Quadlet
from infra.config import Host as HostConfig
from infra.config import Image, Region
from infra.plan import Topology
from infra.ssh import HOSTCTL, sudo
from infra.survey import Survey

__all__ = ["Host"]

_TLS = "/etc/heliograph/tls"


class Host(pulumi.ComponentResource):
    """`ready` is the last step that everything else on the host waits for."""

    def __init__(
        self,
        config: HostConfig,
        region: Region,
        topology: Topology,
        authority: Authority,
        ssh_key: pulumi.Output[str],
        survey: Survey,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("heliograph:infra:Host", config.name, None, opts)
        self.config = config
        self.survey = survey
        self.reach = Reach(
            remote.ConnectionArgs(
                host=config.address,
                port=region.ssh.port,
                user=region.ssh.user,
                private_key=ssh_key,
                host_key=config.host_key,
                dial_error_limit=3,
            ),
            sudo(region.ssh),
        )
        tool = self._tool()
        prepared = Quadlet(self, render.host(region, topology, config.name), opts=self.child(tool))
        images = [
            self._image("mongod", region.mongodb.image, prepared, current=False),
            self._image("controlplane", region.control_plane.image, prepared, current=True),
        ]
        certified = self._certificates(region, topology, authority, prepared)
        self.ready: list[pulumi.Resource] = [*images, certified]
        self.register_outputs({"address": config.address})

    def child(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        """Options of a child that waits for these."""
        return pulumi.ResourceOptions(parent=self, depends_on=list(after))

    def _tool(self) -> remote.Command:
        place = f"{self.reach.sudo}install -D -m 0755 /dev/stdin {HOSTCTL}"
        return remote.Command(
            f"{self.config.name}-hostctl",
            connection=self.reach.connection,
            create=place,
            update=place,
            delete=f"{self.reach.sudo}rm -rf /usr/local/lib/heliograph",
            stdin=self.survey.tool(self.config.name),
            add_previous_output_in_env=False,
            logging=remote.Logging.STDERR,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _image(self, name: str, image: Image, after: pulumi.Resource, *, current: bool) -> pulumi.Resource:
        spec: dict[str, Any] = {"name": f"image-{name}", "reference": image.reference, "current": current}
        waits = [after]
        if image.file:
            digest = image.reference.rpartition(":")[2][:12]
            spec["archive"] = f"/var/tmp/heliograph-{name}-{digest}.tar"  # noqa: S108 - its digest is checked when it is loaded
            copy = remote.CopyToRemote(
                f"{self.config.name}-{name}-archive",
                connection=self.reach.connection,
                source=pulumi.FileAsset(str(image.file)),
                remote_path=spec["archive"],
                triggers=[self.survey.token(self.config.name, f"image-{name}")],
                opts=self.child(after),
            )
            waits.append(copy)
        token = self.survey.token(self.config.name, f"image-{name}")
        return host_command(
            f"{self.config.name}-image-{name}",
            self.reach,
            "image",
            spec | {"token": token},
            undo=True,
            opts=self.child(*waits),
        )

    def _certificates(
        self, region: Region, topology: Topology, authority: Authority, after: pulumi.Resource
    ) -> pulumi.Resource:
        subjects = _subjects(region, topology, self.config)
        generation = render.key_generation(region)
        spec = {"name": "keys", "roles": sorted(subjects), "generation": generation}
        spec["token"] = self.survey.token(self.config.name, "keys")
        asked = host_command(f"{self.config.name}-keys", self.reach, "keys", spec, undo=True, opts=self.child(after))

        def bundle(stdout: str) -> dict[str, Any]:
            requests: Mapping[str, str] = json.loads(stdout)
            files = [render.File(f"{_TLS}/ca.pem", authority.bundle)]
            for role, (subject, owner) in sorted(subjects.items()):
                pem = authority.sign(requests[role], subject, region.certificates.not_before, region.certificates.days)
                key = f"/etc/heliograph/keys/{role}.{generation}.key"
                files.append(render.File(f"{_TLS}/{role}.pem", pem, "400", owner, key))
            spec = render.Bundle("certificates", tuple(files), directories=({"path": _TLS},)).as_spec()
            return spec | {"token": self.survey.token(self.config.name, "certificates")}

        return host_command(
            f"{self.config.name}-certificates",
            self.reach,
            "install",
            asked.stdout.apply(bundle),
            undo=True,
            opts=self.child(asked),
        )


def _subjects(region: Region, topology: Topology, host: HostConfig) -> dict[str, tuple[Subject, str]]:
    """Role → whom its certificate is for, and the user who reads it. O and OU of `member` make mongod trust it as one of its own: no other role has them."""
    organization = render.organization(region.name)
    names = (host.name, host.address)
    subjects = {
        "member": (Subject(host.name, "heliograph-member", organization, names), render.DATA_USER),
        "node": (Subject("node", render.CLIENT_UNIT, organization), render.NODE_USER),
        "api": (Subject(host.name, "heliograph-api", organization, names), render.NODE_USER),
    }
    if any(
        ledger.host == host.name for ledger in topology.ledgers
    ):  # MongoDB's user, and what other ledgers know it by
        subjects["ledger"] = (Subject("ledger", render.CLIENT_UNIT, organization, names), render.NODE_USER)
    return subjects
