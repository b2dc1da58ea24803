"""Alerts: what is wrong with this datacenter's deployment, what to do, and who has taken it on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.auth import Caller, requires
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.nodes import overseer
from controlplane.api.reading import services_of
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.domain.alerts import Alert, Change
from controlplane.domain.catalog import Scope
from controlplane.errors import Problem

__all__ = ["router"]

router = APIRouter(prefix="/v1/alerts", tags=["alerts"])

Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
Overseer = Annotated[Caller, Depends(overseer)]
Status = Literal["firing", "acknowledged", "silenced", "resolved"]
_ORDER = {"firing": 0, "acknowledged": 1, "silenced": 2, "resolved": 3}


class Acknowledgement(BaseModel):
    """Somebody is at it."""

    model_config = ConfigDict(extra="forbid")
    note: Annotated[str, Field(max_length=500, description="What is being done.")] = ""


class Silence(BaseModel):
    """Nobody needs to hear of it for a while."""

    model_config = ConfigDict(extra="forbid")
    reason: Annotated[str, Field(min_length=3, max_length=500)]
    minutes: Annotated[int, Field(ge=1, le=43_200, description="For so long; at most 30 days.")]


def _status(alert: Alert, now_ms: int) -> str:
    if alert.state != "firing":
        return "resolved"
    if _silence(alert, now_ms):
        return "silenced"
    return "acknowledged" if alert.acknowledged else "firing"


def _silence(alert: Alert, now_ms: int) -> dict[str, Any] | None:
    """The silence that holds now."""
    return alert.silenced if alert.silenced and alert.silenced["until"] > now_ms else None


def _view(alert: Alert, now_ms: int) -> dict[str, Any]:
    silence, acknowledged = _silence(alert, now_ms), alert.acknowledged
    return {
        "id": alert.id,
        "kind": alert.kind,
        "subject": alert.subject,
        "severity": alert.severity,
        "status": _status(alert, now_ms),
        "what": alert.what,
        "next_step": alert.next_step,
        "tenant": alert.tenant or None,
        "since": iso(alert.since),
        "fired_at": iso(alert.fired_at) if alert.fired_at is not None else None,
        "last_seen": iso(alert.last_seen),
        "resolved_at": iso(alert.resolved_at) if alert.resolved_at is not None else None,
        "acknowledged": acknowledged and acknowledged | {"at": iso(acknowledged["at"])},
        "silenced": silence and silence | {"at": iso(silence["at"]), "until": iso(silence["until"])},
    }


@router.get("", operation_id="listAlerts", summary="What is wrong now, and what was")
async def list_alerts(
    request: Request,
    _caller: Overseer,
    status: Annotated[Status | None, Query(description="Only those with this status.")] = None,
) -> dict[str, Any]:
    """The worst first. One node evaluates them every ten seconds: `evaluated_at` says when it last did. Resolved ones are kept for 90 days."""
    services = services_of(request)
    now = services.clock.now_ms()
    shown = [_view(alert, now) for alert in await services.watch.alerts.all() if alert.fired_at is not None]
    shown.sort(key=lambda alert: (_ORDER[alert["status"]], alert["severity"], alert["id"]))
    last = await services.watch.alerts.last_round()
    counts = dict.fromkeys(_ORDER, 0)
    for alert in shown:
        counts[alert["status"]] += 1
    return {
        "datacenter": services.settings.datacenter,
        "evaluated_at": iso(int(last[0].timestamp() * 1000)) if last else None,
        "evaluated_by": last[1] if last else None,
        "counts": counts,
        "data": [alert for alert in shown if status in (None, alert["status"])],
    }


@router.get("/history", operation_id="listAlertHistory", summary="When alerts fired and ended, and who did what")
async def list_history(
    request: Request,
    _caller: Overseer,
    alert: Annotated[str | None, Query(max_length=300, description="Only this one's.")] = None,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """Newest first; kept for 90 days. `what` is fired, resolved, acknowledged, unacknowledged, silenced or unsilenced."""
    services = services_of(request)
    secret, context = services.settings.secret, f"alert-history|{alert}"
    before = open_cursor(secret, context, cursor) if cursor else None
    lines = await services.watch.alerts.history(alert, before, limit)
    return {
        "data": [line | {"at": iso(line["at"])} for line in lines],
        "next": seal_cursor(secret, context, lines[-1]["id"]) if len(lines) == limit else None,
    }


@router.get("/{alert_id:path}", operation_id="getAlert", summary="One alert")
async def get_alert(request: Request, alert_id: str, _caller: Overseer) -> dict[str, Any]:
    """Its id is `<kind>:<subject>`."""
    services = services_of(request)
    return _view(await _alert(services, alert_id), services.clock.now_ms())


@router.post("/{alert_id:path}/acknowledge", operation_id="acknowledgeAlert", summary="Say that somebody is at it")
async def acknowledge(request: Request, alert_id: str, body: Acknowledgement, caller: Admin) -> dict[str, Any]:
    """Until it is resolved."""
    services = services_of(request)
    now = services.clock.now_ms()
    if (await _alert(services, alert_id)).state != "firing":
        raise Problem(
            "not-firing", "Not firing", 409, f"The alert {alert_id[:200]!r} is over.", "Nothing: there is nothing to take on."
        )  # fmt: skip
    taken = {"by": _who(caller), "at": now, "note": body.note}
    return await _tell(
        services, alert_id, "acknowledged", taken, Change(alert_id, "acknowledged", now, ""), caller, body.note
    )


@router.delete("/{alert_id:path}/acknowledge", operation_id="unacknowledgeAlert", summary="Give it back")
async def unacknowledge(request: Request, alert_id: str, caller: Admin) -> dict[str, Any]:
    """Nobody is at it any more."""
    services = services_of(request)
    line = Change(alert_id, "unacknowledged", services.clock.now_ms(), "")
    return await _tell(services, alert_id, "acknowledged", None, line, caller, "")


@router.post("/{alert_id:path}/silence", operation_id="silenceAlert", summary="Silence an alert for a while")
async def silence(request: Request, alert_id: str, body: Silence, caller: Admin) -> dict[str, Any]:
    """Also for one that is resolved, before work that would fire it again."""
    services = services_of(request)
    now = services.clock.now_ms()
    quiet = {"by": _who(caller), "at": now, "until": now + body.minutes * 60_000, "reason": body.reason}
    line = Change(alert_id, "silenced", now, f"for {body.minutes} min")
    return await _tell(services, alert_id, "silenced", quiet, line, caller, body.reason)


@router.delete("/{alert_id:path}/silence", operation_id="unsilenceAlert", summary="Lift a silence")
async def unsilence(request: Request, alert_id: str, caller: Admin) -> dict[str, Any]:
    """It counts again at once."""
    services = services_of(request)
    line = Change(alert_id, "unsilenced", services.clock.now_ms(), "")
    return await _tell(services, alert_id, "silenced", None, line, caller, "")


async def _alert(services: Services, identity: str) -> Alert:
    found = await services.watch.alerts.get(identity)
    if found is None or found.fired_at is None:
        raise _unknown(identity)
    return found


async def _tell(
    services: Services, identity: str, field: str, value: dict[str, Any] | None, line: Change, caller: Caller, note: str
) -> dict[str, Any]:
    await _alert(services, identity)
    found = await services.watch.alerts.tell(identity, field, value, line, _who(caller), note)
    if found is None:
        raise _unknown(identity)
    return _view(found, services.clock.now_ms())


def _who(caller: Caller) -> str:
    """The person, or the key's id."""
    return caller.person or caller.key.id


def _unknown(identity: str) -> Problem:
    return Problem(
        "not-found", "No such alert", 404, f"There is no alert {identity[:200]!r}.", "GET /v1/alerts lists them."
    )
