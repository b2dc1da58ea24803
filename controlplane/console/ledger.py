"""The ledger: how far each log is and who has it, what verification found, its entries one by one, and verification on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/ledger")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
_HOME = "/console/ledger"
_ENTRIES = 50


@router.get("")
async def show_ledger(request: Request, visit: Viewer) -> Response:
    """Watermarks, alarms, findings, scrub."""
    return await _page(request, visit)


async def _page(request: Request, visit: Visit, error: ApiError | None = None) -> Response:
    backend = backend_of(request)
    found = await backend.get(visit, "/v1/ledger")
    findings = (await backend.get(visit, "/v1/ledger/findings"))["data"]
    return render(
        request,
        "ledger/index.html",
        status=error.status if error else 200,
        problem=error.problem if error else None,
        ledger=found,
        logs=[_log(log) for log in found["logs"]],
        findings=findings,
        may_repair=visit.role >= Role.OPERATOR and not visit.tenant,
    )


def _log(log: Mapping[str, Any]) -> dict[str, Any]:
    path = f"{_HOME}/logs/{quote(log['datacenter'], safe='')}/{quote(log['log'], safe='')}"
    return {**log, "url": path, "tone": {"open": "good", "frozen": "bad"}.get(log["state"], "plain")}


@router.post("/repairs")
async def ask_repair(request: Request, visit: Operator, change: Annotated[str, Form()] = "") -> Response:
    """Verify everything; with `change` mend what can be mended."""
    try:
        asked = await backend_of(request).post(visit, "/v1/ledger/repairs", {"dry_run": not change})
    except ApiError as error:
        return await _page(request, visit, error)
    return redirect(f"{_HOME}/repairs/{asked['id']}", "It is asked for; the ledger that leads does it.")


@router.get("/repairs/{repair_id}")
async def show_repair(request: Request, visit: Viewer, repair_id: str) -> Response:
    """What became of it."""
    found = await backend_of(request).get(visit, f"/v1/ledger/repairs/{repair_id[:64]}")
    known = ("id", "state", "at", "dry_run", "by")
    report = {name: value for name, value in found.items() if name not in known}
    return render(request, "ledger/repair.html", repair=found, report=report)


@router.get("/proof")
async def find_proof(_visit: Viewer, message: Annotated[str, Query(max_length=64)] = "") -> Response:
    """The form's message as an address."""
    return redirect(f"{_HOME}/proof/{quote(message.strip(), safe='')}" if message.strip() else _HOME)


@router.get("/logs/{dc}/{log}")
async def browse(
    request: Request, visit: Viewer, dc: str, log: str, before: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """Entries, newest first."""
    path = f"/v1/ledger/logs/{dc[:64]}/{log[:64]}/entries"
    page = await backend_of(request).get(visit, path, {"before": before, "limit": _ENTRIES})
    here = f"{_HOME}/logs/{quote(dc, safe='')}/{quote(log, safe='')}"
    return render(
        request,
        "ledger/entries.html",
        page=page,
        rows=page["data"],
        next=f"{here}?{urlencode({'before': page['next']})}" if page["next"] else "",
        first=here if before is not None else "",
    )
