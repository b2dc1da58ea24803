"""Tells the service manager when a node is ready and when it stops (sd_notify(3)): systemd and podman then start what comes after it at the right time."""

from __future__ import annotations

import socket

from controlplane.settings import notify_socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one state such as `READY=1`. Does nothing where no service manager listens."""
    address = notify_socket()
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
