"""The Pulumi program: configuration → plan → survey of the hosts → components → outputs. Nothing is created while anything is wrong."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pulumi

from infra import preflight, quadlets, render
from infra.certificates import Authority
from infra.components.control_plane import SecretInputs
from infra.components.region import Region
from infra.config import OPTIONAL, SECRETS, ConfigError, parse_region, parse_secrets
from infra.peer import peer_entry
from infra.plan import plan
from infra.ssh import Shell
from infra.survey import survey

__all__ = ["build", "main"]


def build(region_value: Any, secret_values: dict[str, str | None]) -> Region:
    """All resources of the stack. Raises ConfigError with everything that must be mended first."""
    region = parse_region(region_value)
    secrets = parse_secrets(secret_values)
    topology = plan(region)
    authority = Authority.of(secrets)
    ssh_key = secrets.ssh_key.get_secret_value()
    for bundle in render.everything(region, topology).values():
        quadlets.require_clean({file.path: file.content for file in bundle.files})
    for name, image in (("mongodb", region.mongodb.image), ("control_plane", region.control_plane.image)):
        if image.file and not image.file.is_file():
            raise ConfigError(
                f"{name}.image.archive: {image.file} is not a file on this machine; build it with `make images`, or remove the field"
            )
    shell = Shell.of(region.ssh, ssh_key)
    now = time.time()
    with ThreadPoolExecutor(1) as thread:  # Pulumi's own loop runs in this one
        found = thread.submit(asyncio.run, survey(region, topology, shell, f"{now:.0f}", now)).result()
    if problems := preflight.problems(region, topology, found, authority.bundle):
        raise ConfigError("\n".join(problems))
    for warning in (*preflight.drift(found), *preflight.warnings(region, topology, found)):
        pulumi.log.warn(warning)
    hidden = SecretInputs(
        secret_key=pulumi.Output.secret(secrets.secret_key.get_secret_value()),
        admin_key=pulumi.Output.secret(secrets.admin_key.get_secret_value()),
        ledger_key=pulumi.Output.secret(secrets.ledger_key.get_secret_value()),
        revoked_key=pulumi.Output.secret(secrets.revoked_admin_key.get_secret_value())
        if secrets.revoked_admin_key
        else None,
    )
    entry = peer_entry(topology, secrets)
    return Region(region, topology, authority, pulumi.Output.secret(ssh_key), hidden, found, entry)


def main() -> None:
    """Read the stack's configuration, build, export. A ConfigError ends the run with its sentences alone."""
    config = pulumi.Config()
    try:
        built = build(
            json.loads(config.get("region") or "null"), {name: config.get(name) for name in (*SECRETS, *OPTIONAL)}
        )
    except ConfigError as error:
        raise pulumi.RunError(f"nothing was changed; mend first:\n{error}") from None
    for name, value in built.outputs.items():
        pulumi.export(name, value)
