"""What all pages share: who may see them, errors as pages, the weight of a first load."""

from __future__ import annotations

import gzip

from playwright.sync_api import Browser, Page

from tests.console.conftest import World


def test_nobody_sees_anything_without_a_session(world: World, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(world.url + "/help")
    assert page.url.startswith(world.url + "/login?next=")
    context.close()


def test_a_page_that_is_not_there_is_a_page(page: Page, world: World) -> None:
    answer = page.goto(world.url + "/nowhere")
    assert answer is not None
    assert answer.status == 404
    assert page.get_by_role("heading", name="Not found").is_visible()
    assert page.get_by_role("navigation", name="Main", exact=True).is_visible()


def test_the_first_load_is_light(page: Page, world: World) -> None:
    """At most 120 kB compressed, 12 kB of it our own style."""
    sizes: dict[str, int] = {}
    page.on("response", lambda answer: sizes.update({answer.url: len(gzip.compress(answer.body()))}))
    page.goto(world.url + "/help")
    page.wait_for_load_state("networkidle")
    assert sum(sizes.values()) <= 120_000, sizes
    [style] = [size for url, size in sizes.items() if "console.css" in url]
    assert style <= 12_000
