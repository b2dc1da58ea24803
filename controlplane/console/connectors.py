"""Connectors: how each account at a carrier does on all nodes; made, changed, tried, drained and removed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.connector_form import CHOICES, DEFAULTS, read_connector
from controlplane.console.figures import seconds
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/connectors")

Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
Text = Annotated[str, Form()]


@router.get("")
async def list_connectors(request: Request, visit: Operator) -> Response:
    """Each with what all nodes say of it."""
    found = (await backend_of(request).get(visit, "/v1/connectors"))["data"]
    found.sort(key=lambda each: str(each["name"]))
    return render(request, "connectors/list.html", connectors=found, word=state_word, seconds=seconds)


@router.get("/-/new")
async def show_new(request: Request, visit: Operator) -> Response:
    """A form with what most accounts need."""
    return await _form(request, visit, DEFAULTS, new=True)


@router.post("/-/new")
async def create(request: Request, visit: Operator) -> Response:
    """Try it, or make it."""
    form = await request.form()
    values, errors = read_connector(form, new=True)
    if errors:
        return await _form(request, visit, values, errors=errors, new=True)
    try:
        if form.get("act") == "test":
            settings = {key: value for key, value in values.items() if key != "name"}
            trial = await backend_of(request).post(visit, "/v1/connectors/test", {"settings": settings})
            return await _form(request, visit, values, new=True, trial=trial)
        await backend_of(request).post(visit, "/v1/connectors", values | {"password": values["password"] or ""})
    except ApiError as error:
        return await _form(request, visit, values, error, new=True)
    return redirect(f"/console/connectors/{values['name']}", "It is made; all nodes bind within 2 seconds.")


@router.get("/{name}")
async def show_connector(request: Request, visit: Operator, name: str) -> Response:
    """Its binds on every node, its counts, its routes."""
    return await _page(request, visit, name)


@router.get("/{name}/edit")
async def show_form(request: Request, visit: Operator, name: str) -> Response:
    """All its settings, but for the password."""
    return await _form(request, visit, await backend_of(request).get(visit, f"/v1/connectors/{name}"))


@router.post("/{name}/edit")
async def replace(request: Request, visit: Operator, name: str) -> Response:
    """Try the changed settings, or save them."""
    form = await request.form()
    values, errors = read_connector(form, new=False)
    shown = values | {"name": name}
    if errors:
        return await _form(request, visit, shown, errors=errors)
    try:
        if form.get("act") == "test":
            body = {"name": name, "settings": values}
            return await _form(
                request, visit, shown, trial=await backend_of(request).post(visit, "/v1/connectors/test", body)
            )
        await backend_of(request).put(visit, f"/v1/connectors/{name}", values)
    except ApiError as error:
        return await _form(request, visit, shown, error)
    return redirect(f"/console/connectors/{name}", "Saved; all nodes know within 2 seconds.")


@router.post("/{name}/test")
async def try_bind(request: Request, visit: Operator, name: str) -> Response:
    """One bind with the stored settings."""
    return await _page(
        request, visit, name, trial=await backend_of(request).post(visit, "/v1/connectors/test", {"name": name})
    )


@router.post("/{name}/drain")
async def drain(request: Request, visit: Operator, name: str) -> Response:
    """Take it out."""
    await backend_of(request).post(visit, f"/v1/connectors/{name}/drain")
    return redirect(f"/console/connectors/{name}", "It is being drained: what waits for it goes to other routes.")


@router.post("/{name}/enable")
async def enable(request: Request, visit: Operator, name: str) -> Response:
    """Take it in again."""
    await backend_of(request).post(visit, f"/v1/connectors/{name}/enable")
    return redirect(f"/console/connectors/{name}", "All nodes bind within 2 seconds.")


@router.post("/{name}/remove")
async def remove(request: Request, visit: Operator, name: str, confirm: Text = "") -> Response:
    """Only without routes."""
    if confirm != name:
        return await _page(request, visit, name, unconfirmed=f"Type {name} exactly.")
    try:
        await backend_of(request).delete(visit, f"/v1/connectors/{name}")
    except ApiError as error:
        return await _page(request, visit, name, error=error)
    return redirect("/console/connectors", f"Connector {name} is removed.")


def state_word(connector: dict[str, Any]) -> tuple[str, str]:
    """(a word for how it is, its tone)."""
    state = connector["state"]
    if not connector["enabled"]:
        return ("draining", "busy") if state else ("disabled", "plain")
    if state is None:
        return "starting", "busy"
    if not state["bound"]:
        return "down", "bad"
    wanted = min(len(state["binds"]), connector["max_binds"] or len(state["binds"]))
    return ("bound", "good") if state["bound"] >= wanted else ("partly bound", "warn")


async def _page(
    request: Request,
    visit: Visit,
    name: str,
    *,
    trial: dict[str, Any] | None = None,
    error: ApiError | None = None,
    unconfirmed: str = "",
) -> Response:
    backend = backend_of(request)
    connector = await backend.get(visit, f"/v1/connectors/{name}")
    routes = [each for each in (await backend.get(visit, "/v1/routes"))["data"] if each["connector"] == name]
    return render(
        request,
        "connectors/connector.html",
        status=422 if error or unconfirmed else 200,
        connector=connector,
        state=connector["state"],
        routes=routes,
        word=state_word(connector),
        seconds=seconds,
        trial=trial,
        problem=error.problem if error else None,
        unconfirmed=unconfirmed,
    )


async def _form(
    request: Request,
    visit: Visit,
    values: dict[str, Any],
    error: ApiError | None = None,
    *,
    errors: dict[str, str] | None = None,
    new: bool = False,
    trial: dict[str, Any] | None = None,
) -> Response:
    found = errors or ({key.removeprefix("settings."): said for key, said in error.fields.items()} if error else {})
    tenants = (await backend_of(request).get(visit, "/v1/tenants"))["data"]
    return render(
        request,
        "connectors/form.html",
        status=422 if found or error else 200,
        values=values,
        new=new,
        errors=found,
        problem=error.problem if error else None,
        trial=trial,
        choices=CHOICES,
        tenants=[("", "nobody: they are kept"), *((each["id"], each["name"]) for each in tenants)],
    )
