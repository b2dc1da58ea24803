"""The console's ways into the node: grants for calls in-process, and streams for open tabs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from controlplane.api.auth import act_for
from controlplane.console import live
from controlplane.domain.people import Role, Stage

SENDER = frozenset({"messages:read", "messages:write"})
HELLO = {"to": "+4915112340001", "body": "hello"}


class TestGrants:
    """A grant lasts as long as its call, and gives no more than its person may do at this moment."""

    async def test_ends_with_the_call(self, node, carriers):
        await node.connect(await carriers())
        services = node.node.app.state.services
        with act_for(services, "ada", tenant="", own="sample", scopes=SENDER) as header:
            status, _ = await node.call("POST", "/v1/messages", headers={"authorization": header}, json=HELLO)
            assert status == 202
        for method, path in (("POST", "/v1/messages"), ("GET", "/v1/messages")):
            status, _ = await node.call(method, path, headers={"authorization": header}, json=HELLO)
            assert status == 401

    async def test_nobody_sends_for_a_disabled_tenant(self, node, carriers):
        await node.connect(await carriers())
        services = node.node.app.state.services
        tenant = node.node.catalog.snapshot.tenants["sample"]
        await node.node.catalog.put(replace(tenant, enabled=False))
        await node.until(lambda: not node.node.catalog.snapshot.tenants["sample"].enabled)
        for own, named in (("sample", ""), ("", "sample")):
            with act_for(services, "ada", tenant=named, own=own, scopes=SENDER) as header:
                status, problem = await node.call("POST", "/v1/messages", headers={"authorization": header}, json=HELLO)
                assert (status, problem["title"]) == (403, "Tenant disabled")
                status, _ = await node.call("GET", "/v1/messages", headers={"authorization": header})
                assert status == (403 if own else 200)


class TestStreams:
    """Open tabs cost little, and end with their session."""

    @pytest.fixture
    async def cookie(self, node):
        await node.node.people.create("ada", Role.VIEWER, "")
        return await node.node.sessions.begin("ada", Stage.OPEN, address="127.0.0.1", agent="test")

    async def test_a_person_has_so_many(self, node, cookie, monkeypatch):
        monkeypatch.setattr(live, "_MOST", 3)
        headers = {"cookie": f"__Host-heliograph={cookie}", "accept": "text/event-stream"}
        url = f"{node.base_url}/console/overview/feed"
        async with AsyncExitStack() as tabs:
            for _ in range(3):
                answer = await tabs.enter_async_context(node.http.get(url, headers=headers))
                assert answer.status == 200
                assert await answer.content.readany()
            async with node.http.get(url, headers=headers) as refused:
                assert (refused.status, refused.headers["retry-after"]) == (429, "60")
        async with asyncio.timeout(15):  # closed tabs count no more
            while True:
                async with node.http.get(url, headers=headers) as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.2)

    async def test_it_ends_with_its_session(self, node, cookie, monkeypatch):
        monkeypatch.setattr(live, "_STILL_SECONDS", 0.1)
        headers = {"cookie": f"__Host-heliograph={cookie}", "accept": "text/event-stream"}
        async with node.http.get(f"{node.base_url}/console/messages/live", headers=headers) as answer:
            assert await answer.content.readany()
            await node.node.sessions.end_all("ada")
            async with asyncio.timeout(15):
                while await answer.content.readany():
                    pass
