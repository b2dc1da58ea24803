"""The one way in which a component runs something on a host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_command import remote

from infra.ssh import HOSTCTL

__all__ = ["Reach", "host_command"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How commands reach one host: the pinned connection and the way to root."""

    connection: remote.ConnectionArgs
    sudo: str


def host_command(
    name: str,
    reach: Reach,
    verb: str,
    spec: Mapping[str, Any] | pulumi.Output[Any],
    *,
    undo: bool = False,
    opts: pulumi.ResourceOptions,
) -> remote.Command:
    """Run `hostctl <verb>` with `spec` on its stdin, again whenever the specification changes.

    Data goes by stdin and never into the command line, which errors and process lists show. There are no `triggers`: the SDK replaces a command whose trigger
    changes, and a replacement runs the new create first and the old delete after it, which would take away what was just installed. A failed create leaves
    no state, so that the next `up` runs it again: every verb can be repeated.
    """
    run = f"{reach.sudo}python3 {HOSTCTL} {verb}"
    return remote.Command(
        name,
        connection=reach.connection,
        create=run,
        update=run,
        delete=f"{reach.sudo}python3 {HOSTCTL} remove" if undo else None,
        stdin=pulumi.Output.from_input(spec).apply(lambda value: json.dumps(value, sort_keys=True)),
        add_previous_output_in_env=False,
        logging=remote.Logging.STDERR,
        opts=opts,
    )
