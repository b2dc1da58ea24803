"""Callback endpoints, their attempts and answers, sending again, a new secret."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import World, enter


@pytest.fixture(scope="module")
def receiver(world: World) -> Iterator[Any]:
    """Somebody's server: it answers 204, or what `status` says, and keeps what came."""

    class Receiver:
        status = 204
        got: list[dict[str, Any]]
        url: str
        runner: web.AppRunner

    made = Receiver()
    made.got = []

    async def take(request: web.Request) -> web.Response:
        made.got.append(await request.json())
        return web.Response(status=made.status, text="<script>alert(1)</script>")

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/{tail:.*}", take)
        made.runner = web.AppRunner(app)
        await made.runner.setup()
        site = web.TCPSite(made.runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{made.runner.addresses[0][1]}"

    world.run(start())
    yield made
    world.run(made.runner.cleanup())


async def until(ready: Any) -> None:
    async with asyncio.timeout(15):
        while not ready():
            await asyncio.sleep(0.05)


def test_an_endpoint_its_attempts_and_again(page: Page, world: World, receiver: Any, axe: str) -> None:
    page.goto(world.url + "/callbacks?tenant=sample")
    page.get_by_role("link", name="New endpoint").first.click()
    page.get_by_label("Address").fill("ftp://example.com/")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#url-error")).to_be_visible()
    page.get_by_label("Address").fill(receiver.url + '/hook?"><script>alert(1)</script>')
    page.get_by_role("checkbox", name="delivered", exact=True).check()
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/callbacks?tenant=sample")
    endpoint = page.get_by_role("row").filter(has_text="/hook")
    expect(endpoint.first).to_contain_text("works")
    world.run(asyncio.sleep(2))  # all nodes know within 2 seconds
    mid = world.run(world.node.send("+4915112340001", "tell me"))["id"]
    world.run(until(lambda: any(item["data"]["id"] == mid for item in receiver.got)))

    def attempts() -> Any:
        page.goto(f"{world.url}/callbacks?tenant=sample&message={mid}")
        return page.get_by_role("table", name="Attempts to deliver callbacks").get_by_role("row")

    world.run(until_logged(world, mid, 1))
    assert attempts().count() == 2
    expect(attempts().nth(1)).to_contain_text("delivered 204")
    for width in (320, 390, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)
    assert_accessible(page, axe)
    attempts().nth(1).get_by_role("button", name="Send again").click()
    expect(page.locator(".said")).to_contain_text("1 callback will be sent again")
    world.run(until_logged(world, mid, 2))
    assert attempts().count() == 3
    assert page.locator("main script").count() == 0

    receiver.status = 410
    world.run(world.node.send("+4915112340001", "gone"))
    world.run(until(lambda: receiver.got[-1]["data"]["id"] != mid))
    world.run(until(lambda: any(not each.enabled for each in world.node.node.catalog.snapshot.endpoints.values())))
    page.goto(world.url + "/callbacks?tenant=sample")
    expect(page.get_by_role("row").filter(has_text="disabled").first).to_contain_text("410")
    page.get_by_role("row").filter(has_text="disabled").first.get_by_role("link").click()
    expect(page.locator("main")).to_contain_text("It was disabled")
    page.get_by_text("Remove").first.click()
    page.get_by_label("Type remove to confirm").fill("remove")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".said")).to_contain_text("removed")


async def until_logged(world: World, mid: str, count: int) -> None:
    async with asyncio.timeout(15):
        while True:
            _, found = await world.node.call("GET", f"/v1/callbacks/deliveries?message={mid}")
            if len(found["data"]) >= count:
                return
            await asyncio.sleep(0.05)


def test_a_new_secret(page: Page, world: World) -> None:
    page.goto(world.url + "/callbacks?tenant=other")
    page.get_by_text("New signing secret").first.click()
    page.get_by_label("Type rotate to confirm").fill("no")
    page.get_by_role("button", name="New signing secret").click()
    expect(page.locator("main")).to_contain_text("Type rotate exactly")
    page.get_by_label("Type rotate to confirm").fill("rotate")
    page.get_by_role("button", name="New signing secret").click()
    secret = page.get_by_label("Callback secret").input_value()
    assert secret.startswith("whsec_")
    assert world.node.node.catalog.snapshot.tenants["other"].callback_secrets[0] == secret


def test_viewers_look_only(world: World, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    enter(world, context, "vera", Role.VIEWER, "sample")
    page = context.new_page()
    page.goto(world.url + "/callbacks")
    assert page.get_by_role("button", name="Send again").count() == 0
    assert page.get_by_role("link", name="New endpoint").count() == 0
    answer = page.goto(world.url + "/callbacks/-/new")
    assert answer is not None
    assert answer.status == 403
    context.close()
