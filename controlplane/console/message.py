"""One message: what became of it and why, in words, and what can be done with it. Number and text are shown on request, which is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request
from markupsafe import Markup
from starlette.responses import Response

from controlplane.console.backend import ApiError, Backend
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.live import Live
from controlplane.console.trail import record
from controlplane.domain.message import FINAL, Status
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/messages/{mid}")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
Sender = Annotated[Visit, Depends(allows(Role.SENDER))]
_CANCELLABLE = frozenset({Status.SCHEDULED, Status.ACCEPTED, Status.QUEUED})
_RESENDABLE = frozenset({Status.UNDELIVERED, Status.FAILED, Status.EXPIRED, Status.CANCELLED, Status.UNKNOWN})
_TROUBLE = frozenset({Status.UNDELIVERED, Status.FAILED, Status.EXPIRED, Status.UNKNOWN, Status.QUEUED})
_WORD = "erase"
_LIVE_SECONDS = 2.0
_TONES = {
    "delivered": "good",
    "received": "good",
    "submitted": "busy",
    "accepted": "busy",
    "enroute": "busy",
    "undelivered": "bad",
    "failed": "bad",
    "expired": "bad",
    "unknown": "warn",
    "rerouted": "warn",
    "deferred": "warn",
    "gap": "warn",
}
_DETAILS = ("route", "reason", "node", "datacenter")


@router.get("")
async def show_message(request: Request, visit: Viewer, mid: str) -> Response:
    """Masked."""
    return await _page(request, visit, mid)


@router.post("/reveal")
async def reveal(request: Request, visit: Viewer, mid: str) -> Response:
    """The same page with number, text and what the carrier wrote, this once."""
    message = await backend_of(request).get(visit, _api(mid))
    await record(request, visit.person, "revealMessage", f"messages/{mid}", tenant=message["tenant"])
    answer = await _page(request, visit, mid, revealed=True)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("/live")
async def follow(request: Request, visit: Viewer, mid: str, seen: Annotated[int, Query(ge=0)] = 0) -> Response:
    """A line once more has happened than the page shows; a page that nobody has in hand shows it by itself."""
    live: Live = request.app.state.live
    backend = backend_of(request)
    key = ("message", visit.tenant, visit.role, mid, seen)
    return live.stream(request, key, lambda: _news(backend, visit, mid, seen), _LIVE_SECONDS)


async def _news(backend: Backend, visit: Visit, mid: str, seen: int) -> str:
    message = await backend.get(visit, _api(mid))
    more = len(message["timeline"]) - seen
    if more <= 0:
        return ""
    return Markup('<span>Now <b>{}</b>.</span> <a class="button" href="{}" data-anew>Show what is new ({})</a>').format(
        message["status"], _here(mid), more
    )


@router.post("/cancel")
async def cancel(request: Request, visit: Sender, mid: str) -> Response:
    """Before it is on its way."""
    try:
        await backend_of(request).post(visit, f"{_api(mid)}/cancel")
    except ApiError as error:
        return await _page(request, visit, mid, error=error)
    return redirect(_here(mid), "It is cancelled.")


@router.post("/resend")
async def resend(request: Request, visit: Sender, mid: str, even: Annotated[str, Form()] = "") -> Response:
    """The same to the same recipient, as a new message."""
    backend = backend_of(request)
    message = await backend.get(visit, _api(mid))
    body = {"even_if_unknown": bool(even)}
    try:
        made = await backend.post(visit, f"{_api(mid)}/resend", body, tenant=message["tenant"])
    except ApiError as error:
        return await _page(request, visit, mid, error=error)
    return redirect(_here(made["id"]), "This is the new message.")


@router.post("/erase")
async def erase(request: Request, visit: Sender, mid: str, confirm: Annotated[str, Form()] = "") -> Response:
    """Recipient, sender and text, for good."""
    if confirm.strip().lower() != _WORD:
        return await _page(request, visit, mid, unconfirmed=f"Type {_WORD} to confirm.")
    try:
        await backend_of(request).delete(visit, f"{_api(mid)}/content")
    except ApiError as error:
        return await _page(request, visit, mid, error=error)
    return redirect(_here(mid), "Recipient, sender and text are erased; the proof stays.")


def _api(mid: str) -> str:
    return f"/v1/messages/{mid[:64]}"


def _here(mid: str) -> str:
    return f"/console/messages/{quote(mid, safe='')}"


# -- the page ------------------------------------------------------------------------------------------------------------


async def _page(
    request: Request,
    visit: Visit,
    mid: str,
    *,
    revealed: bool = False,
    error: ApiError | None = None,
    unconfirmed: str = "",
) -> Response:
    backend = backend_of(request)
    message = await backend.get(visit, _api(mid))
    status = Status(message["status"])
    steps = [_step(event, revealed=revealed) for event in message["timeline"]]
    inbound = message["direction"] == "inbound"
    return render(
        request,
        "message/message.html",
        status=422 if unconfirmed else error.status if error else 200,
        message=message,
        here=_here(mid),
        revealed=revealed and not message["erased"],
        problem=error.problem if error else None,
        unconfirmed=unconfirmed,
        word=_WORD,
        steps=steps,
        why=_why(steps) if status in _TROUBLE else "",
        callbacks=await _callbacks(backend, visit, message),
        live=f"{_here(mid)}/live?seen={len(message['timeline'])}" if status not in FINAL else "",
        proof=f"/console/ledger/proof/{quote(mid, safe='')}",
        may_write=visit.role >= Role.SENDER,
        cancellable=status in _CANCELLABLE,
        resendable=status in _RESENDABLE and not message["erased"] and not inbound,
        erasable=status in FINAL and not message["erased"],
        unknown_outcome=any(
            part["state"] not in ("pending", "undelivered", "expired") for part in message["part_states"]
        ),
    )


def _why(steps: Sequence[Mapping[str, Any]]) -> str:
    """What went wrong last, in words."""
    return next((str(step["text"]) for step in reversed(steps) if step["tone"] in ("bad", "warn")), "")


async def _callbacks(backend: Backend, visit: Visit, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    query = {"message": message["id"], "limit": 50}
    found = await backend.get(visit, "/v1/callbacks/deliveries", query, tenant=message["tenant"])
    attempts: list[dict[str, Any]] = found["data"]
    return attempts


def _step(event: Mapping[str, Any], *, revealed: bool) -> dict[str, Any]:
    """One event as the timeline shows it. What a carrier wrote may quote the text: only what is `revealed` has it."""
    raw: dict[str, Any] = {name: event[name] for name in _DETAILS if event.get(name)}
    receipt = event.get("receipt")
    if receipt:
        raw["receipt"] = {name: value for name, value in receipt.items() if revealed or name != "text"}
    return {
        "kind": event["kind"],
        "at": event["at"],
        "text": event["text"],
        "tone": _TONES.get(event["kind"], ""),
        "raw": json.dumps(raw, indent=1, ensure_ascii=False) if raw else "",
        "decision": event.get("decision"),
    }
