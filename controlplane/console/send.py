"""Writing one message: what the text becomes while it is typed, which route it would take at what price, and then sending it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render, zone_of
from controlplane.console.identity import Visit, allows
from controlplane.console.tenancy import tenancy_of
from controlplane.domain.catalog import MessageClass
from controlplane.domain.people import Role
from controlplane.ids import token

__all__ = ["router"]

router = APIRouter(prefix="/send")

Sender = Annotated[Visit, Depends(allows(Role.SENDER))]
_FIELDS = ("to", "from", "class", "body", "send_at", "reference")
_CLASSES = (
    (MessageClass.TRANSACTIONAL.value, "transactional: about something that was asked for"),
    (MessageClass.OTP.value, "otp: a one-time password"),
    (MessageClass.MARKETING.value, "marketing"),
)


@dataclass(slots=True)
class _Preview:
    """What would become of the message; each as far as it could be found out."""

    text: dict[str, Any] | None = None
    pieces: list[tuple[str, dict[str, Any] | None]] | None = None
    """The text in pieces: (words, None), or (one character, why GSM 7-bit has it not)."""
    message: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    routes: dict[str, Any] | None = None


@router.get("")
async def show_form(request: Request, visit: Sender) -> Response:
    """Empty, or with what the query says (`to`, `body` …)."""
    values = {name: request.query_params.get(name, "")[:2_000] for name in _FIELDS}
    return await _page(request, visit, values, _Preview())


@router.post("/check")
async def check(request: Request, visit: Sender) -> Response:
    """The preview alone for htmx; else the page with it. Nothing is sent."""
    form = await request.form()
    values = _values(form)
    return await _page(request, visit, values, await _look(request, visit, values), key=str(form.get("key", "")))


@router.post("/smart")
async def smart(request: Request, visit: Sender) -> Response:
    """The page, with typographic characters replaced that alone would force UCS-2."""
    form = await request.form()
    values = _values(form)
    tenancy = await tenancy_of(request, visit)
    asked = {"body": values["body"], "smart_encoding": True}
    values["body"] = (await backend_of(request).post(visit, "/v1/texts", asked, tenant=tenancy.tenant))["body"]
    return await _page(request, visit, values, await _look(request, visit, values), key=str(form.get("key", "")))


@router.post("")
async def send(request: Request, visit: Sender) -> Response:
    """Accepts it, and shows its timeline. The form has an Idempotency-Key: sent twice, it is one message."""
    form = await request.form()
    values = _values(form)
    key = str(form.get("key", "")) or token("form")
    tenancy = await tenancy_of(request, visit)
    try:
        body = _body(values, zone_of(visit.look))
        made = await backend_of(request).post(
            visit, "/v1/messages", body, tenant=tenancy.tenant, headers={"idempotency-key": key}
        )
    except ValueError as error:
        return await _page(request, visit, values, _Preview(), errors={"send_at": str(error)}, status=422)
    except ApiError as error:
        return await _page(
            request, visit, values, _Preview(), problem=error.problem, errors=error.fields, status=error.status
        )
    if made["id"] is None:
        return await _page(request, visit, values, await _look(request, visit, values))
    return redirect(f"/console/messages/{made['id']}", "Accepted: it is durable, and on its way.")


async def _page(
    request: Request,
    visit: Visit,
    values: dict[str, str],
    preview: _Preview,
    *,
    key: str = "",
    problem: dict[str, Any] | None = None,
    errors: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    return render(
        request,
        "send/form.html",
        fragment="preview",
        status=status,
        tenancy=await tenancy_of(request, visit),
        values=values,
        classes=_CLASSES,
        preview=preview,
        key=key or token("form"),
        problem=problem,
        errors=errors or {},
    )


def _values(form: FormData) -> dict[str, str]:
    """A browser sends line ends as CR LF; on the air one LF is enough, and that is what the counter counts."""
    return {name: str(form.get(name, "")).replace("\r\n", "\n") for name in _FIELDS}


def _body(values: dict[str, str], zone: ZoneInfo) -> dict[str, str]:
    """The API's request. ValueError for a time that is none."""
    body = {name: value if name == "body" else value.strip() for name, value in values.items()}
    if body["send_at"]:
        try:
            body["send_at"] = datetime.fromisoformat(body["send_at"]).replace(tzinfo=zone).isoformat()
        except ValueError:
            raise ValueError("is no time; it is written like 2030-01-31T09:00") from None
    return {name: value for name, value in body.items() if value}


async def _look(request: Request, visit: Visit, values: dict[str, str]) -> _Preview:
    """Asks the API what would become of it."""
    backend, preview = backend_of(request), _Preview()
    tenant = (await tenancy_of(request, visit)).tenant
    if not values["body"]:
        return preview
    try:
        preview.text = await backend.post(visit, "/v1/texts", {"body": values["body"]}, tenant=tenant)
        preview.pieces = list(_pieces(values["body"], preview.text["offending"]))
        if values["to"].strip():
            body = _body(values, zone_of(visit.look))
            search = {name: body[name] for name in ("to", "from", "class", "body") if name in body}
            preview.routes = await backend.post(visit, "/v1/route-searches", search, tenant=tenant)
            if preview.routes["chosen"]:
                preview.message = await backend.post(visit, "/v1/messages", {**body, "dry_run": True}, tenant=tenant)
    except ApiError as error:
        preview.problem = error.problem
    except ValueError as error:
        preview.problem = {"title": "When to send it", "detail": str(error)}
    return preview


def _pieces(body: str, offending: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any] | None]]:
    pieces: list[tuple[str, dict[str, Any] | None]] = []
    end = 0
    for item in offending:
        pieces += [(body[end : item["position"]], None), (item["character"], item)]
        end = item["position"] + 1
    return [piece for piece in [*pieces, (body[end:], None)] if piece[0]]
