"""What every role that serves HTTP does alike: listen, run beside its server until it is told to end, stop in order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvicorn

from controlplane import garbage
from controlplane.errors import ConfigError
from controlplane.settings import Settings
from controlplane.telemetry.service import notify

__all__ = ["RoleServer", "listen", "serve"]


class RoleServer(uvicorn.Server):
    """Ends when `should_exit` is set; signals are the role's."""

    async def run_on(self, listener: socket.socket) -> None:
        """Serve on this socket. uvicorn's public `serve` would capture SIGTERM."""
        with suppress(asyncio.CancelledError):
            await self._serve(sockets=[listener])


def listen(settings: Settings, backlog: int) -> socket.socket:
    """The role's socket. Raises ConfigError."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=backlog)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}). "
            "Stop what uses the port, or set HELIOGRAPH_PORT to another one."
        ) from error


async def serve(
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], server: RoleServer, listener: socket.socket
) -> None:
    """`run` until SIGTERM or SIGINT sets its event, or one of both ends; the server answers until `run` has stopped."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(stop))
        serving = group.create_task(server.run_on(listener))
        collecting = group.create_task(garbage.collect())
        notify("READY=1")
        await asyncio.wait([running, serving], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        notify("STOPPING=1")
        await running
        server.should_exit = True
        collecting.cancel()
