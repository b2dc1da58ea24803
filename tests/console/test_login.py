"""From a set-up link to a second login in a browser: with a keyboard only, and without JavaScript. What needs no browser is in tests/integration/test_console_login.py."""

from __future__ import annotations

import re
import time
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import THEMES, WIDTHS, assert_accessible, assert_fits
from tests.console.conftest import PASSWORD, SHOTS, World, enter

SITE = "http://evil.example"


def looked_at(page: Page, axe: str, name: str) -> None:
    """At all sizes and in both themes."""
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 844})
            assert_fits(page)
            page.screenshot(path=SHOTS / f"{name}-{width}-{theme}.png", full_page=True)
        assert_accessible(page, axe)


def link(world: World, name: str, role: Role = Role.SENDER) -> str:
    """A set-up link for somebody new ("": who chooses the name)."""

    async def make() -> str:
        node = world.node.node
        if name:
            await node.people.create(name, role, "")
        return (await node.links.make(name, role, "", "key"))[0]

    return f"{world.url}/setup?token={world.run(make())}"


def secret_on(page: Page) -> str:
    """Of the enrolment that the page shows: from the link for phones, which is what the picture holds."""
    href = page.get_by_role("link", name="open it on this phone").get_attribute("href")
    parts = urlsplit(href)
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    [secret] = parse_qs(parts.query)["secret"]
    assert secret == page.locator("#secret").text_content().replace(" ", "")
    return secret


def fresh_code(secret: str) -> str:
    """Of the next 30 seconds: the present one may have been used a moment ago."""
    return pyotp.TOTP(secret).at(int(time.time()) + 30)


def set_up(page: Page, url: str, name: str = "") -> str:
    """Follow the link; the authenticator's secret. Ends on the page of recovery codes."""
    page.goto(url)
    if name:
        page.get_by_label("Name").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("The password once more").fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()
    secret = secret_on(page)
    page.get_by_label("Code", exact=True).fill(pyotp.TOTP(secret).now())
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("heading", name="Keep these recovery codes")).to_be_visible()
    return secret


@pytest.mark.parametrize("javascript", [True, False], ids=["js", "no-js"])
def test_set_up_and_sign_in(world: World, browser: Browser, axe: str, javascript: bool) -> None:
    name = "first" if javascript else "first-plain"
    context = browser.new_context(java_script_enabled=javascript)
    page = context.new_page()
    secret = set_up(page, link(world, "", Role.VIEWER), name)
    codes = re.findall(r"(?:[a-z2-7]{4}-){3}[a-z2-7]{4}", page.locator("#codes").text_content())
    assert len(codes) == 10
    page.get_by_role("link", name="I have kept them").click()
    page.goto(world.url + "/help")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("Signed out.")).to_be_visible()
    page.goto(world.url + "/help")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Code of your authenticator").fill(fresh_code(secret))
    page.get_by_role("button", name="Continue").click()
    expect(page).to_have_url(world.url + "/help")
    context.clear_cookies()
    page.goto(world.url + "/help")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("I do not have my phone").click()
    page.get_by_label("Recovery code").fill(codes[3])
    page.get_by_role("button", name="Use it").click()
    expect(page).to_have_url(world.url + "/help")
    context.close()


def test_with_the_keyboard_only(world: World, browser: Browser) -> None:
    world.cookie("keys-only", Role.VIEWER)
    context = browser.new_context()
    page = context.new_page()
    page.goto(world.url + "/help")
    for text in ("keys-only", PASSWORD):
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.tagName") != "INPUT":
            page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Set up your second factor")).to_be_visible()
    context.close()


