"""People: who may use the console, and as what. All of it is the API's `/v1/people`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/people")

Admin = Annotated[Visit, Depends(allows(Role.ADMIN))]
Text = Annotated[str, Form()]
ROLES = (
    (Role.VIEWER.value, "viewer: reads messages, routes and the ledger"),
    (Role.SENDER.value, "sender: also sends, cancels, erases"),
    (Role.OPERATOR.value, "operator: runs the deployment"),
    (Role.ADMIN.value, "admin: also people, tenants, keys, the audit"),
)


@router.get("")
async def list_people(request: Request, visit: Admin) -> Response:
    """Everybody."""
    found = await backend_of(request).get(visit, "/v1/people")
    return render(request, "people/list.html", people=found["data"])


# Names begin with a letter or digit, so that nobody is called `-`.
@router.get("/-/new")
async def show_invite(request: Request, visit: Admin) -> Response:
    """Whom to let in."""
    return await _invite_page(request, visit, {"name": "", "role": Role.VIEWER.value, "tenant": ""})


@router.post("/-/new")
async def invite(request: Request, visit: Admin, name: Text = "", role: Text = "", tenant: Text = "") -> Response:
    """Their set-up link, shown this once."""
    values = {"name": name.strip().lower(), "role": role, "tenant": tenant}
    if not values["name"]:
        return await _invite_page(request, visit, values, fields={"name": "is missing"})
    try:
        made = await backend_of(request).post(visit, "/v1/people", values)
    except ApiError as error:
        return await _invite_page(request, visit, values, error)
    return _link_page(request, values["name"], made["link"])


@router.get("/{name}")
async def show_person(request: Request, visit: Admin, name: str) -> Response:
    """One of them."""
    person = await backend_of(request).get(visit, f"/v1/people/{name}")
    return await _person_page(request, visit, person, person)


@router.post("/{name}")
async def change(
    request: Request, visit: Admin, name: str, role: Text = "", tenant: Text = "", enabled: Text = ""
) -> Response:
    """Role, tenant, whether they may log in."""
    values = {"role": role, "tenant": tenant, "enabled": bool(enabled)}
    backend = backend_of(request)
    try:
        await backend.put(visit, f"/v1/people/{name}", values)
    except ApiError as error:
        person = await backend.get(visit, f"/v1/people/{name}")
        return await _person_page(request, visit, person, values, error)
    return redirect(f"/console/people/{name}", "Saved; it counts with their next request.")


@router.post("/{name}/link")
async def new_link(request: Request, visit: Admin, name: str) -> Response:
    """For somebody who forgot their password, or came too late."""
    return _link_page(request, name, await backend_of(request).post(visit, f"/v1/people/{name}/link"))


@router.post("/{name}/log-out")
async def log_out(request: Request, visit: Admin, name: str) -> Response:
    """Everywhere."""
    found = await backend_of(request).delete(visit, f"/v1/people/{name}/sessions")
    return redirect(f"/console/people/{name}", f"{found['ended']} sessions ended.")


@router.post("/{name}/reset-totp")
async def reset_totp(request: Request, visit: Admin, name: str, confirm: Text = "") -> Response:
    """For somebody who lost it."""
    if confirm != name:
        return await _unconfirmed(request, visit, name, "totp")
    await backend_of(request).delete(visit, f"/v1/people/{name}/totp")
    return redirect(f"/console/people/{name}", "They set a new second factor at their next sign-in.")


@router.post("/{name}/remove")
async def remove(request: Request, visit: Admin, name: str, confirm: Text = "") -> Response:
    """For good."""
    if confirm != name:
        return await _unconfirmed(request, visit, name, "remove")
    backend = backend_of(request)
    try:
        await backend.delete(visit, f"/v1/people/{name}")
    except ApiError as error:
        person = await backend.get(visit, f"/v1/people/{name}")
        return await _person_page(request, visit, person, person, error)
    return redirect("/console/people", f"{name} is removed.")


async def _unconfirmed(request: Request, visit: Visit, name: str, act: str) -> Response:
    person = await backend_of(request).get(visit, f"/v1/people/{name}")
    return await _person_page(request, visit, person, person, unconfirmed={act: f"Type {name} exactly."})


async def _tenants(request: Request, visit: Visit) -> list[tuple[str, str]]:
    found = await backend_of(request).get(visit, "/v1/tenants")
    return [("", "the whole deployment"), *((one["id"], f"{one['id']}: {one['name']}") for one in found["data"])]


async def _invite_page(
    request: Request,
    visit: Visit,
    values: dict[str, Any],
    error: ApiError | None = None,
    fields: dict[str, str] | None = None,
) -> Response:
    errors = fields or (error.fields if error else {})
    return render(
        request,
        "people/new.html",
        status=422 if errors or error else 200,
        values=values,
        errors=errors,
        problem=error.problem if error and not errors else None,
        roles=ROLES,
        tenants=await _tenants(request, visit),
    )


async def _person_page(
    request: Request,
    visit: Visit,
    person: dict[str, Any],
    values: dict[str, Any],
    error: ApiError | None = None,
    unconfirmed: dict[str, str] | None = None,
) -> Response:
    errors = error.fields if error else {}
    return render(
        request,
        "people/person.html",
        status=422 if error or unconfirmed else 200,
        person=person,
        values=values,
        errors=errors,
        problem=error.problem if error and not errors else None,
        unconfirmed=unconfirmed or {},
        roles=ROLES,
        tenants=await _tenants(request, visit),
    )


def _link_page(request: Request, name: str, link: dict[str, Any]) -> Response:
    url = f"{request.url.scheme}://{request.url.netloc}{link['path']}"
    return render(request, "people/link.html", name=name, url=url, expires_at=link["expires_at"])
