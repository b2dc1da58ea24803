"""What a set-up link leads to: name and password, then the second factor with its recovery codes."""

from __future__ import annotations

from typing import Annotated

import pyotp
import segno
from fastapi import APIRouter, Form, Request
from markupsafe import Markup
from starlette.responses import Response

from controlplane.console.frame import redirect, render
from controlplane.console.identity import (
    address_of,
    check_transport,
    cookie_of,
    own_path,
    remember_device,
    remember_session,
    services_of,
    session_of,
)
from controlplane.console.login import begin
from controlplane.console.trail import record
from controlplane.domain.people import Invitation, Person, Session, Stage, password_fault, plain_name
from controlplane.errors import Problem

__all__ = ["router"]

router = APIRouter()

_NAME_FAULT = "must begin with a small letter or digit; small letters, digits and . _ + - @ may follow"
_WRONG_CODE = "is not the code that the app shows now; check that the phone's clock is right"


@router.get("/setup")
async def show_setup(request: Request, token: str = "") -> Response:
    """Ask for a password (and a name, where the link has none)."""
    check_transport(request)
    invitation = await _invitation(request, token)
    return render(request, "setup/password.html", token=token, invitation=invitation, name=invitation.name, errors={})


@router.post("/setup")
async def set_up(
    request: Request,
    token: Annotated[str, Form()] = "",
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    again: Annotated[str, Form()] = "",
) -> Response:
    """Take the link, once, and set the password."""
    check_transport(request)
    invitation = await _invitation(request, token)
    services = services_of(request)
    plain = invitation.name or plain_name(name) or ""
    errors = _faults(plain, password, again)
    if plain and not invitation.name and await services.people.find(plain):
        errors["name"] = "is taken; choose another one"
    if errors:
        shown = invitation.name or name[:100]
        return render(
            request, "setup/password.html", status=422, token=token, invitation=invitation, name=shown, errors=errors
        )
    if not await services.links.use(token):
        raise _over()
    if not invitation.name:
        await services.people.create(plain, invitation.role, invitation.tenant)
    person = await services.people.set_password(plain, password)
    await services.sessions.end_all(plain)
    await record(request, plain, "setUp", f"people/{plain}", tenant=person.tenant, detail=person.role.value)
    return await begin(request, person, "")


@router.get("/setup/totp")
async def show_totp(request: Request, next: str = "") -> Response:  # noqa: A002 - the parameter's name in URLs
    """A new secret for an authenticator: as a picture and as text."""
    found = await _enrolling(request)
    return redirect("/console/login") if found is None else await _totp_page(request, *found, next)


@router.post("/setup/totp")
async def set_totp(
    request: Request,
    code: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002
) -> Response:
    """The first code proves that the app has it: from now on it is asked for at each login. Shows the recovery codes, this once."""
    found = await _enrolling(request)
    if found is None:
        return redirect("/console/login")
    session, person = found
    codes = await services_of(request).people.set_totp(person.name, session.secret, code) if session.secret else None
    if codes is None:
        return await _totp_page(request, session, person, next, error=_WRONG_CODE)
    await record(request, person.name, "setTotp", f"people/{person.name}", tenant=person.tenant)
    cookie = await _entered(request, session, person)
    answer = render(request, "setup/codes.html", codes=codes, next=own_path(next))
    remember_session(answer, cookie)
    remember_device(request, answer, person.name)
    return answer


async def _entered(request: Request, session: Session, person: Person) -> str:
    """A new session for whoever has just proven everything; all their other sessions end."""
    services = services_of(request)
    await services.sessions.end_all(person.name)
    if session.stage is not Stage.OPEN:
        await record(request, person.name, "login", f"people/{person.name}", tenant=person.tenant)
        await services.people.logged_in(person.name)
    agent = request.headers.get("user-agent", "")
    return await services.sessions.begin(person.name, Stage.OPEN, address=address_of(request), agent=agent)


async def _totp_page(request: Request, session: Session, person: Person, to: str, *, error: str = "") -> Response:
    services = services_of(request)
    secret = session.secret
    if not secret:
        secret = pyotp.random_base32()
        await services.sessions.keep_secret(cookie_of(request), secret)
    url = pyotp.TOTP(secret).provisioning_uri(
        name=person.name, issuer_name=f"Heliograph {services.settings.datacenter}"
    )
    picture = segno.make(url, error="m", micro=False).svg_inline(
        scale=5, border=4, dark="#000", light="#fff", title="QR code of the secret", omitsize=False
    )
    return render(
        request,
        "setup/totp.html",
        status=422 if error else 200,
        picture=Markup(picture),  # noqa: S704 - drawn by segno from modules only
        secret=" ".join(secret[at : at + 4] for at in range(0, len(secret), 4)),
        url=url,
        changing=session.stage is Stage.OPEN,
        next=own_path(to),
        errors={"code": error} if error else {},
    )


async def _enrolling(request: Request) -> tuple[Session, Person] | None:
    """Who sets up a second factor: after the password at login, or in the account, where a secret was begun with the password."""
    found = await session_of(request)
    if found is None:
        return None
    session = found[0]
    return found if session.stage is Stage.ENROL or (session.stage is Stage.OPEN and session.secret) else None


def _faults(plain: str, password: str, again: str) -> dict[str, str]:
    errors = {} if plain else {"name": _NAME_FAULT}
    fault = password_fault(password, plain)
    if fault:
        errors["password"] = fault
    elif password != again:
        errors["again"] = "is not the same"
    return errors


async def _invitation(request: Request, token: str) -> Invitation:
    found = await services_of(request).links.find(token)
    if found is None:
        raise _over()
    if found.name:
        person = await services_of(request).people.find(found.name)
        if person is None or not person.enabled:
            raise _over()
    return found


def _over() -> Problem:
    return Problem(
        "not-found",
        "This link does not work (any more)",
        404,
        "Set-up links work once, within 24 hours, and a newer one for the same person ends the older.",
        "Ask an admin for a new one: People in the console, `heliograph people link NAME`, or `heliograph people invite NAME --role …`.",
    )
