"""`python -m infra.desired STACK`: what Ansible needs to operate a region, as one JSON document on stdout.

    {"inventory": …, "connection": {"ssh_key"}, "client": {"urls", "authority", "admin_key", "secret_key", "to"}}

The inventory is the one that `pulumi up` exports, with what is declared beside it: the steps that lead there, and what to ask for. It holds no secret; the
document does: read it through a pipe, never into a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from infra import quadlets, render, steps
from infra.backups import backups
from infra.certificates import authorities
from infra.config import ConfigError, Region, Secrets, parse_region, parse_secrets
from infra.engine import stack_configuration
from infra.inventory import inventory
from infra.plan import Topology, plan
from infra.survey import hostctl_source

__all__ = ["declared", "desired", "main"]


def declared(region: Region, topology: Topology) -> dict[str, Any]:
    """The inventory with the declared state, as data; holds no secret."""
    sets = [render.set_spec(region, one) for one in topology.sets]
    cluster = render.shard_spec(topology)
    found = inventory(region, topology)
    every = found["all"]
    every["children"]["region"] = {"hosts": dict.fromkeys(every["hosts"])}
    every["hosts"]["controller"] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    }
    every["vars"] |= {
        "heliograph_steps": steps.steps(region, topology),
        "heliograph_status": render.cluster_run("status", {"sets": sets, "cluster": cluster}) | {"accept": [3]},
        "heliograph_balancer": {
            name: render.cluster_run("balancer", {"routers": cluster["routers"], "running": running})
            for name, running in (("on", True), ("off", False))
        },
        "heliograph_features": render.cluster_run(
            "features",
            {
                "routers": cluster["routers"],
                "members": [m.endpoint for s in topology.sets for m in s.members],
                "version": region.mongodb.version,
            },
        ),
        "heliograph_nodes_all": [
            {"name": n.name, "host": n.host, "url": n.url, "unit": f"heliograph-node-{n.number}.service"}
            for n in topology.nodes
        ],
        "heliograph_backups": backups(region, topology),
        "heliograph_verify": render.verify_run(region, topology, "") | {"accept": [3]},
        "heliograph_tool": hostctl_source(),
    }
    return found


def desired(region: Region, secrets: Secrets) -> dict[str, Any]:
    """The whole document. Raises ConfigError where the configuration breaks a rule."""
    topology = plan(region)
    for bundle in render.everything(region, topology).values():
        quadlets.require_clean({file.path: file.content for file in bundle.files})
    return {
        "region": region.name,
        "inventory": declared(region, topology),
        "connection": {"ssh_key": secrets.ssh_key.get_secret_value()},
        "client": {
            "urls": [node.url for node in topology.nodes],
            "authority": authorities(secrets),
            "admin_key": secrets.admin_key.get_secret_value(),
            "secret_key": secrets.secret_key.get_secret_value(),
            "to": region.verify.to,
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Exit code 2 with sentences on stderr when the configuration is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m infra.desired", description=__doc__)
    parser.add_argument("stack")
    options = parser.parse_args(arguments)
    try:
        value, secrets = stack_configuration(options.stack)
        document = desired(parse_region(value), parse_secrets(secrets))
    except ConfigError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
