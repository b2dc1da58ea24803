"""Messages: searched, looked through, exported. A list is its URL: `q` is the query that the search box writes, and the form writes the same one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from markupsafe import Markup
from starlette.responses import Response

from controlplane.console.backend import ApiError, Backend
from controlplane.console.frame import backend_of, redirect, refused, render
from controlplane.console.identity import Visit, allows
from controlplane.console.live import Live
from controlplane.console.trail import record
from controlplane.domain.catalog import MessageClass
from controlplane.domain.message import Status
from controlplane.domain.people import Role
from controlplane.domain.query import TOPICS, terms, written

__all__ = ["router"]

router = APIRouter(prefix="/messages")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
_HOME = "/console/messages"
_LIMIT = 50
_NEW = 100
"""As many as are counted; from then on it says “100 or more”."""
_LIVE_SECONDS = 3.0
_DIRECTIONS = (("", "Sent"), ("in", "From phones"), ("any", "Both"))


@router.get("")
async def list_messages(
    request: Request,
    visit: Viewer,
    q: Annotated[str, Query(max_length=2_000)] = "",
    cursor: Annotated[str, Query(max_length=500)] = "",
) -> Response:
    """A page of them, newest first."""
    q = q.strip()
    try:
        page = await backend_of(request).get(visit, "/v1/messages", {"q": q, "cursor": cursor, "limit": _LIMIT})
    except ApiError as error:
        if error.status != 422 or "cursor" in error.fields:
            raise
        return _page(request, visit, q, None, error=error.fields.get("q", str(error.problem.get("detail", ""))))
    return _page(request, visit, q, page, first=not cursor)


def _page(
    request: Request, visit: Visit, q: str, page: Mapping[str, Any] | None, *, first: bool = True, error: str = ""
) -> Response:
    filters, rest = terms(q)
    rows = page["data"] if page else []
    return render(
        request,
        "messages/list.html",
        status=422 if error else 200,
        q=q,
        error=error,
        rows=rows,
        next=_url(q, cursor=page["next"]) if page and page["next"] else "",
        first="" if first else _url(q),
        newest=rows[0]["accepted_at"] if first and rows else "",
        live=_url(q, "/live") if first and page else "",
        filters=filters,
        rest=rest,
        chosen=[item.strip() for item in filters.get("status", "").lower().split(",")],
        statuses=[status.value for status in Status],
        classes=[("", "Any"), *((cls.value, cls.value) for cls in MessageClass)],
        directions=_DIRECTIONS,
        topics=TOPICS,
        tenants=not visit.tenant,
        indexed_until=page["indexed_until"] if page else None,
        may_send=visit.role >= Role.SENDER,
    )


def _url(q: str, path: str = "", **more: str) -> str:
    given = {name: value for name, value in {"q": q, **more}.items() if value}
    return f"{_HOME}{path}" + (f"?{urlencode(given)}" if given else "")


@router.get("/filter")
async def write_query(request: Request, _visit: Viewer) -> Response:
    """The form's fields as a query: the list's URL."""
    given = request.query_params
    filters = {name: ",".join(given.getlist(name)) if name == "status" else given.get(name, "") for name in TOPICS}
    return redirect(_url(written(filters, given.get("text", ""))[:2_000]))


@router.get("/live")
async def follow(request: Request, visit: Viewer, q: Annotated[str, Query(max_length=2_000)] = "") -> Response:
    """When the newest ones were accepted: each tab counts by itself those that it does not show yet, so all tabs with one query share one question."""
    live: Live = request.app.state.live
    backend = backend_of(request)
    key = ("messages", visit.tenant, visit.role, q)
    return live.stream(request, key, lambda: _newest(backend, visit, q), _LIVE_SECONDS)


async def _newest(backend: Backend, visit: Visit, q: str) -> str:
    page = await backend.get(visit, "/v1/messages", {"q": q, "limit": _NEW})
    times = " ".join(str(_ms(row["accepted_at"])) for row in page["data"])
    return Markup('<a class="button hidden" data-times="{}" href="{}"></a>').format(times, _url(q))


def _ms(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)


@router.post("/export")
async def export(request: Request, visit: Viewer, q: Annotated[str, Form(max_length=2_000)] = "") -> Response:
    """The list as CSV, with numbers and texts: so it is written down who took it."""
    filters = ", ".join(sorted(terms(q)[0]))
    await record(request, visit.person, "exportMessages", tenant=visit.tenant, detail=f"filters: {filters or 'none'}")
    return backend_of(request).download(visit, "/v1/messages.csv", {"q": q}, lambda error: refused(request, error))
