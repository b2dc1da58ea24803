"""`python -m infra.verify STACK`: is the region what the last `pulumi up` made of it, and does it deliver? Changes nothing.

Asks every host for files that were edited and units that do not run, the replica sets and the sharded cluster for their state, and sends one message
through each node. Exit code 0 when all is well, 3 when something is not, 2 when it could not be asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from infra import preflight, render
from infra.certificates import Authority
from infra.config import ConfigError, Region, Secrets, parse_region, parse_secrets
from infra.engine import stack_configuration
from infra.plan import Topology, plan
from infra.ssh import Shell
from infra.survey import survey

__all__ = ["examine", "main"]


async def examine(region: Region, topology: Topology, shell: Shell, secrets: Secrets, now: float) -> dict[str, Any]:
    """`problems` (sentences; empty = all is well), `warnings`, `cluster` and `messages` as the region itself reports them."""
    seen = await survey(region, topology, shell, "", now)
    problems = preflight.problems(
        region,
        topology,
        seen,
        Authority.of(secrets).bundle,
    )
    problems += preflight.drift(seen)
    report: dict[str, Any] = {
        "problems": problems,
        "warnings": preflight.warnings(region, topology, seen),
        "cluster": None,
        "messages": [],
    }
    first = next((host for host in region.hosts if host.name in seen.facts), None)
    if first is None:
        return report
    sets = [render.set_spec(region, one) for one in topology.sets]
    spec = render.cluster_run("status", {"sets": sets, "cluster": render.shard_spec(topology)})
    code, stdout, stderr = await shell.hostctl(first, "run", spec | {"accept": [3]}, seconds=300)
    if code:
        problems.append(f"the cluster's state cannot be read: {stderr.strip()}")
    else:
        report["cluster"] = json.loads(stdout)
        problems += report["cluster"]["problems"]
    code, stdout, stderr = await shell.hostctl(
        first,
        "run",
        render.verify_run(region, topology, secrets.admin_key.get_secret_value()) | {"accept": [3]},
        seconds=region.verify.wait_seconds + 120,
    )
    report["messages"] = [json.loads(line) for line in stdout.splitlines()] if not code else []
    if code:
        problems.append(f"no message could be sent: {stderr.strip()}")
    problems += [
        f"a message through {one['url']} is {one['status']}: {one.get('why', '')}"
        for one in report["messages"]
        if one["status"] != "delivered"
    ]
    return report


def main(arguments: list[str] | None = None) -> None:
    """Print the report, `--json` for programs."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        value, secret_values = stack_configuration(options.stack)
        region, secrets = parse_region(value), parse_secrets(secret_values)
        shell = Shell.of(region.ssh, secrets.ssh_key.get_secret_value())
        report = asyncio.run(examine(region, plan(region), shell, secrets, time.time()))
    except ConfigError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        for one in report["messages"]:
            sys.stdout.write(f"{one['url']}  {one['status']}  {one.get('seconds', '')} s\n")
        sys.stdout.write("".join(f"- {warning}\n" for warning in report["warnings"]))
        said = "".join(f"! {problem}\n" for problem in report["problems"])
        sys.stdout.write(said or f"{options.stack}: all is well\n")
    raise SystemExit(3 if report["problems"] else 0)


if __name__ == "__main__":
    main()
