"""`heliograph carrier`."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from controlplane.carrier.config import load_config
from controlplane.carrier.outcome import SUFFIXES
from controlplane.carrier.run import Carrier

__all__ = ["carrier"]

_RULES = "\n".join(f"…{suffix}: {words}\n" for suffix, (_, words) in SUFFIXES.items())


async def _run(running: Carrier) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    async with asyncio.TaskGroup() as group:
        group.create_task(running.run())
        await running.started.wait()
        where = f", http 127.0.0.1:{running.http_port}" if running.http_port is not None else ""
        typer.echo(f"carrier {running.config.name}: smpp {running.config.host}:{running.port}{where}", err=True)


def carrier(
    config: Annotated[
        Path | None, typer.Option(help="TOML file: see controlplane/carrier/config.py for every option.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its system_id towards clients.")] = None,
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option(help="SMPP port (2775).")] = None,
    http_port: Annotated[int | None, typer.Option(help="Statistics and behaviour over HTTP.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Remember what was accepted, in this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Make its chances repeatable.")] = None,
) -> None:
    """Run a simulated carrier: an SMSC that behaves, or misbehaves on command."""
    loaded = load_config(config, name=name, host=host, port=port, http_port=http_port, journal=journal, seed=seed)
    with suppress(asyncio.CancelledError):
        asyncio.run(_run(Carrier(loaded)))


carrier.__doc__ = f"{carrier.__doc__}\n\nThe last four digits of a number decide what becomes of it:\n\n{_RULES}"
