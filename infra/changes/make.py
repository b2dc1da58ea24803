"""The secrets of a change: made here, encrypted into the stack's file before anything else happens, and never anywhere else."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

import asyncssh

from infra import preflight
from infra.certificates import new_authority
from infra.changes.phase import Fresh
from infra.changes.stack import StackFile
from infra.config import ConfigError, Host, Region, Secrets
from infra.new import new_admin_key
from infra.peer import public_key
from infra.plan import plan
from infra.ssh import Shell
from infra.survey import survey

__all__ = ["answers", "fresh", "given", "lacks", "tried"]

_TRY_SECONDS = 30


def fresh(makes: str, kind: str, file: StackFile, region: Region, known: Secrets, today: date) -> Fresh:
    """What an edit needs; the new secret is in the file. Made anew where an earlier run was cut before the edit: nobody has seen that one."""
    given = Fresh(today, former=_former(kind, known))
    match makes:
        case "nextAuthorityKey":
            certificate, private = new_authority(region.name, today, successor=True)
            file.keep_secret(makes, private)
            return replace(given, certificate=certificate)
        case "nextAdminKey":
            file.keep_secret(makes, new_admin_key())
        case "nextLedgerKey":
            seed = base64.b64encode(secrets.token_bytes(32)).decode()
            file.keep_secret(makes, seed)
            return replace(given, public=public_key(seed, "log"))
        case "nextSshKey":
            key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
            file.keep_secret(makes, key)
            return replace(given, public=_ssh_public(key))
        case _:
            pass
    return given


def _former(kind: str, known: Secrets) -> str:
    """The public half of the key that the change replaces."""
    match kind:
        case "ledger":
            return public_key(known.ledger_key.get_secret_value(), "log")
        case "ssh":
            return _ssh_public(known.ssh_key.get_secret_value())
        case _:
            return ""


def _ssh_public(private: str) -> str:
    """The public half of an SSH key, a line of authorized_keys without comment."""
    return " ".join(asyncssh.import_private_key(private).export_public_key().decode().split()[:2])


async def tried(region: Region, private: str) -> None:
    """Every host takes the key and lets it be root. ConfigError names the first that does not."""
    shell = Shell.of(region.ssh, private)
    for host in region.hosts:
        code, _, said = await shell.run(host, "true", "", seconds=_TRY_SECONDS)
        if code:
            raise ConfigError(f"{host.name} takes the new SSH key, and refuses what it asks for: {said.strip()[-300:]}")


async def answers(region: Region, host: Host, known: Secrets) -> bool:
    """Whether it can be reached as what it is."""
    try:
        code, _, _ = await Shell.of(region.ssh, known.ssh_key.get_secret_value()).run(
            host, "true", "", seconds=_TRY_SECONDS
        )
    except ConfigError:
        return False
    return code == 0


async def lacks(region: Region, known: Secrets) -> list[str]:
    """Hosts that have not the memory for what is declared; of containers it is not known."""
    topology, shell = plan(region), Shell.of(region.ssh, known.ssh_key.get_secret_value())
    seen = await survey(region, topology, shell, "", time.time())
    machines = {name: facts for name, facts in seen.facts.items() if not facts.values["container"]}
    return preflight.memory(region, topology, replace(seen, facts=machines))


def given(text: Mapping[str, str], *names: str) -> list[str]:
    """The values of these. ConfigError where one is missing."""
    if missing := [name for name in names if not text.get(name)]:
        raise ConfigError(f"{', '.join(missing)} must be given")
    return [text[name] for name in names]
