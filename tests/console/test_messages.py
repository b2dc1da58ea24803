"""Messages in a browser: found by whatever is known of them, looked at, sent again, erased; masked until somebody asks, who is written down."""

from __future__ import annotations

import csv
import io
import re

from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import HOSTILE, World, _in_a_day, enter


def audit(world: World, action: str) -> list[dict]:
    status, page = world.run(world.node.call("GET", f"/v1/audit?action={action}", key=world.node.admin_key))
    assert status == 200, page
    return page["data"]


class TestList:
    """A list is its URL, and shows no number and no text."""

    def test_search_from_the_box(self, page: Page, world: World) -> None:
        page.goto(world.url + "/messages")
        expect(page.get_by_role("link", name="+49 ••• 01").first).to_be_visible()
        assert "15112340001" not in page.content()
        assert "Your code is" not in page.content()
        page.get_by_role("searchbox").fill("status:undelivered ref:order-*")
        page.get_by_role("searchbox").press("Enter")
        expect(page).to_have_url(re.compile(r"q=status%3Aundelivered"))
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("order-17")
        rows.get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("+44 ••• 02")

    def test_what_is_wrong_is_said_and_kept(self, page: Page, world: World) -> None:
        answer = page.goto(world.url + "/messages?q=colour%3Ared")
        assert answer is not None
        assert answer.status == 422
        expect(page.get_by_role("alert")).to_contain_text("no filter 'colour'")
        assert page.get_by_role("searchbox").input_value() == "colour:red"
        page.goto(world.url + "/messages?q=%3Cscript%3Ealert(1)%3C%2Fscript%3E")
        expect(page.get_by_text("Nothing found")).to_have_count(0)  # the hostile message has these words

    def test_the_form_writes_the_same_query(self, page: Page, world: World) -> None:
        page.goto(world.url + "/messages?q=status%3Afailed")
        page.get_by_text("Filter by form").click()
        assert page.get_by_label("failed", exact=True).is_checked()
        page.get_by_label("undelivered", exact=True).check()
        page.get_by_label("To", exact=True).fill("+447700900002")
        page.get_by_label("Words of the text").fill("hello")
        page.get_by_role("button", name="Apply").click()
        assert page.get_by_role("searchbox").input_value() == "to:+447700900002 status:undelivered,failed hello"
        expect(page.locator("tbody tr")).to_have_count(1)

    def test_older_and_newest(self, page: Page, world: World) -> None:
        for n in range(60):
            world.run(world.node.send(f"+49151123400{n % 10}9", f"paged {n}", reference="paged"))
        page.goto(world.url + "/messages?q=ref%3Apaged")
        expect(page.locator("tbody tr")).to_have_count(50)
        page.get_by_role("link", name="Older").click()
        expect(page.locator("tbody tr")).to_have_count(10)
        page.get_by_role("link", name="Newest").click()
        expect(page.locator("tbody tr")).to_have_count(50)

    def test_new_ones_are_announced_and_move_nothing(self, page: Page, world: World) -> None:
        page.goto(world.url + "/messages?q=ref%3Alive")
        expect(page.get_by_text("Nothing found")).to_be_visible()
        world.run(world.node.send("+4915112340021", "one", reference="live"))
        page.reload()
        expect(page.locator("tbody tr")).to_have_count(1)
        for n in range(3):
            world.run(world.node.send("+4915112340021", f"more {n}", reference="live"))
        link = page.get_by_role("link", name="3 new")
        expect(link).to_be_visible(timeout=15_000)
        expect(page.locator("tbody tr")).to_have_count(1)
        link.click()
        expect(page.locator("tbody tr")).to_have_count(4)

    def test_keys(self, page: Page, world: World) -> None:
        page.goto(world.url + "/messages")
        page.keyboard.press("/")
        expect(page.get_by_role("searchbox")).to_be_focused()
        page.get_by_role("heading", level=1).click()
        page.keyboard.press("j")
        page.keyboard.press("j")
        expect(page.locator("a[data-row]").nth(1)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="What happened")).to_be_visible()

    def test_export_is_written_down(self, page: Page, world: World) -> None:
        page.goto(world.url + "/messages?q=ref%3Aorder-17")
        before = len(audit(world, "exportMessages"))
        with page.expect_download() as download:
            page.get_by_role("button", name="Export CSV").click()
        text = download.value.path().read_text()
        (line,) = csv.DictReader(io.StringIO(text, newline=""))
        assert (line["reference"], line["to"], line["body"]) == ("order-17", "'+447700900002", "Hello")
        entries = audit(world, "exportMessages")
        assert len(entries) == before + 1
        assert (entries[0]["actor"], entries[0]["detail"]) == ("person:ada", "filters: ref")

    def test_another_tenants_are_not_there(self, world: World, browser: Browser) -> None:
        context = browser.new_context()
        enter(world, context, "otto", Role.SENDER, "other")
        page = context.new_page()
        page.goto(world.url + "/messages")
        expect(page.get_by_text("No messages yet")).to_be_visible()
        answer = page.goto(f"{world.url}/messages/{world.messages['delivered']}")
        assert answer is not None
        assert answer.status == 404
        context.close()

    def test_without_javascript(self, world: World, browser: Browser) -> None:
        context = browser.new_context(java_script_enabled=False)
        enter(world, context)
        page = context.new_page()
        page.goto(world.url + "/messages")
        page.get_by_role("searchbox").fill("ref:order-17")
        page.get_by_role("searchbox").press("Enter")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.locator("tbody a").click()
        expect(page.get_by_role("heading", name="What happened")).to_be_visible()
        context.close()


