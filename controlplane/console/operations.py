"""Operations: what is done to the region now, what was, and asking for one. It runs where the region's stack is; this shows what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from controlplane.console.backend import ApiError, Backend
from controlplane.console.frame import Frame, backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.live import Live
from controlplane.domain.operations import KINDS
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/operations")

Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
_TONES = {"requested": "plain", "running": "busy", "cut": "bad", "done": "good", "failed": "bad", "canceled": "warn"}
_MOVING = frozenset({"requested", "running", "cut"})
_NEWEST = 40
_PAGE = 200
_LIVE_SECONDS = 2.0
_SAID = {
    "cancel": "It ends as soon as its agent hears of it.",
    "resume": "It goes on as soon as an agent takes it.",
    "abort": "What it owes is taken back as soon as an agent takes it.",
}


@router.get("")
async def list_operations(request: Request, visit: Operator, cursor: str = "") -> Response:
    """What is not finished first, with how far it is; then what was."""
    backend = backend_of(request)
    found = await backend.get(visit, "/v1/operations", {"cursor": cursor})
    current = [] if cursor else (await backend.get(visit, "/v1/operations", {"unfinished": "true"}))["data"]
    current.sort(key=lambda each: each["state"] != "running")
    shown = {each["id"] for each in current}
    return render(
        request,
        "operations/list.html",
        found=found,
        current=current,
        rows=[each for each in found["data"] if each["id"] not in shown],
        moving=any(each["state"] in _MOVING for each in current),
        tones=_TONES,
        seen=_seen,
        words=_words,
        next_url=f"/console/operations?cursor={found['next']}" if found["next"] else "",
        first_url="/console/operations" if cursor else "",
    )


@router.get("/-/new")
async def show_new(request: Request, _visit: Operator, kind: str = "") -> Response:
    """Which kinds there are, or what this one has to be told."""
    return await _form(request, kind, {})


@router.post("/-/new")
async def ask(request: Request, visit: Operator) -> Response:
    """What cannot be taken back needs the region's name."""
    form = await request.form()
    frame: Frame = request.app.state.frame
    kind, given = str(form.get("kind", "")), _given(form)
    known = KINDS.get(kind)
    if known is not None and known.irreversible and str(form.get("region", "")).strip() != frame.datacenter:
        return await _form(request, kind, given, unconfirmed=f"Type {frame.datacenter} exactly.")
    try:
        made = await backend_of(request).post(visit, "/v1/operations", {"kind": kind, "variables": given})
    except ApiError as error:
        return await _form(request, kind, given, error)
    return redirect(_here(made["id"]), "It is asked for.")


@router.get("/{operation_id}")
async def show_operation(request: Request, visit: Operator, operation_id: str) -> Response:
    """How far it is, what happened last, what it owes, and what may be done about it."""
    return await _page(request, visit, operation_id)


@router.get("/{operation_id}/live")
async def follow(request: Request, visit: Operator, operation_id: str, seen: str = "", brief: str = "") -> Response:
    """How far it is, whenever that changes; `seen` is what the page knows, which offers itself anew when that is over."""
    frame: Frame = request.app.state.frame
    live: Live = request.app.state.live
    backend, known = backend_of(request), seen[:40]

    async def ask() -> str:
        context = await _progress(backend, visit, operation_id, brief=bool(brief))
        return frame.html(request, "operations/progress.html", "", context | {"known": known})

    key = ("operation", operation_id, known, bool(brief), visit.look.time_zone)
    return live.stream(request, key, ask, _LIVE_SECONDS)


@router.get("/{operation_id}/events")
async def show_events(
    request: Request, visit: Operator, operation_id: str, after: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """All of them, in order."""
    backend = backend_of(request)
    operation = await backend.get(visit, f"/v1/operations/{operation_id}")
    found = await backend.get(visit, f"/v1/operations/{operation_id}/events", {"after": after, "limit": _PAGE})
    here = f"{_here(operation_id)}/events"
    return render(
        request,
        "operations/events.html",
        operation=operation,
        here=_here(operation_id),
        words=_words,
        events=found["data"],
        next_url=f"{here}?after={found['next']}" if found["next"] else "",
        first_url=here if after else "",
    )


@router.post("/{operation_id}/{verb}")
async def act(
    request: Request, visit: Operator, operation_id: str, verb: str, sure: Annotated[str, Form()] = ""
) -> Response:
    """cancel, resume or abort it; the first and the last want a tick."""
    if verb not in _SAID:
        return await _page(request, visit, operation_id, status=404)
    if verb != "resume" and not sure:
        return await _page(request, visit, operation_id, status=422, unconfirmed=verb)
    try:
        await backend_of(request).post(visit, f"/v1/operations/{operation_id}/{verb}")
    except ApiError as error:
        return await _page(request, visit, operation_id, status=error.status, error=error)
    return redirect(_here(operation_id), _SAID[verb])


async def _page(
    request: Request,
    visit: Visit,
    operation_id: str,
    *,
    status: int = 200,
    error: ApiError | None = None,
    unconfirmed: str = "",
) -> Response:
    backend = backend_of(request)
    context = await _progress(backend, visit, operation_id)
    operation = context["operation"]
    kind = KINDS.get(operation["kind"])
    return render(
        request,
        "operations/operation.html",
        status=status,
        **context,
        known=_seen(operation),
        moving=operation["state"] in _MOVING,
        does=kind.does if kind else "",
        problem=error.problem if error else None,
        unconfirmed=unconfirmed,
    )


async def _progress(backend: Backend, visit: Visit, operation_id: str, *, brief: bool = False) -> dict[str, Any]:
    """What `progress.html` shows."""
    path = f"/v1/operations/{operation_id}"
    operation = await backend.get(visit, path)
    events: list[Any] = []
    if not brief and operation["events"]:
        after = max(0, operation["events"] - _NEWEST)
        events = (await backend.get(visit, f"{path}/events", {"after": after, "limit": _NEWEST}))["data"]
    agent = (await backend.get(visit, "/v1/operations", {"limit": 1})) if operation["state"] == "requested" else {}
    return {
        "operation": operation,
        "events": events[::-1],
        "brief": brief,
        "nobody": agent.get("next_step"),
        "tones": _TONES,
        "seen": _seen,
        "words": _words,
        "here": _here(operation_id),
    }


async def _form(
    request: Request, kind: str, given: Mapping[str, str], error: ApiError | None = None, unconfirmed: str = ""
) -> Response:
    known = KINDS.get(kind)
    chosen = known if known is not None and known.asked else None
    return render(
        request,
        "operations/new.html" if chosen else "operations/kinds.html",
        status=422 if unconfirmed else error.status if error else 200,
        kinds=[each for each in KINDS.values() if each.asked],
        kind=chosen,
        given=given,
        errors=error.fields if error else {},
        problem=error.problem if error and not error.fields else None,
        unconfirmed=unconfirmed,
    )


def _given(form: FormData) -> dict[str, str]:
    """The variables that were filled in: `variables.scope`."""
    prefix = "variables."
    found = {name.removeprefix(prefix): str(value).strip() for name, value in form.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if value}


def _here(operation_id: str) -> str:
    return f"/console/operations/{operation_id}"


def _seen(operation: Mapping[str, Any]) -> str:
    """All that the parts of the page depend on that do not move by themselves."""
    return f"{operation['state']}-{'-'.join(operation['can'])}"


def _words(operation: Mapping[str, Any]) -> str:
    """As on the command line."""
    return " ".join([operation["kind"], *(f"{name}={value}" for name, value in operation["variables"].items())])
