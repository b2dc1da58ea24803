"""Around every page of the console: what changes something must come from its own pages, and browsers are told what pages may do."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "from_own_page"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: with that, browsers send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_HSTS = "max-age=31536000"
_REFUSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Refused · Heliograph</title>
<h1>This did not come from the console</h1>
<p>Your browser says that another site sent this request, so nothing was done.</p>
<p><a href="/console">Go to the console</a> and try again there.</p></html>"""


def from_own_page(scheme: str, headers: Headers) -> bool:
    """Whether a page of the same origin sent the request (Fetch Metadata; else the Origin header; without both: no).

    There are no tokens in forms: browsers say by themselves where a request comes from, and no page can make them lie.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(headers.get("origin", ""))
    return bool(origin.netloc) and (origin.scheme, origin.netloc.lower()) == (scheme, headers.get("host", "").lower())


class Guard:
    """Raw ASGI. A page that sets one of these headers itself keeps its own (static files may be cached)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                if scope["scheme"] == "https":
                    headers.setdefault("strict-transport-security", _HSTS)
            await send(message)

        if scope["method"] not in _SAFE and not from_own_page(scope["scheme"], Headers(scope=scope)):
            await HTMLResponse(_REFUSED, 403)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)
