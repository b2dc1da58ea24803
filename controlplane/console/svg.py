"""Charts as SVG, drawn here: no script, no inline style. Pure.

Each is a picture beside a title, a sentence and a table with the same numbers (`Chart`, shown by `charts.figure`), so the picture itself is hidden from
screen readers. Series differ by dash and by a label at their end, not by colour alone; the colours are the theme's (classes `c1` … of console.css).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

__all__ = ["Chart", "bars", "lines", "sparkline", "topology"]

_DASHES = ("", "6 3", "2 3", "9 3 2 3")
_WIDTH = 640
_LINES = 400
_BARS = 360


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture and the same in words and numbers."""

    title: str
    summary: str
    svg: Markup
    head: Sequence[str]
    rows: Sequence[Sequence[Any]] = field(default_factory=tuple)
    note: str = ""


def _picture(width: float, height: float, body: str, kind: str) -> Markup:
    return Markup(  # noqa: S704 - numbers, and what is escaped
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" aria-hidden="true" focusable="false">{body}</svg>'
    )


def _path(values: Sequence[float | None], width: float, height: float, top: float, left: float = 0.0) -> str:
    """A line over equally spaced values; a gap where one is None. `top` is the value at the upper edge."""
    if not values:
        return ""
    step = width / max(1, len(values) - 1)
    parts, pen = [], "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        y = height - height * min(value, top) / top if top else height
        parts.append(f"{pen}{left + number * step:.1f} {y:.1f}")
        pen = "L"
    if len(parts) == 1 or (len(values) == 1 and parts):
        parts.append("h2")
    return "".join(parts)


def sparkline(values: Sequence[float | None], *, top: float | None = None) -> Markup:
    """A small line without axes; it stands beside the number that it leads to."""
    known = [value for value in values if value is not None]
    most = top if top is not None else max(known, default=0.0)
    line = _path(values, 116, 24, most or 1.0, 2)
    return _picture(120, 28, f'<path class="line c1" d="{line}" transform="translate(0 2)"/>', "spark")


def lines(series: Mapping[str, Sequence[float | None]], *, top: float | None = None, unit: str = "") -> Markup:
    """Lines over the same times, oldest first; each has its own dash and its name at the right."""
    known = [value for values in series.values() for value in values if value is not None]
    most = (top if top is not None else max(known, default=0.0)) or 1.0
    height, left, right = 150.0, 40.0, 106.0
    width = _LINES - left - right
    body = []
    for share in (0.0, 0.5, 1.0):
        y = 10 + height - height * share
        body.append(f'<path class="grid" d="M{left} {y:.1f}h{width:.0f}"/>')
        body.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(most * share)}{escape(unit)}</text>'
        )
    ends: list[float] = []
    for number, (name, values) in enumerate(series.items()):
        dash = _DASHES[number % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        shape = _path(values, width, height, most, left)
        colour = f"c{number % 4 + 1}"
        body.append(f'<path class="line {colour}" d="{shape}"{dashed} transform="translate(0 10)"/>')
        last = next((value for value in reversed(values) if value is not None), 0.0)
        y = _free(10 + height - height * min(last, most) / most, ends)
        label = f"{name[:14]}…" if len(name) > 15 else name
        body.append(f'<path class="line {colour}" d="M{left + width + 6:.0f} {y:.1f}h16"{dashed}/>')
        body.append(f'<text class="label" x="{left + width + 26:.0f}" y="{y + 4:.1f}">{escape(label)}</text>')
    return _picture(_LINES, height + 20, "".join(body), "lines")


def _free(y: float, taken: list[float]) -> float:
    """The nearest height for a label that no other has."""
    for shift in range(0, 200, 4):
        for candidate in (y + shift, y - shift):
            if 8 <= candidate <= 166 and all(abs(candidate - other) >= 15 for other in taken):
                taken.append(candidate)
                return candidate
    return y


def bars(rows: Sequence[tuple[str, float, str]], *, most: float | None = None) -> Markup:
    """Horizontal bars: (name, length, what stands at the end); a funnel where each is a part of the first."""
    top = most if most is not None else max((length for _, length, _ in rows), default=0.0)
    body = []
    for number, (name, length, text) in enumerate(rows):
        y = number * 28
        width = 180 * min(length, top) / top if top else 0.0
        body.append(f'<text class="label" x="92" y="{y + 18}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect class="track" x="100" y="{y + 4}" width="180" height="20" rx="3"/>')
        drawn = max(width, 1.5) if length else 0.0
        body.append(f'<rect class="bar c1" x="100" y="{y + 4}" width="{drawn:.1f}" height="20" rx="3"/>')
        body.append(f'<text class="label" x="288" y="{y + 18}">{escape(text)}</text>')
    return _picture(_BARS, max(1, len(rows)) * 28, "".join(body), "bars")


def topology(groups: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]) -> Markup:
    """Boxes of boxes: (group, [(name, state, tone)]); tone good, bad, warn or plain. A bad one has a thick dashed border as well as its colour."""
    body, y, columns, box = [], 0.0, 3, 200.0
    for title, members in groups:
        rows = -(-max(1, len(members)) // columns)
        height = 34 + rows * 58
        body.append(
            f'<rect class="group-box" x="1" y="{y + 1:.0f}" width="{_WIDTH - 2}" height="{height - 8}" rx="6"/>'
        )
        body.append(f'<text class="title" x="14" y="{y + 22:.0f}">{escape(title)}</text>')
        for number, (name, state, tone) in enumerate(members):
            left, top = 14 + number % columns * (box + 8), y + 32 + number // columns * 58
            dash = ' stroke-dasharray="5 3"' if tone in ("bad", "warn") else ""
            label = f"…{name[-23:]}" if len(name) > 24 else name
            body.append(
                f'<rect class="box {escape(tone)}" x="{left:.0f}" y="{top:.0f}" width="{box:.0f}" height="48" rx="5"{dash}/>'
            )
            body.append(f'<text class="label" x="{left + 10:.0f}" y="{top + 20:.0f}">{escape(label)}</text>')
            body.append(f'<text class="tick" x="{left + 10:.0f}" y="{top + 38:.0f}">{escape(state[:30])}</text>')
        y += height
    return _picture(_WIDTH, max(y, 1.0), "".join(body), "topology")


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
