"""Whole datacenters in this process: a node and a ledger each, on databases of their own, that mirror each other over real sockets."""

from __future__ import annotations

import asyncio
import base64
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from controlplane.ledger.peer_api import PeerServer
from controlplane.ledger.service import Ledger
from controlplane.settings import Settings
from controlplane.store.client import Database, connect
from tests.simulators.ledgers import DOMAIN, peer_of, seed_of
from tests.simulators.node import RunningNode, running_node


class Datacenter:
    """`node` and `ledger` run until `lose` is called, or the test ends."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.settings = settings
        self.database: Database = connect(settings)
        self.node: RunningNode
        self.ledger: Ledger
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._node = AsyncExitStack()
        self._ledger = AsyncExitStack()

    async def start(self) -> None:
        await self.start_ledger()
        await self.start_node()

    async def start_ledger(self) -> None:
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self._port))
        self.ledger = await self._ledger.enter_async_context(
            _running_ledger(self.settings.model_copy(update={"node": "ledger-1"}), self._listener)
        )

    async def start_node(self, **changes: Any) -> None:
        self.node = await self._node.enter_async_context(running_node(self.settings.model_copy(update=changes)))
        await self.node.seed()

    async def stop_node(self) -> None:
        await self._node.aclose()

    async def stop_ledger(self) -> None:
        await self._ledger.aclose()
        self._listener.close()

    async def lose(self) -> None:
        await self.stop_node()
        await self.stop_ledger()

    async def close(self) -> None:
        with suppress(Exception):
            await self.lose()
        await self.database.client.drop_database(self.settings.database)
        await self.database.client.close()


@asynccontextmanager
async def _running_ledger(settings: Settings, listener: socket.socket) -> AsyncIterator[Ledger]:
    ledger = await Ledger.open(settings)
    stop = asyncio.Event()
    server = PeerServer(ledger.app, settings)
    async with asyncio.TaskGroup() as group:
        group.create_task(ledger.run(stop))
        group.create_task(server.run_on(listener))
        try:
            yield ledger
        finally:
            stop.set()
            server.should_exit = True
    await ledger.close()


@asynccontextmanager
async def datacenters(
    settings: Settings, base: Path, *names: str, change: Callable[[str], dict] = lambda _dc: {}
) -> AsyncIterator[dict[str, Datacenter]]:
    """Started, each a peer of all others."""
    listeners = {dc: socket.create_server(("127.0.0.1", 0)) for dc in names}
    urls = {dc: f"http://127.0.0.1:{listener.getsockname()[1]}" for dc, listener in listeners.items()}
    found: dict[str, Datacenter] = {}
    try:
        for dc in names:
            changes = {
                "datacenter": dc,
                "node": "node-1",
                "database": f"test_{dc}_{uuid.uuid4().hex[:10]}",
                "state_dir": base / dc,
                "ledger_domain": DOMAIN,
                "ledger_round_ms": 50,
                "ledger_key": type(settings.ledger_key)(base64.b64encode(seed_of(dc)).decode()),
                "ledger_peers": tuple(peer_of(other, urls[other]) for other in names if other != dc),
                **change(dc),
            }
            found[dc] = Datacenter(settings.model_copy(update=changes), listeners[dc])
        await asyncio.gather(*(each.start() for each in found.values()))
        yield found
    finally:
        for each in found.values():
            await each.close()


async def mirrored(origin: Datacenter, copy: Datacenter, seconds: float = 30.0) -> None:
    """Until `copy` holds everything that `origin` has sequenced, and nothing waits to be sequenced."""
    async with asyncio.timeout(seconds):
        while True:
            events = await origin.database["events"].count_documents(
                {"dc": origin.settings.datacenter, "n": {"$ne": "ledger"}}
            )
            there = await copy.database["events"].count_documents(
                {"dc": origin.settings.datacenter, "n": {"$ne": "ledger"}}
            )
            if events == there:
                return
            await asyncio.sleep(0.05)
