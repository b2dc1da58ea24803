"""What every page must keep: looks, sizes, words for those who cannot see, and what it weighs."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page

WIDTHS = (320, 390, 768, 1440)
THEMES: tuple[Any, ...] = ("light", "dark")
_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

_SMALL = """() => {
  const small = [];
  for (const at of document.querySelectorAll('a, button, input, select, textarea, summary, [tabindex="0"]')) {
    if (at.closest('.skip, .visually') || at.type === 'hidden') continue;
    const box = at.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const inline = at.tagName === 'A' && getComputedStyle(at).display === 'inline';
    const label = at.closest('label');
    const room = label ? label.getBoundingClientRect() : box;
    if (!inline && (room.width < 24 || room.height < 24)) small.push(at.outerHTML.slice(0, 160) + ` ${room.width}x${room.height}`);
  }
  return small;
}"""
"""WCAG 2.2, 2.5.8: targets of at least 24 by 24 CSS pixels; links within a sentence are excepted."""


def assert_fits(page: Page) -> None:
    """Nothing scrolls sideways, and nothing is too small to be hit."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{page.url} is {wide} px too wide at {page.viewport_size}: {page.evaluate(_WIDEST)}"
    assert page.evaluate(_SMALL) == []


_WIDEST = """() => [...document.querySelectorAll('main *')].filter((at) => at.getBoundingClientRect().right > innerWidth + 1)
  .slice(0, 5).map((at) => at.outerHTML.slice(0, 120))"""


def assert_accessible(page: Page, axe: str) -> None:
    """No violation of WCAG 2.2 AA that axe-core can see."""
    page.evaluate(axe)  # not a script element: the policy forbids those, as it should
    found = page.evaluate("(tags) => axe.run(document, {runOnly: tags}).then((result) => result.violations)", _TAGS)
    faults = [(fault["id"], [node["html"][:200] for node in fault["nodes"][:3]], fault["help"]) for fault in found]
    assert not faults, f"{page.url}\n{json.dumps(faults, indent=1)}"
