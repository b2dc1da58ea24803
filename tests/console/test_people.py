"""People in a browser: let in, changed, locked out; what they are called is a text."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.conftest import World, enter
from tests.console.test_login import set_up


def test_somebody_is_invited(page: Page, world: World, browser: Browser) -> None:
    page.goto(world.url + "/people")
    page.get_by_role("link", name="Invite somebody").click()
    page.get_by_label("Name").fill("Grace@Example.com")
    page.get_by_label("Role").select_option("operator")
    page.get_by_label("For").select_option("sample")
    page.get_by_role("button", name="Make the link").click()
    expect(page.get_by_text("bound to a tenant is viewer or sender; operator")).to_be_visible()
    assert page.get_by_label("Name").input_value() == "grace@example.com", "nothing has to be typed again"
    page.get_by_label("Role").select_option("sender")
    page.get_by_role("button", name="Make the link").click()
    url = page.get_by_label("Link").input_value()
    assert url.startswith(f"{world.url}/setup?token=")
    page.get_by_role("link", name="Done").click()
    row = page.get_by_role("row", name=re.compile("grace@example.com"))
    expect(row).to_contain_text("invited")

    other = browser.new_context()
    theirs = other.new_page()
    set_up(theirs, url)
    theirs.get_by_role("link", name="I have kept them").click()
    theirs.goto(world.url + "/people")
    expect(theirs.get_by_role("heading", name="Not for your role")).to_be_visible()
    expect(theirs.get_by_role("navigation", name="Main", exact=True).get_by_role("link", name="People")).to_have_count(
        0
    )

    page.reload()
    expect(row).to_contain_text("active")
    row.get_by_role("link").click()
    page.get_by_label("May sign in").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_be_visible()
    theirs.goto(world.url + "/help")
    expect(theirs).to_have_url(re.compile("/login"))
    other.close()


def test_second_factor_and_removal_are_confirmed(page: Page, world: World, browser: Browser) -> None:
    context = browser.new_context()
    theirs = context.new_page()
    page.goto(world.url + "/people/-/new")
    page.get_by_label("Name").fill("henry")
    page.get_by_role("button", name="Make the link").click()
    set_up(theirs, page.get_by_label("Link").input_value())
    page.goto(world.url + "/people/henry")
    page.locator("summary", has_text="Take the second factor away").click()
    page.get_by_label("Type henry to confirm").first.fill("Henry")
    page.get_by_role("button", name="Take the second factor away").click()
    expect(page.get_by_text("Type henry exactly.")).to_be_visible()
    page.get_by_label("Type henry to confirm").first.fill("henry")
    page.get_by_role("button", name="Take the second factor away").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert not world.run(world.node.node.people.find("henry")).totp
    page.locator("summary", has_text="Remove").click()
    page.get_by_label("Type henry to confirm").fill("henry")
    page.get_by_role("button", name="Remove").click()
    expect(page).to_have_url(world.url + "/people")
    assert world.run(world.node.node.people.find("henry")) is None
    context.close()


def test_what_was_done_is_in_the_audit(page: Page, world: World) -> None:
    page.goto(world.url + "/people/-/new")
    page.get_by_label("Name").fill("ivan")
    page.get_by_role("button", name="Make the link").click()
    page.goto(world.url + "/people/ivan")
    page.get_by_label("Role").select_option("operator")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="What was done to their account").click()
    row = page.get_by_role("row", name=re.compile("replacePerson"))
    expect(row).to_contain_text("person:ada")
    expect(row).to_contain_text("viewer to operator")
    expect(row).to_contain_text("127.0.0.1")


def test_without_javascript(world: World, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    enter(world, context, "ada", Role.ADMIN)
    page = context.new_page()
    page.goto(world.url + "/people/-/new")
    page.get_by_label("Name").fill("judy")
    page.get_by_role("button", name="Make the link").click()
    assert "/setup?token=" in page.get_by_label("Link").input_value()
    page.goto(world.url + "/people/judy")
    page.locator("summary", has_text="Remove").click()
    page.get_by_label("Type judy to confirm").fill("judy")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_have_text("judy is removed.")
    context.close()
