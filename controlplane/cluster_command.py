"""`heliograph cluster`: run on a host by the deployment, or by an operator; what is wanted comes as JSON on stdin."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["cluster"]

cluster = typer.Typer(
    no_args_is_help=True,
    help="Bring MongoDB's replica sets and sharded cluster into the declared state (JSON on stdin, a line of JSON per change on stdout).",
)

Ca = Annotated[Path | None, typer.Option(help="PEM file of the authority that signed the members' certificates.")]
Certificate = Annotated[Path | None, typer.Option(help="PEM file: a member's certificate and its key.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for members, elections and routers.")]
_PROBLEMS = 3


def _line(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


@cluster.command("replica-set")
def replica_set(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Initiate or reconfigure one replica set: {"set", "role", "members": [{"id", "host", "priority", "votes", "hidden", "tags"}], "election_seconds"}."""
    from controlplane.store.cluster import Access, Deadline, Report, SetSpec, converge_set, read  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(converge_set(read(SetSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout)))
    report.converged()


@cluster.command("shards")
def shards(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Shards, sharded collections, users: {"routers", "shards", "database", "collections", "users"}."""
    from controlplane.store.cluster import Access, ClusterSpec, Deadline, Report, converge_cluster, read  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(
        converge_cluster(read(ClusterSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout))
    )
    report.converged()


@cluster.command("status")
def status(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Compare with what is declared, change nothing: {"sets": […], "cluster": {…}}. Exit code 3 when there are problems."""
    from controlplane.store.cluster import Access, Deadline, StatusSpec, describe, read  # noqa: PLC0415

    found = asyncio.run(describe(read(StatusSpec, sys.stdin.read()), Access(ca, certificate), Deadline(timeout)))
    typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    if found["problems"]:
        raise typer.Exit(_PROBLEMS)


@cluster.command("release")
def release_member(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Wait until a member may be stopped; a primary steps down: {"set", "member", "members"}."""
    from controlplane.store.cluster import Access, Deadline, MoveSpec, Report, read, release  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(release(read(MoveSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout)))
    report.converged()


@cluster.command("rejoined")
def rejoined_member(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Wait until a member that was started again is PRIMARY or SECONDARY: {"set", "member", "members"}."""
    from controlplane.store.cluster import Access, Deadline, MoveSpec, Report, read, rejoined  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(rejoined(read(MoveSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout)))
    report.converged()


@cluster.command("balancer")
def balancer(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 300.0) -> None:
    """Start the balancer, or stop it and wait until no round is under way: {"routers", "running"}."""
    from controlplane.store.cluster import Access, BalancerSpec, Deadline, Report, read, set_balancer  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(set_balancer(read(BalancerSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout)))
    report.converged()


@cluster.command("features")
def features(ca: Ca = None, certificate: Certificate = None, timeout: Timeout = 120.0) -> None:
    """Raise the feature compatibility version once every member runs that version: {"routers", "members", "version"}. There is no way back to older programs."""
    from controlplane.store.cluster import Access, Deadline, FeatureSpec, Report, raise_features, read  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(raise_features(read(FeatureSpec, sys.stdin.read()), Access(ca, certificate), report, Deadline(timeout)))
    report.converged()


@cluster.command("snapshots")
def snapshots(ca: Ca = None, certificate: Certificate = None) -> None:
    """Let members keep old states for so many seconds, while a backup reads one of them: {"members", "seconds"}. MongoDB's own is 300."""
    from controlplane.store.cluster import Access, Report, SnapshotSpec, keep_snapshots, read  # noqa: PLC0415

    report = Report(_line)
    asyncio.run(keep_snapshots(read(SnapshotSpec, sys.stdin.read()), Access(ca, certificate), report))
    report.converged()
