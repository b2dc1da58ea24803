"""What is declared for a region, as `python -m infra.desired STACK` tells it: the two share nothing but the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from controlplane.errors import ConfigError

__all__ = ["Desired", "desired"]


@dataclass(frozen=True, slots=True)
class Desired:
    """A region, and the keys to it. Never shown."""

    region: str
    inventory: dict[str, Any]
    """Ansible's, as data; holds no secret."""
    urls: tuple[str, ...]
    """Of its nodes."""
    authority: str
    """PEM."""
    to: str
    """Whom a test message goes to."""
    ssh_key: str = field(repr=False)
    admin_key: str = field(repr=False)
    secret_key: str = field(default="", repr=False)
    """Opens the region's backups."""

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        """Name → variables of its machines."""
        return {
            name: found
            for name, found in self.inventory["all"]["hosts"].items()
            if name in self.inventory["all"]["children"]["region"]["hosts"]
        }

    def known_hosts(self) -> str:
        """The machines' pinned keys, for ssh."""
        return "".join(
            f"[{one['ansible_host']}]:{one['ansible_port']} {one['heliograph_host_key']}\n"
            if one["ansible_port"] != 22
            else f"{one['ansible_host']} {one['heliograph_host_key']}\n"
            for one in self.hosts.values()
        )


def desired(stack: str) -> Desired:
    """Of a stack of the project in the present folder. ConfigError says what must be mended."""
    argv = [sys.executable, "-m", "infra.desired", stack]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        raise ConfigError(done.stderr.strip().removeprefix("Error: ")[-3000:])
    found = json.loads(done.stdout)
    client = found["client"]
    return Desired(
        region=found["region"],
        inventory=found["inventory"],
        urls=tuple(client["urls"]),
        authority=client["authority"],
        to=client["to"],
        ssh_key=found["connection"]["ssh_key"],
        admin_key=client["admin_key"],
        secret_key=client["secret_key"],
    )
