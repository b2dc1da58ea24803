"""Uploading a table, mapping it, reading its check, sending it, its results; a hostile table; with and without JavaScript."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import SHOTS, World, enter

GOOD = "Mobile;Name\n+4915112340001;Ada\n+4915112340001;Zoë\nnobody;X\n"
HOSTILE = (
    '"<script>alert(1)</script>","=HYPERLINK(""http://x"")","<img src=x onerror=alert(2)>{{7*7}}"\n'
    '+4915112340001,=1+1,"</td><script>alert(3)</script>"\n'
    '"<b>x</b>",@SUM(A1),"{0.__class__}"\n'
)


def given(name: str, text: str) -> Any:
    return {"name": name, "mimeType": "text/csv", "buffer": text.encode()}


def upload(page: Page, world: World, name: str, text: str, query: str = "?tenant=sample") -> None:
    page.goto(world.url + "/batches" + query)
    page.get_by_label("CSV file").set_input_files(given(name, text))
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/batches/job_*")


def test_from_a_file_to_messages(page: Page, world: World, axe: str) -> None:
    upload(page, world, "people.csv", GOOD)
    state = page.locator("#state")
    expect(state).to_contain_text("Say which column is what")
    page.get_by_label("Text", exact=True).fill("Hello {Name}")
    assert page.get_by_label("Recipient: column").input_value() == "Mobile"
    page.get_by_role("button", name="Show the first rows").click()
    expect(page.locator("table")).to_contain_text("Hello Zoë")
    expect(page.locator("table")).to_contain_text("+49 ••• 01")
    assert "15112340001" not in page.inner_text("main")
    page.get_by_role("button", name="Keep it and check all rows").click()
    expect(page.get_by_role("button", name="Send 2 messages")).to_be_visible(timeout=15_000)
    expect(state).to_contain_text("must be an international number")
    expect(state).to_contain_text("0.14 EUR")
    for width in (320, 390, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)
        page.screenshot(path=SHOTS / f"batches-job-{width}.png", full_page=True)
    assert_accessible(page, axe)
    page.get_by_role("button", name="Send 2 messages").click()
    expect(state).to_contain_text("All rows are at their end", timeout=15_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Results as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
    assert [(row["line"], row["status"]) for row in rows] == [("2", "accepted"), ("3", "accepted"), ("4", "rejected")]
    assert world.run(world.node.reaches(rows[1]["id"], "delivered"))["body"] == "Hello Zoë"
    page.goto(world.url + "/batches?tenant=sample")
    expect(page.get_by_role("row").filter(has_text="people.csv").first).to_contain_text("done")


def test_cancel_and_erase(page: Page, world: World) -> None:
    upload(page, world, "away.csv", GOOD)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#state")).to_contain_text("cancelled")
    page.get_by_text("Erase the table").first.click()
    page.get_by_label("Type erase to confirm").fill("no")
    page.get_by_role("button", name="Erase the table").click()
    expect(page.locator("main")).to_contain_text("Type erase exactly")
    page.get_by_label("Type erase to confirm").fill("erase")
    page.get_by_role("button", name="Erase the table").click()
    page.wait_for_url("**/batches?tenant=sample")
    assert page.get_by_role("row").filter(has_text="away.csv").count() == 0


def test_a_hostile_table_stays_a_table(page: Page, world: World, axe: str) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    upload(page, world, '"><script>alert(4)</script>.csv', HOSTILE)
    page.get_by_label("Recipient: column").select_option(index=1)
    page.get_by_label("Text", exact=True).fill("{2} {3} <script>alert(5)</script>")
    page.get_by_role("button", name="Show the first rows").click()
    expect(page.locator("main")).to_contain_text("</td><script>alert(3)</script> <script>alert(5)</script>")
    assert page.locator("main script, main img").count() == 0
    page.get_by_role("button", name="Keep it and check all rows").click()
    expect(page.get_by_role("button", name="Send 1 message")).to_be_visible(timeout=15_000)
    for width in (320, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)
    assert_accessible(page, axe)
    page.goto(world.url + "/batches?tenant=sample")
    expect(page.locator("main")).to_contain_text("<script>alert(4)</script>.csv")
    assert page.locator("main script").count() == 0


def test_what_is_no_table(page: Page, world: World) -> None:
    page.goto(world.url + "/batches?tenant=sample")
    page.get_by_label("CSV file").set_input_files(given("empty.csv", ""))
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#file-error")).to_contain_text("has no rows")


def test_without_javascript(world: World, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    enter(world, context, "sam", Role.SENDER, "sample")
    page = context.new_page()
    upload(page, world, "plain.csv", "to,body\n+4915112340001,hello\n", query="")
    expect(page.get_by_role("button", name="Send 1 message")).to_be_visible(timeout=15_000)  # the page reloads itself
    page.get_by_role("button", name="Send 1 message").click()
    expect(page.locator("main")).to_contain_text("All rows are at their end", timeout=15_000)
    context.close()


def test_another_tenants_is_not_there(page: Page, world: World, browser: Browser) -> None:
    upload(page, world, "mine.csv", GOOD)
    job = page.url.partition("?")[0].rsplit("/", 1)[-1]
    context = browser.new_context()
    enter(world, context, "olga", Role.SENDER, "other")
    theirs = context.new_page()
    for path in (f"/batches/{job}", f"/batches/{job}?tenant=sample", f"/batches/{job}/results.csv"):
        answer = theirs.goto(world.url + path)
        assert answer is not None
        assert answer.status == 404
    context.close()