class TestMessage:
    """What happened and why, in words; number and text only for those who ask."""

    def test_why_it_was_not_delivered(self, page: Page, world: World) -> None:
        page.goto(f"{world.url}/messages/{world.messages['undelivered']}")
        timeline = page.locator(".timeline")
        expect(timeline).to_contain_text("Accepted durably: 1 part")
        expect(timeline).to_contain_text("budget took it as")
        expect(timeline).to_contain_text(re.compile("not delivered: the carrier reports UNDELIV"))
        assert "Hello" not in timeline.inner_text()
        page.locator(".timeline summary").last.click()
        expect(page.locator(".timeline pre").last).to_contain_text("UNDELIV")

    def test_reveal_is_written_down(self, page: Page, world: World) -> None:
        mid = world.messages["hostile"]
        page.goto(f"{world.url}/messages/{mid}")
        assert "15112340011" not in page.content()
        assert "onerror" not in page.content()
        page.get_by_role("button", name="Show number and text").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("+4915112340011")
        assert HOSTILE in page.locator("pre").all_inner_texts()
        assert_fits(page)
        entry = audit(world, "revealMessage")[0]
        assert (entry["actor"], entry["object"]) == ("person:ada", f"messages/{mid}")
        page.goto(f"{world.url}/messages/{mid}")
        assert "15112340011" not in page.content()

    def test_cancel(self, page: Page, world: World) -> None:
        mid = world.run(world.node.send("+4915112340017", "Later", send_at=_in_a_day()))["id"]
        page.goto(f"{world.url}/messages/{mid}")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status")).to_contain_text("cancelled")
        expect(page.locator(".timeline")).to_contain_text("Cancelled on request")

    def test_send_again(self, page: Page, world: World) -> None:
        mid = world.run(world.node.send("+4915112340017", "Again", send_at=_in_a_day()))["id"]
        world.run(world.node.call("POST", f"/v1/messages/{mid}/cancel"))
        page.goto(f"{world.url}/messages/{mid}")
        page.get_by_role("button", name="Send again").click()
        expect(page.get_by_role("status")).to_contain_text("This is the new message")
        assert mid not in page.url

    def test_erase_wants_the_word(self, page: Page, world: World, axe: str) -> None:
        mid = world.run(world.node.send("+4915112340031", "to be forgotten"))["id"]
        world.run(world.node.reaches(mid, "delivered"))
        page.goto(f"{world.url}/messages/{mid}")
        page.locator("summary", has_text="Erase content").click()
        page.get_by_role("textbox", name=re.compile("to confirm")).fill("yes")
        page.get_by_role("button", name="Erase content").click()
        expect(page.get_by_text("Type erase to confirm.")).to_be_visible()
        assert_accessible(page, axe)
        page.get_by_role("textbox", name=re.compile("to confirm")).fill("erase")
        page.get_by_role("button", name="Erase content").click()
        expect(page.get_by_role("status")).to_contain_text("the proof stays")
        expect(page.get_by_role("heading", level=1)).to_have_text("Erased")
        assert world.run(world.node.get(mid))["body"] is None
        assert page.get_by_role("button", name="Show number and text").count() == 0

    def test_what_happens_meanwhile_is_announced(self, page: Page, world: World) -> None:
        mid = world.run(world.node.send("+4915112340017", "Soon", send_at=_in_a_day()))["id"]
        page.goto(f"{world.url}/messages/{mid}")
        page.locator(".timeline summary").first.click()  # somebody is reading: nothing moves
        world.run(world.node.call("POST", f"/v1/messages/{mid}/cancel"))
        link = page.get_by_role("link", name="Show what is new (1)")
        expect(link).to_be_visible(timeout=15_000)
        link.click()
        expect(page.locator(".timeline")).to_contain_text("Cancelled on request")

    def test_a_page_that_nobody_has_in_hand_goes_on_by_itself(self, page: Page, world: World) -> None:
        mid = world.run(world.node.send("+4915112340017", "Soon", send_at=_in_a_day()))["id"]
        page.goto(f"{world.url}/messages/{mid}")
        world.run(world.node.call("POST", f"/v1/messages/{mid}/cancel"))
        expect(page.locator(".timeline")).to_contain_text("Cancelled on request", timeout=15_000)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)

    def test_a_viewer_reads_only(self, world: World, browser: Browser) -> None:
        context = browser.new_context()
        enter(world, context, "vera", Role.VIEWER)
        page = context.new_page()
        mid = world.messages["delivered"]
        page.goto(f"{world.url}/messages/{mid}")
        expect(page.get_by_role("button", name="Show number and text")).to_be_visible()
        assert page.get_by_role("button", name=re.compile("Cancel|Send again|Erase")).count() == 0
        for act in ("cancel", "resend", "erase"):
            answer = context.request.post(
                f"{world.url}/messages/{mid}/{act}", headers={"Sec-Fetch-Site": "same-origin"}
            )
            assert answer.status == 403
        context.close()
