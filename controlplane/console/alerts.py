"""Alerts: what is firing and what to do, who has taken it on, silences, and what was. The on-call screen: everything works on a phone."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/alerts")

Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
Text = Annotated[str, Form()]
_TABS = (("firing", "Firing"), ("acknowledged", "Taken on"), ("silenced", "Silenced"), ("resolved", "Over"))
_SILENCES = (("60", "an hour"), ("240", "4 hours"), ("1440", "a day"), ("10080", "a week"))
_PAGE = 50


@router.get("")
async def list_alerts(request: Request, visit: Operator, status: str = "firing") -> Response:
    """By status; the number of each is on its tab."""
    chosen = status if status in dict(_TABS) else "firing"
    found = await backend_of(request).get(visit, "/v1/alerts", {"status": chosen})
    return render(request, "alerts/list.html", found=found, tabs=_TABS, chosen=chosen, path=_path)


@router.get("/-/history")
async def show_history(request: Request, visit: Operator, alert: str = "", cursor: str = "") -> Response:
    """When alerts fired and ended, and who did what."""
    query = {"alert": alert, "limit": _PAGE, "cursor": cursor}
    found = await backend_of(request).get(visit, "/v1/alerts/history", query)
    kept = {"alert": alert} if alert else {}
    return render(
        request,
        "alerts/history.html",
        lines=found["data"],
        alert=alert,
        path=_path,
        next_url=f"/console/alerts/-/history?{urlencode(kept | {'cursor': found['next']})}" if found["next"] else "",
        first_url=f"/console/alerts/-/history?{urlencode(kept)}" if cursor else "",
    )


@router.get("/one/{alert_id:path}")
async def show_alert(request: Request, visit: Operator, alert_id: str) -> Response:
    """One alert with what may be done about it."""
    return await _page(request, visit, alert_id)


@router.post("/acknowledge/{alert_id:path}")
async def acknowledge(request: Request, visit: Operator, alert_id: str, note: Text = "") -> Response:
    """I am at it."""
    return await _act(request, visit, alert_id, "acknowledge", {"note": note}, "It is yours.")


@router.post("/give-back/{alert_id:path}")
async def give_back(request: Request, visit: Operator, alert_id: str) -> Response:
    """I am not at it any more."""
    await backend_of(request).delete(visit, f"/v1/alerts/{alert_id}/acknowledge")
    return redirect(_path(alert_id), "It is given back.")


@router.post("/silence/{alert_id:path}")
async def silence(
    request: Request, visit: Operator, alert_id: str, reason: Text = "", minutes: Text = "60"
) -> Response:
    """For a while."""
    body = {"reason": reason, "minutes": int(minutes) if minutes.isdecimal() else minutes}
    return await _act(request, visit, alert_id, "silence", body, "It is silent.")


@router.post("/unsilence/{alert_id:path}")
async def unsilence(request: Request, visit: Operator, alert_id: str) -> Response:
    """It counts again."""
    await backend_of(request).delete(visit, f"/v1/alerts/{alert_id}/silence")
    return redirect(_path(alert_id), "It counts again.")


async def _act(request: Request, visit: Visit, alert_id: str, verb: str, body: dict[str, Any], said: str) -> Response:
    try:
        await backend_of(request).post(visit, f"/v1/alerts/{alert_id}/{verb}", body)
    except ApiError as error:
        if error.status == 404:
            raise
        return await _page(request, visit, alert_id, error, {**body, "verb": verb})
    return redirect(_path(alert_id), said)


async def _page(
    request: Request, visit: Visit, alert_id: str, error: ApiError | None = None, given: dict[str, Any] | None = None
) -> Response:
    backend = backend_of(request)
    alert = await backend.get(visit, f"/v1/alerts/{alert_id}")
    history = (await backend.get(visit, "/v1/alerts/history", {"alert": alert_id, "limit": 20}))["data"]
    return render(
        request,
        "alerts/alert.html",
        status=422 if error else 200,
        alert=alert,
        history=history,
        link=_subject(alert),
        given=given or {},
        errors=error.fields if error else {},
        problem=error.problem if error and not error.fields else None,
        silences=_SILENCES,
        act=lambda verb: f"/console/alerts/{verb}/{quote(alert_id)}",
    )


def _path(alert_id: str) -> str:
    return f"/console/alerts/one/{quote(alert_id)}"


def _subject(alert: dict[str, Any]) -> tuple[str, str] | None:
    """Where what it is about is shown: (path, title)."""
    kind, subject = alert["kind"], quote(alert["subject"].partition("/")[0])
    if kind in ("connector-down", "bind-down", "submit-errors", "queue-waits"):
        return f"/console/connectors/{subject}", f"Connector {alert['subject']}"
    if kind in ("route-held-back", "delivery-fell"):
        return f"/console/routes/{subject}", f"Route {alert['subject']}"
    if kind.startswith(("node-", "mongodb-", "former-")):
        return "/console/regions", "Nodes and MongoDB"
    if kind == "ledger":
        return "/console/ledger", "Ledger"
    return ("/console/callbacks", "Callbacks") if kind.startswith("callback") else None
