"""Routes: which way messages may go, how each does, and changing them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.figures import SPANS, delivery_chart, seconds, traffic_chart
from controlplane.console.frame import Frame, backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.catalog import MessageClass, SenderType
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/routes")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
Text = Annotated[str, Form()]
_KINDS = [kind.value for kind in SenderType]
_CLASSES = [cls.value for cls in MessageClass]
_DEFAULTS: dict[str, Any] = {
    "name": "",
    "connector": "",
    "prefixes": [""],
    "sender_types": _KINDS,
    "classes": _CLASSES,
    "price": 0,
    "currency": "EUR",
    "priority": 100,
    "enabled": True,
}


@router.get("")
async def list_routes(request: Request, visit: Viewer) -> Response:
    """Each with its last day."""
    frame: Frame = request.app.state.frame
    backend = backend_of(request)
    routes = (await backend.get(visit, "/v1/routes"))["data"]
    routes.sort(key=lambda each: (each["priority"], str(each["name"])))
    query = SPANS["day"].query(frame.clock.now_ms())
    found = await backend.get(visit, "/v1/statistics", {**query, "step": "day", "by": "route"})
    totals = {each["key"]: each["total"] for each in found["data"]}
    bound = {each["name"]: each["state"] for each in (await backend.get(visit, "/v1/connectors"))["data"]}
    return render(
        request,
        "routes/list.html",
        routes=[(each, totals.get(each["name"]), route_word(each, bound.get(each["connector"]))) for each in routes],
        seconds=seconds,
    )


@router.get("/-/new")
async def show_new(request: Request, visit: Operator, connector: str = "") -> Response:
    """A form that matches everything."""
    return await _form(request, visit, _DEFAULTS | {"connector": connector}, new=True)


@router.post("/-/new")
async def create(request: Request, visit: Operator) -> Response:
    """It counts on all nodes within 2 s."""
    values, errors = read_route(await request.form(), new=True)
    try:
        if errors:
            return await _form(request, visit, values, errors=errors, new=True)
        await backend_of(request).post(visit, "/v1/routes", values)
    except ApiError as error:
        return await _form(request, visit, values, error, new=True)
    return redirect(f"/console/routes/{values['name']}", "It is made; all nodes know within 2 seconds.")


@router.get("/{name}")
async def show_route(request: Request, visit: Viewer, name: str, span: str = "day") -> Response:
    """Its figures over an hour, a day, a week, a month."""
    return await _page(request, visit, name, span)


@router.get("/{name}/edit")
async def show_form(request: Request, visit: Operator, name: str) -> Response:
    """All its fields."""
    return await _form(request, visit, await backend_of(request).get(visit, f"/v1/routes/{name}"))


@router.post("/{name}/edit")
async def replace(request: Request, visit: Operator, name: str) -> Response:
    """All its fields."""
    values, errors = read_route(await request.form(), new=False)
    shown = values | {"name": name}
    try:
        if errors:
            return await _form(request, visit, shown, errors=errors)
        await backend_of(request).put(visit, f"/v1/routes/{name}", values)
    except ApiError as error:
        return await _form(request, visit, shown, error)
    return redirect(f"/console/routes/{name}", "Saved; all nodes know within 2 seconds.")


@router.post("/{name}/switch")
async def switch(request: Request, visit: Operator, name: str, enabled: Text = "") -> Response:
    """In use, or not."""
    backend = backend_of(request)
    route = await backend.get(visit, f"/v1/routes/{name}")
    del route["name"]
    await backend.put(visit, f"/v1/routes/{name}", route | {"enabled": enabled == "yes"})
    said = "It is in use." if enabled == "yes" else "It is out of use: what waits for it is routed anew."
    return redirect(f"/console/routes/{name}", said)


@router.post("/{name}/remove")
async def remove(request: Request, visit: Operator, name: str, confirm: Text = "") -> Response:
    """What waits for it is routed anew."""
    if confirm != name:
        return await _page(request, visit, name, "day", f"Type {name} exactly.")
    await backend_of(request).delete(visit, f"/v1/routes/{name}")
    return redirect("/console/routes", f"Route {name} is removed.")


def read_route(form: FormData, *, new: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """(the API's body, field → what is wrong with it). Prefixes stand apart by spaces or commas; none matches every number."""
    errors: dict[str, str] = {}
    values: dict[str, Any] = {
        "connector": str(form.get("connector", "")),
        "prefixes": [part for part in re.split(r"[\s,;]+", str(form.get("prefixes", ""))) if part] or [""],
        "sender_types": [str(value) for value in form.getlist("sender_types")],
        "classes": [str(value) for value in form.getlist("classes")],
        "currency": str(form.get("currency", "")).strip().upper(),
        "enabled": "enabled" in form,
    }
    if new:
        values["name"] = str(form.get("name", "")).strip()
    for name in ("price", "priority"):
        text = str(form.get(name, "")).strip()
        values[name] = int(text) if text.lstrip("-").isdecimal() else text
        if isinstance(values[name], str):
            errors[name] = "is not a whole number"
    return values, errors


def route_word(route: dict[str, Any], state: dict[str, Any] | None) -> tuple[str, str]:
    """(a word for how it is, its tone); `state` is its connector's."""
    if not route["enabled"]:
        return "out of use", "plain"
    if state is None:
        return "connector out of use", "warn"
    return ("in use", "good") if state["live"] else ("connector down", "bad")


async def _page(request: Request, visit: Visit, name: str, span: str, unconfirmed: str = "") -> Response:
    frame: Frame = request.app.state.frame
    backend, chosen = backend_of(request), SPANS.get(span, SPANS["day"])
    route = await backend.get(visit, f"/v1/routes/{name}")
    query = chosen.query(frame.clock.now_ms())
    found = await backend.get(visit, "/v1/statistics", {**query, "by": "class", "route": name})
    connector = await backend.get(visit, f"/v1/connectors/{route['connector']}")
    learned = (await backend.get(visit, "/v1/routing")) if not visit.tenant else {"held_back": [], "breaks": []}
    zone = visit.look.time_zone or "UTC"
    return render(
        request,
        "routes/route.html",
        status=422 if unconfirmed else 200,
        route=route,
        connector=connector,
        word=route_word(route, connector["state"]),
        spans=[(each.key, each.word) for each in SPANS.values()],
        span=chosen.key,
        total=found["total"],
        classes=found["data"],
        traffic=traffic_chart(found, zone),
        delivery=delivery_chart(found, zone),
        held=[each for each in learned["held_back"] if each["route"] == name],
        breaks=[each for each in learned["breaks"] if each["route"] == name][:20],
        seconds=seconds,
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
) -> Response:
    found = errors or (_by_field(error) if error else {})
    connectors = (await backend_of(request).get(visit, "/v1/connectors"))["data"]
    return render(
        request,
        "routes/form.html",
        status=422 if found or error else 200,
        values=values,
        new=new,
        errors=found,
        problem=error.problem if error else None,
        connectors=[each["name"] for each in connectors],
        kinds=_KINDS,
        classes=_CLASSES,
    )


def _by_field(error: ApiError) -> dict[str, str]:
    """`prefixes.0` is said at `prefixes`."""
    return {key.partition(".")[0]: said for key, said in error.fields.items()}
