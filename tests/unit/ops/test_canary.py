"""Messages through an operation: each is tried until it is accepted, none is forgotten, and one that is missing is named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from aiohttp import web

from controlplane.clock import SystemClock
from controlplane.ops.canary import Api, accepted, count, send, settle


class Node:
    """An HTTP server that answers as a node does; what it is told to do wrong it does."""

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.refuse = 0
        """So many submits are answered 503."""
        self.forget_answer = 0
        """So many are accepted and the connection is closed before the answer."""
        self.status = "delivered"
        self.complete = True

    async def submit(self, request: web.Request) -> web.Response:
        if self.refuse:
            self.refuse -= 1
            return web.json_response({"detail": "stopping"}, status=503)
        key = request.headers["idempotency-key"]
        mid = self.by_key.setdefault(key, f"m{len(self.by_key)}")
        self.messages[mid] = await request.json()
        if self.forget_answer:
            self.forget_answer -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"id": mid}, status=202)

    async def message(self, request: web.Request) -> web.Response:
        if request.match_info["mid"] not in self.messages:
            return web.json_response({"detail": "no such message"}, status=404)
        return web.json_response({"status": self.status})

    async def proof(self, request: web.Request) -> web.Response:
        return web.json_response({"complete": self.complete})


@pytest_asyncio.fixture
async def node() -> AsyncIterator[tuple[Node, str]]:
    made = Node()
    app = web.Application()
    app.router.add_post("/v1/messages", made.submit)
    app.router.add_get("/v1/messages/{mid}", made.message)
    app.router.add_get("/v1/messages/{mid}/proof", made.proof)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def sent(api: Api, path: Path, number: int) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(send(api, "+9990000000001", path, name="op", every=0.01, stop=stop))
        async with asyncio.timeout(20):
            while len(accepted(path)) < number:
                await asyncio.sleep(0.01)
        stop.set()


async def test_a_node_that_is_away_and_one_that_is_stopping(node: tuple[Node, str], tmp_path: Path) -> None:
    made, url = node
    made.refuse = 2
    path = tmp_path / "canaries"
    async with Api(["http://127.0.0.1:9", url], "key", "") as api:
        await sent(api, path, 5)
        found = await settle(api, path, clock=SystemClock(), seconds=5)
    assert found.settled
    assert found.accepted == len(made.messages) == len(accepted(path)) >= 5
    assert found.retried >= 3  # each 503, and the node that is away
    assert path.stat().st_mode & 0o077 == 0


async def test_an_answer_that_was_lost_is_one_message(node: tuple[Node, str], tmp_path: Path) -> None:
    made, url = node
    made.forget_answer = 1
    async with Api([url], "key", "") as api:
        await sent(api, tmp_path / "canaries", 3)
    ids = [one["id"] for one in accepted(tmp_path / "canaries")]
    assert len(ids) == len(set(ids)) == len(made.by_key)


async def test_one_that_is_missing_is_named(node: tuple[Node, str], tmp_path: Path) -> None:
    made, url = node
    path = tmp_path / "canaries"
    async with Api([url], "key", "") as api:
        await sent(api, path, 3)
        made.messages.pop("m1")
        found = await count(api, path)
    assert found.missing == ["m1"]
    assert not found.settled


async def test_open_or_unproven_is_not_settled(node: tuple[Node, str], tmp_path: Path) -> None:
    made, url = node
    path = tmp_path / "canaries"
    async with Api([url], "key", "") as api:
        await sent(api, path, 2)
        made.complete = False
        assert not (await settle(api, path, clock=SystemClock(), seconds=0.1)).settled
        made.complete, made.status = True, "submitted"
        found = await settle(api, path, clock=SystemClock(), seconds=0.1)
    assert (found.settled, found.missing, found.final) == (False, [], 0)


async def test_going_on_after_a_cut(node: tuple[Node, str], tmp_path: Path) -> None:
    """A line that was cut belongs to a message that is sent again under its key, and is then written whole."""
    made, url = node
    path = tmp_path / "canaries"
    async with Api([url], "key", "") as api:
        await sent(api, path, 2)
        before = len(accepted(path))
        with path.open("a") as file:
            file.write(json.dumps({"id": "m9", "retried": 0})[:-4])
        assert len(accepted(path)) == before
        await sent(api, path, before + 2)
        found = await count(api, path)
    assert {one["id"] for one in accepted(path)} == set(made.messages)
    assert found.accepted == len(made.by_key) >= before + 2
