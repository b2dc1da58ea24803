"""What all pages share: rendering a template or one block of it, redirects that say what was done, and words for times, numbers and people's data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo, available_timezones

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse

from controlplane import __version__
from controlplane.clock import Clock
from controlplane.console.backend import ApiError, Backend
from controlplane.console.identity import Visit, seen
from controlplane.domain.people import Look, Role

__all__ = ["NAVIGATION", "Frame", "Place", "backend_of", "masked", "redirect", "refused", "render", "zone_of"]

STATIC = Path(__file__).parent / "static"
_SAID = "heliograph_said"
_SAID_SECONDS = 20


def _templates() -> Path:
    """Of a checkout, or of the installed package (pyproject.toml puts them there)."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "templates" / "console"
    return checkout if checkout.is_dir() else here.parent / "templates"


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of the navigation."""

    path: str
    title: str
    icon: str
    role: Role = Role.VIEWER
    group: str = ""
    everywhere: bool = False
    """Only for people of the whole deployment."""


NAVIGATION: tuple[Place, ...] = (
    Place("/console/", "Overview", "overview"),
    Place("/console/messages", "Messages", "messages", group="Messages"),
    Place("/console/send", "Send", "send", Role.SENDER, "Messages"),
    Place("/console/batches", "Batches", "batches", Role.SENDER, "Messages"),
    Place("/console/recipients", "Recipients", "recipients", group="Messages"),
    Place("/console/callbacks", "Callbacks", "callbacks", group="Messages"),
    Place("/console/routes", "Routes", "routes", group="Delivery"),
    Place("/console/connectors", "Connectors", "connectors", Role.OPERATOR, "Delivery", everywhere=True),
    Place("/console/routing", "Routing", "routing", Role.OPERATOR, "Delivery", everywhere=True),
    Place("/console/ledger", "Ledger", "ledger", group="Proof"),
    Place("/console/regions", "Regions", "regions", Role.OPERATOR, "Operation", everywhere=True),
    Place("/console/operations", "Operations", "operations", Role.OPERATOR, "Operation", everywhere=True),
    Place("/console/alerts", "Alerts", "alerts", Role.OPERATOR, "Operation", everywhere=True),
    Place("/console/keys", "Tenants and keys", "keys", Role.ADMIN, "Administration", everywhere=True),
    Place("/console/people", "People", "people", Role.ADMIN, "Administration", everywhere=True),
    Place("/console/audit", "Audit", "audit", Role.ADMIN, "Administration", everywhere=True),
    Place("/console/help", "Help", "help", group="Help"),
)
_SHORT = frozenset({"/console/", "/console/messages", "/console/send", "/console/alerts"})
"""At hand on a phone; the rest is under Menu."""


class Frame:
    """One per node."""

    def __init__(self, backend: Backend, clock: Clock, datacenter: str, node: str) -> None:
        self.backend = backend
        self.clock = clock
        self.datacenter = datacenter
        self.node = node
        self._hashes: dict[str, str] = {}
        self._environment = Environment(
            loader=FileSystemLoader(_templates()),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {"masked": masked, "count": count, "share": share, "money": money}
        self._environment.globals |= {"static": self._static, "version": __version__}
        self._environment.globals["ui"] = self._environment.get_template("macros.html").module

    def _static(self, name: str) -> str:
        """The URL of a static file; it changes with the file, so that browsers may keep it for ever."""
        if name not in self._hashes:
            self._hashes[name] = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
        return f"/console/static/{name}?v={self._hashes[name]}"

    def html(self, request: Request, template: str, fragment: str, context: Mapping[str, Any]) -> str:
        """The page, or its block `fragment` where htmx asks for it."""
        found = self._environment.get_template(template)
        values = self._context(request) | dict(context)
        headers = request.headers
        partial = headers.get("hx-request") == "true" and "hx-history-restore-request" not in headers
        if fragment and partial and "hx-boosted" not in headers:
            block = found.blocks[fragment]
            return "".join(block(found.new_context(values)))
        return found.render(values)

    def _context(self, request: Request) -> dict[str, Any]:
        visit = seen(request)
        look = visit.look if visit else Look()
        zone = zone_of(look)
        places = [place for place in NAVIGATION if visit is not None and _open_to(place, visit)]
        return {
            "request": request,
            "visit": visit,
            "navigation": [(group, list(found)) for group, found in groupby(places, lambda place: place.group)],
            "short": [place for place in places if place.path in _SHORT],
            "here": request.url.path,
            "theme": look.theme if look.theme != "system" else "",
            "shortcuts": look.shortcuts,
            "zone": zone.key,
            "said": unquote(request.cookies.get(_SAID, "")),
            "now": (now := self.clock.now_ms()),
            "datacenter": self.datacenter,
            "node": self.node,
            "ago": lambda at: ago(at, now, zone),
            "when": lambda at: when(at, zone),
        }


def _open_to(place: Place, visit: Visit) -> bool:
    return visit.role >= place.role and not (place.everywhere and visit.tenant)


def backend_of(request: Request) -> Backend:
    """The API."""
    frame: Frame = request.app.state.frame
    return frame.backend


def render(request: Request, template: str, *, fragment: str = "", status: int = 200, **context: Any) -> HTMLResponse:
    """A page; only its block `fragment` where htmx asks. The template sees `visit`, `now`, `ago(…)`, `when(…)` and what is given here."""
    frame: Frame = request.app.state.frame
    answer = HTMLResponse(frame.html(request, template, fragment, context), status)
    if _SAID in request.cookies and not (fragment and request.headers.get("hx-request")):
        answer.delete_cookie(_SAID, path="/console")
    return answer


def redirect(to: str, said: str = "") -> RedirectResponse:
    """See Other, after a POST; the next page shows `said` once."""
    answer = RedirectResponse(to, 303)
    if said:
        answer.set_cookie(
            _SAID, quote(said[:300]), max_age=_SAID_SECONDS, path="/console", httponly=True, samesite="strict"
        )
    return answer


def refused(request: Request, error: ApiError) -> HTMLResponse:
    """The page of an answer that the API refused."""
    return render(request, "refused.html", status=error.status, problem=error.problem)


# -- words -----------------------------------------------------------------------------------------------------------------


def masked(number: str | None) -> str:
    """Enough of a number or sender to recognise it: +49 ••• 01."""
    if not number:
        return "–"
    if not number.startswith("+") or len(number) < 8:
        return f"{number[:2]}•••"
    return f"{number[:3]} ••• {number[-2:]}"


def count(value: float | None) -> str:
    """1,234,567; – for nothing known."""
    return "–" if value is None else f"{value:,.0f}"


def share(value: float | None, digits: int = 1) -> str:
    """Of 0 to 1, as percent."""
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def money(minor: float | None, currency: str = "EUR") -> str:
    """Of minor units (cents)."""
    return "–" if minor is None else f"{minor / 100:,.2f} {currency}"


def _moment(at: str | float) -> datetime:
    """RFC 3339, or ms since the epoch."""
    return datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at / 1000, UTC)


def when(at: str | float | None, zone: ZoneInfo) -> Markup | str:
    """A `<time>` that shows date and time in the person's zone."""
    if at is None or at == "":
        return "–"
    moment = _moment(at).astimezone(zone)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime(f"%Y-%m-%d %H:%M:%S {moment.tzname()}")
    )


