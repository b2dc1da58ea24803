"""Writing a message: the counter, what it costs, and that a hostile text stays a text; with and without JavaScript."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import HOSTILE, SHOTS, World, enter


@pytest.fixture
def plain(world: World, browser: Browser):
    """A browser without JavaScript, of a tenant's own sender."""
    context = browser.new_context(java_script_enabled=False)
    enter(world, context, "sam", Role.SENDER, "sample")
    yield context.new_page()
    context.close()


def fill(page: Page, to: str, body: str) -> None:
    page.get_by_label("Recipient").fill(to)
    page.get_by_label("Text", exact=True).fill(body)


def test_the_counter_follows(page: Page, world: World) -> None:
    page.goto(world.url + "/send?tenant=sample")
    fill(page, "+4915112340001", "a" * 150)
    preview = page.locator("#preview")
    expect(preview).to_contain_text("1 part in GSM 7-bit, 10 left")
    expect(preview).to_contain_text("0.07 EUR")
    expect(preview).to_contain_text("gold")
    page.get_by_label("Text", exact=True).fill("It’s 5 – ok")
    expect(preview).to_contain_text("1 part in UCS-2, 59 left")
    assert preview.locator("mark").all_inner_texts() == ["’", "–"]
    page.get_by_role("button", name=re.compile("Write it plainly")).click()
    assert page.get_by_label("Text", exact=True).input_value() == "It's 5 - ok"
    expect(page.locator("#preview")).to_contain_text("GSM 7-bit")


def test_sent_and_shown(page: Page, world: World) -> None:
    page.goto(world.url + "/send?tenant=sample")
    fill(page, "+4915112340001", "hello from the console")
    page.get_by_label("Reference").fill("console-1")
    with page.expect_navigation():
        page.get_by_role("button", name="Send", exact=True).click()
    mid = page.url.rsplit("/", 1)[-1].partition("?")[0]
    found = world.run(world.node.reaches(mid, "delivered"))
    assert (found["body"], found["reference"]) == ("hello from the console", "console-1")


def test_twice_is_once(page: Page, world: World) -> None:
    page.goto(world.url + "/send?tenant=sample")
    fill(page, "+4915112340001", "only once")
    page.get_by_label("Reference").fill("console-twice")
    page.get_by_role("button", name="Send", exact=True).dblclick()
    page.wait_for_url("**/messages/*")
    _, found = world.run(world.node.call("GET", "/v1/messages?reference=console-twice"))
    assert [message["reference"] for message in found["data"]] == ["console-twice"]


def test_without_javascript(plain: Page, world: World) -> None:
    plain.goto(world.url + "/send")
    fill(plain, "+4915112340001", "It’s\nfine")
    plain.get_by_role("button", name="Check").click()
    assert "1 part in UCS-2" in plain.inner_text("#preview")
    assert plain.get_by_label("Text", exact=True).input_value() == "It’s\nfine"
    plain.get_by_role("button", name=re.compile("Write it plainly")).click()
    assert plain.get_by_label("Text", exact=True).input_value() == "It's\nfine"
    fill(plain, "nobody", "hi")
    plain.get_by_role("button", name="Send", exact=True).click()
    assert "must be an international number" in plain.inner_text("#to-error")
    fill(plain, "+4915112340001", "hi")
    plain.get_by_role("button", name="Send", exact=True).click()
    assert "/messages/" in plain.url


def test_a_hostile_text_stays_a_text(page: Page, world: World, axe: str) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.goto(world.url + "/send?tenant=sample")
    fill(page, "+4915112340001", HOSTILE)
    page.get_by_label("Reference").fill('"><script>alert(3)</script>')
    expect(page.locator("#preview mark").first).to_be_visible()
    assert page.locator("#preview img, #preview script").count() == 0
    assert page.locator("#preview .sample").inner_text().startswith("<script>alert(1)</script><img")
    page.get_by_role("button", name="Check").click()
    assert page.get_by_label("Text", exact=True).input_value() == HOSTILE
    assert page.locator("main script").count() == 0
    for width in (320, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)
        page.screenshot(path=SHOTS / f"send-hostile-{width}.png", full_page=True)
    assert_accessible(page, axe)


def test_a_viewer_may_not(world: World, browser: Browser) -> None:
    context = browser.new_context()
    enter(world, context, "vera", Role.VIEWER, "sample")
    page = context.new_page()
    answer = page.goto(world.url + "/send")
    assert answer is not None
    assert answer.status == 403
    context.close()


def test_for_no_tenant_in_particular_nothing_is_sent(world: World, browser: Browser) -> None:
    """A sender of the whole deployment says for whom, in the URL."""
    context = browser.new_context()
    enter(world, context, "everywhere", Role.SENDER)
    page = context.new_page()
    page.goto(world.url + "/send")
    page.fill("#to", "+4915112340001")
    page.fill("#body", "for whom?")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the address names no tenant")
    context.close()
