"""Suppressions and preferences: searched, added, imported, lifted; a number is never shown whole."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import World, enter

HERE = "/recipients?tenant=other"
"""Of the tenant to whose numbers no other test sends."""


def allowed(world: World, to: str) -> int:
    """The status of a dry run to this number."""
    body = {"to": to, "body": "x", "class": "marketing", "dry_run": True}
    status, _ = world.run(world.node.call("POST", "/v1/messages", json=body, key=world.node.other_key))
    return status


def test_suppress_find_and_lift(page: Page, world: World, axe: str) -> None:
    page.goto(world.url + HERE)
    page.get_by_role("link", name="Suppress a number").click()
    page.get_by_label("Number").fill("nobody")
    page.get_by_role("button", name="Suppress").click()
    expect(page.locator("#recipient-error")).to_contain_text("international number")
    page.get_by_label("Number").fill("+49 151 77000001")
    page.get_by_label("Source").fill("<b>letter</b>")
    page.get_by_role("button", name="Suppress").click()
    page.wait_for_url("**/recipients?tenant=other")
    assert allowed(world, "+4915177000001") == 422
    page.get_by_label("Number").fill("+4915177000001")
    page.get_by_role("button", name="Search").click()
    row = page.get_by_role("row").nth(1)
    expect(row).to_contain_text("manual")
    expect(row).to_contain_text("<b>letter</b>")
    assert "15177000001" not in page.inner_text("main")
    for width in (320, 390, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)
    assert_accessible(page, axe)
    row.get_by_text("Lift").first.click()
    row.get_by_label("Type lift to confirm").fill("lift")
    row.get_by_role("button", name="Lift").click()
    expect(page.locator(".said")).to_contain_text("Lifted")
    assert allowed(world, "+4915177000001") == 200


def test_an_import(page: Page, world: World) -> None:
    page.goto(world.url + "/recipients/import?tenant=other")
    table = 'name;phone\n"<script>alert(1)</script>";+4915177000011\n=1+1;nobody\nx;0049 15177000012\n'
    page.get_by_label("CSV file").set_input_files(
        {"name": "stop.csv", "mimeType": "text/csv", "buffer": table.encode("utf-16")}
    )
    page.get_by_label("Reason").select_option("complaint")
    page.get_by_role("button", name="Suppress them").click()
    expect(page.locator("main")).to_contain_text("2 numbers are suppressed")
    expect(page.locator("main")).to_contain_text(re.compile(r"Line 3: .*international number"))
    assert [allowed(world, f"+4915177000{n}") for n in ("011", "012", "013")] == [422, 422, 200]
    page.get_by_label("or numbers, one a line").fill("+4915177000013\n+4915177000014")
    page.get_by_role("button", name="Suppress them").click()
    expect(page.locator(".said")).to_contain_text("2 numbers are suppressed")
    assert allowed(world, "+4915177000014") == 422
    page.goto(world.url + "/recipients/import?tenant=other")
    page.get_by_role("button", name="Suppress them").click()
    expect(page.locator("#file-error")).to_contain_text("has 0 numbers")


def test_a_preference(page: Page, world: World, axe: str) -> None:
    page.goto(world.url + "/recipients/preferences?tenant=other")
    page.get_by_role("link", name="Record a wish").click()
    page.get_by_label("Number").fill("+4915177000021")
    page.get_by_label("From").first.fill("21:00")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("main")).to_contain_text("windows.0.end")
    page.get_by_label("to", exact=True).first.fill("08:00")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    page.get_by_label("marketing that would arrive then").select_option("reject")
    page.get_by_role("checkbox", name="otp").check()
    assert_accessible(page, axe)
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/recipients/preferences?tenant=other")
    row = page.get_by_role("row").filter(has_text="Europe/Berlin")
    expect(row).to_contain_text("21:00–08:00")
    row.get_by_role("link").first.click()
    assert page.get_by_label("marketing that would arrive then").input_value() == "reject"
    page.get_by_label("Preferred sender").fill("ACME")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="ACME")).to_contain_text("otp")
    row = page.get_by_role("row").filter(has_text="ACME")
    row.get_by_text("Remove").first.click()
    row.get_by_label("Type remove to confirm").fill("remove")
    row.get_by_role("button", name="Remove").click()
    expect(page.locator(".said")).to_contain_text("Removed")


def test_without_javascript_and_for_viewers(world: World, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    enter(world, context, "vic", Role.VIEWER, "other")
    page = context.new_page()
    page.goto(world.url + "/recipients")
    assert page.get_by_role("link", name="Suppress a number").count() == 0
    page.get_by_label("Number").fill('"><script>alert(1)</script>')
    page.get_by_role("button", name="Search").click()
    assert "international number" in page.inner_text("#recipient-error")
    for path in ("/recipients/new", "/recipients/import", "/recipients/preferences/new"):
        answer = page.goto(world.url + path)
        assert answer is not None
        assert answer.status == 403
    context.close()
