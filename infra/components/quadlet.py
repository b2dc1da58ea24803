"""One resource's files and units on a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pulumi

from infra.components._command import host_command
from infra.render import Bundle, File

if TYPE_CHECKING:
    from infra.components.host import Host

__all__ = ["Quadlet"]


class Quadlet(pulumi.ComponentResource):
    """Installs a bundle, starts its units and waits until they say that they are ready."""

    def __init__(
        self,
        host: Host,
        bundle: Bundle,
        opts: pulumi.ResourceOptions,
        *,
        secrets: Sequence[tuple[File, pulumi.Output[str]]] = (),
    ) -> None:
        super().__init__("heliograph:infra:Quadlet", f"{host.config.name}-{bundle.name}", None, opts)
        token = host.survey.token(host.config.name, bundle.name)

        def filled(values: Sequence[str]) -> dict[str, object]:
            made = (replace(file, content=value) for (file, _), value in zip(secrets, values, strict=True))
            return replace(bundle, files=(*bundle.files, *made)).as_spec() | {"token": token}

        spec = pulumi.Output.all(*[value for _, value in secrets]).apply(filled)
        host_command(
            f"{host.config.name}-{bundle.name}",
            host.reach,
            "install",
            spec,
            undo=True,
            opts=pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on),
        )
        self.register_outputs({})
