"""Every call that changes something is written down here, in one place, with what came of it; and `GET /v1/audit` reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.api.auth import Caller, administrator, caller_of
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.reading import services_of, time_of
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.domain.audit import AuditFilter, Entry, Outcome
from controlplane.errors import StoreUnavailableError

__all__ = ["Audited", "note", "router"]

_log = structlog.get_logger()
router = APIRouter(prefix="/v1/audit", tags=["audit"])

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_CHANGE = re.compile(r"/v1/(route-searches|texts|batch-jobs/[^/]+/preview|operations/claim|operations/[^/]+/report)")
"""The last two come every few seconds; what came of them is written down by themselves."""
_MESSAGE_PATH = re.compile(r"/v1/(messages|batches)(/[^/]+/(feedback|cancel|resend))?")
"""Has a timeline of its own, which names nobody: calls of people are written down all the same."""
_HOT = {"/v1/messages": "sendMessage", "/v1/batches": "sendBatch"}
_KEPT = 65_536
_NUMBER = re.compile(r"\+?[\d ().-]{6,}")


def note(request: Request, detail: str) -> None:
    """Some words for the entry of this call: what was changed into what. No number, no text, no secret."""
    request.state.audit_detail = detail


class Audited:
    """Raw ASGI, inside the envelope. The entry is written before the caller has the answer."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        caller = self._actor(scope)
        if caller is None:
            await self._app(scope, receive, send)
            return
        head: list[Message] = []
        body = bytearray()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.append(message)
                return
            body.extend(message.get("body", b"")[: _KEPT - len(body)])
            if head:
                status = head[0]["status"]
                if not message.get("more_body", False):
                    await self._write(caller, scope, status, bytes(body))
                await send(head.pop())
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            await self._write(caller, scope, 500, b"")
            raise

    def _actor(self, scope: Scope) -> Caller | None:
        """Whose act is to be written down; None for what changes nothing, or comes from nobody who is known."""
        path: str = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] in _SAFE or not path.startswith("/v1/"):
            return None
        if _NO_CHANGE.fullmatch(path):
            return None
        caller = caller_of(self._services, Headers(scope=scope).get("authorization"), path)
        if caller is None or (_MESSAGE_PATH.fullmatch(path) and not caller.person):
            return None
        return caller

    async def _write(self, caller: Caller, scope: Scope, status: int, body: bytes) -> None:
        answer = _document(body)
        path: str = scope["path"]
        route = scope.get("route")
        action = _HOT.get(path) or getattr(route, "operation_id", None)
        if not action or (path in _HOT and status == 200):  # nothing there, or a dry run
            return
        state: Mapping[str, Any] = scope.get("state", {})
        entry = Entry(
            actor=caller.key.id,
            action=action,
            object=_object(scope, answer),
            outcome=Outcome.DONE if status < 400 else Outcome.REFUSED if status < 500 else Outcome.FAILED,
            tenant="" if caller.everywhere or caller.admin else caller.tenant.id,
            address=scope["client"][0] if scope.get("client") else "",
            rid=str(state.get("request_id", "")),
            detail=str(state.get("audit_detail", "")) or str(answer.get("type", "")).rpartition("/problems/")[2],
        )
        try:
            await self._services.audit.append(entry)
        except StoreUnavailableError as error:
            # The change is made, or MongoDB is away for it too: the log is the second place that an entry can be found in.
            _log.error("audit_not_written", reason=str(error)[:200], **asdict(entry))


def _document(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _object(scope: Scope, answer: Mapping[str, Any]) -> str:
    """`<collection>/<id>`, whatever is done to a part of it; for something new, with the id that the answer gives it. What looks like a number is left out."""
    collection = str(scope["path"]).split("/")[2]
    name = next(iter(scope.get("path_params", {}).values()), None) or answer.get("id") or answer.get("name")
    if not isinstance(name, str):
        return collection
    return f"{collection}/{'…' if _NUMBER.fullmatch(name) else name}"[:200]


def _view(entry: Entry) -> dict[str, Any]:
    view = {name: value for name, value in asdict(entry).items() if name != "rid"}
    return view | {"at": iso(entry.at), "request_id": entry.rid}


@router.get("", operation_id="listAudit", summary="Who did what")
async def list_audit(
    request: Request,
    _caller: Annotated[Caller, Depends(administrator)],
    actor: Annotated[str, Query(max_length=100, description="`person:<name>`, or the id of an API key.")] = "",
    action: Annotated[str, Query(max_length=100, description="`login`, `createKey` …")] = "",
    object_: Annotated[str, Query(alias="object", max_length=200, description="`keys/key_…`")] = "",
    outcome: Annotated[Outcome | None, Query()] = None,
    since: Annotated[str | None, Query(description="RFC 3339: from then on.")] = None,
    until: Annotated[str | None, Query(description="RFC 3339: before then.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """Newest first. Follow `next` until it is null."""
    services = services_of(request)
    wanted = AuditFilter(
        actor=actor,
        action=action,
        object=object_,
        outcome=outcome.value if outcome else "",
        since=time_of("/since", since),
        until=time_of("/until", until),
    )
    context = f"audit\x00{json.dumps(asdict(wanted), sort_keys=True)}"
    secret = services.settings.secret
    before = open_cursor(secret, context, cursor) if cursor else None
    entries = await services.audit.page(wanted, before=before, limit=limit)
    more = seal_cursor(secret, context, entries[-1].id) if len(entries) == limit else None
    return {"data": [_view(entry) for entry in entries], "next": more}
