"""Callbacks: endpoints and why one is disabled, each attempt with its answer, sending again, a new signing secret."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.tenancy import tenancy_of
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/callbacks")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
Text = Annotated[str, Form()]
KINDS = ("submitted", "unknown", "delivered", "undelivered", "failed", "expired", "cancelled", "received")
_NOTHING: dict[str, Any] = {"url": "", "events": [], "enabled": True}


@router.get("")
async def list_endpoints(request: Request, visit: Viewer) -> Response:
    """Endpoints, and below them the newest attempts: of all, of one endpoint or of one message."""
    return await _list_page(request, visit)


async def _list_page(
    request: Request, visit: Visit, error: ApiError | None = None, *, unconfirmed: str = ""
) -> Response:
    tenancy, backend = await tenancy_of(request, visit), backend_of(request)
    wanted = {name: request.query_params.get(name, "").strip()[:64] for name in ("callback", "message")}
    cursor = request.query_params.get("cursor", "") if error is None else ""
    endpoints = (await backend.get(visit, "/v1/callbacks", tenant=tenancy.tenant))["data"]
    found = await backend.get(visit, "/v1/callbacks/deliveries", {**wanted, "cursor": cursor}, tenant=tenancy.tenant)
    here = "/console/callbacks"
    return render(
        request,
        "callbacks/list.html",
        status=error.status if error else 422 if unconfirmed else 200,
        tenancy=tenancy,
        endpoints=sorted(endpoints, key=lambda endpoint: endpoint["created_at"]),
        deliveries=found["data"],
        wanted=wanted,
        older=tenancy.url(here, **wanted, cursor=found["next"]) if found["next"] else "",
        newest=tenancy.url(here, **wanted) if cursor else "",
        may=visit.role >= Role.OPERATOR,
        problem=error.problem if error else None,
        unconfirmed=unconfirmed,
    )


@router.post("/replay")
async def replay(
    request: Request, visit: Operator, message: Text = "", sequence: Text = "", callback: Text = ""
) -> Response:
    """One callback again, or all of a message."""
    tenancy = await tenancy_of(request, visit)
    body: dict[str, Any] = {"message": message.strip()}
    if sequence.isdigit():
        body["sequence"] = int(sequence)
    if callback:
        body["callback"] = callback
    try:
        done = await backend_of(request).post(visit, "/v1/callbacks/replay", body, tenant=tenancy.tenant)
    except ApiError as error:
        return await _list_page(request, visit, error)
    said = f"{done['queued']} callback{'' if done['queued'] == 1 else 's'} will be sent again."
    return redirect(tenancy.url("/console/callbacks", message=body["message"]), said)


@router.post("/secret")
async def rotate_secret(request: Request, visit: Operator, confirm: Text = "") -> Response:
    """Shown this once; the one before signs along until the next rotation."""
    if confirm != "rotate":
        return await _list_page(request, visit, unconfirmed="Type rotate exactly.")
    tenancy = await tenancy_of(request, visit)
    made = await backend_of(request).post(visit, "/v1/callbacks/rotate-secret", tenant=tenancy.tenant)
    return render(request, "callbacks/secret.html", tenancy=tenancy, secret=made["callback_secret"])


@router.get("/-/new")
async def show_new(request: Request, visit: Operator) -> Response:
    """An empty form."""
    return await _endpoint_page(request, visit, _NOTHING)


@router.post("/-/new")
async def create(request: Request, visit: Operator) -> Response:
    """From now on it is told."""
    tenancy, values = await tenancy_of(request, visit), await _values(request)
    try:
        await backend_of(request).post(visit, "/v1/callbacks", values, tenant=tenancy.tenant)
    except ApiError as error:
        return await _endpoint_page(request, visit, values, error)
    return redirect(tenancy.url("/console/callbacks"), "Added; all nodes know within 2 seconds.")


@router.get("/{callback_id}")
async def show_one(request: Request, visit: Operator, callback_id: str) -> Response:
    """With the reason, if it was disabled."""
    return await _endpoint_page(request, visit, await _endpoint(request, visit, callback_id))


@router.post("/{callback_id}")
async def replace(request: Request, visit: Operator, callback_id: str) -> Response:
    """Enabling it again clears the reason."""
    tenancy, values = await tenancy_of(request, visit), await _values(request)
    try:
        await backend_of(request).put(visit, f"/v1/callbacks/{callback_id}", values, tenant=tenancy.tenant)
    except ApiError as error:
        found = await _endpoint(request, visit, callback_id)
        return await _endpoint_page(request, visit, found | values, error)
    return redirect(tenancy.url("/console/callbacks"), "Saved; all nodes know within 2 seconds.")


@router.post("/{callback_id}/remove")
async def remove(request: Request, visit: Operator, callback_id: str, confirm: Text = "") -> Response:
    """What waits for a retry there is dropped."""
    tenancy = await tenancy_of(request, visit)
    if confirm != "remove":
        found = await _endpoint(request, visit, callback_id)
        return await _endpoint_page(request, visit, found, unconfirmed="Type remove exactly.")
    await backend_of(request).delete(visit, f"/v1/callbacks/{callback_id}", tenant=tenancy.tenant)
    return redirect(tenancy.url("/console/callbacks"), "The endpoint is removed.")


async def _endpoint(request: Request, visit: Visit, callback_id: str) -> dict[str, Any]:
    tenancy = await tenancy_of(request, visit)
    return await backend_of(request).get(visit, f"/v1/callbacks/{callback_id}", tenant=tenancy.tenant)


async def _values(request: Request) -> dict[str, Any]:
    form = await request.form()
    return {
        "url": str(form.get("url", "")).strip(),
        "events": [str(kind) for kind in form.getlist("events")],
        "enabled": bool(form.get("enabled")),
    }


async def _endpoint_page(
    request: Request,
    visit: Visit,
    values: dict[str, Any],
    error: ApiError | None = None,
    *,
    unconfirmed: str = "",
) -> Response:
    return render(
        request,
        "callbacks/endpoint.html",
        status=error.status if error else 422 if unconfirmed else 200,
        tenancy=await tenancy_of(request, visit),
        values={"id": "", "disabled_reason": ""} | values,
        kinds=KINDS,
        problem=error.problem if error else None,
        errors=error.fields if error else {},
        unconfirmed=unconfirmed,
    )
