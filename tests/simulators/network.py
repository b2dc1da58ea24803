"""Ports for tests; and the line between two datacenters: a TCP proxy that is slow, can be cut, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_SHARE = 4_000
_FIRST = 10_000 + _SHARE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5)
_ports = deque(range(_FIRST, _FIRST + _SHARE))
_ports.rotate(random.randrange(_SHARE))


def free_port() -> int:
    """A port of 127.0.0.1 for a program that is to be started, another one each time.

    From below what the kernel gives to whoever asks for any (32,768 on), and from this worker's own share: so nobody else takes it meanwhile.
    """
    for _ in range(_SHARE):
        _ports.rotate()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", _ports[0])):
            return _ports[0]
    raise OSError(f"all ports from {_FIRST} to {_FIRST + _SHARE} are taken")


class Line:
    """Whoever connects to `port` reaches `target`, `delay` seconds later in each direction."""

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self.port = 0
        self.cut = False
        """While set, nothing passes and nobody connects; what was connected is torn down."""
        self.back_bytes = 0
        """What came back from the target."""
        self._writers: set[asyncio.StreamWriter] = set()

    async def sever(self) -> None:
        self.cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self.cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        try:
            await asyncio.sleep(2 * self.delay)  # the handshake's round trip
            back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, forth}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, forth, back=False))
                group.create_task(self._pass(back, writer, back=True))
        finally:
            for each in (writer, forth):
                self._writers.discard(each)
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        """Everything arrives `delay` after it was sent, whatever else is on its way."""
        loop = asyncio.get_running_loop()
        queue: deque[tuple[float, bytes]] = deque()
        more = asyncio.Event()

        async def read() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    queue.append((loop.time() + self.delay, data))
                    more.set()
            queue.append((loop.time() + self.delay, b""))
            more.set()

        async def write() -> None:
            while True:
                while not queue:
                    more.clear()
                    await more.wait()
                due, data = queue.popleft()
                if (pause := due - loop.time()) > 0:
                    await asyncio.sleep(pause)
                if not data or writer.transport.is_closing():
                    writer.transport.abort()
                    return
                if back:
                    self.back_bytes += len(data)
                with contextlib.suppress(OSError):
                    writer.write(data)
                    await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())


@asynccontextmanager
async def line(target: int, delay: float = 0.0) -> AsyncIterator[Line]:
    made = Line(target, delay)
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.sever()
        await asyncio.sleep(0.05)
