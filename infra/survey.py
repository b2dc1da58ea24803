"""Reads the hosts before anything is changed: what they are, what is installed, what was edited by hand.

`pulumi-command` cannot read a host's state (it has no Read), so the program does it itself, over SSH with the pinned host keys, at each preview and up.
Two things follow. Every host that cannot be used is named at once, before the first change. And each resource gets a token: the one of the run that installed
it while its files are as they were left, a new one otherwise, so that `up` mends what was edited and touches nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.config import ConfigError, Host, Region
from infra.plan import Topology
from infra.ssh import Shell

__all__ = ["Facts", "Survey", "hostctl_source", "survey"]

_FACTS_SECONDS = 60
_AT_ONCE = 20


_ANEW = "# installed anew "


def hostctl_source() -> str:
    """The program that runs on the hosts."""
    return (Path(__file__).parent / "host" / "hostctl.py").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Facts:
    """What `hostctl facts` says of one host, and the clock's distance."""

    values: Mapping[str, Any]
    clock_offset: float
    """Seconds that the host's clock is ahead of ours."""

    def drift(self) -> dict[str, list[str]]:
        """Resource → what differs from what was installed."""
        return {name: one["drift"] for name, one in self.values["installed"].items() if one["drift"]}


@dataclass(frozen=True, slots=True)
class Survey:
    """All hosts."""

    facts: Mapping[str, Facts]
    fresh: str
    """The token for whatever has to be installed."""
    problems: Sequence[str] = field(default_factory=tuple)
    """Hosts that could not be asked, and why."""

    def token(self, host: str, resource: str) -> str:
        """The recorded token while the resource is as it was left; a fresh one when it is not, or was never installed."""
        facts = self.facts.get(host)
        installed = facts.values["installed"].get(resource) if facts else None
        if installed and installed["token"] and not installed["drift"]:
            return str(installed["token"])
        return self.fresh

    def tool(self, host: str) -> str:
        """What is to stand on a host as `hostctl`: the program, with a last line of its own after it had been lost or edited there."""
        source = hostctl_source()
        facts = self.facts.get(host)
        if facts is None or not facts.values["installed"]:
            return source
        found = facts.values["tool"]
        last = found["last"] + "\n" if found["last"].startswith(_ANEW) else ""
        if hashlib.sha256((source + last).encode()).hexdigest() == found["sha256"]:
            return source + last
        return f"{source}{_ANEW}{self.fresh}\n"


async def survey(region: Region, topology: Topology, shell: Shell, fresh: str, now: float) -> Survey:
    """Ask every host. `now` is this machine's time in seconds since the epoch."""
    if region.offline:
        return Survey({}, "offline")
    limit = asyncio.Semaphore(_AT_ONCE)
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def one(host: Host) -> Facts | str:
        async with limit:
            asked = now + loop.time() - begun
            try:
                values = await _ask(region, topology, host, shell)
            except ConfigError as error:
                return str(error)
            answered = now + loop.time() - begun
            # Within the time that question and answer took nothing is known about the clock.
            offset = values["time"] - min(max(values["time"], asked), answered)
            return Facts(values, offset)

    async with asyncio.TaskGroup() as group:
        tasks = {host.name: group.create_task(one(host)) for host in region.hosts}
    answers = {name: task.result() for name, task in tasks.items()}
    return Survey(
        {name: answer for name, answer in answers.items() if isinstance(answer, Facts)},
        fresh,
        [answer for answer in answers.values() if isinstance(answer, str)],
    )


async def _ask(region: Region, topology: Topology, host: Host, shell: Shell) -> dict[str, Any]:
    """The facts. Raises ConfigError when there are none."""
    sets = [s.name for s in topology.sets for m in s.members if m.host == host.name]
    spec = {
        "ports": sorted(topology.ports(host.name)),
        "paths": [region.mongodb.data, "/var/lib/containers"],
        "data": {name: f"{region.mongodb.data}/{name}" for name in sets},
    }
    # The program travels with the question: nothing is left on a host that may yet be refused.
    body = hostctl_source().replace("from __future__ import annotations\n", "")
    program = f"from __future__ import annotations\nimport sys, io\nsys.stdin = io.StringIO({json.dumps(spec)!r})\nsys.argv = ['hostctl', 'facts']\n{body}"
    _, stdout, stderr = await shell.run(host, "python3 -", program, seconds=_FACTS_SECONDS)
    try:
        values = json.loads(stdout)
    except ValueError:
        values = None
    if not isinstance(values, dict) or "installed" not in values:
        raise ConfigError(f"{host.name} ({host.address}): {_why(stderr.strip() or stdout, region)}")
    return values


def _why(stderr: str, region: Region) -> str:
    if "sudo" in stderr:
        line = f"{region.ssh.user} ALL=(ALL) NOPASSWD: ALL"
        return f"user {region.ssh.user} may not sudo without a password; add {shlex.quote(line)} to /etc/sudoers.d/heliograph"
    if "python3" in stderr and "not found" in stderr:
        return "has no python3; apt-get install python3"
    return f"does not answer the survey: {stderr.strip()[-400:]}"