def test_all_sizes_and_themes(world: World, browser: Browser, axe: str) -> None:
    """Every page that somebody meets who is not in yet."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(world.url + "/login")
    looked_at(page, axe, "login")
    page.get_by_label("Name").fill("nobody")
    page.get_by_label("Password").fill("nothing at all")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    looked_at(page, axe, "login-wrong")
    page.goto(world.url + "/setup?token=none")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    looked_at(page, axe, "setup-over")
    page.goto(link(world, "sized"))
    looked_at(page, axe, "setup-password")
    page.get_by_label("Password", exact=True).fill("sized sized sized")
    page.get_by_label("The password once more").fill("sized sized sized")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("must not contain the login name")).to_be_visible()
    looked_at(page, axe, "setup-password-wrong")
    for label in ("Password", "The password once more"):
        page.get_by_label(label, exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Continue").click()
    secret = secret_on(page)
    looked_at(page, axe, "setup-totp")
    page.get_by_label("Code", exact=True).fill(pyotp.TOTP(secret).now())
    page.get_by_role("button", name="Confirm").click()
    looked_at(page, axe, "setup-codes")
    page.goto(world.url + "/account")
    looked_at(page, axe, "account-sender")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").fill("sized")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("I do not have my phone").click()
    looked_at(page, axe, "login-code")
    context.close()
    assert not faults


def test_password_managers(world: World, browser: Browser) -> None:
    """They find what they look for (HTML, autofill), and nothing forbids pasting (WCAG 2.2, 3.3.8)."""
    context = browser.new_context()
    page = context.new_page()

    def hints() -> list[str]:
        return page.evaluate(
            "[...document.querySelectorAll('main input:not([type=hidden])')].map((at) => at.autocomplete)"
        )

    page.goto(world.url + "/login")
    assert hints() == ["username", "current-password"]
    page.goto(link(world, "managed"))
    assert hints() == ["username", "new-password", "new-password"]
    assert page.get_by_label("Name").input_value() == "managed"
    assert page.evaluate("document.querySelectorAll('[onpaste]').length") == 0
    enter(world, context, "managed-two", Role.VIEWER)
    page.goto(world.url + "/account")
    form = page.locator("form[action='/console/account/password']")
    assert form.evaluate("(at) => [...at.elements].filter((one) => one.name).map((one) => one.autocomplete)") == [
        "username", "current-password", "new-password", "new-password",
    ]  # fmt: skip
    context.close()


def test_another_site_changes_nothing(world: World, browser: Browser) -> None:
    """A page elsewhere that sends a form to the console, while somebody is logged in there."""
    context = browser.new_context()
    enter(world, context, "target", Role.ADMIN)
    page = context.new_page()
    form = f"""<form method=post action="{world.url}/people/-/new"><input name=name value=planted><input name=role value=admin>
      <button>Win a phone</button></form>"""
    page.route(f"{SITE}/**", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto(f"{SITE}/")
    with page.expect_navigation() as happened:
        page.get_by_role("button").click()
    answer = happened.value
    assert answer is not None
    assert answer.status == 403
    assert world.run(world.node.node.people.find("planted")) is None
    context.close()


def test_it_cannot_be_framed(world: World, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda line: refused.append(line.text))
    page.goto(world.node.base_url + "/livez")  # another origin: 127.0.0.1, not localhost
    page.evaluate("(url) => { document.body.innerHTML = `<iframe src='${url}'></iframe>`; }", world.url + "/login")
    page.wait_for_timeout(500)
    assert any("frame-ancestors" in line for line in refused), (refused, [frame.url for frame in page.frames])
    context.close()


def test_ones_own_look(world: World, browser: Browser) -> None:
    context = browser.new_context(color_scheme="light")
    enter(world, context, "looks", Role.VIEWER)
    page = context.new_page()
    page.goto(world.url + "/account")
    page.get_by_label("Theme").select_option("dark")
    page.get_by_label("Time zone").fill("Nowhere/Land")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("is no time zone")).to_be_visible()
    page.get_by_label("Theme").select_option("dark")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    page.get_by_label("Keys such as").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.locator("body").get_attribute("data-shortcuts") == "off"
    context.close()


def test_a_session_is_ended_elsewhere(world: World, browser: Browser) -> None:
    here, there = browser.new_context(), browser.new_context()
    for context in (here, there):
        enter(world, context, "two-places", Role.VIEWER)
    page, other = here.new_page(), there.new_page()
    page.goto(world.url + "/account")
    page.get_by_role("button", name="End the session").first.click()
    other.goto(world.url + "/account")
    expect(other).to_have_url(re.compile("/login"))
    page.goto(world.url + "/account")
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    here.close()
    there.close()
