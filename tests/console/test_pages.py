"""Every page, full, empty and refused, at four widths in both themes: nothing scrolls sideways, nothing is too small to hit, axe finds nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.console.checks import THEMES, WIDTHS, assert_accessible, assert_fits
from tests.console.conftest import SHOTS, World, enter

FULL = (
    "/messages",
    "/messages?q=status%3Adelivered+class%3Aotp",
    "/messages/{delivered}",
    "/messages/{undelivered}",
    "/messages/{hostile}",
    "/messages/{scheduled}",
    "/ledger",
    "/ledger/proof/{delivered}",
    "/help",
    "/account",
    "/people",
    "/people/-/new",
    "/people/ada",
    "/keys",
    "/keys/-/new?tenant=sample",
    "/keys/tenants/sample",
    "/keys/tenants/-/new",
    "/audit",
    "/send?tenant=sample",
    "/batches?tenant=sample",
    "/recipients?tenant=other",
    "/recipients/new?tenant=sample",
    "/recipients/import?tenant=sample",
    "/recipients/preferences?tenant=other",
    "/recipients/preferences/new?tenant=sample",
    "/callbacks?tenant=sample",
    "/callbacks/-/new?tenant=sample",
    "/operations/-/new",
    "/operations/-/new?kind=upgrade",
)
"""{delivered} and the like stand for a message's id."""
EMPTY: tuple[str, ...] = (
    "/messages",
    "/messages?q=nothing",
    "/ledger",
    "/people",
    "/keys",
    "/audit",
    "/audit?actor=nobody",
    "/send",
    "/batches",
    "/recipients",
    "/recipients/preferences",
    "/callbacks",
    "/operations",
)
REFUSED = (
    ("/messages?q=colour%3Ared", 422),
    ("/messages?cursor=none", 422),
    ("/messages/none", 404),
    ("/ledger/logs/none/none", 404),
    ("/ledger/proof/none", 404),
    ("/ledger/repairs/none", 404),
    ("/nowhere", 404),
    ("/people/nobody", 404),
    ("/keys/none", 404),
    ("/keys/tenants/none", 404),
    ("/audit?since=yesterday", 422),
    ("/batches/job_0000000000000", 404),
    ("/recipients/preferences/pref_none", 404),
    ("/recipients?recipient=nobody", 422),
    ("/callbacks/none", 404),
    ("/operations/none", 404),
    ("/operations/none/events", 404),
)


@pytest.mark.parametrize("path", FULL)
def test_full(world: World, browser: Browser, axe: str, path: str) -> None:
    look(world, browser, axe, path.format(**world.messages), 200, _name(path))


@pytest.mark.parametrize("path", EMPTY)
def test_empty(blank: World, browser: Browser, axe: str, path: str) -> None:
    look(blank, browser, axe, path, 200, _name(path) + "-empty")


@pytest.mark.parametrize(("path", "status"), REFUSED)
def test_refused(world: World, browser: Browser, axe: str, path: str, status: int) -> None:
    look(world, browser, axe, path, status, _name(path) + "-refused")


def look(world: World, browser: Browser, axe: str, path: str, status: int, name: str) -> None:
    """Screenshots of all sizes are left in build/console for people."""
    context = browser.new_context(viewport={"width": 1440, "height": 844}, reduced_motion="reduce")
    enter(world, context)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    answer = page.goto(world.url + path)
    assert answer is not None
    assert answer.status == status, page.inner_text("main")
    assert page.title() != ""
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 844})
            assert_fits(page)
            page.screenshot(path=SHOTS / f"{name}-{width}-{theme}.png", full_page=True)
            if width in (390, 1440):
                assert_accessible(page, axe)
    context.close()
    assert not faults


def _name(path: str) -> str:
    return path.partition("?")[0].strip("/").replace("/", "-").replace("{", "").replace("}", "") or "overview"
