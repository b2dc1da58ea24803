"""Sign in: the password, then the second factor; each step a new session. And out."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from controlplane.console.frame import redirect, render
from controlplane.console.identity import (
    address_of,
    check_transport,
    cookie_of,
    device_of,
    forget_session,
    own_path,
    remember_device,
    remember_session,
    services_of,
    session_of,
    visit_of,
)
from controlplane.console.trail import record
from controlplane.domain import login as counting
from controlplane.domain.audit import Outcome
from controlplane.domain.people import Person, Stage, plain_name

__all__ = ["begin", "enter", "router"]

router = APIRouter()

_WRONG = "Name or password is wrong, or this person may not log in."
_WRONG_CODE = "is wrong, or was used before; codes change every 30 seconds"


@router.get("/login")
async def show_login(request: Request, next: str = "") -> Response:  # noqa: A002 - the parameter's name in URLs
    """Ask for name and password."""
    check_transport(request)
    if await visit_of(request):
        return redirect(own_path(next))
    return _ask(request, next)


@router.post("/login")
async def log_in(
    request: Request,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002
) -> Response:
    """Check them. A name that nobody has is answered as a wrong password is, and as slowly."""
    check_transport(request)
    services = services_of(request)
    plain = plain_name(name) or ""
    device = device_of(request, plain)
    named = [counting.name_of(plain, device)] if plain else []
    addressed = [] if device else [counting.address_of(address_of(request))]
    wait = await services.delays.count([*addressed, *named])
    if wait:
        return _ask(request, next, name=name, wait=wait)
    person = await services.people.check_password(plain, password)
    if person is None:
        known = await services.people.find(plain)
        await record(
            request, "", "login", f"people/{plain}" if known else "", outcome=Outcome.REFUSED, detail="password"
        )
        return _ask(request, next, name=name, error=_WRONG)
    await services.delays.take_back(addressed)
    await services.delays.clear(named)
    return await begin(request, person, next)


@router.get("/login/code")
async def show_code(request: Request, next: str = "") -> Response:  # noqa: A002
    """Ask for the second factor."""
    found = await session_of(request)
    if found is None or found[0].stage is not Stage.CODE:
        return redirect("/console/login?" + urlencode({"next": own_path(next)}))
    return render(request, "login/code.html", next=own_path(next), errors={}, wait=0)


@router.post("/login/code")
async def check_code(
    request: Request,
    code: Annotated[str, Form()] = "",
    recovery: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",  # noqa: A002
) -> Response:
    """Check it: an authenticator's code, or a recovery code."""
    found = await session_of(request)
    if found is None or found[0].stage is not Stage.CODE:
        return redirect("/console/login?" + urlencode({"next": own_path(next)}))
    services, person = services_of(request), found[1]
    tries = [counting.code_of(person.name, device_of(request, person.name))]
    wait = await services.delays.count(tries)
    if wait:
        return _too_many(request, "login/code.html", wait, next=own_path(next), errors={})
    if recovery:
        right = await services.people.take_recovery_code(person.name, recovery)
    else:
        right = await services.people.take_code(person.name, code)
    if not right:
        field = "recovery" if recovery else "code"
        await record(
            request, "", "login", f"people/{person.name}", outcome=Outcome.REFUSED, detail=f"second factor: {field}"
        )
        return render(request, "login/code.html", status=422, next=own_path(next), errors={field: _WRONG_CODE}, wait=0)
    await services.delays.clear(tries)
    return await enter(request, person, next, detail="recovery code" if recovery else "")


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session."""
    found = await session_of(request)
    if found is not None:
        await services_of(request).sessions.end(cookie_of(request))
        if found[0].stage is Stage.OPEN:
            await record(request, found[1].name, "logout", f"people/{found[1].name}", tenant=found[1].tenant)
    answer = redirect("/console/login", "Signed out.")
    forget_session(answer)
    return answer


async def begin(request: Request, person: Person, to: str) -> Response:
    """The password is right: on to what is still missing."""
    if person.totp:
        return await _at(request, person, Stage.CODE, f"/console/login/code?{urlencode({'next': own_path(to)})}")
    if services_of(request).settings.console_totp == "required":
        return await _at(request, person, Stage.ENROL, f"/console/setup/totp?{urlencode({'next': own_path(to)})}")
    return await enter(request, person, to)


async def enter(request: Request, person: Person, to: str, *, detail: str = "") -> Response:
    """Everything is right: in."""
    await record(request, person.name, "login", f"people/{person.name}", tenant=person.tenant, detail=detail)
    await services_of(request).people.logged_in(person.name)
    answer = await _at(request, person, Stage.OPEN, own_path(to))
    remember_device(request, answer, person.name)
    return answer


async def _at(request: Request, person: Person, stage: Stage, to: str) -> Response:
    """A new session, in place of the one that the browser came with: an id that somebody planted there leads nowhere."""
    cookie = await services_of(request).sessions.begin(
        person.name,
        stage,
        address=address_of(request),
        agent=request.headers.get("user-agent", ""),
        former=cookie_of(request),
    )
    answer = redirect(to)
    remember_session(answer, cookie)
    return answer


def _ask(request: Request, to: str, *, name: str = "", error: str = "", wait: int = 0) -> Response:
    context = {"next": own_path(to), "name": name[:100], "error": error}
    if wait:
        return _too_many(request, "login/password.html", wait, **context)
    return render(request, "login/password.html", status=422 if error else 200, wait=0, **context)


def _too_many(request: Request, template: str, wait: int, **context: Any) -> Response:
    answer = render(request, template, status=429, wait=wait, **context)
    answer.headers["Retry-After"] = str(wait)
    return answer
