"""Who visits: the session's cookie, and what a page may ask of its visitor."""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from controlplane.console.services import ConsoleServices
from controlplane.domain.people import Look, Person, Role, Session, Stage
from controlplane.errors import Problem
from controlplane.ids import random_bytes

__all__ = [
    "COOKIE",
    "Elsewhere",
    "Visit",
    "address_of",
    "allows",
    "check_transport",
    "cookie_of",
    "device_of",
    "forget_session",
    "install",
    "own_path",
    "remember_device",
    "remember_session",
    "seen",
    "services_of",
    "session_of",
    "visit_of",
]

COOKIE = "__Host-heliograph"
_DEVICE = "__Host-heliograph-device"
_DEVICE_SECONDS = 180 * 86_400
_HOME = "/console/"
_ENTRANCE = ("/console/login", "/console/logout", "/console/setup")
_OWN_PATH = re.compile(r"/console(?:[/?][!-\[\]-~]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Somebody who is logged in, as one request sees them."""

    person: str
    role: Role
    tenant: str
    """"" = the whole deployment."""
    session: str
    """The session's handle: it opens nothing."""
    address: str
    look: Look
    totp: bool
    """Whether a second factor is set."""

    @property
    def scopes(self) -> frozenset[str]:
        """What they may ask of the API."""
        return self.role.scopes


class Elsewhere(Exception):  # noqa: N818 - not an error
    """The answer is another page."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class allows:  # noqa: N801 - reads as a word in a signature: Depends(allows(Role.SENDER))
    """A FastAPI dependency that gives the Visit. Whoever is not logged in is sent to the login, whoever may not gets a 403."""

    def __init__(self, least: Role) -> None:
        self.least = least

    async def __call__(self, request: Request) -> Visit:
        """The visitor. Raises Elsewhere, Problem."""
        visit = await visit_of(request)
        if visit is None:
            raise Elsewhere(f"{_ENTRANCE[0]}?{urlencode({'next': _here(request)})}")
        if visit.role < self.least:
            raise Problem(
                "forbidden",
                "Not for your role",
                403,
                f"This needs the role {self.least.value}; you are {visit.role.value}.",
                "Ask an admin for it.",
            )
        return visit


async def visit_of(request: Request) -> Visit | None:
    """Who is logged in, or None."""
    await session_of(request)
    return seen(request)


def seen(request: Request) -> Visit | None:
    """Who is logged in, as far as the request's session was asked for already."""
    visit: Visit | None = getattr(request.state, "visit", None)
    return visit


async def session_of(request: Request) -> tuple[Session, Person] | None:
    """The session of the request's cookie at whatever stage, and whose it is. Read once for each request."""
    state = request.state
    if not hasattr(state, "session"):
        cookie = cookie_of(request)
        headers = request.headers  # a tab that is only open is idle
        used = "text/event-stream" not in headers.get("accept", "") and "x-idle" not in headers
        found = await services_of(request).sessions.visit(cookie, used=used) if cookie else None
        state.session, state.person = found or (None, None)
        if found is not None and found[0].stage is Stage.OPEN:
            session, person = found
            state.visit = Visit(
                person=person.name,
                role=person.role,
                tenant=person.tenant,
                session=session.handle,
                address=address_of(request),
                look=person.look,
                totp=person.totp,
            )
    return (state.session, state.person) if state.session else None


def services_of(request: Request) -> ConsoleServices:
    """What the composition root handed over."""
    services: ConsoleServices = request.app.state.services
    return services


def address_of(request: Request) -> str:
    """Where the request came from; behind a proxy on this machine, what it says."""
    return request.client.host if request.client else ""


# -- cookies -------------------------------------------------------------------------------------------------------------


def cookie_of(request: Request) -> str:
    """The session's cookie, or ""."""
    return request.cookies.get(COOKIE, "")


def remember_session(response: Response, cookie: str) -> None:
    """Until the browser is closed, or the session ends."""
    response.set_cookie(COOKIE, cookie, secure=True, httponly=True, samesite="lax", path="/")


def forget_session(response: Response) -> None:
    """Nothing is left in the browser but that somebody logged in there once."""
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax", path="/")


def device_of(request: Request, name: str) -> str:
    """Which browser of `name` it is: one in which they have logged in before; "" for any other."""
    nonce, _, mac = request.cookies.get(_DEVICE, "").partition(".")
    return nonce if nonce and hmac.compare_digest(mac.encode(), _mac(request, name, nonce).encode()) else ""


def remember_device(request: Request, response: Response, name: str) -> None:
    """Its tries to log in as `name` are counted by themselves from now on: what strangers try does not delay it."""
    if not device_of(request, name):
        nonce = random_bytes(16).hex()
        value = f"{nonce}.{_mac(request, name, nonce)}"
        response.set_cookie(
            _DEVICE, value, max_age=_DEVICE_SECONDS, secure=True, httponly=True, samesite="lax", path="/"
        )


def _mac(request: Request, name: str, nonce: str) -> str:
    secret = services_of(request).settings.secret
    return hmac.digest(secret, f"heliograph/console-device/v1\x00{name}\x00{nonce}".encode(), "sha256").hex()


def check_transport(request: Request) -> None:
    """Passwords go over TLS, or stay on this machine. Raises Problem 403."""
    host = request.url.hostname or ""
    if request.url.scheme != "https" and not _loopback(host):
        raise Problem(
            "tls-needed",
            "TLS is needed here",
            403,
            f"The console is asked for at {host[:100]} without TLS: a password would be readable on its way, and browsers keep no secure cookie.",
            "Use https:// (HELIOGRAPH_TLS_CERTIFICATE, or a proxy that ends TLS on this machine), or http://127.0.0.1 through `ssh -L`.",
        )


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# -- where to go ---------------------------------------------------------------------------------------------------------


def own_path(path: str) -> str:
    """`path` if it is one of the console's own, else the console's first page: no link leads elsewhere through the login."""
    return path if _OWN_PATH.fullmatch(path) and not path.startswith(_ENTRANCE) else _HOME


def _here(request: Request) -> str:
    """Where to come back to after the login."""
    url = request.url
    if current := request.headers.get("hx-current-url"):
        parts = urlsplit(current)
        return own_path(parts.path + (f"?{parts.query}" if parts.query else ""))
    if request.method != "GET":
        return _HOME
    return own_path(quote(url.path, safe="/") + (f"?{url.query}" if url.query else ""))


def install(app: FastAPI) -> None:
    """Answer Elsewhere: 303, and for htmx the header that makes it load a whole page."""

    async def on_elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, Elsewhere)  # noqa: S101 - registered for it
        if request.headers.get("hx-request"):
            return Response(status_code=204, headers={"HX-Redirect": error.location})
        return RedirectResponse(error.location, 303)

    app.add_exception_handler(Elsewhere, on_elsewhere)