def ago(at: str | float | None, now: int, zone: ZoneInfo) -> Markup | str:
    """A `<time>` that says how long ago, and on focus or hover when; console.js keeps it right."""
    if at is None or at == "":
        return "–"
    moment = _moment(at).astimezone(zone)
    seconds = now / 1000 - moment.timestamp()
    return Markup('<time class="ago" datetime="{}" title="{}">{}</time>').format(
        moment.isoformat(timespec="milliseconds"),
        moment.strftime(f"%Y-%m-%d %H:%M:%S {moment.tzname()}"),
        _distance(seconds),
    )


def _distance(seconds: float) -> str:
    size = abs(seconds)
    text = "now"
    for limit, unit, name in _DISTANCES:
        if size < limit:
            text = f"{size / unit:.0f} {name}" if name else "now"
            break
    if text == "now":
        return text
    return f"{text} ago" if seconds > 0 else f"in {text}"


_DISTANCES: Sequence[tuple[float, float, str]] = (
    (5, 1, ""),
    (90, 1, "s"),
    (5_400, 60, "min"),
    (129_600, 3_600, "h"),
    (float("inf"), 86_400, "days"),
)


def zone_of(look: Look) -> ZoneInfo:
    """A person's time zone."""
    return ZoneInfo(look.time_zone if look.time_zone in _ZONES else "UTC")


_ZONES = available_timezones()
