"""One's own account: password, second factor, sessions, how the console looks."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import available_timezones

import pyotp
from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.frame import redirect, render
from controlplane.console.identity import Visit, address_of, allows, cookie_of, device_of, services_of
from controlplane.console.trail import record
from controlplane.domain import login as counting
from controlplane.domain.audit import Outcome
from controlplane.domain.people import THEMES, Look, Role, password_fault

__all__ = ["router"]

router = APIRouter(prefix="/account")

Anybody = Annotated[Visit, Depends(allows(Role.VIEWER))]
Text = Annotated[str, Form()]
_ZONES = tuple(sorted(zone for zone in available_timezones() if "/" in zone or zone == "UTC"))


@router.get("")
async def show_account(request: Request, visit: Anybody) -> Response:
    """All of it on one page."""
    return await _page(request, visit)


@router.post("/look")
async def set_look(
    request: Request, visit: Anybody, theme: Text = "", time_zone: Text = "", shortcuts: Text = ""
) -> Response:
    """In all browsers of theirs."""
    errors = {}
    if theme not in THEMES:
        errors["theme"] = "is none of those"
    if time_zone not in _ZONES:
        errors["time_zone"] = "is no time zone; begin with the continent, such as Europe/Berlin"
    if errors:
        return await _page(request, visit, errors)
    look = Look(theme=theme, time_zone=time_zone, shortcuts=bool(shortcuts))
    await services_of(request).people.set_look(visit.person, look)
    return redirect("/console/account", "Saved.")


@router.post("/password")
async def set_password(
    request: Request, visit: Anybody, current: Text = "", password: Text = "", again: Text = ""
) -> Response:
    """All other sessions end."""
    errors = {}
    if fault := password_fault(password, visit.person):
        errors["password"] = fault
    elif password != again:
        errors["again"] = "is not the same"
    if not errors:
        errors = await _check(request, visit, current, "current")
    if errors:
        return await _page(request, visit, errors)
    services = services_of(request)
    await services.people.set_password(visit.person, password)
    ended = await services.sessions.end_all(visit.person, but=visit.session)
    await _record(request, visit, "changePassword")
    return redirect("/console/account", f"Password changed; {ended} other sessions ended.")


@router.post("/totp")
async def begin_totp(request: Request, visit: Anybody, proof: Text = "") -> Response:
    """A new authenticator: the present one counts until the first code of the new one."""
    errors = await _check(request, visit, proof, "proof")
    if errors:
        return await _page(request, visit, errors)
    await services_of(request).sessions.keep_secret(cookie_of(request), pyotp.random_base32())
    return redirect("/console/setup/totp?next=/console/account")


@router.post("/codes")
async def renew_codes(request: Request, visit: Anybody, proof: Text = "") -> Response:
    """Ten new recovery codes; the former ones are void."""
    errors = (
        {"proof": "needs a second factor first"} if not visit.totp else await _check(request, visit, proof, "proof")
    )
    if errors:
        return await _page(request, visit, errors)
    codes = await services_of(request).people.renew_codes(visit.person)
    await _record(request, visit, "renewRecoveryCodes")
    return render(request, "setup/codes.html", codes=codes, next="/console/account")


@router.post("/sessions/end")
async def end_others(request: Request, visit: Anybody) -> Response:
    """Log out everywhere but here."""
    ended = await services_of(request).sessions.end_all(visit.person, but=visit.session)
    await _record(request, visit, "endSessions")
    return redirect("/console/account", f"{ended} other sessions ended.")


@router.post("/sessions/{handle}/end")
async def end_one(request: Request, visit: Anybody, handle: str) -> Response:
    """Log out there."""
    if await services_of(request).sessions.end_one(visit.person, handle):
        await _record(request, visit, "endSessions")
    return redirect("/console/account", "That session has ended.")


async def _check(request: Request, visit: Visit, password: str, field: str) -> dict[str, str]:
    """Whether it is really them at the keyboard; what is wrong with `field`, or nothing. Counted as tries to log in are."""
    services = services_of(request)
    tries = [counting.name_of(visit.person, device_of(request, visit.person) or visit.session)]
    if wait := await services.delays.count(tries):
        return {field: f"too many tries; wait {wait} s"}
    if await services.people.check_password(visit.person, password) is None:
        await _record(request, visit, "login", outcome=Outcome.REFUSED, detail="password, in the account")
        return {field: "is not your present password"}
    await services.delays.clear(tries)
    return {}


async def _record(
    request: Request, visit: Visit, action: str, *, outcome: Outcome = Outcome.DONE, detail: str = ""
) -> None:
    await record(
        request, visit.person, action, f"people/{visit.person}", outcome=outcome, tenant=visit.tenant, detail=detail
    )


async def _page(request: Request, visit: Visit, errors: dict[str, str] | None = None) -> Response:
    services = services_of(request)
    return render(
        request,
        "account/index.html",
        status=422 if errors else 200,
        person=await services.people.find(visit.person),
        sessions=await services.sessions.of(visit.person),
        required=services.settings.console_totp == "required",
        address=address_of(request),
        themes=THEMES,
        zones=_ZONES,
        errors=errors or {},
    )
