"""A region that nobody has, as its operator knows it."""

from __future__ import annotations

import asyncssh

from controlplane.ops.desired import Desired

__all__ = ["KEY", "sample"]

KEY = "an API key that nobody may read in a file"


def sample() -> Desired:
    ssh_key = asyncssh.generate_private_key("ssh-ed25519")
    hosts = {
        "controller": {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        },
        "fra-1": {
            "ansible_host": "192.0.2.1",
            "ansible_port": 2222,
            "heliograph_host_key": " ".join(ssh_key.export_public_key().decode().split()[:2]),
        },
    }
    children = {"region": {"hosts": {"fra-1": None}}}
    return Desired(
        region="fra",
        inventory={"all": {"hosts": hosts, "vars": {}, "children": children}},
        urls=("https://192.0.2.1:8443",),
        authority="-----BEGIN CERTIFICATE-----\n",
        to="+99900000001",
        ssh_key=ssh_key.export_private_key().decode(),
        admin_key=KEY,
    )
