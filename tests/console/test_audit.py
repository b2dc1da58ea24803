"""The audit in a browser: found by filters that are the URL, paged, never with a number."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.console.conftest import World


def test_filters_are_the_url(page: Page, world: World) -> None:
    for number in range(60):
        world.run(world.node.call("DELETE", f"/v1/routes/audited-{number}", key=world.node.admin_key))
    page.goto(world.url + "/audit")
    page.locator("summary", has_text="Filter").click()
    page.get_by_label("Did").fill("deleteRoute")
    page.get_by_label("Outcome").select_option("refused")
    page.get_by_role("button", name="Show").click()
    assert "action=deleteRoute" in page.url
    assert page.get_by_role("row").count() == 51
    newest = page.get_by_role("row").nth(1)
    expect(newest).to_contain_text("routes/audited-59")
    expect(newest).to_contain_text("not-found")
    page.get_by_role("link", name="Older").click()
    assert "action=deleteRoute" in page.url
    expect(page.get_by_text("routes/audited-0", exact=True)).to_be_visible()
    expect(page.get_by_text("routes/audited-59")).to_have_count(0)
    page.get_by_role("link", name="Newest").click()
    expect(page.get_by_text("routes/audited-59")).to_be_visible()
    page.get_by_role("link", name="routes/audited-58").click()
    assert page.get_by_role("row").count() == 2


def test_nothing_like_that(page: Page, world: World) -> None:
    page.goto(world.url + "/audit?actor=person:nobody-at-all")
    expect(page.get_by_role("heading", name="Nothing like that")).to_be_visible()


def test_a_wrong_time_is_told(page: Page, world: World) -> None:
    page.goto(world.url + "/audit?since=yesterday")
    expect(page.get_by_text(re.compile("RFC 3339"))).to_be_visible()
    expect(page.get_by_label("From", exact=True)).to_have_value("yesterday")


def test_no_number(page: Page, world: World) -> None:
    number = "+4915112349876"
    world.run(world.node.call("POST", "/v1/suppressions", json={"recipient": number}))
    world.run(world.node.call("DELETE", f"/v1/suppressions/{number}"))
    page.goto(world.url + "/audit")
    assert number[4:] not in page.content()
