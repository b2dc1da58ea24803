"""A whole node and carriers in this process: real HTTP, real MongoDB, real SMPP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from controlplane.api.server import Server
from controlplane.bootstrap import Node
from controlplane.callbacks.sign import new_secret
from controlplane.carrier import Carrier, CarrierConfig
from controlplane.carrier.config import Behaviour
from controlplane.domain.catalog import Connector, Key, Route, Scope, Tenant
from controlplane.settings import Settings
from controlplane.store.seal import new_key


class RunningNode:
    """A node in this process: real HTTP, real MongoDB, real SMPP."""

    def __init__(self, node: Node, base_url: str) -> None:
        self.node = node
        self.base_url = base_url
        self.tenant = "sample"
        self.key = new_key()
        self.admin_key = new_key()
        self.other_key = new_key()
        self.http: aiohttp.ClientSession
        self.stop = asyncio.Event()

    async def seed(self) -> None:
        catalog = self.node.catalog
        await catalog.put(Tenant(id="sample", name="Sample", callback_secrets=(new_secret(),)))
        await catalog.put(Tenant(id="other", name="Other", callback_secrets=(new_secret(),)))
        own = frozenset({Scope.MESSAGES_READ, Scope.MESSAGES_WRITE, Scope.ROUTES_READ})
        for key, tenant, scopes in (
            (self.key, "sample", own),
            (self.admin_key, "sample", frozenset({Scope.ADMIN})),
            (self.other_key, "other", own),
        ):
            digest = self.node.seal.digest_key(key)
            await catalog.put(
                Key(id=digest[:8], tenant=tenant, name=tenant, scopes=scopes, digest=digest, hint=key[:12])
            )

    async def connect(self, carrier: Carrier, name: str = "sim", **route: Any) -> None:
        """A connector to this carrier, and a route over it; returns once it is bound."""
        connector = Connector(
            name=name,
            host="127.0.0.1",
            port=carrier.port,
            system_id="heliograph",
            password="secret",
            window=50,
            rate=5000,
        )
        fields = {field: route.pop(field) for field in list(route) if field in Connector.__slots__ and field != "name"}
        await self.node.catalog.put(replace(connector, **fields))
        await self.node.catalog.put(Route(name=name, connector=name, **route))
        await self.until(lambda: name in self.node.binds.live)

    async def until(self, ready: Any, seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not ready():
                await asyncio.sleep(0.02)

    async def call(self, method: str, path: str, *, key: str | None = None, **kwargs: Any) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key or self.key}", **kwargs.pop("headers", {})}
        async with self.http.request(method, self.base_url + path, headers=headers, **kwargs) as response:
            body = await (response.json(content_type=None) if response.status != 204 else response.read())
            return response.status, body

    async def send(self, to: str = "+4915112340001", body: str = "hello", **fields: Any) -> dict[str, Any]:
        status, answer = await self.call("POST", "/v1/messages", json={"to": to, "body": body, **fields})
        assert status == 202, answer
        return answer

    async def get(self, mid: str) -> dict[str, Any]:
        status, answer = await self.call("GET", f"/v1/messages/{mid}")
        assert status == 200, answer
        return answer

    async def reaches(self, mid: str, *statuses: str, seconds: float = 15.0) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                message = await self.get(mid)
                if message["status"] in statuses:
                    return message
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running_node(settings: Settings) -> AsyncIterator[RunningNode]:
    listener = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    node = await Node.open(settings.model_copy(update={"advertise_url": base_url}))
    running = RunningNode(node, base_url)
    server = Server(node.app, settings)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(node.run(running.stop)), group.create_task(server.run_on(listener))]
            try:
                async with aiohttp.ClientSession() as running.http:
                    yield running
            finally:
                running.stop.set()
                server.should_exit = True
                await asyncio.wait(tasks)  # a failed test would cancel them, and uvloop cannot close what they leave
    finally:
        await node.close()


@asynccontextmanager
async def running_carrier(**values: Any) -> AsyncIterator[Carrier]:
    config = {name: values.pop(name) for name in list(values) if name in CarrierConfig.model_fields}
    behaviour = Behaviour(**{"receipt_ms": "20", "response_ms": "0", **values})
    carrier = Carrier(CarrierConfig(**{"port": 0, "seed": 1, "behaviour": behaviour, **config}))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(carrier.run())
        await carrier.started.wait()
        yield carrier
        task.cancel()
