"""The API's page at /docs, in a browser that reaches nothing but the node."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

FOLDER = Path(__file__).parents[2] / "controlplane" / "api" / "docs"


def test_it_asks_nobody_else(world, page: Page):
    """Under its policy, which `page` watches, and without internet."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    home = world.url.removesuffix("/console")
    answer = page.goto(f"{home}/docs")
    assert answer.status == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "script-src" not in policy
    expect(page.locator("#operations-messages-sendMessage")).to_be_visible()
    page.locator("#operations-messages-sendMessage button").first.click()
    expect(page.get_by_role("button", name="Try it out")).to_be_visible()
    others = {url for url in asked if urlsplit(url).netloc != urlsplit(home).netloc and not url.startswith("data:")}
    assert not others
    assert f"{home}/openapi.json" in asked
    missing = page.request.get(f"{home}/docs/nothing.js")
    assert missing.status == 404


def test_what_is_vendored_is_what_was_published():
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", (FOLDER / "vendor" / "NOTICE").read_text(), re.MULTILINE)
    assert [name for _, name in sums] == ["swagger-ui-bundle.js", "swagger-ui.css"]
    for expected, name in sums:
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == expected, name
