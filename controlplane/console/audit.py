"""Audit: who did what. The filters are the URL."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.audit import Outcome
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/audit")

_FILTERS = ("actor", "action", "object", "outcome", "since", "until")
_PAGE = 50


@router.get("")
async def show_audit(request: Request, visit: Annotated[Visit, Depends(allows(Role.ADMIN))]) -> Response:
    """A page of it, newest first."""
    given = request.query_params
    filters = {name: given.get(name, "").strip() for name in _FILTERS}
    asked = {name: value for name, value in filters.items() if value}
    errors: dict[str, str] = {}
    try:
        params = asked | {"limit": _PAGE, "cursor": given.get("cursor")}
        found = await backend_of(request).get(visit, "/v1/audit", params)
    except ApiError as error:
        if not error.fields.keys() & filters.keys():
            raise
        found, errors = {"data": [], "next": None}, error.fields
    return render(
        request,
        "audit/index.html",
        status=422 if errors else 200,
        errors=errors,
        entries=found["data"],
        filters=filters,
        outcomes=[("", "all"), *((one.value, one.value) for one in Outcome)],
        next_url=f"/console/audit?{urlencode(asked | {'cursor': found['next']})}" if found["next"] else "",
        first_url=f"/console/audit?{urlencode(asked)}" if "cursor" in given else "",
    )
